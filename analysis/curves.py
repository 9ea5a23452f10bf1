"""Learning curves: a metric over the updates of each run, and of each cell its mean over seeds with a band."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from klsweep.analysis.compare import CellResult, Comparison
from klsweep.analysis.load import Series
from klsweep.analysis.stats import t_interval
from klsweep.analysis.store import RunKey

FEWEST_POINTS, MOST_POINTS = 20, 120  # of a curve
ALL_POINTS = 150_000  # of all runs and metrics: what a page can hold and still open at once

CURVES = {"reward/mean": "Reward", "kl/full_sequence": "KL of the batch (nats per response)", "entropy": "Entropy"}
CURVES |= {"grad_norm": "Gradient norm", "length/mean": "Response length"}
STALE = {"sampler/ess": "Effective sample size", "sampler/lag": "Updates between sampling and training"}
CLIPPED = {"clip/fraction": "Share of log-ratios beyond the KL clip"}
LOGARITHMIC = ("grad_norm",)


@dataclass(frozen=True)
class Band:
    """A cell's curve: at each point how many seeds are in it, their mean and its 95 % t interval (NaN: none). All [B].

    Of a metric on a logarithmic scale the geometric mean, and the interval of the logarithms.
    """

    cell: int  # place among the comparison's cells
    planned: int
    seeds: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """The mean where no planned seed is missing, NaN elsewhere."""
        return np.where(self.seeds >= self.planned, self.mean, np.nan)

    @property
    def partial(self) -> np.ndarray:
        """The mean where one is, and at the points beside, so that the line goes on."""
        missing = self.seeds < self.planned
        beside = missing.copy()
        beside[1:] |= missing[:-1]
        beside[:-1] |= missing[1:]
        return np.where(beside, self.mean, np.nan)


@dataclass(frozen=True)
class Curves:
    """One metric: a band per cell, and the curve of each run that logged it, at common `updates` [B]."""

    name: str
    title: str
    logarithmic: bool
    updates: np.ndarray
    bands: list[Band]
    runs: dict[RunKey, np.ndarray]  # [B], NaN where a run has no finite value
    updates_per_point: int


def curve_titles(comparison: Comparison) -> dict[str, str]:
    """The metrics that show how training went: those of stale samples if there are such, of a clip if there is one."""
    axes = [cell.plan["axes"] for cell in comparison.cells]
    stale = any(own.get("sampling") not in (None, "on_policy") for own in axes)
    clipped = any(own.get("clip") not in (None, "none") for own in axes)
    return {**CURVES, **(STALE if stale else {}), **(CLIPPED if clipped else {})}


def learning_curves(comparison: Comparison) -> list[Curves]:
    """The curves of those metrics, as far as they were logged."""
    titles = curve_titles(comparison)
    logged = [name for name in titles if name in comparison.records.metric_names]
    runs = sum(len(cell.runs) for cell in comparison.cells)
    points = min(MOST_POINTS, max(FEWEST_POINTS, ALL_POINTS // max(1, runs * len(logged))))
    found = [curves(comparison, name, titles[name], points) for name in logged]
    return [one for one in found if one.bands]


def curves(comparison: Comparison, name: str, title: str, points: int = MOST_POINTS) -> Curves:
    """The curves of one metric, thinned to `points` at most: each then stands for the mean over so many updates."""
    wanted = {run.key for cell in comparison.cells for run in cell.runs}
    series = {key: found for key, found in comparison.records.series(name).items() if key in wanted}
    last = max((int(found.updates.max()) for found in series.values()), default=0)
    width = max(1, -(-last // points))
    edges = np.arange(0, last, width)
    middles = (edges + 1 + np.minimum(edges + width, last)) / 2
    binned = {key: _binned(found, width, len(edges)) for key, found in series.items()}
    is_logarithmic = name in LOGARITHMIC
    spread = {key: _logarithms(values) for key, values in binned.items()} if is_logarithmic else binned
    bands = [band for i, cell in enumerate(comparison.cells) if (band := _band(i, cell, spread, is_logarithmic))]
    return Curves(name, title, is_logarithmic, middles, bands, binned, width)


def _binned(series: Series, width: int, points: int) -> np.ndarray:
    """Means over each `width` updates, of finite values; NaN where there is none. Update 0 is the base's evaluation."""
    kept = np.isfinite(series.values) & (series.updates > 0)
    places = (series.updates[kept].astype(int) - 1) // width
    counts = np.bincount(places, minlength=points)
    sums = np.bincount(places, series.values[kept], minlength=points)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _logarithms(values: np.ndarray) -> np.ndarray:
    """NaN for zero and for NaN."""
    return np.log(values, out=np.full_like(values, np.nan), where=values > 0)


def _band(number: int, cell: CellResult, binned: Mapping[RunKey, np.ndarray], is_logarithmic: bool) -> Band | None:
    """Over seeds; several results of one seed, if they are mixed, count as their mean."""
    by_seed: dict[int, list[np.ndarray]] = {}
    for run in cell.runs:
        if run.key in binned:
            by_seed.setdefault(run.seed, []).append(binned[run.key])
    if not by_seed:
        return None
    values = np.array([_mean(found) for found in by_seed.values()])  # [S, B]
    estimates = [t_interval(column[np.isfinite(column)].tolist()) for column in values.T]
    mean, low, high = (
        np.array([np.nan if found is None or found[part] is None else found[part] for found in estimates], float)
        for part in (1, 2, 3)
    )
    seeds = np.isfinite(values).sum(axis=0)
    if is_logarithmic:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
    return Band(number, cell.planned, seeds, mean, low, high)


def _mean(curves_of_seed: Sequence[np.ndarray]) -> np.ndarray:
    if len(curves_of_seed) == 1:
        return curves_of_seed[0]
    stacked = np.array(curves_of_seed)
    counts = np.isfinite(stacked).sum(axis=0)
    return np.where(counts > 0, np.nansum(stacked, axis=0) / np.maximum(counts, 1), np.nan)
