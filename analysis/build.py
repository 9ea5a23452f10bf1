"""From a comparison to a table: which rows, which columns, and what the reader must be told."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from klsweep.analysis import entries
from klsweep.analysis.choose import BETA, ORIGIN, cell_label, check_keys, conditions, text_of
from klsweep.analysis.compare import Base, CellResult, Comparison
from klsweep.analysis.coverage import coverage_lines
from klsweep.analysis.entries import Fill, Reference, each, told_kl
from klsweep.analysis.explain import notes
from klsweep.analysis.groups import AgainstBase, AgainstCell, Group
from klsweep.analysis.metrics import Metric
from klsweep.analysis.provenance import Kind, agree, differing, distinct
from klsweep.analysis.store import RunKey
from klsweep.analysis.table import ABSENT, BLANK, Column, Entry, Line, Table, label_entry, plain_entry
from klsweep.cells import varying
from klsweep.errors import BadInput
from klsweep.record.origin import EXTERNAL

OVERVIEW = ("runs", "suites", "out", "kl", "reward", "outcome")
PAPER = ("runs", "suites", "out", "kl", "entropy", "divergence")
BASE_MODEL = "base"  # as a baseline: the model that a run started from
SHORT = {BETA: "β", "clip.tau": "τ", "sampling.async_level": "lag", "placement.credit": "credit"}
SHORT |= {"algorithm.aggregation": "agg.", "science": "code"}


@dataclass(frozen=True)
class Layout:
    """What a table shows. Nothing given: the overview. Else, by default, the paper's columns.

    rows: axes and fields that make a row; by default all in which cells differ. Cells that those do not tell apart are
    taken together.
    columns: `runs`, `suites`, `outcome`, `divergence`, `collapse`, `trouble`, `iqm/in`, `iqm/out`, any metric (see
    `metrics.metric`), `overview`, `paper`; and axes or fields: then there is a column for each of their levels.
    metrics: the metrics that are held against the baseline, and that fill the columns if those are levels only.
    baseline: conditions on a cell, or `base`. detect: a difference from it, for which seeds are counted.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    metrics: Sequence[str] = ()
    baseline: Sequence[str] = ()
    detect: float | None = None

    @property
    def is_overview(self) -> bool:
        return not (self.rows or self.columns or self.metrics or self.baseline or self.detect is not None)


@dataclass(frozen=True)
class _Made:
    """A column to be: its head, what fills it, and what it has for a base model."""

    column: Column
    fill: Fill
    base: Callable[[Base], Entry] = lambda base: BLANK


def build(comparison: Comparison, layout: Layout) -> Table:
    """The table of a comparison. BadInput for a name that is not there."""
    plans = [cell.plan for cell in comparison.cells]
    axes, fields = varying(plans)
    keys = [*axes, *([BETA] if any(plan["kl_coef"] is not None for plan in plans) else []), *fields]
    check_keys(layout.rows, plans)
    figures_named, pivot = _split(comparison, layout)
    labels = [key for key in layout.rows or keys if key not in pivot]
    grid = _Grid(comparison, labels, pivot)
    reference = _reference(comparison, layout, keys)
    made = _Columns(comparison, layout, reference).of(figures_named, bool(pivot))
    columns = [*(Column(key, SHORT.get(key, key), label=True) for key in [*labels, *grid.kinds])]
    lines = [[label_entry(text, value) for text, value in line.labels] for line in grid.lines]
    for level in grid.levels:
        groups = [line.groups.get(level) for line in grid.lines]
        heading = ", ".join(f"{SHORT.get(k, k)}={v}" for k, v in zip(pivot, level, strict=True))
        for one in made:
            title = "" if heading and len(made) == 1 else one.column.title
            columns.append(Column(one.column.name, title, heading))
            for line, entry in zip(lines, one.fill(groups), strict=True):
                line.append(entry)
    rows = [Line(found, line.cells, line.runs) for found, line in zip(lines, grid.lines, strict=True)]
    bases = [] if pivot else [_base_line(base, len(labels), grid.kinds, made) for base in comparison.bases]
    table = Table(coverage_lines(comparison), columns, [*bases, *rows], warnings=comparison.warnings)
    told = notes(table, comparison, reference, grid.pooled)
    if pivot and len(made) == 1:
        told.insert(0, f"Entries: {made[0].column.title}.")
    return Table(table.coverage, table.columns, table.rows, told, table.warnings)


def _split(comparison: Comparison, layout: Layout) -> tuple[list[str], list[str]]:
    """Names of columns that are metrics or the like, and axes or fields whose levels are columns."""
    named = list(layout.columns) or ["overview" if layout.is_overview else "paper"]
    expanded = [name for one in named for name in {"overview": OVERVIEW, "paper": PAPER}.get(one, (one,))]
    plans = [cell.plan for cell in comparison.cells]
    keys = {BETA, ORIGIN, *(key for plan in plans for key in (*plan["axes"], *plan["fields"]))} - {"reward"}
    pivot = [name for name in expanded if name in keys and name not in comparison.suites]
    figures_named = [name for name in expanded if name not in pivot]
    return figures_named or list(layout.metrics) or ["out"], pivot


def _reference(comparison: Comparison, layout: Layout, keys: Sequence[str]) -> Reference | None:
    if layout.detect is not None and not 0 < layout.detect < math.inf:
        raise BadInput(f"--detect={layout.detect:g}: the size of a difference, a number above 0")
    if not layout.baseline:
        if layout.detect is not None:
            raise BadInput(f"--detect={layout.detect:g}: goes with --baseline, which differences are from")
        return None
    if list(layout.baseline) == [BASE_MODEL]:
        return AgainstBase()
    runs = [run for cell in comparison.cells for run in cell.runs]
    plans = [cell.plan for cell in comparison.cells]
    asked = conditions(layout.baseline, runs)
    check_keys([condition.key for condition in asked], plans)
    against = AgainstCell(comparison, keys, asked)
    if plans and not against.names:
        raise BadInput(f"--baseline {' '.join(layout.baseline)}: no cell is all of that")
    return against


@dataclass(frozen=True)
class _Row:
    """Labels, as text and as they are, and what is at each level of the pivot."""

    labels: list[tuple[str, Any]]
    groups: dict[tuple[str, ...], Group]

    @property
    def cells(self) -> list[str]:
        return [cell.plan["cell_id"] for group in self.groups.values() for cell in group.cells]

    @property
    def runs(self) -> list[RunKey]:
        return [run.key for group in self.groups.values() for run in group.runs]


class _Grid:
    """Cells by row and level. Results that are kept apart are rows apart, and `kinds` says by what.

    Where there are external runs, every row says what its runs are.
    """

    def __init__(self, comparison: Comparison, labels: Sequence[str], pivot: Sequence[str]) -> None:
        self.kinds: list[Kind] = differing([cell.provenance for cell in comparison.cells])
        if any(EXTERNAL in cell.origins for cell in comparison.cells) and ORIGIN not in (*self.kinds, *labels, *pivot):
            self.kinds.append(ORIGIN)
        members: dict[tuple[str, ...], list[CellResult]] = {}
        for cell in comparison.cells:
            texts = tuple(text_of(cell_label(cell.plan, key)) for key in labels)
            texts += () if ORIGIN in comparison.mixed else tuple(sorted(cell.origins))
            members.setdefault(texts, []).append(cell)
        self.levels: list[tuple[str, ...]] = []
        self.lines: list[_Row] = []
        for alike in members.values():
            groups = distinct(cell.provenance for cell in alike)
            homes = [next(made for made in groups if agree(cell.provenance, made)) for cell in alike]
            for made in groups:
                by_level: dict[tuple[str, ...], list[CellResult]] = {}
                for cell in (cell for cell, home in zip(alike, homes, strict=True) if home == made):
                    by_level.setdefault(tuple(text_of(cell_label(cell.plan, key)) for key in pivot), []).append(cell)
                self.levels += [level for level in by_level if level not in self.levels]
                variant = [cell for cells in by_level.values() for cell in cells]
                made = {**made, ORIGIN: ", ".join(sorted({found for cell in variant for found in cell.origins}))}
                own = [cell_label(alike[0].plan, key) for key in labels] + [made.get(kind) for kind in self.kinds]
                levels = {level: Group(found) for level, found in by_level.items()}
                self.lines.append(_Row([(text_of(value), value) for value in own], levels))
        self.levels = sorted(self.levels, key=_by_number) if pivot else [()]
        self.pooled = any(len(group.cells) > 1 for line in self.lines for group in line.groups.values())


def _by_number(level: Sequence[str]) -> list[tuple[int, float, str]]:
    """Numbers by size, before words."""
    found = []
    for text in level:
        try:
            found.append((0, float(text), ""))
        except ValueError:
            found.append((1, 0.0, text))
    return found


class _Columns:
    """Makes columns by name."""

    def __init__(self, comparison: Comparison, layout: Layout, reference: Reference | None) -> None:
        self._comparison, self._layout, self._reference = comparison, layout, reference
        self._mixed = "mixed" in comparison.suites.values()  # several trained tasks: what is in is not always the same

    def of(self, names: Sequence[str], is_pivot: bool) -> list[_Made]:
        """Columns of these names and of the metrics, each metric with its differences behind it."""
        names = [name for one in names for name in self._expanded(one)]
        wanted = [name for one in self._layout.metrics for name in self._expanded(one)]
        held = wanted or [name for name in names if is_pivot or self._is_main(name)]
        made = []
        for name in [*names, *(name for name in wanted if name not in names)]:
            made.append(self._column(name))
            if name in held and self._reference is not None and name not in _PLAIN:
                made += self._comparisons(self._comparison.metric(name), self._reference)
        return made

    def _expanded(self, name: str) -> list[str]:
        """`suites` are all of them, and their mean in distribution if that is not one of them."""
        if name != "suites":
            return [name]
        several = list(self._comparison.suites.values()).count("in") > 1 and not self._layout.is_overview
        return [*(["in"] if self._mixed or several else []), *self._comparison.suites]

    def _is_main(self, name: str) -> bool:
        return name in ("in", "out", "kl") or self._comparison.suites.get(name) == "in"

    def _column(self, name: str) -> _Made:
        if name in _PLAIN:
            return _Made(Column(name, name), each(_PLAIN[name]))
        if name == "trouble":
            return _Made(Column(name, name), entries.trouble(self._comparison))
        if name in ("iqm/in", "iqm/out"):
            role = name.removeprefix("iqm/")
            return _Made(Column(name, f"IQM {role}"), entries.interquartile(self._comparison.metric(role)))
        of = self._comparison.metric(name)
        title = of.title + (" (in)" if self._comparison.suites.get(name) == "in" else "")
        return _Made(Column(name, title), entries.metrics(of), partial(self._base_entry, of))

    def _comparisons(self, of: Metric, reference: Reference) -> list[_Made]:
        made = [_Made(Column(f"Δ {of.name}", f"Δ {of.title}"), entries.differences(of, reference))]
        if self._layout.detect is not None:
            title = f"seeds for {self._layout.detect:g} in {of.title}"
            made.append(_Made(Column(f"seeds {of.name}", title), entries.seeds(of, reference, self._layout.detect)))
        return made

    def _base_entry(self, of: Metric, base: Base) -> Entry:
        if not of.suites(base.run):
            return BLANK
        if self._mixed and of.name.split("/")[0] in ("in", "out"):
            return BLANK if of.name == "in" else ABSENT  # depends on the trained task
        value = of.base(base.run)
        entry = Entry("0", {"mean": 0.0}) if of.key == "kl" and value == 0 else plain_entry(value)
        return told_kl(entry, [base.run], of)


_PLAIN: dict[str, Callable[[Group], Entry]] = {
    "runs": entries.runs_entry,
    "outcome": entries.outcome_entry,
    "divergence": entries.divergence_entry,
    "collapse": entries.collapse_entry,
}


def _base_line(base: Base, labels: int, kinds: Sequence[Kind], made: Sequence[_Made]) -> Line:
    name = f"base {base.model}"
    texts = [name, *[None] * (labels - 1), *(base.provenance.get(kind) for kind in kinds)]
    head = [label_entry(text or "", text) for text in texts]
    return Line([*head, *(one.base(base) for one in made)], [], [])
