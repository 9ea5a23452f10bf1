"""The threshold: it minimises the bound on any grid, for any sample; what it refuses; splits and intervals."""

import numpy as np
import pytest

from klsweep.theory.bound import ClipInterval, fixed_policy_bound, paper_alpha
from klsweep.theory.clip_threshold import (
    KLSwitchedOff,
    asymmetric_clip,
    bootstrap_clip,
    calibrated_clip,
    split_prompts,
    symmetric_clip,
)


def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    ties = rng.integers(-3, 4, 101) / 2
    return [rng.normal(0.3, 1.0, 1000), rng.standard_cauchy(77), ties, np.r_[np.zeros(50), rng.exponential(1.0, 60)]]


def total(found: np.ndarray, alpha: float, clip: ClipInterval, beta: float = 0.2) -> float:
    return fixed_policy_bound(alpha, clip, beta, clip.clipped_mass(found)).total


@pytest.mark.parametrize("alpha", [0.02, 0.081771, 0.2, 0.25])
@pytest.mark.parametrize("which", range(4))
def test_threshold_minimises_the_bound_on_a_fine_grid(which, alpha):
    found = samples()[which]
    best = total(found, alpha, symmetric_clip(found, alpha, 10))
    grid = np.r_[np.linspace(0, np.abs(found).max() * 1.1, 4001), np.abs(found)]
    assert best <= min(total(found, alpha, ClipInterval.symmetric(tau)) for tau in grid) + 1e-12


@pytest.mark.parametrize("alpha", [0.02, 0.2])
def test_asymmetric_thresholds_minimise_it_over_both(alpha):
    found = samples()[0]
    clip = asymmetric_clip(found, alpha, 10)
    best = total(found, alpha, clip)
    grid = np.linspace(0, 4, 201)
    assert best <= min(total(found, alpha, ClipInterval(low, high)) for low in grid for high in grid[::5]) + 1e-12
    assert best <= min(total(found, alpha, ClipInterval(clip.low, high)) for high in grid) + 1e-12
    assert best < total(found, alpha, symmetric_clip(found, alpha, 10))
    assert (found > clip.high).mean() <= alpha < (found >= clip.high).mean()
    assert (found < -clip.low).mean() <= alpha < (found <= -clip.low).mean()


def test_threshold_is_the_inverted_cdf_quantile():
    found = np.array([-5.0, 4.0, -3.0, 2.0, 1.0])
    assert symmetric_clip(found, 0.15, 9).high == 4.0  # 0.3 of five may exceed it: one does, not two
    assert symmetric_clip(found, 0.25, 9) == ClipInterval(3.0, 3.0)
    assert calibrated_clip(found, 0.25, 9, asymmetric=True) == ClipInterval(3.0, 2.0)  # one of five beyond each
    assert asymmetric_clip(np.array([1.0, 2.0, 3.0, -1.0]), 0.3, 9) == ClipInterval(0.0, 2.0)
    wide = np.random.default_rng(1).normal(size=(64, 8))
    expected = np.quantile(np.abs(wide), 1 - 2 * 0.1, method="inverted_cdf")
    assert symmetric_clip(wide, 0.1, 64).high == expected


@pytest.mark.parametrize(("prompts", "rollouts"), [(16, 4), (20, 1), (100, 16), (5, 300)])
def test_refusal_names_the_least_n_that_would_do(prompts, rollouts):
    """Zeros in 7 of 10 samples: KL is off until 2α < 0.3. Brute force over n."""
    found = np.r_[np.zeros(70), np.linspace(0.1, 3, 30)]
    with pytest.raises(KLSwitchedOff, match=r"would be 0 and switch KL off: .* P\(\|ℓ\| > 0\) = 0.3") as caught:
        symmetric_clip(found, paper_alpha(prompts, rollouts, 0.05), prompts)
    needed = next(n for n in range(1, 10**6) if 2 * paper_alpha(n, rollouts, 0.05) < 0.3)
    assert caught.value.prompts_needed == needed
    assert f"needs prompts={needed}, not {prompts}" in str(caught.value)
    assert symmetric_clip(found, paper_alpha(needed, rollouts, 0.05), needed).high > 0


def test_asymmetric_refusal_needs_both_sides_to_be_off():
    found = np.r_[np.zeros(70), np.linspace(0.1, 3, 30), -np.linspace(0.1, 3, 5)]
    with pytest.raises(KLSwitchedOff, match="needs prompts=61, not 20") as caught:
        asymmetric_clip(found, paper_alpha(20, 4, 0.05), 20)
    assert caught.value.prompts_needed == next(n for n in range(1, 10**6) if paper_alpha(n, 4, 0.05) < 30 / 105)
    assert asymmetric_clip(found, paper_alpha(61, 4, 0.05), 61).low == 0.0


def test_bad_samples_are_one_clear_line():
    with pytest.raises(KLSwitchedOff, match="every log-ratio is 0") as caught:
        symmetric_clip(np.zeros(5), 0.1, 5)
    assert caught.value.prompts_needed is None
    with pytest.raises(ValueError, match="log_ratios: empty"):
        symmetric_clip([], 0.1, 5)
    with pytest.raises(ValueError, match=r"log_ratios: 2 of 3 values are not finite \(NaN or infinite\)"):
        asymmetric_clip([1.0, np.nan, np.inf], 0.1, 5)
    with pytest.raises(ValueError, match=r"log_ratios: expected 1 or 2 dimensions, got shape \[2, 2, 2\]"):
        symmetric_clip(np.ones((2, 2, 2)), 0.1, 5)
    with pytest.raises(ValueError, match="log_ratios: a single row cannot be split"):
        split_prompts(np.ones((1, 8)), 0)


def test_split_keeps_prompts_whole_and_is_seeded():
    found = np.arange(5)[:, None] * 10 + np.arange(3)
    first, again, other = split_prompts(found, 1), split_prompts(found, 1), split_prompts(found, 2)
    assert first.calibration.tolist() == again.calibration.tolist()
    assert first.calibration.tolist() != other.calibration.tolist()
    assert (len(first.calibration), len(first.evaluation)) == (2, 3)
    rows = sorted([*first.calibration.tolist(), *first.evaluation.tolist()])
    assert rows == found.tolist()


def test_bootstrap_resamples_whole_prompts():
    """All rollouts of a prompt alike: the interval is that of one rollout each, wider than if they were independent."""
    rng = np.random.default_rng(0)
    single = rng.exponential(1.0, 100)
    grouped = np.repeat(single[:, None], 20, axis=1)
    by_prompt = bootstrap_clip(grouped, 0.1, False, seed=3).high
    by_sample = bootstrap_clip(grouped.ravel(), 0.1, False, seed=3).high
    assert by_prompt == bootstrap_clip(single, 0.1, False, seed=3).high
    assert by_prompt.high - by_prompt.low > 2 * (by_sample.high - by_sample.low)
    assert by_prompt == bootstrap_clip(grouped, 0.1, False, seed=3).high
    assert by_prompt != bootstrap_clip(grouped, 0.1, False, seed=4, resamples=200).high


def test_bootstrap_is_the_distribution_of_a_resampled_quantile():
    """Its exact law: P(τ ≤ x_(i)) = P(Binomial(N, i/N) ≥ j), j = ⌈0.8 N⌉."""
    from scipy.stats import binom

    found = np.random.default_rng(1).exponential(1.0, 50)
    interval = bootstrap_clip(found, 0.1, False, seed=0, resamples=20_000, confidence=0.9).high
    reached = binom.sf(39, 50, np.arange(1, 51) / 50)
    ordered = np.sort(found)
    assert interval.low == ordered[np.searchsorted(reached, 0.05)]
    assert interval.high == ordered[np.searchsorted(reached, 0.95)]


def test_bootstrap_of_both_sides_covers_the_thresholds():
    found = np.random.default_rng(2).normal(0.5, 1.0, (200, 4))
    clip, interval = asymmetric_clip(found, 0.1, 200), bootstrap_clip(found, 0.1, True, seed=0)
    assert interval.low.low < clip.low < interval.low.high
    assert interval.high.low < clip.high < interval.high.high
    assert interval.low.high < interval.high.low  # the mean is positive, so τ_hi is larger
    done = []
    bootstrap_clip(found, 0.1, True, seed=0, resamples=3, progress=done.append)
    assert done == [1, 2, 3]
