"""Intervals over runs. The unit is the run (a seed), never the item or the token: those of one run are correlated."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

FEW_RUNS = 20  # below, an interval by resampling is too narrow


class Estimate(NamedTuple):
    """A mean over n runs with its interval; no interval below two runs."""

    n: int
    mean: float
    ci_low: float | None
    ci_high: float | None


class Rate(NamedTuple):
    """k of n runs, and the interval of the probability; no interval of nothing."""

    k: int
    n: int
    ci_low: float | None
    ci_high: float | None


class Resampled(NamedTuple):
    """A statistic of n runs and its bootstrap interval; `warning` says if there are too few runs for one."""

    n: int
    value: float
    ci_low: float | None
    ci_high: float | None
    warning: str | None


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """mean ± t_{n−1} · s/√n, s with ddof 1 (Student's t). None for no values.

    Args: `values` one number per run. Assumes independent runs; exact for normal ones.
    """
    return mean_of_means([values], confidence)


def mean_of_means(cells: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate | None:
    """Mean over K cells of their means ȳ_k, each cell with the same weight: (1/K) Σ ȳ_k ± t_ν · √(Σ v_k) / K.

    v_k = s_k²/n_k with ddof 1, ν = (Σ v_k)² / Σ v_k²/(n_k − 1). One cell: Student's t. Runs are independent, cells may
    differ in spread. No interval if a cell has one run; None for no values. Empty cells do not count.
    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    filled = [cell for cell in cells if len(cell)]
    if not filled:
        return None
    n = sum(map(len, filled))
    means = [math.fsum(cell) / len(cell) for cell in filled]
    mean = math.fsum(means) / len(filled)
    if any(len(cell) == 1 for cell in filled):
        return Estimate(n, mean, None, None)
    spreads = [
        math.fsum((v - m) ** 2 for v in cell) / (len(cell) - 1) / len(cell)
        for cell, m in zip(filled, means, strict=True)
    ]
    total = math.fsum(spreads)
    if total == 0:
        return Estimate(n, mean, mean, mean)
    freedom = total**2 / math.fsum(v**2 / (len(cell) - 1) for v, cell in zip(spreads, filled, strict=True))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(total) / len(filled)
    return Estimate(n, mean, mean - half, mean + half)


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> Rate:
    """Wilson's score interval of a probability: (k + z²/2 ± z √(k(n−k)/n + z²/4)) / (n + z²).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return Rate(0, 0, None, None)
    z = float(ndtri(0.5 + confidence / 2))
    centre, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    return Rate(k, n, max(0.0, (centre - half) / (n + z * z)), min(1.0, (centre + half) / (n + z * z)))


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of all entries: the lowest and the highest quarter weigh nothing.

    An entry that a quarter's edge divides weighs its share. `values` of any shape.
    """
    ordered = np.sort(values, axis=None)
    edges = np.arange(ordered.size + 1).clip(ordered.size / 4, 3 * ordered.size / 4)
    weights = np.diff(edges)
    return float(weights @ ordered / weights.sum())


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Resampled | None:
    """A statistic of runs and its percentile interval over resampled runs; None for no values.

    Args: `values` [runs, figures of a run]. A run is drawn whole, with all its figures: drawing run and suite apart, as
    if one run's suites were independent, makes intervals far too narrow. Those of few runs are too narrow as well; then
    `warning` says so. The same seed gives the same interval.
    """
    n = len(values)
    if n == 0:
        return None
    value = statistic(values)
    if n == 1:
        return Resampled(1, value, None, None, "one run: no interval")
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    found = [statistic(values[rows]) for rows in draws]
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    few = f"resampled from {n} runs: too narrow (of means, it covers 74 % at 3 runs, 85 % at 5, 90 % at 10)"
    return Resampled(n, value, float(low), float(high), few if n < FEW_RUNS else None)
