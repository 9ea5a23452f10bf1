"""Exported folders: what transformers loads from them is what was trained."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from klsweep.cli import main
from klsweep.model.policy import load_policy
from klsweep.model.source import SHIPPED
from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.training import trainer
from klsweep.training.export import generation_config
from tests.conftest import SMALL, small_spec

pytestmark = pytest.mark.slow

QUICK = [*SMALL, "train.updates=3", "wandb.mode=disabled", "launcher.parallel=1", "launcher.threads=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A run that has kept its weights of updates 2 and 3."""
    path = tmp_path_factory.mktemp("trained") / "study"
    assert main(["sweep", *QUICK, "rollout.temperature=0.9", "checkpoint.keep_at=[2]", f"sweep_dir={path}"]) == 0
    sweep = SweepFolder(path)
    return sweep.run(sweep.plan()[0]["run_id"])


def test_the_folder_is_the_trained_network(run, in_tmp, capsys):
    assert main(["export", str(run.path), "out/model"]) == 0
    said = capsys.readouterr().out
    assert "out/model: verified: " in said
    assert "largest difference of a log-probability 0 nats, allowed 0" in said
    network = AutoModelForCausalLM.from_pretrained("out/model", dtype=torch.float32)
    (checkpoint,) = run.checkpoints.glob("*/model.safetensors")
    trained = load_file(checkpoint)
    found = dict(network.named_parameters())
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in trained)
    assert AutoTokenizer.from_pretrained("out/model")("12+3=")["input_ids"]
    config = network.generation_config
    assert (config.do_sample, config.temperature, config.top_p, config.max_new_tokens) == (True, 0.9, 1.0, 8)
    assert (config.eos_token_id, config.top_k) == ([1], 0)
    assert sorted(path.name for path in in_tmp.iterdir()) == ["out"]
    assert [path.name for path in (in_tmp / "out").iterdir()] == ["model"]


def test_nothing_of_how_the_base_is_sampled_stays():
    spec = small_spec("rollout.top_p=0.9")
    policy = load_policy(spec.model)
    policy.network.generation_config.update(top_k=20, repetition_penalty=1.05, min_p=0.1, temperature=0.7)
    written = generation_config(spec, policy)
    said = {key: value for key, value in written.to_diff_dict().items() if key != "transformers_version"}
    assert said == {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "max_new_tokens": 8,
        "eos_token_id": [1],
        "pad_token_id": 0,
    }


def test_the_card_says_what_the_record_says(run, in_tmp):
    assert main(["export", str(run.path), "out"]) == 0
    card = (in_tmp / "out/README.md").read_text()
    last = list(read_rows(run.metrics))[-1]
    assert "KL estimator k1 in reward, β = 0.1" in card
    assert "after 3 of 3 updates" in card
    first = next(iter(read_rows(run.metrics)))
    row = f"| add (in) | pass@1 | {first['eval/add/pass@1']:.4f} | {last['eval/add/pass@1']:.4f} |"
    assert row in card
    assert f"| train.lr | `{0.0005}` |" in card
    assert "4 prompts × 4 responses an update" in card
    record = json.loads((in_tmp / "out/klsweep.json").read_text())
    assert (record["row"]["run_id"], record["update"], record["verified"]["passed"]) == (run.run_id, 3, True)
    assert record["verified"]["sequences"] == 20


def test_an_exported_folder_is_evaluated_as_its_run_was(run, in_tmp):
    assert main(["export", str(run.path), "out"]) == 0
    assert main(["eval", "out", "wandb.mode=disabled", "sweep_dir=here"]) == 0
    (folder,) = (in_tmp / "here/evaluations").glob("*/runs/*")
    for suite in ("add", "sort"):
        ours, theirs = (
            [row for row in read_rows(path / f"eval/{suite}.jsonl") if row["update"] == 3]
            for path in (folder, run.path)
        )
        assert len(ours) == 8
        assert ours == theirs
    assert main(["eval", "out", "kl.coef=1"]) == 2


def test_an_earlier_update_and_nothing_overwritten_unasked(run, in_tmp, capsys):
    assert main(["export", str(run.path), "out", "--update", "2"]) == 0
    two = load_file(in_tmp / "out/model.safetensors")
    kept = load_file(run.path / "models/update-000002/model.safetensors")
    assert all(torch.equal(two[name], kept[name]) for name in kept)
    assert "Training did not evaluate these weights" in (in_tmp / "out/README.md").read_text()
    capsys.readouterr()
    assert main(["export", str(run.path), "out"]) == 2
    assert "out: exists already" in capsys.readouterr().err
    assert main(["export", str(run.path), "out", "--overwrite"]) == 0
    assert not torch.equal(load_file(in_tmp / "out/model.safetensors")["model.norm.weight"], two["model.norm.weight"])
    (in_tmp / "mine").mkdir()
    (in_tmp / "mine/thesis.tex").write_text("a year's work")
    assert main(["export", str(run.path), "mine", "--overwrite"]) == 2
    assert (in_tmp / "mine/thesis.tex").exists()


def test_a_folder_that_is_not_what_was_trained_is_marked_and_fails(run, in_tmp, monkeypatch, capsys):
    write = trainer.checkpoint.write_model

    def damaged(folder, *rest):
        write(folder, *rest)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] *= 1.001
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(trainer.checkpoint, "write_model", damaged)
    assert main(["export", str(run.path), "out"]) == 1
    assert "NOT WHAT WAS TRAINED" in capsys.readouterr().out
    assert (in_tmp / "out/NOT_WHAT_WAS_TRAINED.txt").exists()
    verified = json.loads((in_tmp / "out/klsweep.json").read_text())["verified"]
    assert (verified["passed"], verified["largest"] > 1e-4) == (False, True)


def test_weights_that_are_not_there_are_one_line(run, in_tmp, capsys):
    assert main(["export", "nowhere", "out"]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["export", str(run.path), "out", "--update", "1"]) == 2
    assert "has not kept them (there are weights of update 2, 3)" in capsys.readouterr().err
    copy = in_tmp / "study"
    shutil.copytree(run.sweep.path, copy)
    shutil.rmtree(copy / "runs" / run.run_id / "checkpoints")
    assert main(["export", str(copy / "runs" / run.run_id), "out"]) == 2
    assert "is done and has no weights of its last update: give --update" in capsys.readouterr().err
    shutil.rmtree(copy / "runs" / run.run_id / "models")
    assert main(["export", str(copy / "runs" / run.run_id), "out"]) == 2
    assert "(there are no weights at all)" in capsys.readouterr().err
    assert not (in_tmp / "out").exists()


def test_an_adapter_is_added_to_its_weights(in_tmp, capsys):
    """The exported folder is a plain model, and a milestone of the same update, which is an adapter alone, gives it."""
    fields = ["adapter=lora", "model.reference=adapter_base", "train.lr=1e-2", "checkpoint.keep_at=[2,3]"]
    assert main(["sweep", *QUICK, *fields, "sweep_dir=s"]) == 0
    (run,) = (in_tmp / "s/runs").iterdir()
    for name, update in (("last", []), ("two", ["--update", "2"])):
        capsys.readouterr()
        assert main(["export", str(run), name, *update]) == 0
        assert "allowed 0.0001" in capsys.readouterr().out
    base = load_file(SHIPPED["klsweep/tiny"] / "model.safetensors")
    last, two = (load_file(in_tmp / name / "model.safetensors") for name in ("last", "two"))
    assert base.keys() == last.keys()
    changed = {name for name in base if not torch.equal(base[name], last[name])}
    assert changed == {name for name in base if "_proj.weight" in name}
    assert not any(torch.equal(two[name], last[name]) for name in changed)
    assert main(["eval", "last", "wandb.mode=disabled", "sweep_dir=here"]) == 0
    (folder,) = (in_tmp / "here/evaluations").glob("*/runs/*")
    ours, theirs = (list(read_rows(path / "metrics.jsonl"))[-1] for path in (folder, run))
    assert ours["eval/add/kl"] == pytest.approx(theirs["eval/add/kl"], abs=1e-4)
