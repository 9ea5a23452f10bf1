"""From log-ratios to terms: each recomputed here from the formula; splits, and how terms change with τ, n and K."""

import numpy as np
import pytest

from klsweep.theory.bound import ClipInterval, RewardRange, paper_alpha
from klsweep.theory.budget import Costs
from klsweep.theory.clip_threshold import KLSwitchedOff, split_prompts
from klsweep.theory.decomposition import (
    Setting,
    against_prompts,
    against_rollouts,
    against_tau,
    decompose,
    spending,
)
from klsweep.theory.variance import VarianceComponents

LOG_RATIOS = np.random.default_rng(0).normal(0.2, 1.0, (128, 8))
SETTING = Setting(prompts=512, rollouts=16, delta=0.05, beta=0.3, coverage=1.5, reward_error=0.2)


def test_terms_are_the_formulas():
    found = decompose(SETTING, LOG_RATIOS, split=False, seed=0)
    alpha, size = paper_alpha(512, 16, 0.05), np.abs(LOG_RATIOS)
    tau = float(np.quantile(size, 1 - 2 * alpha, method="inverted_cdf"))
    assert SETTING.quantile == 1 - 2 * alpha
    assert found.clip == ClipInterval(tau, tau)
    assert found.bound.sampling == pytest.approx((1 + 2 * 0.3 * tau) * alpha)
    assert found.bound.clipping == pytest.approx(0.3 * np.maximum(size - tau, 0).mean())
    assert found.bound.reward_shift == pytest.approx(0.3)
    assert found.clipped_share == pytest.approx((size > tau).mean())
    assert found.interval.high.low <= tau <= found.interval.high.high
    assert "the same log-ratios, 1024 of 128 prompts" in found.label


def test_split_calibrates_on_one_half_and_evaluates_on_the_other():
    found = decompose(SETTING, LOG_RATIOS, split=True, seed=7)
    halves = split_prompts(LOG_RATIOS, 7)
    tau = float(np.quantile(np.abs(halves.calibration), SETTING.quantile, method="inverted_cdf"))
    assert found.clip.high == tau
    assert found.bound.clipping == pytest.approx(0.3 * np.maximum(np.abs(halves.evaluation) - tau, 0).mean())
    assert found.label == "split: τ* is from 512 of 64 prompts, E|ℓ − ℓ^τ| from the other 512 of 64 prompts"
    assert decompose(SETTING, LOG_RATIOS, split=True, seed=8).clip != found.clip


def test_rewards_in_another_range():
    wide = Setting(512, 16, 0.05, 0.3, rewards=RewardRange(-1.0, 3.0))
    found = decompose(wide, LOG_RATIOS, split=False, seed=0)
    assert found.bound.sampling == pytest.approx((4 + 2 * 0.3 * found.clip.high) * wide.alpha)


def test_the_curve_against_tau_is_lowest_at_the_threshold():
    for asymmetric in (False, True):
        setting = Setting(512, 16, 0.05, 0.3, asymmetric=asymmetric)
        found = decompose(setting, LOG_RATIOS, split=False, seed=0)
        sides = (("low", found.clip.low), ("high", found.clip.high)) if asymmetric else (("both", found.clip.high),)
        for side, tau in sides:
            points = against_tau(setting, LOG_RATIOS, side, found.clip, 2001)
            totals = [point.bound.total for point in points if point.bound]
            assert min(totals) >= found.bound.total - 1e-12
            assert points[int(np.argmin(totals))].at == pytest.approx(tau, abs=0.01)
            assert points[-1].at == np.abs(LOG_RATIOS).max()


def test_curves_against_n_and_k_are_each_at_their_own_threshold():
    points = against_prompts(SETTING, LOG_RATIOS, [2, 30, 512])
    assert points[0].bound is None  # 2α > 1
    for point in points[1:]:
        alone = decompose(Setting(int(point.at), 16, 0.05, 0.3, coverage=1.5, reward_error=0.2), LOG_RATIOS, False, 0)
        assert point.bound == alone.bound
    costs = Costs(8.0, 1.0)
    points = against_rollouts(SETTING, LOG_RATIOS, costs, 12_000.0, [1, 4, 16, 20_000])
    assert [point.at for point in points] == [1, 4, 16]
    assert points[2].bound == against_prompts(SETTING, LOG_RATIOS, [500])[0].bound
    totals = [point.bound.total for point in points if point.bound]
    assert totals[1] == min(totals)


def test_spending_by_bound_and_by_variance():
    costs, components = Costs(8.0, 1.0), VarianceComponents(0.1, 0.8, 0.1, None, None)
    bound, variance = spending(SETTING, costs, None, components)
    assert bound.best_rollouts == pytest.approx(4.0)
    assert (bound.prompts, bound.rollouts) == (1024, 4)  # 512 · (8 + 16) = 12,288 = 1024 · 12
    assert bound.value == pytest.approx(paper_alpha(1024, 4, 0.05))
    assert variance.best_rollouts == pytest.approx(8.0)
    assert (variance.prompts, variance.rollouts) == (768, 8)
    assert variance.value == pytest.approx(np.sqrt((0.1 + 0.8 / 8) / 768))
    alone = spending(Setting(512, 16, 0.05, 0.3, "hoeffding"), costs, 90.0, None)
    assert [(best.best_rollouts, best.prompts, best.rollouts) for best in alone] == [(1.0, 10, 1)]


def test_what_is_refused():
    with pytest.raises(KLSwitchedOff, match=r"needs prompts=\d+, not 5"):
        decompose(Setting(5, 4, 0.05, 0.3), LOG_RATIOS, split=False, seed=0)
    with pytest.raises(ValueError, match="log_ratios: 1 of 3 values are not finite"):
        decompose(SETTING, [0.1, np.nan, 0.3], split=False, seed=0)
