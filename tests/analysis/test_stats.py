"""Intervals over runs, against scipy's own, by hand, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from klsweep.analysis.stats import bootstrap, interquartile_mean, mean_of_means, t_interval, wilson_interval


def test_t_interval_of_three_runs_by_hand():
    """mean 2, s = 1, t_{2, .975} = 4.302653: half-width 2.484138."""
    estimate = t_interval([1.0, 2.0, 3.0])
    assert estimate is not None
    assert (estimate.n, estimate.mean) == (3, 2.0)
    assert estimate.ci_high == pytest.approx(2 + 2.484138, abs=1e-6)
    assert estimate.ci_low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert t_interval([5.0]) == (1, 5.0, None, None)
    assert t_interval([]) is None
    narrower = t_interval([1.0, 2.0, 3.0], confidence=0.9)
    assert narrower is not None
    assert narrower.ci_high == pytest.approx(2 + 2.919986 / 3**0.5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_the_default_interval_covers_though_a_runs_suites_are_correlated(runs):
    """A run is asked in four suites whose errors correlate by 0.5; the default: t over run-level means."""
    rng = np.random.default_rng(runs)
    repetitions, suites = 6000, 4
    common = math.sqrt(0.5) * rng.normal(size=(repetitions, runs, 1))
    values = 0.6 + 0.1 * (common + math.sqrt(0.5) * rng.normal(size=(repetitions, runs, suites)))
    covered = pooled = 0
    for study in values:
        interval = t_interval(study.mean(axis=1).tolist())
        assert interval is not None
        covered += interval.ci_low <= 0.6 <= interval.ci_high
        wrong = t_interval(study.ravel().tolist())
        assert wrong is not None
        pooled += wrong.ci_low <= 0.6 <= wrong.ci_high
    assert 0.92 <= covered / repetitions <= 0.97
    assert pooled / repetitions < 0.87  # as if a run's suites were as many runs


def test_mean_of_means_is_welchs_test_of_two_cells():
    """Without common seeds, (ā + b̄)/2 is half of Welch's difference of a and −b: the same half-width, halved."""
    a, b = {0: 0.1, 1: 0.4, 2: 0.5, 3: 0.9}, {4: 0.2, 5: 0.25, 6: 0.3}
    estimate = mean_of_means([a, b])
    first, second = list(a.values()), list(b.values())
    welch = stats.ttest_ind(first, [-x for x in second], equal_var=False).confidence_interval()
    assert estimate is not None
    assert (estimate.n, estimate.mean) == (7, pytest.approx((np.mean(first) + np.mean(second)) / 2))
    assert (estimate.ci_low, estimate.ci_high) == (pytest.approx(welch.low / 2), pytest.approx(welch.high / 2))
    assert mean_of_means([a, {}, b]) == estimate
    assert mean_of_means([a, {0: 0.5}]) == (5, pytest.approx(0.4875), None, None)
    assert mean_of_means([{0: 1.0, 1: 1.0}, {0: 3.0, 1: 3.0}]) == (4, 2.0, 2.0, 2.0)


def test_mean_of_means_of_cells_with_the_same_seeds_is_students_t_of_the_means_per_seed():
    a, b = {0: 0.1, 1: 0.4, 2: 0.5}, {2: 0.6, 1: 0.45, 0: 0.3}
    per_seed = [0.2, 0.425, 0.55]
    estimate = mean_of_means([a, b])
    interval = stats.t.interval(0.95, 2, np.mean(per_seed), stats.sem(per_seed))
    assert estimate == (6, pytest.approx(np.mean(per_seed)), *map(pytest.approx, interval))


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.92])
@pytest.mark.parametrize("missing", [0, 1])
def test_the_interval_of_pooled_cells_covers_though_they_share_seeds(runs, shared, missing):
    """Four cells whose runs of one seed correlate by `shared`; one of them may lack a seed."""
    rng = np.random.default_rng(runs)
    repetitions, cells = 1500, 4
    common = math.sqrt(shared) * rng.normal(size=(repetitions, 1, runs))
    values = 0.6 + 0.1 * (common + math.sqrt(1 - shared) * rng.normal(size=(repetitions, cells, runs)))
    covered = apart = 0
    for study in values:
        found = [dict(enumerate(row)) for row in study.tolist()]
        for seed in range(missing):
            del found[0][seed]
        interval = mean_of_means(found)
        assert interval is not None
        covered += interval.ci_low <= 0.6 <= interval.ci_high
        wrong = mean_of_means([{100 * i + seed: v for seed, v in cell.items()} for i, cell in enumerate(found)])
        assert wrong is not None
        apart += wrong.ci_low <= 0.6 <= wrong.ci_high
    assert 0.92 <= covered / repetitions <= 0.97
    assert shared < 0.5 or apart / repetitions < 0.88  # as if each cell had seeds of its own


@pytest.mark.parametrize(("k", "n"), [(0, 3), (3, 3), (1, 5), (7, 20), (200, 201)])
def test_wilsons_interval_is_scipys(k, n):
    found = stats.binomtest(k, n).proportion_ci(method="wilson")
    rate = wilson_interval(k, n)
    assert rate == (k, n, pytest.approx(found.low, abs=1e-12), pytest.approx(found.high, abs=1e-12))


def test_no_run_has_no_rate():
    assert wilson_interval(0, 0) == (0, 0, None, None)


def test_interquartile_mean_by_hand():
    """Of three values the quarters' edges are at 0.75 and 2.25: weights 1/4, 1, 1/4."""
    assert interquartile_mean(np.array([9.0, 0.0, 3.0])) == pytest.approx((0 / 4 + 3 + 9 / 4) / 1.5)
    assert interquartile_mean(np.array([100.0, 2.0, -50.0, 4.0])) == 3.0
    assert interquartile_mean(np.array([5.0])) == 5.0
    values = np.random.default_rng(0).normal(size=(4, 7))
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values.ravel(), 0.25))


def test_whole_runs_are_resampled():
    """Runs of 0, 1 and 2 in every suite: the mean is 0 in 1 of 27 resamples, so that the interval begins at 0.

    Run and suite drawn apart, no mean of 40 entries would come near.
    """
    values = np.repeat([[0.0], [1.0], [2.0]], 40, axis=1)
    found = bootstrap(values, lambda x: float(x.mean()))
    assert found is not None
    assert found[:4] == (3, 1.0, 0.0, 2.0)
    assert found.warning is not None
    assert "3 runs" in found.warning
    assert bootstrap(values[:0]) is None
    assert bootstrap(values[:1]) == (1, 0.0, None, None, "one run: no interval")


def test_a_bootstrap_is_repeated_by_its_seed_and_says_nothing_of_many_runs():
    values = np.random.default_rng(0).normal(size=(25, 3))
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    found = bootstrap(values)
    assert found is not None
    assert found.warning is None
    assert found.ci_low < found.value < found.ci_high


@pytest.mark.slow
def test_what_the_warning_says_of_few_runs():
    """Coverage of the resampled interval of a mean at 3, 5 and 10 runs: 74 %, 85 %, 90 %."""
    rng = np.random.default_rng(0)
    for runs, expected in ((3, 0.74), (5, 0.85), (10, 0.90)):
        covered = 0
        for seed in range(800):
            found = bootstrap(rng.normal(size=(runs, 1)), lambda x: float(x.mean()), seed, resamples=150)
            assert found is not None
            covered += found.ci_low <= 0 <= found.ci_high
        assert covered / 800 == pytest.approx(expected, abs=0.045)
