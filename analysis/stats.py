"""Intervals over runs. The unit is the run (a seed), never the item or the token."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit


class Estimate(NamedTuple):
    """A mean over n runs with its interval; no interval below two runs."""

    n: int
    mean: float
    ci_low: float | None
    ci_high: float | None


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """mean ± t_{n−1} · s/√n, s with ddof 1 (Student's t). None for no values.

    Args: `values` one number per run. Assumes independent runs; exact for normal ones.
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * spread / math.sqrt(n)
    return Estimate(n, mean, mean - half, mean + half)
