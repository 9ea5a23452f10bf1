"""`clip=quantile`: the threshold it sets, what it clips, logs and refuses."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from klsweep.errors import BadInput
from klsweep.objective.clip import FixedClip, QuantileClip
from klsweep.objective.objective import build_objective
from klsweep.objective.regulariser import Betas
from klsweep.record.files import read_rows
from klsweep.training.threshold import Calibrated, Threshold
from klsweep.training.trainer import Trainer
from tests.conftest import planned, small_spec
from tests.test_training import run

QUANTILE = ("clip=quantile", "clip.confidence=0.2", "clip.window=4", "clip.on_zero=warn")
GROUP = 4


def quantile(**fields) -> QuantileClip:
    clip = small_spec(*QUANTILE).clip
    assert isinstance(clip, QuantileClip)
    return dataclasses.replace(clip, **{"on_zero": "refuse", **fields})


def alpha(prompts: int, confidence: float = 0.2) -> float:
    """SCIENCE's α, written out."""
    log = math.log(4 / (1 - confidence))
    return math.sqrt(log / (2 * prompts)) + math.sqrt(log / (2 * prompts * GROUP))


def exceeding(values: np.ndarray, share: float) -> float:
    """The smallest of the values that at most this share of them is above."""
    return min(v for v in values if (values > v).mean() <= share)


def batch(seed: int, prompts: int = 12) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.3, 1.0, prompts * GROUP))


def test_the_threshold_is_the_quantile_of_the_window():
    threshold, seen = Threshold(quantile(window=2), GROUP, Calibrated()), []
    for update in (1, 2, 3):
        seen.append(batch(update).abs().numpy())
        assert threshold.sees(update, batch(update)) is None
        window = np.concatenate(seen[-2:])
        prompts = len(window) // GROUP
        assert prompts == (12 if update == 1 else 24)
        assert threshold.tau == exceeding(window, 2 * alpha(prompts))
    share = (np.concatenate(seen[-2:]) > threshold.tau).mean()
    assert share == pytest.approx(2 * alpha(24), abs=1 / 96)


def test_it_is_smoothed_and_set_every_so_many_updates():
    threshold = Threshold(quantile(window=1, every=2, smoothing=0.75), GROUP, Calibrated())
    found = []
    for update in (1, 2, 3, 4):
        threshold.sees(update, batch(update))
        found.append(threshold.tau)
    plain = [exceeding(batch(u).abs().numpy(), 2 * alpha(12)) for u in (2, 4)]
    assert found[0] is None
    assert found[1] == found[2] == plain[0]
    assert found[3] == pytest.approx(0.75 * plain[0] + 0.25 * plain[1], rel=1e-15)


def test_a_batch_of_the_reference_itself_does_not_count_and_too_few_prompts_are_waited_for():
    threshold = Threshold(quantile(window=4), GROUP, Calibrated())
    assert threshold.sees(1, torch.zeros(16)) is None
    assert threshold.state == Calibrated()
    assert 2 * alpha(8) < 1 < 2 * alpha(4)
    assert threshold.sees(2, batch(2, prompts=4)) is None
    assert threshold.tau is None
    threshold.sees(3, batch(3, prompts=4))
    both = np.concatenate([batch(2, 4).abs().numpy(), batch(3, 4).abs().numpy()])
    assert threshold.tau == exceeding(both, 2 * alpha(8))


def test_a_threshold_of_zero_is_refused_or_warned_of(capsys):
    mostly_zero = torch.zeros(48).index_fill(0, torch.arange(10), 2.0)  # P(|ℓ| > 0) = 10/48 < 2α
    threshold = Threshold(quantile(), GROUP, Calibrated())
    assert 2 * alpha(12) == pytest.approx(0.7768, abs=1e-4)
    needed = math.floor(12 * (2 * alpha(12) * 48 / 10) ** 2) + 1
    assert needed == 167
    refusal = threshold.sees(5, mostly_zero)
    assert refusal is not None
    assert refusal.startswith("update 5: clip=quantile: the threshold would be 0")
    assert "prompts=167" in refusal
    warned = Threshold(quantile(on_zero="warn"), GROUP, Calibrated(tau=0.7))
    assert warned.sees(5, mostly_zero) is None
    assert warned.tau == 0.7
    assert "kept at 0.7" in capsys.readouterr().err


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_sets_no_threshold(odd):
    spec = small_spec(*QUANTILE)
    threshold = Threshold(quantile(window=1), GROUP, Calibrated())
    threshold.sees(1, batch(1))
    before = threshold.state
    broken = batch(2)
    broken[5] = odd
    assert threshold.sees(2, broken) is None
    assert threshold.state == before
    objective = build_objective(*spec.objective_parts)
    assert threshold.metrics(broken, torch.zeros(48), objective, Betas(0.1, 0.0)) == {}


def test_a_divergence_is_one_with_a_threshold_too(tmp_path, monkeypatch):
    plain = Trainer.score_batch
    calls = []

    def score_batch(self, tokens):
        calls.append(tokens)
        scores = plain(self, tokens)
        lost = scores.old_logprobs if len(calls) < 6 else scores.old_logprobs * math.nan
        return dataclasses.replace(scores, old_logprobs=lost)

    monkeypatch.setattr(Trainer, "score_batch", score_batch)
    outcome, folder = run(tmp_path, "a", *QUANTILE, "train.updates=7", "train.lr=5e-3")
    assert outcome == ("diverged", "update 6: loss = nan is not finite")
    *_, before, last = read_rows(folder.metrics)
    assert ("clip/tau" in before, "clip/tau" in last) == (True, False)


def test_until_the_first_threshold_nothing_is_clipped_then_as_fixed():
    clip = quantile(mode="straight_through", half="loss")
    values = torch.tensor([-3.0, 0.5, 3.0])
    assert torch.equal(clip.at(None)(values, "sequence"), values)
    fixed = clip.at(1.0)
    assert isinstance(fixed, FixedClip)
    assert (fixed.bounds, fixed.level, fixed.mode, fixed.half) == ((-1.0, 1.0), "sequence", "straight_through", "loss")
    assert fixed.within("reward")(values, "sequence").tolist() == [-3.0, 0.5, 3.0]
    assert fixed.within("loss")(values, "sequence").tolist() == [-1.0, 0.5, 1.0]


def test_a_run_clips_at_what_it_has_seen_and_logs_the_terms(tmp_path, monkeypatch):
    seen: list[np.ndarray] = []
    plain = Threshold.sees

    def sees(self, update, log_ratios):
        seen.append(log_ratios.double().numpy())
        return plain(self, update, log_ratios)

    monkeypatch.setattr(Threshold, "sees", sees)
    _, folder = run(tmp_path, "a", *QUANTILE, "train.updates=7", "kl.coef=0.3", "train.lr=5e-3")
    rows = [row for row in read_rows(folder.metrics) if row["update"] > 0]
    assert not np.any(seen[0])  # the policy is its reference
    assert ["clip/tau" in row for row in rows] == [False] * 3 + [True] * 4  # of two batches 2α < 1
    for i, row in enumerate(rows[3:], start=3):
        tau = exceeding(np.abs(np.concatenate(seen[max(1, i - 4) : i])), 2 * alpha(4 * min(i - 1, 4)))
        moved = np.maximum(np.abs(seen[i]) - tau, 0)
        assert row["clip/tau"] == tau
        assert row["clip/fraction"] == (moved > 0).mean()
        assert row["clip/distance"] == pytest.approx(moved.mean(), rel=1e-5)
        assert row["bound/alpha"] == pytest.approx(alpha(4), rel=1e-12)
        assert row["bound/sampling"] == pytest.approx((1 + 2 * 0.3 * tau) * alpha(4), rel=1e-12)
        assert row["bound/clipping"] == pytest.approx(0.3 * moved.mean(), rel=1e-5)


@pytest.mark.parametrize("half", ["reward", "loss"])
def test_the_loss_and_the_charge_are_clipped(half, tmp_path):
    """τ changes what is trained from the update that first has one, and nothing before."""
    cell = ("train.updates=6", f"placement={half}", "placement.level=sequence", "estimator=k2", "train.lr=5e-3")
    cell = cell if half == "loss" else (*cell[:2], *cell[3:])
    _, one = run(tmp_path, "clipped", *cell, *QUANTILE)
    _, other = run(tmp_path, "plain", *cell)
    rows, plain = (list(read_rows(folder.metrics)) for folder in (one, other))
    assert [a["loss"] == b["loss"] for a, b in zip(rows[1:4], plain[1:4], strict=True)] == [True] * 3
    assert rows[4]["loss"] != plain[4]["loss"]


def test_a_run_resumed_goes_on_with_its_threshold(tmp_path):
    cell = (*QUANTILE, "train.updates=7", "train.checkpoint_seconds=0")
    _, whole = run(tmp_path, "whole", *cell)
    outcome, broken = run(tmp_path, "broken", *cell, stop_after=5)
    assert outcome.state == "preempted"
    run(tmp_path, "broken", *cell)
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_run_whose_threshold_would_be_zero_fails_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Threshold, "sees", lambda self, update, _: f"update {update}: no" if update == 2 else None)
    outcome, folder = run(tmp_path, "a", *QUANTILE)
    assert outcome == ("failed", "update 2: no")
    assert [row["update"] for row in read_rows(folder.metrics)] == [0, 1, 2]


def test_too_few_prompts_are_known_before_training():
    with pytest.raises(BadInput, match=r"clip\.window=1 with train\.prompts_per_update=4: 2α is 2\.2") as found:
        small_spec("clip=quantile", "clip.window=1")
    assert "takes 20 prompts" in str(found.value)
    assert 2 * alpha(20, 0.95) < 1 < 2 * alpha(19, 0.95)
    small_spec("clip=quantile", "clip.window=5")


def test_a_plan_tells_thresholds_apart_and_keeps_what_matters():
    plan = planned("clip=none,quantile", "clip.window=4,8", "estimator=k1", "train.updates=1,2")
    assert len(plan.runs) == 6  # no clip has no window
    fields = [row.canonical for row in plan.runs if row.canonical.get("clip") == "QuantileClip"]
    assert len(fields) == 4
    assert {tuple(sorted(k for k in f if k.startswith("clip."))) for f in fields} == {
        ("clip.confidence", "clip.every", "clip.level", "clip.on_zero", "clip.smoothing", "clip.window")
    }
