"""What a figure says of a claim: one rule for means, for shares, and for several claims at once."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from scipy.special import bdtr, bdtrc, stdtr

from klsweep.analysis.paired import holm

Verdict = Literal["agrees", "does not", "cannot be seen at this scale"]


class Region(NamedTuple):
    """Where a claim says that a figure truly lies: low < figure < high."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"below {self.high:g}" if math.isinf(self.low) else f"between {self.low:g} and {self.high:g}"


ABOVE_ZERO, BELOW_ZERO = Region(low=0.0), Region(high=0.0)


class Tails(NamedTuple):
    """p of "the figure lies outside of the region" (small: the claim holds) and of "it lies inside" (small: not)."""

    outside: float
    inside: float

    @property
    def p(self) -> float:
        """Two-sided: either may be found, so the smaller counts twice."""
        return min(1.0, 2 * min(self))


class Decision(NamedTuple):
    """`p` of no decision, adjusted for the claims that were decided together; None where nothing was measured."""

    verdict: Verdict
    p: float | None


def mean_tails(values: Sequence[float], region: Region) -> Tails | None:
    """One-sided Student's t tests of a mean over runs at the region's ends; None below two runs.

    Values without spread lie where they lie. For a region with one end, `p` is that of the two-sided t test.
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)

    def below(end: float) -> float:  # p of μ ≥ end
        return float(stdtr(n - 1, (mean - end) / error)) if error else float(mean >= end)

    def above(end: float) -> float:  # p of μ ≤ end
        return float(stdtr(n - 1, (end - mean) / error)) if error else float(mean <= end)

    return _tails(region, below, above)


def share_tails(k: int, n: int, region: Region) -> Tails | None:
    """Exact binomial tests of a probability at the region's ends, from k of n independent runs; None of no runs."""
    if n == 0:
        return None

    def below(end: float) -> float:  # p of a probability ≥ end: at most k
        return float(bdtr(k, n, end))

    def above(end: float) -> float:  # p of a probability ≤ end: at least k
        return float(bdtrc(k - 1, n, end)) if k else 1.0

    return _tails(region, below, above)


def _tails(region: Region, below: Callable[[float], float], above: Callable[[float], float]) -> Tails:
    """An end at infinity asks nothing of a figure inside, and shows none outside."""
    low, high = ([end] if math.isfinite(end) else [] for end in region)
    outside = max([*map(above, low), *map(below, high)], default=0.0)
    return Tails(outside, min([*map(below, low), *map(above, high)], default=1.0))


def decide(found: Sequence[Tails | None], alpha: float = 0.05) -> list[Decision]:
    """Decides several claims at once: the p of each, by Holm over all, must be at most α, then the smaller tail says
    which way. The probability of one or more wrong ones among "agrees" and "does not" is at most α.
    """
    adjusted = holm([tails and tails.p for tails in found])
    decisions = []
    for tails, p in zip(found, adjusted, strict=True):
        if tails is None or p is None or p > alpha:
            decisions.append(Decision("cannot be seen at this scale", p))
        else:
            decisions.append(Decision("agrees" if tails.outside < tails.inside else "does not", p))
    return decisions
