"""What the figures show, apart from how they are drawn: points, contrasts and maps from a comparison.

`plots` draws them as files, the page of `report` in the browser.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from klsweep.analysis.choose import BETA, cell_label, text_of
from klsweep.analysis.compare import COLLAPSE_SHARE, CellResult, Comparison, has_collapsed
from klsweep.analysis.external import external_notes
from klsweep.analysis.metrics import Metric
from klsweep.analysis.stats import Estimate, Rate, t_interval, wilson_interval
from klsweep.analysis.table import Table
from klsweep.record.origin import EXTERNAL, is_external

JOINT = 0.975  # each of two, so that both intervals hold together with 95 % at least (Bonferroni)


class Point(NamedTuple):
    """A cell: two means over seeds with their intervals. `front`: no other cell of its group is better on both."""

    cell: int  # place among the comparison's cells
    group: int  # cells of one group are comparable, see `provenance`
    planned: int
    x: Estimate
    y: Estimate
    front: bool


@dataclass(frozen=True)
class Scatter:
    """Cells by two metrics. `base`: where the bases they started from are."""

    name: str
    title: str
    x_title: str
    y_title: str
    points: list[Point]
    base: list[tuple[float, float]]
    has_front: bool
    note: str


class Contrast(NamedTuple):
    """One level of an axis rather than another, on one metric; `adjusted`: p by Holm."""

    label: str
    mean: float
    ci_low: float | None
    ci_high: float | None
    adjusted: float | None


@dataclass(frozen=True)
class Forest:
    """Contrasts of one metric."""

    name: str
    title: str
    x_title: str
    contrasts: list[Contrast]
    note: str


@dataclass(frozen=True)
class StabilityMap:
    """Shares of runs that did not hold, by row (estimator and placement) and column (β); None where there is no run."""

    name: str
    title: str
    rows: list[str]
    columns: list[str]
    rates: list[list[Rate | None]]
    cells: list[list[list[int]]]  # the cells of each place
    counts: list[list[list[tuple[int, int, int]]]]  # of each of those: runs that did not hold, that ended, planned
    planned: list[list[int]]
    note: str


def scatters(comparison: Comparison) -> list[Scatter]:
    """In against out of distribution with the Pareto front, and reward against KL; those that have points."""
    found = [
        _scatter(
            comparison, "in-out", "In and out of distribution", ("in", "out"), True,
            "Mean pass@1 of each cell over its seeds. The bars hold jointly with 95 % (each 97.5 %, t over runs). "
            "Front: cells whose means no other cell exceeds on both; by the means alone, not a test. Results that are "
            "kept apart in the table have a front each.",
        ),
        _scatter(
            comparison, "reward-kl", "Reward and distance from the base", ("kl", "reward"), False,
            "Reward of the last training batches against KL(π‖π_ref) in nats per response on fresh samples. "
            "The bars hold jointly with 95 % (each 97.5 %, t over runs).",
        ),
    ]  # fmt: skip
    return [one for one in found if one.points]


def _scatter(
    comparison: Comparison, name: str, title: str, metrics: tuple[str, str], front: bool, note: str
) -> Scatter:
    x, y = (comparison.metric(metric) for metric in metrics)
    places = [(i, cell, _joint(cell, x), _joint(cell, y)) for i, cell in enumerate(comparison.cells)]
    whole = [(i, cell, a, b) for i, cell, a, b in places if a is not None and b is not None]
    made = [cell.provenance for _, cell, _, _ in whole]
    groups = [made.index(own) for own in made]
    best = _front([(a.mean, b.mean, groups[n]) for n, (*_, a, b) in enumerate(whole)]) if front else set[int]()
    points = [Point(i, groups[n], cell.planned, a, b, n in best) for n, (i, cell, a, b) in enumerate(whole)]
    base = [
        (start[0], start[1])
        for one in comparison.bases
        if len(start := [v for of in (x, y) if (v := of.base(one.run)) is not None]) == 2
    ]
    own = [run for cell in comparison.cells for run in cell.runs]
    note = " ".join([note, *(line for line in external_notes([x.key, y.key], own))])
    return Scatter(name, title, x.title, y.title, points, list(dict.fromkeys(base)), front, note)


def _joint(cell: CellResult, of: Metric) -> Estimate | None:
    return t_interval(list(cell.by_seed(of).values()), JOINT)


def _front(points: Sequence[tuple[float, float, int]]) -> set[int]:
    """Points (x, y, group) that no other of the group is at least as high as on both coordinates and higher on one."""
    return {
        i
        for i, (x, y, group) in enumerate(points)
        if not any(g == group and a >= x and b >= y and (a > x or b > y) for a, b, g in points)
    }


def forests(effects: Table) -> list[Forest]:
    """Main effects, a chart per metric of a table of effects (`effect_table`)."""
    return [one for place in range(3, len(effects.columns)) if (one := _forest(effects, place)).contrasts]


def _forest(effects: Table, place: int) -> Forest:
    column = effects.columns[place]
    contrasts = []
    for line in effects.rows:
        axis, level, reference = (entry.text for entry in line.entries[:3])
        values = line.entries[place].values
        if len(line.entries[0].values["value"]) == 1 and "mean" in values:
            label = f"{axis}: {level} rather than {reference}"
            numbers = (values["ci_low"], values["ci_high"], values["p_holm"])
            contrasts.append(Contrast(label, values["mean"], *numbers))
    note = (
        "Main effects: one level rather than another, all else equal, by least squares on run-level values, with 95 % "
        "t intervals; filled where p, adjusted by Holm over the table of effects, is below 0.05."
    )
    if any(line.entries[place].partial for line in effects.rows):
        note += " Some cells have fewer results than planned (* in the table of effects)."
    return Forest(f"effects-{column.name}", f"Effects of axes: {column.title}", column.title, contrasts, note)


def stability_maps(comparison: Comparison) -> list[StabilityMap]:
    """Estimator × placement against β: runs that diverged or collapsed, of those that ended; a map per sampling.

    Of results that are kept apart those of the usual kind.
    """
    alike = [(i, cell) for i, cell in enumerate(comparison.cells) if cell.provenance in (comparison.usual, {})]
    apart = len(comparison.cells) - len(alike)
    note = f" {apart} cells are left out, whose results are kept apart in the table." if apart else ""
    samplings = list(dict.fromkeys(cell.plan["axes"].get("sampling") for _, cell in alike))
    found = []
    for sampling in samplings:
        members = [(i, cell) for i, cell in alike if cell.plan["axes"].get("sampling") == sampling]
        name = "stability" + (f"-{sampling}" if len(samplings) > 1 else "")
        title = "Stability" + (f", {sampling}" if len(samplings) > 1 else "")
        found.append(_map(name, title, members, note))
    return [one for one in found if any(rate for row in one.rates for rate in row)]


def _map(name: str, title: str, members: Sequence[tuple[int, CellResult]], further: str) -> StabilityMap:
    def row_of(cell: CellResult) -> str:
        estimator, placement = (cell.plan["axes"].get(axis) for axis in ("estimator", "placement"))
        name = f"{estimator} {placement}" if estimator else "no KL"
        return f"{name} {EXTERNAL}" if is_external(cell.plan) else name

    rows = list(dict.fromkeys(row_of(cell) for _, cell in members))
    betas = sorted({cell.plan["kl_coef"] for _, cell in members}, key=lambda beta: (beta is not None, beta or 0.0))
    columns = [text_of(beta) for beta in betas]
    here = [
        [[(i, c) for i, c in members if row_of(c) == row and cell_label(c.plan, BETA) == beta] for beta in betas]
        for row in rows
    ]
    note = (
        "Runs that diverged, or ended with less than "
        f"{COLLAPSE_SHARE:g} of the base's accuracy on the trained task, of those that ended (k/n)." + further
    )
    if any(len(found) > 1 for line in here for found in line):
        note += " Cells that differ in something else are taken together."
    rates = [[_rate([cell for _, cell in found]) for found in line] for line in here]
    places = [[[i for i, _ in found] for found in line] for line in here]
    planned = [[sum(cell.planned for _, cell in found) for found in line] for line in here]
    counts = [[[_counted(cell) for _, cell in found] for found in line] for line in here]
    return StabilityMap(name, title, rows, columns, rates, places, counts, planned, note)


def _counted(cell: CellResult) -> tuple[int, int, int]:
    rate = _rate([cell])
    return (rate.k, rate.n, cell.planned) if rate else (0, 0, cell.planned)


def _rate(cells: Sequence[CellResult]) -> Rate | None:
    """Runs that did not hold, of those that ended; None without one."""
    fallen = list(_held_not(cells))
    return wilson_interval(sum(fallen), len(fallen)) if fallen else None


def _held_not(cells: Sequence[CellResult]) -> Iterator[bool]:
    """Of each seed with a run that ended, whether one did not hold."""
    for cell in cells:
        for runs in cell.of_seeds.values():
            if ended := [run for run in runs if run.finished]:
                yield any(run.status["state"] == "diverged" or has_collapsed(run) for run in ended)
