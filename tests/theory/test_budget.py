"""Budgets: closed forms against minimisation, whole numbers against brute force, variance components against theory."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from klsweep.theory.budget import (
    EQUAL_COSTS,
    Costs,
    best_allocation,
    best_rollouts,
    best_rollouts_by_variance,
    best_split,
    sampling_rate,
    variance_of_mean,
    whole_rollouts,
)
from klsweep.theory.variance import VarianceComponents, variance_components


def components(prompt: float, rollout: float) -> VarianceComponents:
    return VarianceComponents(prompt, rollout, prompt, None, None)


def test_hand_cases():
    assert best_rollouts(EQUAL_COSTS) == 1.0
    assert best_rollouts(Costs(8.0, 1.0)) == pytest.approx(4.0)
    assert best_rollouts(Costs(100.0, 1.0)) == pytest.approx(21.54, abs=5e-3)
    assert whole_rollouts(best_rollouts(Costs(100.0, 1.0)), sampling_rate, Costs(100.0, 1.0)) == 22
    assert best_rollouts(Costs(0.5, 1.0)) == 1.0
    assert best_rollouts_by_variance(Costs(8.0, 2.0), components(0.5, 4.5)) == pytest.approx(6.0)
    assert best_rollouts_by_variance(Costs(1.0, 2.0), components(4.0, 1.0)) == 1.0
    assert best_rollouts_by_variance(Costs(1.0, 2.0), components(0.0, 1.0)) == math.inf
    assert best_rollouts_by_variance(Costs(1.0, 2.0), components(1.0, 0.0)) == 1.0
    assert best_rollouts_by_variance(EQUAL_COSTS, components(0.0, 1.0)) == 1.0


@pytest.mark.parametrize("ratio", [3.0, 8.0, 100.0, 1234.5])
def test_closed_forms_minimise_what_they_should(ratio):
    costs, parts = Costs(ratio * 0.7, 0.7), components(0.3, 0.9)
    for criterion, closed in (
        (sampling_rate, best_rollouts(costs)),
        (variance_of_mean(parts), best_rollouts_by_variance(costs, parts)),
    ):
        numeric = minimize_scalar(lambda log, c=criterion: c(1 / costs.of_prompt(np.exp(log)), np.exp(log)), (0.0, 3.0))
        assert math.exp(numeric.x) == pytest.approx(closed, rel=1e-3)  # pyright: ignore
        whole = whole_rollouts(closed, criterion, costs)
        values = [criterion(1 / costs.of_prompt(k), np.float64(k)) for k in range(1, 1000)]
        assert whole == 1 + int(np.argmin(values))


@pytest.mark.parametrize("costs", [(0, 1), (8, 1), (100, 1), (3, 7), (5, 2), (40, 1)])
@pytest.mark.parametrize("budget", [9, 57, 333, 2000])
def test_whole_numbers_equal_brute_force(costs, budget):
    prefill, decode = costs
    for criterion in (sampling_rate, variance_of_mean(components(0.3, 2.0)), variance_of_mean(components(0.0, 1.0))):
        pairs = (
            [
                (n, k)
                for n, k in itertools.product(range(1, budget // decode + 1), range(1, budget // decode + 1))
                if n * (prefill + k * decode) <= budget
            ]
            if budget <= 333
            else [(n, k) for k in range(1, budget // decode + 1) if (n := budget // (prefill + k * decode)) >= 1]
        )
        if not pairs:
            with pytest.raises(ValueError, match=f"budget={budget}: less than one prompt with one rollout costs"):
                best_allocation(criterion, Costs(prefill, decode), budget)
            continue
        values = [float(criterion(np.float64(n), np.float64(k))) for n, k in pairs]
        found = best_allocation(criterion, Costs(prefill, decode), budget)
        assert found.value == pytest.approx(min(values), rel=1e-12)
        assert found.prompts * (prefill + found.rollouts * decode) == found.spent <= budget
        equals = [n * (prefill + k * decode) for (n, k), v in zip(pairs, values, strict=True) if v <= min(values)]
        assert found.spent in equals


def test_allocation_at_scale_is_near_the_real_optimum():
    found = best_allocation(sampling_rate, Costs(100.0, 1.0), 1e9)
    real = float(sampling_rate(1e9 / Costs(100.0, 1.0).of_prompt(21.5443), np.float64(21.5443)))  # pyright: ignore
    assert real <= found.value <= real * (1 + 1e-4)
    assert found.rollouts in range(18, 26)
    assert best_allocation(sampling_rate, Costs(0.0, 0.1), 0.3).prompts == 3  # 0.3/0.1 is 2.999… in floats
    with pytest.raises(ValueError, match=r"budget=1e\+15: pays for more than 1e\+14 rollouts"):
        best_allocation(sampling_rate, EQUAL_COSTS, 1e15)


def test_split_is_near_the_best_of_all_whole_splits():
    costs, preference, budget, sampling, shift = Costs(4.0, 1.0), 3.0, 400.0, 1.7, 2.3
    found = best_split(costs, preference, budget, sampling, shift)
    best = min(
        sampling * (1 + k**-0.5) / math.sqrt(n) + shift / math.sqrt(m)
        for k in range(1, 60)
        for n in range(1, int(budget // (4 + k)) + 1)
        if (m := int((budget - n * (4 + k)) // 3)) >= 1
    )
    assert found.least <= best <= found.total <= best * 1.01
    assert found.prompts * (4 + found.rollouts) + 3 * found.preferences == found.spent <= budget
    assert found.sampling == pytest.approx(sampling * (1 + found.rollouts**-0.5) / math.sqrt(found.prompts))
    assert found.reward_shift == pytest.approx(shift / math.sqrt(found.preferences))
    smooth = min(
        sampling * (1 + 4 ** (-1 / 3)) * math.sqrt(4 + 4 ** (2 / 3)) / math.sqrt(s) + shift * math.sqrt(3 / (400 - s))
        for s in np.linspace(1, 399, 40001)
    )
    assert found.least == pytest.approx(smooth, rel=1e-6)
    tiny = best_split(Costs(1.0, 1.0), 1.0, 3.0, 1.0, 1000.0)
    assert (tiny.prompts, tiny.rollouts, tiny.preferences) == (1, 1, 1)
    with pytest.raises(ValueError, match="budget=2: less than one rollout and one preference cost, 3"):
        best_split(Costs(1.0, 1.0), 1.0, 2.0, 1.0, 1.0)


def test_anova_by_hand():
    """Groups (0, 2) and (4, 6, 8): MSW = (2 + 8)/3, MSB = 2·3² + 3·2²: means 1 and 6, grand mean 4."""
    found = variance_components([[0.0, 2.0], [4.0, 6.0, 8.0]])
    between, typical = 2 * 9 + 3 * 4, 5 - 13 / 5
    assert found.rollout == pytest.approx(10 / 3)
    assert found.prompt == found.prompt_estimate == pytest.approx((between - 10 / 3) / typical)


def test_balanced_intervals_are_the_textbook_ones():
    """F_obs/F_q = 1 + Kρ, and SSW/χ², on a balanced table."""
    from scipy.stats import chi2, f

    rng = np.random.default_rng(0)
    table = rng.normal(size=(30, 1)) + 2 * rng.normal(size=(30, 5))
    found = variance_components(table, delta=0.1)
    means, within = table.mean(1), ((table - table.mean(1, keepdims=True)) ** 2).sum()
    ratio = 5 * means.var(ddof=1) / (within / 120)
    assert found.ratio_interval is not None
    assert found.rollout_interval is not None
    expected = [(ratio / f.ppf(p, 29, 120) - 1) / 5 for p in (0.95, 0.05)]
    assert found.ratio_interval == pytest.approx([max(0.0, x) for x in expected], abs=1e-9)
    assert found.rollout_interval == pytest.approx([within / chi2.ppf(p, 120) for p in (0.95, 0.05)])


def test_intervals_cover_and_estimates_are_unbiased_with_groups_of_different_sizes():
    rng = np.random.default_rng(1)
    sizes, covered, ratio_covered, estimates = [2, 2, 3, 5, 8, 13, 4, 4, 6, 1], 0, 0, []
    for _ in range(400):
        found = variance_components([rng.normal(0, 0.8) + rng.normal(0, 1.5, k) for k in sizes])
        assert found.rollout_interval is not None
        assert found.ratio_interval is not None
        covered += found.rollout_interval.low <= 2.25 <= found.rollout_interval.high
        ratio_covered += found.ratio_interval.low <= 0.64 / 2.25 <= found.ratio_interval.high
        estimates.append((found.prompt_estimate, found.rollout))
    assert 0.92 <= covered / 400 <= 0.98
    assert 0.92 <= ratio_covered / 400 <= 0.98
    mean, error = np.mean(estimates, 0), np.std(estimates, 0) / 20
    assert np.abs(mean - [0.64, 2.25]) == pytest.approx([0, 0], abs=float(3.5 * error.max()))


def test_components_at_the_edges():
    alike = variance_components([[1.0, 1.0], [0.0, 0.0]])
    assert (alike.rollout, alike.prompt, alike.ratio_interval, alike.rollout_interval) == (0.0, 0.5, None, None)
    opposed = variance_components([[0.0, 1.0], [1.0, 0.0]])
    assert opposed.prompt == 0.0 > opposed.prompt_estimate == pytest.approx(-0.25)
    assert opposed.ratio_interval is not None
    assert opposed.ratio_interval.low == 0.0
    with pytest.raises(ValueError, match="rewards: 3 prompts, 3 rollouts: needs two prompts, and two rollouts to one"):
        variance_components([[1.0], [2.0], [3.0]])
    with pytest.raises(ValueError, match=r"rewards\[1\]: empty"):
        variance_components([[1.0, 2.0], []])
    with pytest.raises(ValueError, match=r"cost_decode=0\.0: expected a finite number above 0"):
        Costs(1.0, 0.0)
    with pytest.raises(ValueError, match=r"K\* is infinite"):
        whole_rollouts(math.inf, sampling_rate, EQUAL_COSTS)
