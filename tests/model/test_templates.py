"""Chat templates: which tokens a policy is asked with, and that identities and results say so."""

import json
import shutil
from dataclasses import replace

import pytest
from tokenizers.processors import TemplateProcessing

from klsweep.cli import main
from klsweep.config.identity import base_eval_id
from klsweep.errors import BadInput
from klsweep.model.policy import load_policy
from klsweep.model.source import SHIPPED
from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import SweepFolder
from tests.conftest import FEW_PROMPTS, planned, small_spec
from tests.hub import CHAT

PLAIN = "{{ messages[-1]['content'] }}"
DATED = "{{ date_string }}|{{ messages | map(attribute='role') | join(',') }}|{{ add_generation_prompt }}"


@pytest.fixture(scope="module")
def policy():
    return load_policy(small_spec().model)


def asked(policy, template, system=None):
    return replace(policy, model=replace(policy.model, template=template, system=system))


def bos_tokenizer(policy):
    """The shipped tokenizer, made to put a beginning-of-sequence token before every text, as Llama's does."""
    tokenizer = type(policy.tokenizer).from_pretrained(SHIPPED["klsweep/tiny"], bos_token="<pad>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    return tokenizer


def test_without_a_template_the_prompt_is_the_tokenizers(policy):
    prompts = ["12+7=", "rev ab="]
    assert policy.encode(prompts) == policy.tokenizer(prompts)["input_ids"]
    assert asked(policy, PLAIN).encode(prompts) == policy.encode(prompts)


def test_a_template_is_filled_in_with_roles_date_and_system_message(policy):
    def text(template, system=None):
        return policy.tokenizer.decode(asked(policy, template, system).encode(["12+7="])[0])

    assert text(DATED) == "26 Jul 2024|user|True"
    assert text(DATED, "Be brief.") == "26 Jul 2024|system,user|True"
    assert text("{% for m in messages %}[{{ m.content }}]{% endfor %}", "Be brief.") == "[Be brief.][12+7=]"


def test_there_is_one_beginning_of_sequence_with_and_without_a_template(policy):
    llama = replace(policy, tokenizer=bos_tokenizer(policy))
    plain = llama.encode(["1+1="])[0]
    assert (plain[0], plain.count(0)) == (0, 1)
    templated = asked(llama, CHAT).encode(["1+1="])[0]
    assert (templated[0], templated.count(0)) == (0, 1)
    assert llama.tokenizer.decode(templated, skip_special_tokens=True) == "<user>1+1=<assistant>"


def test_answers_follow_a_space_unless_a_template_sets_them_apart(policy):
    llama = replace(policy, tokenizer=bos_tokenizer(policy))
    assert [llama.tokenizer.decode(ids) for ids in llama.encode_answers(["A", "two"])] == [" A", " two"]
    assert [llama.tokenizer.decode(ids) for ids in asked(llama, CHAT).encode_answers(["A", "two"])] == ["A", "two"]


def test_every_stop_id_of_a_generation_config_is_honoured(policy):
    before = policy.network.generation_config.eos_token_id
    try:
        policy.network.generation_config.eos_token_id = [5, 7, 5]
        assert policy.stop_ids == (1, 5, 7)
        policy.network.generation_config.eos_token_id = None
        assert policy.stop_ids == (1,)
    finally:
        policy.network.generation_config.eos_token_id = before


def test_the_tokenizers_template_wherever_it_is_kept(tmp_path):
    model = small_spec().model
    places = {
        "none": {},
        "settings": {"tokenizer_config.json": {"chat_template": CHAT}},
        "named": {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "x"}]}},
        "default": {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": CHAT}]}},
    }
    found = {}
    for name, files in places.items():
        shutil.copytree(SHIPPED["klsweep/tiny"], tmp_path / name)
        for file, content in files.items():
            (tmp_path / name / file).write_text(json.dumps(content))
        found[name] = replace(model, path=str(tmp_path / name), template="tokenizer")
    assert found["settings"].template_text() == found["default"].template_text() == CHAT
    for name in ("none", "named"):
        with pytest.raises(BadInput, match=r"model\.template=tokenizer: the tokenizer of .* has no chat template"):
            found[name].template_text()
    (tmp_path / "settings" / "chat_template.jinja").write_text("other")
    model_with_file = replace(found["default"], path=str(tmp_path / "settings"))
    from klsweep.model import source

    source._tokenizer_template.cache_clear()
    assert model_with_file.template_text() == "other"
    assert replace(model, template=CHAT).template_id() == found["default"].template_id() != None  # noqa: E711
    with pytest.raises(ValueError, match="needs a chat template"):
        replace(model, system="Be brief.")


def test_the_shipped_models_of_the_hub(hub):
    ids = {}
    for choice, template in (
        ("qwen2_5_7b", None),
        ("llama3_1_8b_instruct", CHAT),
        ("qwen3_4b_instruct_2507", CHAT),
    ):
        run = planned(f"model={choice}").runs[0]
        assert run.spec.model.template_text() == template
        assert run.spec.model.dtype == "bfloat16"
        assert run.config["model"]["revision"] == "0123456789abcdef0123456789abcdef01234567"
        ids[choice] = (run.run_id, run.row["eval_id"])
    assert len(set(ids.values())) == 3
    assert ids["llama3_1_8b_instruct"][1] == ids["qwen3_4b_instruct_2507"][1] != ids["qwen2_5_7b"][1]


def test_a_template_is_part_of_what_a_run_and_an_evaluation_are():
    plain, one, same, other, system = (
        planned(*more).runs[0]
        for more in (
            [],
            [f'model.template="{PLAIN}"'],
            [f'model.template="{PLAIN}"'],
            [f'model.template="{PLAIN} "'],
            [f'model.template="{PLAIN}"', "model.system=x"],
        )
    )
    assert one.run_id == same.run_id
    assert len({run.run_id for run in (plain, one, other, system)}) == 4
    assert len({run.row["eval_id"] for run in (plain, one, other, system)}) == 4
    assert len({base_eval_id(run.spec) for run in (plain, one, other, system)}) == 4
    assert one.canonical["model.template"].startswith("sha256:")


@pytest.mark.slow
def test_a_run_with_a_template_that_adds_nothing_is_the_same_run_and_says_so(tmp_path):
    """Same tokens, so same figures to the last byte; the rows and env.json name the template."""
    metrics = []
    for name, more in (("plain", []), ("templated", [f'model.template="{PLAIN}"'])):
        sweep = [f"sweep_dir={tmp_path / name}", "train.updates=1", "wandb.mode=disabled", "eval=own", "eval.top_p=0.9"]
        assert main(["train", *FEW_PROMPTS, *sweep, *more]) == 0
        folder = SweepFolder(tmp_path / name)
        run = folder.run(folder.plan()[0]["run_id"])
        metrics.append(run.metrics.read_bytes())
        row = next(iter(read_rows(run.evaluations / "own.jsonl")))
        template = small_spec(*more).model.template_id()
        assert [row[key] for key in ("temperature", "top_p", "samples", "template")] == [1.0, 0.9, 4, template]
        assert read_json(run.environment)["chat_template"] == (PLAIN if more else None)
    assert metrics[0] == metrics[1]
