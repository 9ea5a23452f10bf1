"""What went wrong during a run: collapse of a figure that had been better, and spikes. Rules are stated, not learned.

Both look at one run. How many runs of a cell did is an outcome with an interval (`stats.wilson_interval`).
"""

from typing import NamedTuple

import numpy as np

from klsweep.analysis.load import Series

WINDOW = 5  # updates of the trailing mean
DROP = 0.5  # of the highest trailing mean so far
NOISE = 4.0  # standard errors of the difference of two trailing means
BACK = 0.8  # of the highest trailing mean, at the end
SPIKE = 10.0  # times the median of the updates before
BEFORE = 20  # updates that the median is of; five of them at least must have a size
RESTING = 5  # updates at the end without a spike: it has settled


class Collapse(NamedTuple):
    """A run fell at `update`; `depth` is the largest share of its best that it lost, at update `lowest`."""

    update: int
    depth: float
    lowest: int
    recovered: bool


class Spikes(NamedTuple):
    """How often a figure jumped, first when, the largest in multiples of its median, and whether it came to rest.

    A value that is not finite is a spike, too, of infinite size.
    """

    times: int
    first: int
    largest: float
    settled: bool


def collapse(series: Series) -> Collapse | None:
    """Whether a figure that is better when higher, and never negative, collapsed: a share of right responses, say.

    m_t is the mean of the last 5 finite values, M_t the largest m so far. A collapse is the first update with
    m_t < M_t/2 that noise does not explain: M_t − m_t > 4 σ √(2/5), σ = median |y_t − y_{t−1}| / (0.6745 √2).
    Depth: 1 − min_{s ≥ t} m_s / M_t. Recovered: the last m is 0.8 M_t or more. None too for fewer than 6 values.
    """
    finite = np.isfinite(series.values)
    updates, values = series.updates[finite], series.values[finite]
    if len(values) <= WINDOW:
        return None
    means = np.convolve(values, np.full(WINDOW, 1 / WINDOW), mode="valid")
    updates = updates[WINDOW - 1 :]
    peaks = np.maximum.accumulate(means)
    noise = float(np.median(np.abs(np.diff(values)))) / (0.6745 * 2**0.5)
    fell = (means < DROP * peaks) & (peaks - means > NOISE * noise * (2 / WINDOW) ** 0.5)
    if not fell.any():
        return None
    start = int(fell.argmax())
    lowest = start + int(means[start:].argmin())
    peak = peaks[start]
    return Collapse(
        update=int(updates[start]),
        depth=float(1 - means[lowest] / peak),
        lowest=int(updates[lowest]),
        recovered=bool(means[-1] >= BACK * peak),
    )


def spikes(series: Series) -> Spikes | None:
    """Jumps of a figure that is not negative, a gradient norm say: not finite, or more than 10 times the median of the
    positive finite ones among the 20 values before (5 at least). None if there is none.

    Zeros say nothing of a figure's usual size: a batch whose rewards are all equal has no gradient.
    """
    found = []
    for i, value in enumerate(series.values):
        before = series.values[max(0, i - BEFORE) : i]
        before = before[np.isfinite(before) & (before > 0)]
        if not np.isfinite(value):
            found.append((i, np.inf))
        elif len(before) >= 5 and value > SPIKE * np.median(before):
            found.append((i, value / float(np.median(before))))
    if not found:
        return None
    return Spikes(
        times=len(found),
        first=int(series.updates[found[0][0]]),
        largest=float(max(size for _, size in found)),
        settled=found[-1][0] < len(series.values) - RESTING,
    )
