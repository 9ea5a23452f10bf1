"""What is kept of single responses: the base's first ones, probes, last batches; and what verifiers could not grade."""

import dataclasses
import json
import math

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from klsweep.analysis.compare import compare
from klsweep.cli import main
from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.model.policy import Scores, load_policy
from klsweep.model.tokens import Tokens
from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.record.rollouts import base_lines, base_summary, rollout_file, verifier_errors
from klsweep.rollout.engine import Generation, Rollout
from klsweep.sweep.plan import make_plan, write_plan
from klsweep.sweep.responses import chosen_rows, log_ratios, print_responses, style_of
from klsweep.sweep.show import status_lines
from klsweep.sweep.status import sweep_status, without_numbers
from klsweep.tasks.arithmetic import Arithmetic
from klsweep.tasks.base import Grade, Item
from klsweep.tasks.grading import GradingError, graded, rewarded
from klsweep.training.probe import Batch, base_trouble, kept_places
from tests.conftest import small_spec
from tests.test_training import run, run_spec, weights

PROBED = ["train.probe_every=2", "train.probe_prompts=3"]


def rows(folder: RunFolder, kind: str) -> list[dict]:
    return list(read_rows(folder.rollouts / f"{kind}.jsonl"))


@pytest.mark.slow
def test_watching_changes_no_result(tmp_path):
    _, plain = run(tmp_path, "plain", "train.base_check=off")
    _, probed = run(tmp_path, "probed", "train.probe_every=1")
    assert plain.metrics.read_bytes() == probed.metrics.read_bytes()
    assert weights(plain) == weights(probed)
    assert rows(plain, "probes") == []
    assert len(rows(plain, "base")) == 10


def test_probes_say_what_a_fresh_model_says_of_their_tokens(tmp_path):
    _, folder = run(tmp_path, "run", *PROBED, "placement=none")
    found = rows(folder, "probes")
    assert [row["update"] for row in found] == [0] * 12 + [2] * 12 + [4] * 12
    assert [(row["item"], row["sample"]) for row in found[:12]] == [(i, s) for i in range(3) for s in range(4)]
    spec = small_spec()
    base, trained = load_policy(spec.model), load_policy(spec.model)
    newest = sorted(folder.checkpoints.iterdir())[-1]
    trained.network.load_state_dict(load_file(newest / "model.safetensors"), strict=False)
    for row in found[:4] + found[-4:]:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        length = len(row["response_ids"])
        for policy, name in ((base, "ref_logprobs"), (trained if row["update"] else base, "logprobs")):
            with torch.no_grad():
                logits = policy.network(input_ids=ids).logits[0, -length - 1 : -1].double()
            expected = logits.log_softmax(-1).gather(1, ids[0, -length:, None])[:, 0].tolist()
            assert row[name] == pytest.approx(expected, abs=1e-4)
        assert row["old_logprobs"] == row["logprobs"] == pytest.approx(row["sampler_logprobs"], abs=1e-4)
        item = spec.task.train_items()[row["item"]]
        assert row["prompt"] == item.prompt == base.tokenizer.decode(row["prompt_ids"])
        assert "".join(row["tokens"]).removesuffix("<eos>") == row["response"]
        assert row["reward"] == float(row["response"] == item.answer) == float(row["correct"])
    for i in range(0, len(found), 4):  # leave-one-out: R_i − mean of the others'
        rewards = [row["reward"] for row in found[i : i + 4]]
        for row, reward in zip(found[i : i + 4], rewards, strict=True):
            expected = reward - (sum(rewards) - reward) / 3
            assert row["advantage"] == pytest.approx([expected] * len(row["tokens"]), abs=1e-6)


def test_two_lines_open_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    _, folder = run(tmp_path, "run", *PROBED)
    frame = pandas.read_json(folder.rollouts / "probes.jsonl", lines=True)
    assert frame.groupby("update").reward.mean().index.tolist() == [0, 2, 4]


@pytest.mark.parametrize("sampling", [[], ["sampling=off_policy", "sampling.async_level=2"]])
def test_killed_and_resumed_they_are_the_same(tmp_path, sampling):
    _, whole = run(tmp_path, "whole", *PROBED, *sampling)
    _, broken = run(tmp_path, "broken", *PROBED, *sampling, stop_after=3)
    shown = (broken.rollouts / "base.jsonl").read_bytes()
    with (broken.rollouts / "probes.jsonl").open("a") as stream:
        stream.write('{"update": 4, "reward": 9}\n{"update": 4, "rew')  # of a process that was killed later
    run(tmp_path, "broken", *PROBED, *sampling)
    assert (broken.rollouts / "probes.jsonl").read_bytes() == (whole.rollouts / "probes.jsonl").read_bytes()
    assert (broken.rollouts / "base.jsonl").read_bytes() == shown == (whole.rollouts / "base.jsonl").read_bytes()


def test_the_last_two_batches_before_a_divergence_stay(tmp_path):
    spec = small_spec("train.updates=6", "train.lr=0.05", "train.max_kl=3.0")
    outcome, folder = run_spec(spec, tmp_path, "run")
    assert outcome.state == "diverged"
    metrics = list(read_rows(folder.metrics))
    last = metrics[-1]["update"]
    found = rows(folder, "last_batches")
    assert [row["update"] for row in found] == [last - 1] * 16 + [last] * 16
    of_last = found[16:]
    assert sum(r["reward"] for r in of_last) / 16 == pytest.approx(metrics[-1]["reward/mean"])
    k1 = [sum(a - b for a, b in zip(r["old_logprobs"], r["ref_logprobs"], strict=True)) for r in of_last]
    assert sum(k1) / 16 == pytest.approx(metrics[-1]["kl/k1_sequence"], abs=1e-4)
    assert of_last[0]["logprobs"] != of_last[0]["old_logprobs"]  # after the update, and before it
    again, other = run_spec(dataclasses.replace(spec, train=small_spec("train.updates=6").train), tmp_path, "other")
    assert (again.state, (other.rollouts / "last_batches.jsonl").exists()) == ("done", False)


def test_a_divergence_in_sampling_keeps_them_too_and_nan_is_null(tmp_path):
    outcome, folder = run(tmp_path, "run", "train.lr=1e20", "placement=none")
    assert outcome.state == "diverged"
    assert "not finite" in str(outcome.cause)
    found = rows(folder, "last_batches")
    assert found
    assert all("NaN" not in line for line in (folder.rollouts / "last_batches.jsonl").read_text().splitlines())
    assert None in found[0]["logprobs"]
    assert None not in found[0]["sampler_logprobs"]


def test_what_an_attempt_that_was_killed_left_goes(tmp_path):
    run(tmp_path, "run", stop_after=2)
    folder = RunFolder(tmp_path / "run")
    (folder.rollouts / "last_batches.jsonl").write_text('{"update": 1}\n')
    run(tmp_path, "run")
    assert not (folder.rollouts / "last_batches.jsonl").exists()


def batch(correct: str, truncated: str = "", rewards: list[float] | None = None) -> Rollout:
    """A rollout of one group: for each response, 1 or 0 for right or wrong, and for truncated or not."""
    size = len(correct)
    ids = torch.zeros(size, 3, dtype=torch.long)
    cut = torch.tensor([c == "1" for c in truncated or "0" * size])
    tokens = Tokens(ids, ids, ids, torch.ones(size, 3))
    grades = [Grade(c == "1", None) for c in correct]
    values = torch.tensor(rewards or [float(c) for c in correct])
    return Rollout(1, 0, [0], Generation(tokens, torch.zeros(size, 3), cut), values, values, grades)


@pytest.mark.parametrize(
    ("rollout", "trouble"),
    [
        (batch("0000"), "none of the base's first 4 responses is right, and every reward is 0"),
        (batch("1111"), "all of the base's first 4 responses is right, and every reward is 1"),
        (batch("1000", "1110"), "3 of the base's first 4 responses are cut off after 3 tokens"),
        (batch("1000", "1100"), None),
        (batch("1000"), None),
        (batch("0000", rewards=[0.0, 0.2, 0.0, 0.0]), None),
        (batch("1111", rewards=[1.0, 1.0, 0.5, 1.0]), None),
    ],
)
def test_a_first_batch_without_a_signal_is_trouble(rollout, trouble):
    assert base_trouble(rollout) == trouble


def test_the_base_is_refused_unless_told_otherwise(tmp_path, capsys):
    cut = "task.max_response_tokens=1"
    outcome, folder = run(tmp_path, "refused", cut)
    assert outcome.state == "failed"
    assert outcome.cause == (
        "train.base_check=refuse: 16 of the base's first 16 responses are cut off after 1 tokens "
        "(train.base_check=warn trains all the same; rollouts/base.jsonl)"
    )
    assert [row["update"] for row in read_rows(folder.metrics)] == [0]
    assert folder.status()["base"]["truncated"] == 1.0
    capsys.readouterr()
    outcome, folder = run(tmp_path, "warned", cut, "train.base_check=warn")
    said = capsys.readouterr().out.splitlines()
    assert outcome.state == "done"
    assert said[0].startswith("base: 0 % right, 100 % truncated (16 responses); warning: 16 of the base's first 16")
    assert said[1].startswith("  wrong: '")
    assert said[1].endswith(" (truncated)")
    assert len(said) == 11
    assert run(tmp_path, "off", cut, "train.base_check=off")[1].status()["base"]["trouble"] is None


def test_what_the_verifier_read_is_shown():
    row = {"prompt": "1+1=", "response": "the answer is 2", "extracted": "2", "correct": True, "truncated": False}
    wrong = {**row, "response": "x" * 300, "extracted": None, "correct": False, "truncated": True, "error": None}
    lines = base_lines([{**row, "error": None}, wrong, {**row, "error": "timed out"}])
    assert lines[0] == "  right: '1+1=' → 'the answer is 2' (read '2')"
    assert lines[1] == f"  wrong: '1+1=' → '{'x' * 50} … {'x' * 50}' (read nothing, truncated)"
    assert lines[2].startswith("  not graded (timed out): ")
    base = {"right": 0.25, "truncated": 0.004, "responses": 250, "trouble": None}
    assert base_summary(base, "add") == "base on add: 25 % right, 0.4 % truncated (250 responses)"


def test_of_a_large_batch_whole_groups_with_the_largest_ratios_are_kept(monkeypatch):
    monkeypatch.setattr("klsweep.training.probe.TOKENS_KEPT", 12)
    rollout = dataclasses.replace(batch("01" * 4), prompts=[0, 1, 2, 3])
    ratios = torch.zeros(8, 3)
    ratios[3, 1], ratios[4, 0], ratios[0, 0] = -5.0, math.nan, 1.0
    zeros = torch.zeros(8, 3)
    scores = Scores(ratios, zeros, zeros, zeros, zeros)
    assert kept_places(Batch(rollout, scores, zeros), group_size=2) == [2, 3, 4, 5]  # 12 tokens are two groups


@component
class Moody(Arithmetic):
    """Addition whose verifier fails on every response that starts with a 1."""

    def grade(self, item: Item, response: str) -> Grade:
        if response.startswith("1"):
            return Grade(False, None, "ran out of time")
        return super().grade(item, response)


def moody(tmp_path) -> SweepFolder:
    """A sweep of one run whose verifier failed now and then."""
    from klsweep.config.compose import composer

    overrides = ["wandb.mode=disabled", f"sweep_dir={tmp_path / 'sweep'}", "train.updates=2", "task.train_prompts=64"]
    target = "tests.test_probe.Moody"
    overrides += ["train.prompts_per_update=4", "algorithm.group_size=4", "plugins=[tests]", f"task._target_={target}"]
    with composer() as session:
        plan = make_plan(session, [*overrides, f"eval.suites.add._target_={target}"], single=True)
    write_plan(plan)
    run_spec(plan.runs[0].spec, plan.folder.path / "runs", plan.runs[0].run_id)
    return plan.folder


def test_what_could_not_be_graded_is_counted_and_shown(tmp_path):
    sweep = moody(tmp_path)
    folder = sweep.run(sweep.plan()[0]["run_id"])
    metrics = list(read_rows(folder.metrics))
    in_training = sum(row.get("reward/verifier_errors", 0) for row in metrics)
    evaluated = list(read_rows(folder.evaluations / "add.jsonl"))
    in_evaluation = sum(row["verifier_errors"] for row in evaluated)
    assert in_training > 0
    assert in_evaluation > 0
    assert verifier_errors(folder) == (in_training + in_evaluation, "ran out of time")
    errors = rows(folder, "errors")
    assert {row["where"] for row in errors} == {"training", "add"}
    example = next(row for row in errors if row["where"] == "training")["examples"][0]
    assert example["response"].startswith("1")
    assert all(row["correct"] <= row["samples"] - row["verifier_errors"] + 1 for row in evaluated)
    total = in_training + in_evaluation
    assert compare(sweep).warnings == [f"verifiers could not grade {total} responses in 1 runs; those count as wrong"]
    out = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    out.print(status_lines(sweep_status(sweep)))
    assert (
        f"warning: verifiers could not grade {total} responses in 1 runs (rollouts/errors.jsonl of r1-"
        in out.export_text()
    )
    with rollout_file(folder, "errors").open("a") as stream:
        stream.write("half a li\n{}\n")
    assert verifier_errors(folder) == (None, "its errors.jsonl is damaged")
    out.print(status_lines(sweep_status(sweep)))
    told = f"how many responses of {folder.run_id} could not be graded is not known: its errors.jsonl is damaged"
    assert told in out.export_text()


class Broken:
    """Raises, or returns what is no reward."""

    def __init__(self, value) -> None:
        self.value = value

    def grade(self, item, response):
        raise ZeroDivisionError("division by zero")

    def __call__(self, item, response, grade):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_what_raises_names_prompt_and_response():
    item, grade = Item('1+"1"=', "2"), Grade(True, "2")
    with pytest.raises(GradingError) as caught:
        graded(Broken(None), item, "a\nb")  # pyright: ignore
    said = 'on the prompt "1+\\"1\\"=" and the response "a\\nb"'
    assert str(caught.value) == f"the verifier of Broken raised {said}: ZeroDivisionError: division by zero"
    with pytest.raises(GradingError) as caught:
        rewarded(Broken(KeyError("x")), item, "y" * 1000, grade)
    assert str(caught.value).endswith(f"the response \"{'y' * 200}\": KeyError: 'x'")
    for value in (None, "1", math.nan, math.inf, 1j):
        with pytest.raises(GradingError, match=r"no finite number on the prompt"):
            rewarded(Broken(value), item, "2", grade)
    assert [rewarded(Broken(value), item, "2", grade) for value in (True, 2, 0.5)] == [1.0, 2.0, 0.5]
    same = "raised on the prompt … and the response …: KeyError: k"
    for n in (1, 22):
        assert without_numbers(f"raised {said}: KeyError: k".replace("1+", f"{n}+")) == same


def test_a_reward_that_raises_ends_the_run(tmp_path):
    spec = dataclasses.replace(small_spec("train.updates=2"), reward=Broken(RuntimeError("no")))
    with pytest.raises(
        GradingError, match=r'reward Broken raised on the prompt "\d+\+\d+=" and the resp.*RuntimeError: no'
    ):
        run_spec(spec, tmp_path, "run")


def test_inspect_prints_what_is_there(tmp_path, capsys):
    _, folder = run(tmp_path, "run", *PROBED)
    folder.config.write_text("seed: 0\n")
    assert main(["inspect", str(folder.path)]) == 0
    text = capsys.readouterr().out
    found = rows(folder, "probes")
    last = found[-1]
    assert "probes.jsonl: 12 rows" in text
    assert text.endswith("siblings that have begun: 0; whether it left them can be told from 2 on\n")
    assert "update 4, training prompt 2\n" in text
    assert f"sample 3: {'right' if last['correct'] else 'wrong'}, reward {last['reward']:g}, advantage " in text
    assert main(["inspect", str(folder.path), "--update", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"responses": found[12:24], "siblings": 0, "left": []}
    assert main(["inspect", str(folder.path), "--top-kl", "3", "--json"]) == 0
    top = json.loads(capsys.readouterr().out)["responses"]
    assert top == sorted(found[-12:], key=lambda row: abs(sum(log_ratios(row))), reverse=True)[:3]
    assert main(["inspect", str(folder.path), "--top-kl", "0"]) == 2
    assert "--top-kl=0: expected a whole number, at least 1" in capsys.readouterr().err
    assert main(["inspect", str(folder.path), "--top-kl", "3", "--of", "base"]) == 2
    assert "has no log-probabilities (--of=probes)" in capsys.readouterr().err
    assert main(["inspect", str(folder.path), "--of", "base"]) == 0
    assert "base: " in capsys.readouterr().out
    assert main(["inspect", str(folder.path), "--update", "3"]) == 2
    assert "--update=3: " in (error := capsys.readouterr().err)
    assert error.endswith("probes.jsonl is of updates 0, 2, 4\n")
    assert main(["inspect", str(folder.path), "--of", "last_batches"]) == 2
    assert "nothing there (the run has not diverged)" in capsys.readouterr().err


def test_tokens_are_coloured_by_their_log_ratio(tmp_path):
    assert [style_of(x) for x in (0.01, -0.01, None)] == ["", "", "black on yellow"]
    assert style_of(3.0) == style_of(9.0) == "black on rgb(255,0,0)"
    assert style_of(-1.5) == "black on rgb(128,128,255)"
    folder = RunFolder(tmp_path)
    folder.rollouts.mkdir()
    row = {
        "update": 5,
        "version": 2,
        "item": 1,
        "sample": 0,
        "prompt": "p",
        "response": "ab",
        "tokens": ["a", "b\n", "c"],
    }
    row |= {"correct": True, "extracted": "ab", "error": None, "truncated": False, "reward": 1.0}
    row |= {"logprobs": [-1.0, -0.5, None], "ref_logprobs": [-2.0, -0.4, -1.0], "advantage": [0.5, 0.5, 0.25]}
    (folder.rollouts / "probes.jsonl").write_text(json.dumps(row) + "\n")
    out = Console(width=200, record=True, color_system=None, file=open("/dev/null", "w"))  # noqa: SIM115
    print_responses(folder, *chosen_rows(folder, None, None), out)
    text = out.export_text()
    assert "a[+1.00]b⏎\nc[not finite]" in text
    assert "advantage +0.500 … +0.250 by token, Σℓ not finite, sampled after update 2" in text
    with pytest.raises(BadInput, match=r"base.jsonl: nothing there"):
        chosen_rows(folder, "base", None)
