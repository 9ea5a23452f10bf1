"""Multiple choice by likelihood: against transformers itself, in evaluations, summaries and tables."""

import pytest
import torch

from klsweep.cli import main
from klsweep.model.policy import load_policy
from klsweep.record.files import read_rows
from klsweep.record.folder import SweepFolder
from klsweep.tasks.accuracy import summary
from klsweep.tasks.base import OffersOptions
from tests.conftest import FEW_PROMPTS, planned, small_spec
from tests.hub import DATA

MMLU = [
    "eval=mmlu_college_physics",
    f"eval.suites.mmlu_college_physics.eval_source.path={DATA / 'mmlu_college.jsonl'}",
    "eval.suites.mmlu_college_physics.template='{{ question[:40] }}'",
    "eval.suites.mmlu_college_physics.likelihood_template='{{ question[:40] }}\nAnswer:'",
    "eval.suites.mmlu_college_physics.max_response_tokens=8",
]


def logprob_of(policy, prompt: str, answer: str) -> float:
    """log π(answer | prompt), one forward pass of transformers without padding or batching."""
    head, whole = (policy.tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    with torch.no_grad():
        logprobs = policy.network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logprobs[i - 1, whole[i]].item() for i in range(len(head), len(whole)))


@pytest.mark.slow
@pytest.mark.parametrize("scored", ["letter", "text"])
def test_options_have_the_networks_likelihood(scored, tmp_path):
    more = [*MMLU, f"eval.suites.mmlu_college_physics.scored={scored}", f"sweep_dir={tmp_path}", "train.updates=1"]
    assert main(["train", *FEW_PROMPTS, *more, "wandb.mode=disabled"]) == 0
    sweep = SweepFolder(tmp_path)
    run = sweep.run(sweep.plan()[0]["run_id"])
    rows = [row for row in read_rows(run.evaluations / "mmlu_college_physics.jsonl") if row["update"] == 0]
    spec = planned(*FEW_PROMPTS, *more, single=True).runs[0].spec
    policy, suite = load_policy(spec.model), spec.eval.suites["mmlu_college_physics"]
    assert isinstance(suite, OffersOptions)
    for row, item in zip(rows, suite.eval_items(), strict=True):
        options = suite.options(item)
        expected = [logprob_of(policy, options.prompt, f" {text}") for text in options.texts]
        assert row["option_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["option"] == max(range(4), key=expected.__getitem__)
        assert row["option_correct"] == (row["option"] == options.right)
    first = next(iter(read_rows(run.metrics)))
    assert first["eval/mmlu_college_physics/likelihood"] == sum(row["option_correct"] for row in rows) / 2
    assert "eval/mmlu_college_physics/pass@1" in first


def test_suites_without_options_have_no_likelihood():
    row = {"samples": 1, "correct": 1, "greedy_correct": True, "kl": 0.0, "entropy": 0.0}
    assert "eval/s/likelihood" not in summary({"s": [row]}, [])
    both = [{**row, "option_correct": True}, {**row, "option_correct": False}]
    assert summary({"s": both}, [])["eval/s/likelihood"] == 0.5
    assert not isinstance(small_spec().task, OffersOptions)


def test_what_counts_as_in_distribution(hub):
    roles = planned("task=math", "eval=paper").runs[0].row["suites"]
    assert roles == {
        "math500": "in",
        "math_squared": "in",
        "mmlu_college_physics": "out",
        "mmlu_college_chemistry": "out",
        "mmlu_college_biology": "out",
    }
    assert planned("task=countdown", "eval=paper_countdown").runs[0].row["suites"]["countdown"] == "in"
    assert planned("task=math", "eval=own").runs[0].row["suites"] == {"own": "in"}
    plain = planned("task=math", "eval=paper", "eval.in_distribution=null").runs[0]
    assert [name for name, role in plain.row["suites"].items() if role == "in"] == ["math500"]
    assert plain.row["eval_id"] == planned("task=math", "eval=paper").runs[0].row["eval_id"]


def test_data_revisions_are_pinned_in_what_a_job_reads(hub):
    run = planned("task=math", "eval=paper").runs[0]
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert run.config["task"]["source"]["revision"] == run.config["task"]["eval_source"]["revision"] == commit
    assert run.config["eval"]["suites"]["math_squared"]["eval_source"]["revision"] == commit
    assert not [key for key in run.canonical if "source" in key]
    file = f"task.eval_source.path={DATA / 'math500.jsonl'}"
    local = planned("task=math", "eval=own", file).runs[0]
    assert local.run_id == run.run_id  # the same data from a file
    assert local.config["task"]["eval_source"]["revision"] is None
