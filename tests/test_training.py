"""Training: determinism, resume, staleness, micro-batches, divergence, schedules, evaluation, the record."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from klsweep.config.build import RunSpec
from klsweep.model.masters import Masters
from klsweep.model.policy import load_policy
from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder
from klsweep.rollout import hf
from klsweep.tasks.accuracy import pass_at_k, summary
from klsweep.tracking import Tracker
from klsweep.training import shards, step
from klsweep.training.checkpoint import load_checkpoint, newest_sound
from klsweep.training.loop import Outcome, train
from tests.conftest import small_spec

WHOLE = ("task.eval_prompts=64", "eval.suites.add.eval_prompts=64")  # as shipped


def run(tmp_path, name: str, *overrides: str, stop_after: int | None = None) -> tuple[Outcome, RunFolder]:
    """Train a small run in-process in `tmp_path`/name, interrupted after an update if asked."""
    return run_spec(small_spec("train.updates=4", *overrides), tmp_path, name, stop_after)


def run_spec(spec: RunSpec, tmp_path, name: str, stop_after: int | None = None) -> tuple[Outcome, RunFolder]:
    folder = RunFolder(tmp_path / name)
    folder.path.mkdir(exist_ok=True)
    seen: list[int] = []
    attempt = folder.claim()
    assert attempt is not None
    outcome = train(
        spec,
        attempt,
        tmp_path / "artifacts",
        Tracker(None),
        should_stop=lambda: "preempted" if stop_after is not None and seen and seen[-1] >= stop_after else None,
        on_update=lambda update, _: seen.append(update),
    )
    attempt.finish(outcome.state, outcome.cause)
    return outcome, folder


def rows(folder: RunFolder) -> list[dict]:
    return list(read_rows(folder.metrics))


def weights(folder: RunFolder) -> bytes:
    return (sorted(folder.checkpoints.iterdir())[-1] / "model.safetensors").read_bytes()


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    one, two, other = (run(tmp_path, name, f"seed={seed}")[1] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    assert weights(one) == weights(two)
    assert one.metrics.read_bytes() != other.metrics.read_bytes()


ADAPTIVE = ["kl.schedule=adaptive", "kl.target=0.01", "kl.horizon=32"]


@pytest.mark.parametrize("sampling", [ADAPTIVE, ["sampling=off_policy", "sampling.async_level=2"]])
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, sampling):
    _, whole = run(tmp_path, "whole", *sampling, "train.minibatches=2")
    outcome, broken = run(tmp_path, "broken", *sampling, "train.minibatches=2", stop_after=2)
    assert outcome.state == "preempted"
    assert rows(broken)[-1]["update"] == 2
    with broken.metrics.open("a") as stream:
        stream.write('{"update": 3, "reward/me')  # torn by a kill
    outcome, broken = run(tmp_path, "broken", *sampling, "train.minibatches=2")
    assert outcome.state == "done"
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    assert weights(broken) == weights(whole)
    suite = "eval/add.jsonl"
    assert (broken.path / suite).read_bytes() == (whole.path / suite).read_bytes()


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, capsys):
    spec = small_spec("train.updates=4", "train.checkpoint_seconds=0")
    _, folder = run_spec(spec, tmp_path, "run", stop_after=3)
    newest = sorted(folder.checkpoints.iterdir())
    assert [path.name for path in newest] == ["update-000002", "update-000003"]
    content = bytearray((newest[-1] / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest[-1] / "model.safetensors").write_bytes(content)
    network = load_policy(spec.model).network
    weights, optimiser, attempt = Masters(network), torch.optim.AdamW(network.parameters()), folder.claim()
    assert attempt is not None

    def load(checkpoint, with_optimiser: bool) -> None:
        shards.load_weights(checkpoint, weights)
        assert with_optimiser
        shards.load_optimiser(checkpoint, weights, optimiser)

    assert load_checkpoint(attempt, load, "cpu")[:3] == (2, 1.0, [])
    assert optimiser.state[network.lm_head.weight]["step"].item() == 2
    warned = "warning: checkpoint update-000003 is damaged (model.safetensors): trying the one before\n"
    assert capsys.readouterr().err == warned
    state = (newest[0] / "state.json").read_text()
    (newest[0] / "state.json").write_text(state.replace('"beta_scale": 1.0', '"beta_scale": 1.5'))
    assert newest_sound(folder) is None
    assert "update-000002 is damaged (state.json)" in capsys.readouterr().err


def test_lag_zero_is_on_policy_bit_for_bit_and_lag_changes_what_is_trained_on(tmp_path):
    lag = ["sampling=off_policy", "sampling.async_level=0"]
    on, zero = run(tmp_path, "on")[1], run(tmp_path, "zero", *lag)[1]
    assert on.metrics.read_bytes() == zero.metrics.read_bytes()
    late = rows(run(tmp_path, "late", *lag[:1], "sampling.async_level=2")[1])
    assert [row.get("sampler/lag") for row in late] == [None, 0, 1, 2, 2]
    assert [row.get("sampler/lag") for row in rows(on)] == [None, 0, 0, 0, 0]
    assert rows(on)[3]["sampler/ess"] == pytest.approx(1.0, abs=1e-6)
    assert late[4]["sampler/ess"] < 0.9999


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ([], 0),
        (["estimator=full", "placement=loss"], 0),
        (["train.minibatches=2"], 2),
        (["train.micro_batch_size=8"], 2),
    ],
)
def test_a_single_step_on_a_single_part_goes_on_from_its_scoring(overrides, passes, tmp_path, monkeypatch):
    """How often the step runs the policy on the 16 responses of an update."""
    calls, plain = [], step.statistics
    monkeypatch.setattr(step, "statistics", lambda *arguments: calls.append(1) or plain(*arguments))
    run(tmp_path, "run", "train.updates=1", *overrides)
    assert len(calls) == passes


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    cell = ["placement=reward_and_loss", "estimator=k3", "kl.coef=0.5", "train.updates=2"]
    results = [rows(run(tmp_path, f"m{m}", *cell, f"train.micro_batch_size={m}")[1]) for m in (16, 5)]
    for one, other in zip(*results, strict=True):
        for key in ("loss", "loss/kl", "grad_norm", "kl/full_sequence", "reward/mean"):
            if key in one:
                assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key  # float32


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["placement=none"], ["placement=none", "estimator=k3", "clip=fixed", "kl.coef=0.7"]),
        (["placement=none"], ["placement=loss", "estimator=full", "clip=fixed", "kl.coef=0"]),
        (
            ["clip=fixed", "clip.tau=0.1", "clip.mode=hard", "kl.coef=1.0"],
            ["clip=fixed", "clip.tau=0.1", "clip.mode=straight_through", "kl.coef=1.0"],
        ),
        (
            ["placement=loss", "placement.level=token", "kl.coef=1.0"],
            ["placement=loss", "placement.level=sequence", "kl.coef=1.0"],
        ),
    ],
)
def test_cells_that_collapse_into_one_write_the_same_bytes(tmp_path, one, other):
    pair = [run(tmp_path, name, *cell, "train.lr=2e-3")[1] for name, cell in (("one", one), ("other", other))]
    assert pair[0].metrics.read_bytes() == pair[1].metrics.read_bytes()
    assert weights(pair[0]) == weights(pair[1])


def test_a_prompt_that_comes_twice_in_a_batch_is_answered_anew(tmp_path):
    few = ["task.train_prompts=2", "train.prompts_per_update=8", "train.updates=1"]
    responses = []
    draw = hf.draw_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf, "draw_tokens", lambda *a: responses.append(draw(*a)) or responses[-1])
        run(tmp_path, "run", *few)
    first = next(r[0] for r in responses if len(r[0]) == 32).view(8, 4)  # [prompt, sample], first tokens of the batch
    assert len({tuple(row) for row in first.tolist()}) > 2


def test_paired_cells_see_the_same_prompts_and_first_samples(tmp_path):
    one = rows(run(tmp_path, "one", "estimator=k1", "train.updates=1")[1])[1]
    two = rows(run(tmp_path, "two", "estimator=k3", "placement=loss", "train.updates=1")[1])[1]
    for key in ("reward/mean", "length/mean", "kl/full_sequence", "entropy"):
        assert one[key] == two[key]


@pytest.mark.slow
def test_a_penalty_on_k1_in_the_reward_holds_the_policy_near_the_base(tmp_path):
    cell = ["train.updates=12", "train.lr=2e-3", "kl.coef=2.0", "train.prompts_per_update=16", *WHOLE]
    kl = {p: rows(run(tmp_path, p, *cell, f"placement={p}")[1])[-1]["eval/add/kl"] for p in ("none", "reward")}
    assert 0 < kl["reward"] < 0.5 * kl["none"]


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("kl.coef=3.0", "grad_norm"),
        ("estimator=k3", "loss/kl"),
        ("placement.level=sequence", "loss/kl"),
        ("clip.tau=0.01", "loss/kl"),
        ("clip.mode=straight_through", "grad_norm"),
        ("train.lr=1e-2", "kl/full_sequence"),
        ("train.minibatches=2", "ratio/max"),
        ("algorithm=dr_grpo", "grad_norm"),
        ("algorithm.aggregation=fixed", "grad_norm"),
        ("rollout.temperature=0.5", "entropy"),
        ("rollout.top_p=0.5", "sampler/log_ratio_abs_token"),
        ("reward.incorrect=-1.0", "reward/mean"),
        ("train.max_grad_norm=1e-6", "kl/full_sequence"),
        ("train.weight_decay=5.0", "kl/full_sequence"),
        ("train.warmup_updates=100", "lr"),
    ],
)
def test_each_option_reaches_the_loop(tmp_path, option, key):
    cell = ["estimator=k2", "placement=loss", "clip=fixed", "clip.tau=0.05", "kl.coef=1.0", "train.lr=5e-3"]
    cell = [o for o in cell if o.split("=")[0] != option.split("=")[0]] + [option, "train.updates=2"]
    default = _default_cell(tmp_path)
    changed = rows(run(tmp_path, "changed", *cell)[1])
    assert changed[2][key] != default[2][key]
    assert math.isfinite(changed[2][key])


_DEFAULT: list[list[dict]] = []


def _default_cell(tmp_path) -> list[dict]:
    if not _DEFAULT:
        cell = ["estimator=k2", "placement=loss", "clip=fixed", "clip.tau=0.05", "kl.coef=1.0", "train.lr=5e-3"]
        _DEFAULT.append(rows(run(tmp_path, "default", *cell, "train.updates=2")[1]))
    return _DEFAULT[0]


def test_an_adaptive_beta_follows_the_measured_kl(tmp_path):
    measured = rows(run(tmp_path, "adaptive", *ADAPTIVE, "kl.coef=0.4", "train.lr=5e-3")[1])[1:]
    factors = [1 + max(-0.2, min(0.2, row["kl/k1_sequence"] / 0.01 - 1)) * 16 / 32 for row in measured]
    expected = [0.4, 0.4 * factors[0], 0.4 * factors[0] * factors[1]]
    assert [row["beta/reward"] for row in measured[:3]] == pytest.approx(expected)
    assert expected[1] == pytest.approx(0.36)  # the first batch is the reference's own: KL 0
    assert len({*expected}) == 3


@pytest.mark.slow
def test_weights_corrections_and_other_gradients_change_what_is_learned(tmp_path):
    """The first optimiser steps off policy; each option against the same cell without it."""
    cell = ["sampling=off_policy", "sampling.async_level=2", "estimator=k3", "placement=loss", "kl.coef=1.0"]
    cell += ["train.updates=4", "train.lr=5e-3", "train.minibatches=2", *WHOLE]
    plain = weights(run(tmp_path, "plain", *cell)[1])
    options = {
        "gradient": ["estimator.gradient=k2"],
        "weight": ["kl.weight=token", "kl.weight_over=sampler"],
        "differentiable": ["kl.weight=token", "kl.weight_grad=differentiable"],
        "correction": ["correction=truncated", "correction.level=sequence", "correction.cap=1.0"],
        "aggregation": ["kl.aggregation=seq-mean"],
    }
    trained = {name: run(tmp_path, name, *cell, *extra)[1] for name, extra in options.items()}
    assert len({plain, *(weights(folder) for folder in trained.values())}) == 6
    last = rows(trained["correction"])[4]
    assert 0 < last["correction/changed_fraction"] < 1
    assert last["correction/weight"] < 1


def test_beta_follows_its_schedule_and_aggregation_shows(tmp_path):
    schedule = ["kl.coef=0.4", "kl.schedule=linear", "kl.final_coef=0.1"]
    betas = [row["beta/reward"] for row in rows(run(tmp_path, "linear", *schedule)[1])[1:]]
    assert betas == pytest.approx([0.4, 0.3, 0.2, 0.1])
    row = rows(run(tmp_path, "fixed", "algorithm.aggregation=fixed", "train.updates=1", "kl.coef=0.4")[1])[1]
    assert row["beta/reward_effective_per_sequence"] == pytest.approx(0.05)  # L_max 8
    row = rows(run(tmp_path, "mean", "algorithm.aggregation=token-mean", "train.updates=1", "kl.coef=0.4")[1])[1]
    assert row["beta/reward_effective_per_sequence"] == pytest.approx(0.4 / row["length/mean"])


@pytest.mark.parametrize(
    ("overrides", "size", "decay", "steps"),
    [
        (["train.lr=1e-3"], 1e-3, 0.0, 1),
        (["train.lr=2e-3"], 2e-3, 0.0, 1),
        (["train.lr=1e-3", "train.warmup_updates=4"], 2.5e-4, 0.0, 1),
        (["train.lr=1e-3", "train.weight_decay=2.0"], 1e-3, 2e-3, 1),
        (["train.lr=1e-3", "train.minibatches=2"], None, None, 2),
    ],
)
def test_the_first_optimiser_step_by_hand(tmp_path, overrides, size, decay, steps):
    """AdamW's first step is w ← w(1 − lr·λ) − lr·sign(g), to within its ε."""
    spec = small_spec("train.updates=2", *overrides)
    _, folder = run_spec(spec, tmp_path, "run", stop_after=1)
    state = load_file(folder.checkpoints / "update-000001" / "optimiser.safetensors")
    assert {int(value) for name, value in state.items() if name.endswith("/step")} == {steps}
    if size is None:
        return
    after = load_file(folder.checkpoints / "update-000001" / "model.safetensors")["model.norm.weight"]
    before = dict(load_policy(spec.model).network.named_parameters())["model.norm.weight"].detach()
    moved = after - before * (1 - decay)
    assert moved.abs().median().item() == pytest.approx(size, rel=1e-2)


def test_warm_up_is_linear():
    settings = small_spec("train.warmup_updates=4", "train.lr=1e-3").train
    assert [settings.lr_at(u) for u in (1, 2, 4, 9)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["train.max_kl=0.02", "train.lr=1e-2", "placement=none"], "kl/full_sequence = "),
        (["train.min_reward=0.999"], "is below train.min_reward=0.999"),
        (["train.lr=1e20", "placement=none"], "not finite"),
    ],
)
def test_divergence_ends_a_run_with_its_evidence(tmp_path, overrides, cause):
    outcome, folder = run(tmp_path, "run", *overrides, "train.updates=6")
    assert outcome.state == "diverged"
    assert cause in str(outcome.cause)
    last = rows(folder)[-1]
    assert f"update {last['update']}: " in str(outcome.cause) or "finite" in cause
    assert last["update"] < 6
    assert ("eval/add/pass@1" in last) == ("finite" not in cause)


def test_the_record_of_a_run(tmp_path):
    _, folder = run(tmp_path, "run", "clip=fixed", "eval.every=2", "train.minibatches=2")
    table = rows(folder)
    assert [row["update"] for row in table] == [0, 1, 2, 3, 4]
    assert ["eval/sort/pass@1" in row for row in table] == [True, False, True, False, True]
    wanted = {f"kl/{k}_{per}" for k in ("k1", "k2", "k3", "full", "forward") for per in ("token", "sequence")}
    wanted |= {"clip/fraction", "clip/distance", "entropy", "ratio/mean", "ratio/max", "ratio/outside_fraction"}
    wanted |= {
        "sampler/ess",
        "grad_norm",
        "length/mean",
        "length/truncated",
        "reward/zero_variance_groups",
        "reward/mean",
    }
    assert wanted <= set(table[1])
    timing = list(read_rows(folder.timing))
    assert [row["update"] for row in timing] == [1, 2, 3, 4]
    assert {"seconds/rollout", "seconds/score", "seconds/step", "seconds/total", "tokens_per_second"} <= set(timing[0])
    items = list(read_rows(folder.evaluations / "reverse.jsonl"))
    assert len(items) == 3 * 8
    assert {"update", "item", "prompt_hash", "samples", "correct", "greedy_correct", "kl"} <= set(items[0])
    final = [row for row in items if row["update"] == 4]
    assert table[4]["eval/reverse/pass@1"] == pytest.approx(sum(r["correct"] for r in final) / 4 / 8)
    base = [row for row in items if row["update"] == 0]
    assert sum(row["kl"] for row in base) == pytest.approx(0.0, abs=1e-5)


def test_the_base_is_evaluated_once_for_all_runs(tmp_path, monkeypatch):
    import klsweep.training.trainer as trainer

    calls = []
    evaluate = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda *a: calls.append(1) or evaluate(*a))
    for seed in (0, 1, 2):
        run(tmp_path, f"s{seed}", f"seed={seed}", "train.updates=1")
    assert len(calls) == 3 + 1
    assert len(list((tmp_path / "artifacts").glob("b1-*"))) == 1


def test_pass_at_k_of_four_samples_with_one_right():
    assert [pass_at_k(4, 1, k) for k in (1, 2, 4)] == pytest.approx([0.25, 0.5, 1.0])
    assert pass_at_k(4, 0, 4) == 0.0
    item = {"samples": 4, "greedy_correct": True, "kl": 0.5, "entropy": 1.0}
    result = summary({"s": [{**item, "correct": 1}, {**item, "correct": 4, "greedy_correct": False}]}, [4])
    assert result == {
        "eval/s/pass@1": 0.625,
        "eval/s/pass@4": 1.0,
        "eval/s/greedy": 0.5,
        "eval/s/kl": 0.5,
        "eval/s/entropy": 1.0,
    }


def test_metrics_hold_no_time(tmp_path):
    _, folder = run(tmp_path, "run", "train.updates=1")
    assert not [key for key in json.loads(folder.metrics.read_text().splitlines()[-1]) if "second" in key]
