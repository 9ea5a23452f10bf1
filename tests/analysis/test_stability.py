"""Collapse and spikes of single runs, on series made by hand."""

import numpy as np
import pytest

from klsweep.analysis.load import Series
from klsweep.analysis.stability import collapse, spikes


def series(values, start: int = 1) -> Series:
    return Series(np.arange(start, start + len(values)), np.array(values, float))


def test_a_collapse_by_hand():
    """0.8 until update 20, then 0: the mean of five is below 0.4 with three zeros in it (0.32), at update 23."""
    found = collapse(series([0.8] * 20 + [0.0] * 10))
    assert found == (23, pytest.approx(1.0), 25, False)


def test_recovery_is_seen_at_the_end():
    """Ten updates at 0.2, then back: lost 1 − 0.2/0.8; 0.64 = 0.8 · 0.8 is the least that is recovered."""
    fallen = [0.8] * 20 + [0.2] * 10
    assert collapse(series([*fallen, *[0.641] * 5])) == (24, pytest.approx(0.75), 25, True)
    assert collapse(series([*fallen, *[0.639] * 5])) == (24, pytest.approx(0.75), 25, False)


def test_what_is_no_collapse():
    rng = np.random.default_rng(0)
    assert collapse(series(np.linspace(0.3, 0.9, 60))) is None
    assert collapse(series([0.8] * 20 + [0.45] * 20)) is None  # not by half
    assert collapse(series([0.8, 0.0] * 20)) is None  # no trend
    assert collapse(series(rng.binomial(32, 0.03, size=200) / 32)) is None  # noise of a hard task
    assert collapse(series([0.0] * 30)) is None
    assert collapse(series([0.8] * 3 + [0.0] * 2)) is None  # too short to tell
    assert collapse(series([])) is None


def test_noise_is_measured_not_assumed():
    """The same fall from 0.1 to 0.03: found where updates agree to 0.005, not where they scatter by 0.1."""
    fall = np.r_[np.full(30, 0.1), np.full(30, 0.03)]
    rng = np.random.default_rng(1)
    assert collapse(series(fall + 0.005 * rng.normal(size=60))) is not None
    assert collapse(series(np.abs(fall + 0.1 * rng.normal(size=60)))) is None


def test_values_that_are_not_finite_are_passed_over():
    values = [0.8] * 20 + [np.nan] * 3 + [0.0] * 10
    assert collapse(series(values)) == (26, pytest.approx(1.0), 28, False)


def test_spikes_by_hand():
    """Median 2 before: 19 is no spike, 21 is one of 10.5, and what is not finite is one in any case."""
    assert spikes(series([2.0] * 10 + [19.0] + [2.0] * 5)) is None
    assert spikes(series([2.0] * 10 + [21.0] + [2.0] * 5)) == (1, 11, pytest.approx(10.5), True)
    assert spikes(series([2.0] * 10 + [21.0] + [2.0] * 4)) == (1, 11, pytest.approx(10.5), False)
    assert spikes(series([2.0] * 10 + [np.nan, 30.0] + [2.0] * 9)) == (2, 11, np.inf, True)
    assert spikes(series([0.1, 5.0, 0.1])) is None  # too early for a median


def test_after_updates_without_a_gradient_an_ordinary_one_is_no_spike():
    """Zeros have no size to be ten times of: only the five positive values before 21 do, and their median is 2."""
    assert spikes(series([0.0] * 7 + [2.0, 1.9, 2.1] * 4)) is None
    assert spikes(series([2.0] * 10 + [0.0] * 15 + [3.0] + [2.0] * 5)) is None
    assert spikes(series([0.0] * 7 + [2.0] * 4 + [21.0])) is None  # too early
    assert spikes(series([0.0] * 7 + [2.0] * 5 + [21.0])) == (1, 13, pytest.approx(10.5), False)
