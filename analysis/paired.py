"""Comparing cells on common seeds: differences, several at once, which may be best, how many seeds are needed."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.special import chdtri, nctdtr, stdtr, stdtrit

from klsweep.analysis.stats import Estimate, t_interval

MOST_SEEDS = 10_000
ROUNDING = 1e-9  # of the largest value: what spreads less does not spread

BySeed = Mapping[int, float]
Name = TypeVar("Name", bound=Hashable)


class Difference(NamedTuple):
    """Mean of (cell − baseline) over common seeds, its t interval, and the two-sided p of no difference.

    `alone` and `baseline_alone`: seeds that only one of the two has a figure of, which count for nothing.
    """

    estimate: Estimate
    p: float | None
    spread: float | None  # standard deviation of the differences
    alone: int
    baseline_alone: int


class Best(NamedTuple):
    """The name with the best mean, and those that cannot be told from the best, itself among them."""

    best: Hashable
    tied: frozenset[Hashable]


class SeedsNeeded(NamedTuple):
    """Seeds in all to find a difference, those still missing, and seeds in all if the spread is larger than it seems.

    None: more than MOST_SEEDS.
    """

    total: int | None
    more: int | None
    cautious: int | None


def paired_difference(cell: BySeed, baseline: BySeed, confidence: float = 0.95) -> Difference | None:
    """Student's t on the differences of common seeds; None without a common seed, no interval and no p with one.

    Runs of one seed are asked, and draw, alike, so what they have in common cancels. Differences without any spread
    have no p: of accuracies over few prompts, two seeds often differ by the same, whether or not the cells do.
    """
    common = sorted(cell.keys() & baseline.keys())
    differences = [cell[seed] - baseline[seed] for seed in common]
    estimate = t_interval(differences, confidence)
    if estimate is None:
        return None
    alone, baseline_alone = len(cell) - len(common), len(baseline) - len(common)
    if estimate.n == 1:
        return Difference(estimate, None, None, alone, baseline_alone)
    spread = math.sqrt(math.fsum((d - estimate.mean) ** 2 for d in differences) / (estimate.n - 1))
    nothing = ROUNDING * max(abs(side[seed]) for side in (cell, baseline) for seed in common)
    if spread <= nothing:
        mean = 0.0 if abs(estimate.mean) <= nothing else estimate.mean
        return Difference(Estimate(estimate.n, mean, mean, mean), None, 0.0, alone, baseline_alone)
    p = float(2 * stdtr(estimate.n - 1, -abs(estimate.mean) * math.sqrt(estimate.n) / spread))
    return Difference(estimate, p, spread, alone, baseline_alone)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for being several: the i-th smallest of m becomes max_{j ≤ i} min(1, (m − j + 1) p_(j)).

    The probability of one or more false findings among those below α is then at most α, however they depend on each
    other. None (no test) stays None and does not count. Source: Holm 1979, "A simple sequentially rejective multiple
    test procedure".
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def best_of(cells: Mapping[Name, BySeed], alpha: float = 0.05, highest: bool = True) -> Best | None:
    """The cell with the best mean, and a set that holds the truly best one with probability ≥ 1 − α; None for no cells.

    A cell leaves the set if some other of the k cells is better than it on common seeds, one-sided paired t at
    α/(k − 1). For the truly best cell each of those k − 1 tests errs with that probability, so it stays however the
    seemingly best was picked. A cell without two seeds in common with others, or whose differences from them do not
    spread, cannot be told from them, and stays.
    """
    filled = {name: values for name, values in cells.items() if values}
    if not filled:
        return None
    seeds = {seed: i for i, seed in enumerate(sorted({seed for values in filled.values() for seed in values}))}
    table = np.full((len(filled), len(seeds)), np.nan)  # [cells, seeds]
    for row, values in zip(table, filled.values(), strict=True):
        row[[seeds[seed] for seed in values]] = list(values.values())
    table = table if highest else -table
    names = list(filled)
    best = names[int(np.nanmean(table, axis=1).argmax())]
    return Best(
        best, frozenset(name for i, name in enumerate(names) if not _is_beaten(i, table, alpha) or name == best)
    )


def _is_beaten(i: int, table: np.ndarray, alpha: float) -> bool:
    """True if a row is better than row i of [cells, seeds]."""
    differences = np.delete(table - table[i], i, axis=0)
    n = np.isfinite(differences).sum(axis=1)
    differences, n = differences[n >= 2], n[n >= 2]
    if not len(n):
        return False
    mean = np.nanmean(differences, axis=1)
    error = np.nanstd(differences, axis=1, ddof=1) / np.sqrt(n)
    spreads = error > ROUNDING * np.nanmax(np.abs(table))
    t = np.divide(mean, error, out=np.zeros_like(mean), where=spreads)
    return bool(stdtr(n - 1, -t).min() <= alpha / (len(table) - 1))


def power(difference: float, spread: float, n: int, alpha: float = 0.05) -> float:
    """Probability that the two-sided paired t test of n seeds finds a true difference, by the noncentral t.

    `spread`: standard deviation of the differences.
    """
    if spread == 0:
        return 1.0 if difference else alpha
    bound, shift = float(stdtrit(n - 1, 1 - alpha / 2)), abs(difference) * math.sqrt(n) / spread
    return float(1 - nctdtr(n - 1, shift, bound) + nctdtr(n - 1, shift, -bound))


def seeds_needed(difference: float, spread: float, n: int, alpha: float = 0.05, wanted: float = 0.8) -> SeedsNeeded:
    """How many seeds find `difference` with probability `wanted`, given the spread of n ≥ 2 paired differences.

    The spread of few seeds is uncertain itself: `cautious` takes its upper 80 % limit s √((n−1)/χ²_{0.2, n−1}). Source:
    Browne 1995, "On the use of a pilot sample for sample size determination".
    """
    total = _seeds(difference, spread, alpha, wanted)
    upper = spread * math.sqrt((n - 1) / float(chdtri(n - 1, 0.8)))
    return SeedsNeeded(total, None if total is None else max(0, total - n), _seeds(difference, upper, alpha, wanted))


def _seeds(difference: float, spread: float, alpha: float, wanted: float) -> int | None:
    """The smallest n whose power is as wanted; power grows with n."""
    if difference == 0 or power(difference, spread, MOST_SEEDS, alpha) < wanted:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        if power(difference, spread, middle, alpha) < wanted:
            low = middle
        else:
            high = middle
    return high
