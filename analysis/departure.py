"""When one run is weird: where two runs part, and where a run leaves its siblings. Rules are stated, not learned."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder, SweepFolder

NOT_OF_THE_RUN = ("name", "sweep_dir", "grid", "exclude", "values")  # say where it lies and what it was part of
IN_A_ROW = 3  # updates that a run is outside of its siblings' range before it has left them
LEAST_WIDTH = 0.05  # of the siblings' figures
FEWEST = 2  # siblings whose range means anything
WATCHED = ("reward/mean", "kl/full_sequence", "entropy", "length/mean", "grad_norm", "sampler/ess")

Metrics = Mapping[int, Mapping[str, float]]


class FieldDifference(NamedTuple):
    """A configuration field that differs; None where a run has no such field."""

    key: str
    one: Any
    other: Any


class Departure(NamedTuple):
    """The first update at which a metric differs, and both values there: NaN if not finite, None if not logged."""

    update: int
    metric: str
    one: float | None
    other: float | None


class Left(NamedTuple):
    """A metric is outside of the siblings' range [low, high], widened by its width, from `update` on, 3 in a row."""

    update: int
    metric: str
    value: float
    low: float
    high: float


def metrics_of(folder: RunFolder) -> dict[int, dict[str, float]]:
    """The numbers of `metrics.jsonl` by update, NaN for its null. A torn last line is passed over."""
    return {
        row["update"]: {
            k: math.nan if v is None else v
            for k, v in row.items()
            if isinstance(v, int | float | None) and k != "update"
        }
        for row in read_rows(folder.metrics)
    }


def config_differences(one: RunFolder, other: RunFolder) -> list[FieldDifference]:
    """Fields of the resolved configurations that are not equal, by name, without where the runs lie."""
    first, second = (_flat(yaml.safe_load(folder.config.read_text("utf-8"))) for folder in (one, other))
    keys = sorted({key for key in (*first, *second) if key.split(".")[0] not in NOT_OF_THE_RUN})
    return [FieldDifference(k, first.get(k), second.get(k)) for k in keys if first.get(k) != second.get(k)]


def departures(one: Metrics, other: Metrics, tolerance: float) -> list[Departure]:
    """The first update at which each metric of two runs differs, the earliest first, of those the largest.

    They differ where |a − b| > tolerance · max(|a|, |b|), where one is not finite and the other is something else, or
    where only one of the runs has logged it. Only updates that both have reached are compared.
    """
    found: dict[str, tuple[int, float, Departure]] = {}
    for update in sorted(set(one) & set(other)):
        for metric in {*one[update], *other[update]} - found.keys():
            a, b = one[update].get(metric), other[update].get(metric)
            apart = _apart(a, b)
            if apart > tolerance:
                found[metric] = update, -apart, Departure(update, metric, a, b)
    return [departure for *_, departure in sorted(found.values(), key=lambda x: (x[0], x[1], x[2].metric))]


def left_siblings(run: Metrics, siblings: Sequence[Metrics], watched: Iterable[str] = WATCHED) -> list[Left]:
    """Where each watched metric of a run leaves its siblings' range for three updates in a row, the earliest first.

    The range at an update is [min − w, max + w] over the siblings that have reached it, w = max − min, but at least 5 %
    of the largest of their absolute values. A value that is not finite is outside. Needs two siblings.
    """
    found = []
    for metric in watched:
        streak: list[Left] = []
        for update in sorted(run):
            value = run[update].get(metric)
            theirs = [s[update][metric] for s in siblings if metric in s.get(update, {})]
            theirs = [x for x in theirs if math.isfinite(x)]
            if value is None or len(theirs) < FEWEST:
                continue
            low, high = min(theirs), max(theirs)
            width = max(high - low, LEAST_WIDTH * max(abs(low), abs(high)))
            outside = not low - width <= value <= high + width
            streak = [*streak, Left(update, metric, value, low, high)] if outside else []
            if len(streak) == IN_A_ROW:
                found.append(streak[0])
                break
    return sorted(found, key=lambda left: (left.update, left.metric))


def siblings_of(folder: RunFolder) -> list[RunFolder]:
    """The other runs of the same cell in its sweep that have begun."""
    sweep = SweepFolder(folder.path.resolve().parent.parent)
    rows = {row["run_id"]: row for row in sweep.plan()}
    own = rows.get(folder.path.resolve().name)
    cells = [row for row in rows.values() if own and row["cell_id"] == own["cell_id"] and row is not own]
    return [run for row in cells if (run := sweep.run(row["run_id"])).metrics.exists()]


def _apart(a: float | None, b: float | None) -> float:
    """Relative distance; ∞ where they cannot be compared, 0 for the same not finite value."""
    if a is None or b is None:
        return math.inf
    if not (math.isfinite(a) and math.isfinite(b)):
        return 0.0 if repr(a) == repr(b) else math.inf
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}.{name}".lstrip(".")).items()}
