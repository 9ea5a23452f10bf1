"""Trying a plan out: which runs stand for which, what a trial looks at, and that its findings are true."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from klsweep.cli import main
from klsweep.model.policy import load_base
from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.rollout.hf import HFSampler
from klsweep.rollout.random import Stream, uniforms
from klsweep.sweep.smoke import groups
from klsweep.tasks.choice import Choice
from klsweep.tasks.longest import longest
from klsweep.tracking import Tracker
from klsweep.training import memory
from klsweep.training import smoke as trial
from tests.conftest import SMALL, planned, small_spec

QUICK = [*SMALL, "launcher.parallel=1", "launcher.threads=1"]
ENDLESS = ["train.updates=2", "rollout.ignore_stop=true", "train.base_check=off", *SMALL]


def tried(tmp_path, *overrides: str) -> tuple[trial.Outcome, RunFolder]:
    """A trial in this process."""
    folder = SweepFolder(tmp_path).run("r")
    folder.path.mkdir(parents=True)
    attempt = folder.claim()
    assert attempt is not None
    spec = small_spec(*ENDLESS, *overrides)
    outcome = trial.smoke(spec, attempt, tmp_path / "artifacts", Tracker(None), lambda: None, lambda *_: None)
    attempt.finish(outcome.state, outcome.cause)
    return outcome, folder


def test_cells_that_take_equal_memory_are_one_group_and_the_largest_batch_is_tried():
    plan = planned(
        *SMALL, "estimator=k1,k3,full", "placement=reward,loss", "train.prompts_per_update=4,6", "kl.coef=0.1,0.2"
    )
    found = groups(plan)
    assert sum(len(group.runs) for group in found) == len(plan.runs)
    assert sorted(group.signature["distributions"] for group in found) == [False, False, True, True]
    assert {group.signature["micro_batch_size"] for group in found} == {16, 24}
    whole = groups(planned(*SMALL, "train.prompts_per_update=4,6", "train.micro_batch_size=8"))
    tried = [group.heaviest.spec.train.prompts_per_update for group in whole]
    assert tried == [6]  # batches that are cut alike: the larger one stands for both
    assert len(groups(planned(*SMALL, "task=add,sort", "task.train_prompts=64"))) == 1  # the suites have the longest
    assert len(groups(planned(*SMALL, "model.dtype=float32,bfloat16"))) == 2


def test_ignoring_stop_tokens_makes_every_response_as_long_as_allowed():
    policy = load_base(small_spec().model)
    prompts, draws = policy.encode(["12+3="] * 4), uniforms(0, Stream.ROLLOUT, 1, range(4), 4, 8)
    ends = policy.stop_ids
    for stops, lengths in ((ends, {2, 3, 4, 5, 6, 7, 8}), ((), {8})):
        sampler = HFSampler(policy.network, policy.tokenizer.pad_token_id, stops, 64)
        tokens = sampler.generate(prompts, 4, draws, 1.0, 1.0).tokens
        assert set(tokens.lengths.tolist()) <= lengths
    full = small_spec("rollout.ignore_stop=true").rollout.bind(policy, 64)
    assert full.generate(prompts, 4, draws, 1.0, 1.0).tokens.lengths.tolist() == [8.0] * 16


@pytest.mark.slow
def test_a_trial_trains_resumes_and_evaluates(tmp_path):
    outcome, folder = tried(tmp_path)
    assert outcome == ("done", None)
    findings = read_json(folder.path / "smoke.json")
    assert list(findings["seconds"]) == ["train", "checkpoint", "resume", "evaluate"]
    assert findings["stage"] is None
    rows = list(read_rows(folder.metrics))
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert {row["length/mean"] for row in rows[1:]} == {8.0}
    assert folder.attempts.claim(1)["resumed_from"] == 1
    assert findings["peak"]["host"] > findings["process"] > 2e7
    assert findings["at_most"] == pytest.approx(memory.at_most(small_spec(), findings["formula"]))


@pytest.mark.slow
def test_a_failing_stage_is_named(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("klsweep.training.shards.save_file", broken)
    with pytest.raises(trial.SmokeFailed, match="train: OSError: no space left"):
        tried(tmp_path / "a")
    monkeypatch.undo()
    load = trial.Trainer.load_weights

    def other(self, *where):
        load(self, *where)
        with torch.no_grad():
            next(iter(self.policy.network.parameters())).mul_(1.5)

    monkeypatch.setattr(trial.Trainer, "load_weights", other)
    with pytest.raises(trial.SmokeFailed, match="evaluate: RuntimeError: add: the checkpoint is eval"):
        tried(tmp_path / "b")


def test_what_a_run_was_trained_with_is_given_back():
    spec = small_spec()
    trainer = weakref.ref(trial.Trainer(spec, trial.build_objective(*spec.objective_parts)))
    memory.release()
    assert trainer() is None


def test_what_is_tried_has_the_longest_prompts():
    task = small_spec("task=max").task
    cut = longest(task, 3, 2)
    lengths = sorted((len(item.prompt) for item in task.train_items()), reverse=True)
    assert [len(item.prompt) for item in cut.train_items()] == lengths[:3]
    assert len(cut.eval_items()) == 2
    assert cut.grade(cut.train_items()[0], cut.train_items()[0].answer).correct
    assert not hasattr(cut, "options")
    assert hasattr(longest(object.__new__(Choice), 1, 1), "options")


def test_the_formula_by_hand():
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    network = AutoModelForCausalLM.from_config(config)
    policy = replace(load_base(small_spec().model), network=network)
    sizes = memory.sizes(policy)
    # embeddings; q 64² + 64, k and v 64·32 + 32, o 64²; three of 64·128; two norms of 64; the last norm
    weights = 100 * 64 + 2 * (64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert (sizes.weights, sizes.trained, sizes.copied, sizes.bytes) == (weights, weights, 0, 4)
    assert (sizes.layers, sizes.hidden, sizes.inner, sizes.kv, sizes.vocabulary) == (2, 64, 128, 32, 100)
    spec = small_spec("train.micro_batch_size=8", "model.logprob_chunk=50", "rollout.batch_size=10")
    layer = (8 * 64 + 3 * 32 + 4 * 128) * 4
    expected = {
        "weights": 4 * weights,
        "masters": 0,
        "gradients": 4 * weights,
        "optimiser": 8 * weights,
        "reference": 4 * weights,
        "KV cache": 2 * 2 * 32 * 4 * 20 * 10,
        "drawing": 24 * 100 * 10,
        "logits": 3 * 50 * 100 * 4,
        "activations": 8 * 20 * 2 * layer,
        "scoring": 8 * 4 * 20 * layer,
        "checkpoint": 8 * weights,
    }
    assert memory.formula(spec, sizes, longest=20) == expected
    assert memory.at_most(spec, expected) == 20 * weights + 8 * 4 * 20 * layer
    spared = small_spec("model.gradient_checkpointing=true", "train.micro_batch_size=8")
    assert memory.formula(spared, sizes, 20)["activations"] == 8 * 20 * (2 * 64 * 4 + layer)
    frozen = sizes._replace(trained=10, copied=10, bytes=2)
    small = memory.formula(small_spec("adapter=lora", "model.reference=adapter_base"), frozen, 20)
    assert [small[name] for name in ("masters", "gradients", "optimiser", "reference")] == [40, 40, 80, 0]


@pytest.mark.slow
def test_the_command_tries_each_group_and_calibrates_the_plan(in_tmp, capsys):
    cells = [*QUICK, "estimator=k1,full", "placement=loss", "seed=0,1", "train.updates=30"]
    assert main(["smoke", *cells, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(trial["cells"], trial["runs"], trial["passed"]) for trial in found] == [(1, 2, True), (1, 2, True)]
    assert all(trial["peak"]["host"] > trial["process"] for trial in found)
    assert main(["plan", *cells]) == 0
    assert "from 2 calibration)" in capsys.readouterr().out
    assert main(["status", "sweeps/default/smoke", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 2}
    assert not (in_tmp / "sweeps/default/plan.jsonl").exists()


@pytest.mark.slow
def test_a_group_that_fails_is_an_exit_code_and_a_cause(in_tmp, capsys):
    (in_tmp / "sweeps/default/smoke").mkdir(parents=True)
    (in_tmp / "sweeps/default/smoke/artifacts").write_text("a file where a folder should be")
    assert main(["smoke", *QUICK]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "SmokeFailed: train: " in out
    assert main(["smoke", "nonsense"]) == 2
    assert "experiment='nonsense': choose from" in capsys.readouterr().err


def test_a_reward_model_is_left_out():
    assert trial.cut_to_longest(small_spec("reward=reward_model", "reward.prompts=24")).reward == small_spec().reward
