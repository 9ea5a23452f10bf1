"""The one model of a table, for every format: what is printed, and the numbers and runs behind it."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from klsweep.analysis.stats import Estimate, Rate, Resampled
from klsweep.analysis.store import RunKey

Mark = Literal["best", "tied"]
NOTHING = "–"
PARTIAL = "*"
DIVERGED = "†"


@dataclass(frozen=True)
class Entry:
    """One place of a table: its text, and the numbers behind it by name. `mark`: best, or not told from the best.

    `partial`: over fewer runs than planned. `diverged`: over runs among which some diverged.
    """

    text: str
    values: dict[str, Any] = field(default_factory=dict)
    mark: Mark | None = None
    partial: bool = False
    diverged: bool = False


@dataclass(frozen=True)
class Column:
    """`name` is what chose the column, `group` a heading over this and its neighbours of the same group.

    `label`: its entries are what rows are called by, not figures.
    """

    name: str
    title: str
    group: str = ""
    label: bool = False


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


def estimate_entry(
    estimate: Estimate | None, planned: int, mark: Mark | None = None, sign: bool = False, diverged: int = 0
) -> Entry:
    """`0.600 ±0.083`, without ± of one run, signed as in `over_runs`. `sign`: of a difference, `+0.600`."""
    if estimate is None:
        return ABSENT
    text = f"{estimate.mean:{'+' if sign else ''}.3f}{_half(estimate.mean, estimate.ci_high)}"
    return over_runs(text, {**estimate._asdict(), "planned": planned}, diverged, mark)


def over_runs(text: str, values: dict[str, Any], diverged: int = 0, mark: Mark | None = None) -> Entry:
    """A figure over `values["n"]` of `values["planned"]` runs, of which so many diverged.

    Starred over fewer than planned; with a dagger if any diverged.
    """
    partial = values["n"] < values["planned"]
    values = {**values, "diverged": diverged} if diverged else values
    return Entry(text + PARTIAL * partial + DIVERGED * bool(diverged), values, mark, partial, bool(diverged))


def rate_entry(rate: Rate, planned: int) -> Entry:
    """`1/3 (6–79 %)`, starred if fewer runs have ended than planned."""
    if rate.ci_low is None or rate.ci_high is None:
        return ABSENT
    text = f"{rate.k}/{rate.n} ({100 * rate.ci_low:.0f}–{100 * rate.ci_high:.0f} %)"
    return over_runs(text, {**rate._asdict(), "planned": planned})


def resampled_entry(found: Resampled | None, planned: int, diverged: int = 0) -> Entry:
    """`0.600 (0.512–0.688)`: a bootstrap interval need not be symmetric."""
    if found is None:
        return ABSENT
    interval = "" if found.ci_low is None else f" ({found.ci_low:.3f}–{found.ci_high:.3f})"
    return over_runs(f"{found.value:.3f}{interval}", {**found._asdict(), "planned": planned}, diverged)


def plain_entry(value: float | None) -> Entry:
    """A number without an interval."""
    return ABSENT if value is None else Entry(f"{value:.3f}", {"mean": value})


def p_text(p: float) -> str:
    """`p=0.012`, `p<0.001`."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def _half(mean: float, high: float | None) -> str:
    return "" if high is None or not math.isfinite(high) else f" ±{high - mean:.3f}"


SIGNS: dict[Mark | None, str] = {"best": "◆", "tied": "◇", None: ""}
