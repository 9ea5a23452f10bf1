"""The clip threshold that minimises the bound: a quantile of |ℓ|.

The bound's terms in τ are β(τ_lo + τ_hi)α + β E[(ℓ − τ_hi)_+ + (−ℓ − τ_lo)_+]. Their derivatives vanish where
P(|ℓ| > τ*) = 2α (symmetric), or P(ℓ > τ_hi) = P(ℓ < −τ_lo) = α. On a sample the minimiser is the inverted-CDF quantile,
the smallest observed value that at most that share exceeds; quantiles that interpolate do not minimise.

The theorem wants a threshold that does not depend on the evaluation sample: calibrate on the previous batch or on a
held-out half (`split_prompts`). Calibrated and evaluated on one and the same sample, the figures are a heuristic.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from klsweep.theory.bound import ClipInterval
from klsweep.theory.inputs import Floats, check_count, check_not_negative, finite_array


class KLSwitchedOff(ValueError):
    """The minimising threshold is 0, which is no KL at all: the sampling error outweighs whatever KL could tell.

    `prompts_needed` is the least n at which it would not be, K and δ as they are; None if every ℓ is 0. Both α fall
    as 1/√n, so it is the least n above prompts·(share/active)².
    """

    def __init__(self, share: float, active: float, prompts: int, where: str) -> None:
        self.share, self.active, self.prompts = share, active, prompts
        self.prompts_needed = math.floor(prompts * (share / active) ** 2) + 1 if active > 0 else None
        text = f"the threshold would be 0 and switch KL off: {share:.4g} is not below {where} = {active:.4g}"
        need = "every log-ratio is 0" if active == 0 else f"needs prompts={self.prompts_needed}, not {prompts}"
        super().__init__(f"{text} ({need})")


def symmetric_clip(log_ratios: ArrayLike, alpha: float, prompts: int) -> ClipInterval:
    """[−τ*, τ*] with τ* the inverted-CDF (1 − 2α)-quantile of |ℓ|, which minimises 2βτα + β mean(|ℓ| − τ)_+.

    Args: `log_ratios` of sequences, ``[N]`` or ``[n, K]``, nats; `alpha` of the evaluation, with `prompts` = n of it
    (to say how many it would take). Raises KLSwitchedOff if 2α ≥ P(|ℓ| > 0).
    """
    found = _flat(log_ratios, alpha, prompts)
    size = np.abs(found)
    active = float((size > 0).mean())
    if 2 * alpha >= active:
        raise KLSwitchedOff(2 * alpha, active, prompts, "P(|ℓ| > 0)")
    return ClipInterval.symmetric(_exceeded_by(np.sort(size), None, 2 * alpha))


def asymmetric_clip(log_ratios: ArrayLike, alpha: float, prompts: int) -> ClipInterval:
    """[−τ_lo, τ_hi] with P(ℓ > τ_hi) = P(ℓ < −τ_lo) = α, the minimiser of the bound over both; see `symmetric_clip`.

    One of the two may be 0 (log-ratios of that sign are too rare to be told from noise). KLSwitchedOff if both are.
    """
    found = _flat(log_ratios, alpha, prompts)
    active = max(float((found > 0).mean()), float((found < 0).mean()))
    if alpha >= active:
        raise KLSwitchedOff(alpha, active, prompts, "max(P(ℓ > 0), P(ℓ < 0))")
    low, high = (_exceeded_by(np.sort(np.maximum(side, 0.0)), None, alpha) for side in (-found, found))
    return ClipInterval(low, high)


def calibrated_clip(log_ratios: ArrayLike, alpha: float, prompts: int, asymmetric: bool) -> ClipInterval:
    """`asymmetric_clip` or `symmetric_clip`."""
    return (asymmetric_clip if asymmetric else symmetric_clip)(log_ratios, alpha, prompts)


def _flat(log_ratios: ArrayLike, alpha: float, prompts: int) -> Floats:
    check_not_negative("alpha", alpha)
    check_count("prompts", prompts)
    return finite_array("log_ratios", log_ratios, (1, 2)).ravel()


def _exceeded_by(ordered: Floats, weights: NDArray[np.intp] | None, share: float) -> float:
    """The smallest of the ordered values that at most `share` of the weight (default: equal weights) exceeds."""
    reached = np.arange(1, len(ordered) + 1) if weights is None else np.cumsum(weights)
    return float(ordered[np.searchsorted(reached, (1 - share) * reached[-1])])


class Halves(NamedTuple):
    """Log-ratios to calibrate on, and others to evaluate the terms with."""

    calibration: Floats
    evaluation: Floats


def split_prompts(log_ratios: ArrayLike, seed: int) -> Halves:
    """A seeded half of the rows (whole prompts of ``[n, K]``, samples of ``[N]``), and the other half.

    A threshold from the first is independent of the second, as the theorem wants. The odd one is evaluated.
    """
    found = finite_array("log_ratios", log_ratios, (1, 2))
    if len(found) < 2:
        raise ValueError("log_ratios: a single row cannot be split into a half to calibrate and one to evaluate")
    order = np.random.default_rng(seed).permutation(len(found))
    half = len(found) // 2
    return Halves(found[order[:half]], found[order[half:]])


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


class ClipIntervals(NamedTuple):
    """Confidence intervals of τ_lo and τ_hi; the same twice if the clip is symmetric. Nats."""

    low: Interval
    high: Interval


def bootstrap_clip(
    log_ratios: ArrayLike,
    alpha: float,
    asymmetric: bool,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    progress: Callable[[int], None] = lambda done: None,
) -> ClipIntervals:
    """Percentile bootstrap interval of the threshold, given α: what the sample leaves open about the quantile.

    Whole prompts of ``[n, K]`` are resampled, since a prompt's rollouts are alike; single samples of ``[N]``. A
    resample in which the threshold is 0 counts as 0. Seeded; `progress` is told how many resamples are done.
    """
    check_count("resamples", resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, both excluded")
    found = finite_array("log_ratios", log_ratios, (1, 2))
    rows = np.broadcast_to(np.arange(len(found)).reshape(-1, *[1] * (found.ndim - 1)), found.shape).ravel()
    flat, share = found.ravel(), alpha if asymmetric else 2 * alpha
    sides = [np.maximum(-flat, 0.0), np.maximum(flat, 0.0)] if asymmetric else [np.abs(flat)]
    orders = [np.argsort(side) for side in sides]
    ordered = [(side[order], rows[order]) for side, order in zip(sides, orders, strict=True)]
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(sides)))
    for i in range(resamples):
        counts = np.bincount(rng.integers(0, len(found), len(found)), minlength=len(found))
        drawn[i] = [_exceeded_by(values, counts[owner], share) for values, owner in ordered]
        progress(i + 1)
    tail = (1 - confidence) / 2
    ends = [Interval(*map(float, np.quantile(column, [tail, 1 - tail], method="inverted_cdf"))) for column in drawn.T]
    return ClipIntervals(ends[0], ends[-1])
