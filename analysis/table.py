"""The one model of a table, for every format: what is printed, and the numbers and runs behind it."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from klsweep.analysis.stats import Estimate, Rate, Resampled
from klsweep.analysis.store import RunKey

Mark = Literal["best", "tied"]
NOTHING = "–"
PARTIAL = "*"


@dataclass(frozen=True)
class Entry:
    """One place of a table: its text, and the numbers behind it by name. `mark`: best, or not told from the best."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)
    mark: Mark | None = None


@dataclass(frozen=True)
class Column:
    """`name` is what chose the column, `group` a heading over this and its neighbours of the same group."""

    name: str
    title: str
    group: str = ""


@dataclass(frozen=True)
class Line:
    """A row: an entry per column, and the cells and runs that its figures come from."""

    entries: list[Entry]
    cells: list[str] = field(default_factory=list)
    runs: list[RunKey] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """What heads it (planned runs and what became of them), its columns and rows, and what they mean."""

    coverage: list[str]
    columns: list[Column]
    rows: list[Line]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


BLANK = Entry("")  # nothing is meant to be there
ABSENT = Entry(NOTHING)  # something is, and is not there yet


def label_entry(text: str, value: Any) -> Entry:
    """What a row is called by, as text and as it is."""
    return Entry(text, {"value": value})


def is_label(table: Table, place: int) -> bool:
    """True for a column of labels."""
    return all("value" in line.entries[place].values for line in table.rows)


def estimate_entry(estimate: Estimate | None, planned: int, mark: Mark | None = None, sign: bool = False) -> Entry:
    """`0.600 ±0.083`, without ± of one run, starred over fewer runs than planned. `sign`: of a difference, `+0.600`."""
    if estimate is None:
        return ABSENT
    partial = estimate.n < planned
    text = f"{estimate.mean:{'+' if sign else ''}.3f}{_half(estimate.mean, estimate.ci_high)}{PARTIAL * partial}"
    return Entry(text, {**estimate._asdict(), "planned": planned}, mark)


def rate_entry(rate: Rate, planned: int) -> Entry:
    """`1/3 (6–79 %)`, starred if fewer runs have ended than planned."""
    if rate.ci_low is None or rate.ci_high is None:
        return ABSENT
    text = f"{rate.k}/{rate.n} ({100 * rate.ci_low:.0f}–{100 * rate.ci_high:.0f} %){PARTIAL * (rate.n < planned)}"
    return Entry(text, {**rate._asdict(), "planned": planned})


def resampled_entry(found: Resampled | None, planned: int) -> Entry:
    """`0.600 (0.512–0.688)`: a bootstrap interval need not be symmetric."""
    if found is None:
        return ABSENT
    interval = "" if found.ci_low is None else f" ({found.ci_low:.3f}–{found.ci_high:.3f})"
    return Entry(f"{found.value:.3f}{interval}{PARTIAL * (found.n < planned)}", {**found._asdict(), "planned": planned})


def plain_entry(value: float | None) -> Entry:
    """A number without an interval."""
    return ABSENT if value is None else Entry(f"{value:.3f}", {"mean": value})


def p_text(p: float) -> str:
    """`p=0.012`, `p<0.001`."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def _half(mean: float, high: float | None) -> str:
    return "" if high is None or not math.isfinite(high) else f" ±{high - mean:.3f}"


def is_partial(table: Table) -> bool:
    """True if a mean in it is over fewer runs than planned."""
    entries = [entry for line in table.rows for entry in line.entries]
    return any(PARTIAL in entry.text for entry in entries if "planned" in entry.values)


SIGNS: dict[Mark | None, str] = {"best": "◆", "tied": "◇", None: ""}
