"""What a plan will cost: time per run from what has been measured, hours by axis value, disk. No torch."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from klsweep.record.files import Row, read_json, read_rows, size_of
from klsweep.record.folder import RunFolder, SweepFolder

ALIKE = ("model", "task", "algorithm")  # runs with these in common are expected to take as long per update


@dataclass(frozen=True)
class Seconds:
    """Seconds that a run takes: expected, and the range of what was measured; `source` says from what."""

    expected: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Measured:
    """Seconds per update of one measured run, what comes on top (imports, the model, the base), and its bytes."""

    axes: dict[str, Any]
    per_update: float
    overhead: float
    bytes: int


def measured(sweep: SweepFolder, finished: Iterable[Row]) -> list[Measured]:
    """What this sweep's finished runs took, all attempts included."""
    found = []
    for row in finished:
        folder = sweep.run(row["run_id"])
        times = [timing["seconds/total"] for timing in read_rows(folder.timing)]
        if times:
            overhead = max(0.0, _wall_seconds(folder) - sum(times))
            found.append(Measured(row["axes"], sum(times) / len(times), overhead, size_of(folder.path)))
    return found


def _wall_seconds(folder: RunFolder) -> float:
    """Seconds from claim to end of all ended attempts, each by the clock of its own host."""
    numbers = range(1, folder.attempts.latest() + 1)
    pairs = [(folder.attempts.claim(n).get("time"), (folder.attempts.end_of(n) or {}).get("ended")) for n in numbers]
    return sum(ended - began for began, ended in pairs if began is not None and ended is not None)


def calibration(sweep: SweepFolder) -> list[Measured]:
    """What `klsweep plan --calibrate` measured."""
    return [Measured(**row) for row in read_json(sweep.path / "calibration.json") or []]


def seconds_of(row: Row, siblings: Sequence[Measured], calibrated: Sequence[Measured]) -> Seconds | None:
    """The time a planned run will take, from finished runs like it, else from a calibration, else from any."""
    for runs, source in ((siblings, "finished runs of this sweep"), (calibrated, "calibration")):
        alike = [run for run in runs if all(run.axes.get(a) == row["axes"].get(a) for a in ALIKE)]
        totals = [run.overhead + row["updates"] * run.per_update for run in alike or runs]
        if totals:
            like = "" if alike else " with another model, task or algorithm"
            return Seconds(statistics.median(totals), min(totals), max(totals), f"{len(totals)} {source}{like}")
    return None


@dataclass(frozen=True)
class Cost:
    """Hours of jobs (times GPUs, if any are asked for) with their range, by axis value and in total; bytes of disk.

    `per_run`: seconds of a run, on average, and the range over all of them.
    """

    per_run: Seconds
    hours: float
    low: float
    high: float
    unit: str
    by_axis: dict[str, dict[str, float]]
    disk: int
    longest_run: float  # seconds
    slowest_update: float  # seconds


def estimate(
    rows: Sequence[Row], held: Sequence[float], unit: str, siblings: Sequence[Measured], calibrated: Sequence[Measured]
) -> Cost | None:
    """Cost of running `rows`; None if nothing has been measured.

    `held`: the GPUs, or the part of a job without any, that each row has to itself; `unit`: hours of which.
    """
    times = [seconds_of(row, siblings, calibrated) for row in rows]
    known = [(row, time, part / 3600) for row, time, part in zip(rows, times, held, strict=True) if time is not None]
    if not known:
        return None
    by_axis: dict[str, dict[str, float]] = {}
    for row, time, factor in known:
        for axis, value in row["axes"].items():
            values = by_axis.setdefault(axis, {})
            values[str(value)] = values.get(str(value), 0.0) + time.expected * factor
    sizes = [run.bytes for run in (*siblings, *calibrated)]
    low, high = min(time.low for _, time, _ in known), max(time.high for _, time, _ in known)
    return Cost(
        per_run=Seconds(statistics.mean(time.expected for _, time, _ in known), low, high, known[0][1].source),
        hours=sum(time.expected * factor for _, time, factor in known),
        low=sum(time.low * factor for _, time, factor in known),
        high=sum(time.high * factor for _, time, factor in known),
        unit=unit,
        by_axis={axis: values for axis, values in by_axis.items() if len(values) > 1},
        disk=int(statistics.median(sizes) * len(rows)),
        longest_run=max(time.expected for _, time, _ in known),
        slowest_update=max(time.expected / row["updates"] for row, time, _ in known),
    )
