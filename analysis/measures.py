"""What is measured for a claim: a mean over seeds, a difference on common seeds, or a share of runs, of named cells."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from klsweep.analysis.choose import cell_label
from klsweep.analysis.compare import CellResult, Comparison
from klsweep.analysis.decision import Region, Tails, mean_tails, share_tails
from klsweep.analysis.groups import mean_by_seed
from klsweep.analysis.load import RunResult
from klsweep.analysis.metrics import Metric
from klsweep.analysis.paired import BySeed
from klsweep.analysis.stability import collapse
from klsweep.analysis.stats import t_interval, wilson_interval
from klsweep.errors import BadInput

Labels = Mapping[str, str | float]
OfRun = Callable[[RunResult], float | None]


class Measured(NamedTuple):
    """A value with its 95 % interval, over `n` of `planned` seeds or runs, and what it says of a claim's region.

    `cells` and `against`: ids of the cells it is of, and of those it is held against.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    planned: int
    tails: Tails | None
    cells: list[str]
    against: list[str]
    happened: int | None = None  # of a share: in how many runs


class Absent(Exception):
    """There is nothing to measure in these sweeps, for the reason given."""


class Measure(Protocol):
    """Raises Absent where cells are missing, or cannot be held against each other."""

    def __call__(self, comparison: Comparison, region: Region) -> Measured: ...


@dataclass(frozen=True)
class Mean:
    """Mean over seeds of `value`, over `cells` with equal weight; less that of `against` on common seeds.

    `percent`: each seed's difference in per cent of what it has in `against`.
    """

    value: Callable[[Comparison], OfRun]
    cells: Sequence[Labels]
    against: Sequence[Labels] = ()
    percent: bool = False

    def __call__(self, comparison: Comparison, region: Region) -> Measured:
        cells = _found(comparison, [*self.cells, *self.against])
        value = self.value(comparison)
        by_cell = [_by_seed(cell, value) for cell in cells]
        own, other = mean_by_seed(by_cell[: len(self.cells)]), mean_by_seed(by_cell[len(self.cells) :])
        if self.against:
            own = {s: own[s] - other[s] for s in own.keys() & other.keys() if other[s] or not self.percent}
        values = [100 * own[seed] / other[seed] if self.percent else own[seed] for seed in sorted(own)]
        estimate = t_interval(values)
        if estimate is None:
            raise Absent("no seed has a result in all of these cells")
        ids = [cell.plan["cell_id"] for cell in cells]
        return Measured(
            estimate.mean,
            estimate.ci_low,
            estimate.ci_high,
            estimate.n,
            max(cell.planned for cell in cells),
            mean_tails(values, region),
            ids[: len(self.cells)],
            ids[len(self.cells) :],
        )


@dataclass(frozen=True)
class Share:
    """Share of the finished runs of one cell to which something happened: of independent runs, so of one cell only."""

    happened: Callable[[Comparison], OfRun]  # 1 or 0
    cell: Labels

    def __call__(self, comparison: Comparison, region: Region) -> Measured:
        (cell,) = _found(comparison, [self.cell])
        values = _by_seed(cell, self.happened(comparison))
        if not values:
            raise Absent("no run of this cell has finished")
        k, n = sum(v > 0 for v in values.values()), len(values)
        rate = wilson_interval(k, n)
        ids = [cell.plan["cell_id"]]
        return Measured(k / n, rate.ci_low, rate.ci_high, n, cell.planned, share_tails(k, n, region), ids, [], k)


def _found(comparison: Comparison, wanted: Sequence[Labels]) -> list[CellResult]:
    """The cell of each label set: exactly one, and all with results that may be compared."""
    cells = []
    for labels in wanted:
        fitting = [c for c in comparison.cells if all(cell_label(c.plan, key) == v for key, v in labels.items())]
        words = " ".join(map(str, labels.values()))
        if not fitting:
            raise Absent(f"no cell “{words}” in these sweeps")
        if len(fitting) > 1:
            raise Absent(f"{len(fitting)} cells, or results of one made otherwise, are “{words}”")
        cells += fitting
    if len({repr(cell.provenance) for cell in cells if cell.provenance}) > 1:
        raise Absent("results were made otherwise: code, evaluation or prompts differ")
    return cells


def _by_seed(cell: CellResult, value: OfRun) -> BySeed:
    return {run.seed: found for run in cell.runs if run.finished and (found := value(run)) is not None}


def _metric(comparison: Comparison, name: str) -> Metric:
    try:
        return comparison.metric(name)
    except BadInput:
        raise Absent(f"no run has logged {name}") from None


def metric(name: str) -> Callable[[Comparison], OfRun]:
    """A metric as tables have it, see `metrics.metric`."""
    return lambda comparison: _metric(comparison, name).value


def beyond_base(name: str) -> Callable[[Comparison], OfRun]:
    """What a run has gained over the model that it started from."""

    def of(comparison: Comparison) -> OfRun:
        found = _metric(comparison, name)
        return lambda run: _less(found.value(run), found.base(run))

    return of


def rise(name: str) -> Callable[[Comparison], OfRun]:
    """A training metric's mean over the last updates less its first value, which is the base's."""

    def of(comparison: Comparison) -> OfRun:
        series, last = comparison.records.series(name), _metric(comparison, name).value

        def value(run: RunResult) -> float | None:
            found = series.get(run.key)
            return None if found is None else _less(last(run), float(found.values[0]))

        return value

    return of


def margin(bound: str, bounded: str) -> Callable[[Comparison], OfRun]:
    """A logged bound less the size of what it bounds."""

    def of(comparison: Comparison) -> OfRun:
        above, below = _metric(comparison, bound).value, _metric(comparison, bounded).value
        return lambda run: None if (found := below(run)) is None else _less(above(run), abs(found))

    return of


def has_collapsed(metric: str) -> Callable[[Comparison], OfRun]:
    """1 for a run that diverged, or whose metric fell below half of its best (`stability.collapse`) for good."""

    def of(comparison: Comparison) -> OfRun:
        series = comparison.records.series(metric)

        def value(run: RunResult) -> float | None:
            if run.status["state"] == "diverged":
                return 1.0
            if run.key not in series:
                return None
            fall = collapse(series[run.key])
            return float(fall is not None and not fall.recovered)

        return value

    return of


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or not math.isfinite(a - b) else a - b
