"""A comparison's figures as files: PNG, SVG and PDF of each, the same bytes for the same records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from klsweep.analysis.charts import Forest, Point, Scatter, StabilityMap, forests, scatters, stability_maps
from klsweep.analysis.choose import BETA, cell_label, text_of
from klsweep.analysis.compare import Comparison
from klsweep.analysis.curves import Curves, learning_curves
from klsweep.analysis.entries import ALPHA
from klsweep.analysis.plots import SUFFIXES, own_style, save
from klsweep.analysis.stats import Estimate
from klsweep.analysis.table import Table
from klsweep.cells import varying

TOLD_APART = 12  # cells with a colour, bars and a band each; of more, those of one label share a colour
Line = Literal["-", "--", ":"]
LINES: tuple[Line, ...] = ("-", "--", ":")  # colours come again after ten: lines and points then differ in kind
SHAPES = ("o", "s", "^")


@dataclass(frozen=True)
class Style:
    """What a cell is drawn in, and what that stands for."""

    label: str
    colour: str
    line: Line
    shape: str


def plot_all(
    comparison: Comparison, effects: Table, folder: Path, on_step: Callable[[int, int], None] = lambda done, of: None
) -> list[Path]:
    """Draw every figure that the records have something for into `folder`; the files written."""
    styles = cell_styles(comparison)
    jobs = list(_jobs(comparison, effects, styles))
    written = []
    for done, (name, draw) in enumerate(jobs):
        with own_style():
            figure = draw()
            for suffix in SUFFIXES:
                save(figure, folder / f"{name}{suffix}")
                written.append(folder / f"{name}{suffix}")
        on_step(done + 1, len(jobs))
    return written


def _jobs(comparison: Comparison, effects: Table, styles: Sequence[Style]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for scatter in scatters(comparison):
        yield scatter.name, lambda one=scatter: _scatter(one, styles)
    for forest in forests(effects):
        yield forest.name.replace("/", "-"), lambda one=forest: _forest(one)
    for stability in stability_maps(comparison):
        yield stability.name, lambda one=stability: _map(one)
    for curves in learning_curves(comparison):
        yield f"curve-{curves.name.replace('/', '-')}", lambda one=curves: _curves(one, styles)


def cell_styles(comparison: Comparison) -> list[Style]:
    """A style per cell: its own if they are few, else that of its level on the first label with few levels."""
    plans = [cell.plan for cell in comparison.cells]
    labels = [cell.name for cell in comparison.cells]
    if len(labels) > TOLD_APART:
        axes, fields = varying(plans)
        for key in (*axes, BETA, *fields):
            levels = [text_of(cell_label(plan, key)) for plan in plans]
            if 1 < len(set(levels)) <= TOLD_APART:
                labels = [f"{key}={level}" for level in levels]
                break
    places = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [_style(label, places[label]) for label in labels]


def _style(label: str, place: int) -> Style:
    again = place // 10 % 3
    return Style(label, f"C{place % 10}", LINES[again], SHAPES[again])


def _new(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(figure: Any, shown: Sequence[Style], further: Sequence[Any] = ()) -> None:
    """Beside the panel; a label once."""
    from matplotlib.lines import Line2D

    styles = list({style.label: style for style in shown}.values())
    named = styles[: 2 * TOLD_APART]
    handles = [Line2D([], [], color=s.colour, linestyle=s.line, marker=s.shape, label=s.label) for s in named]
    if len(styles) > len(handles):
        handles.append(Line2D([], [], linestyle="", label=f"and {len(styles) - len(handles)} more"))
    figure.legend(handles=[*handles, *further], loc="outside right upper", fontsize="small")


def _curves(curves: Curves, styles: Sequence[Style]) -> Any:
    figure, panel = _new(9, 4.5)
    few = len(curves.bands) <= TOLD_APART
    for band in curves.bands:
        style = styles[band.cell]
        width = 1.6 if few else 0.6
        panel.plot(curves.updates, band.partial, color=style.colour, linestyle=(0, (1, 3)), linewidth=width)
        panel.plot(curves.updates, band.whole, color=style.colour, linestyle=style.line, linewidth=width)
        if few:
            panel.fill_between(curves.updates, band.low, band.high, color=style.colour, alpha=0.15, linewidth=0)
    panel.set(xlabel="update", ylabel=curves.title, yscale="log" if curves.logarithmic else "linear")
    if few and not curves.logarithmic:
        means = np.concatenate([band.mean for band in curves.bands])
        panel.set_ylim(_limits(panel.get_ylim(), means))
    mean = "geometric mean" if curves.logarithmic else "mean"
    panel.set_title(
        f"{mean} over seeds{', 95 % t interval' if few else ''}; dotted: fewer seeds than planned", size="small"
    )
    panel.grid(alpha=0.3)
    _legend(figure, [styles[band.cell] for band in curves.bands])
    return figure


def _limits(now: tuple[float, float], means: Any) -> tuple[float, float]:
    """Intervals may leave the panel: one of two seeds must not flatten everything."""
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    room = 0.6 * ((high - low) or abs(high) or 0.1)
    return max(now[0], low - room), min(now[1], high + room)


def _scatter(scatter: Scatter, styles: Sequence[Style]) -> Any:
    from matplotlib.lines import Line2D

    figure, panel = _new(9, 5)
    few = len(scatter.points) <= TOLD_APART
    for point in scatter.points:
        colour, shape = styles[point.cell].colour, styles[point.cell].shape
        if few:
            bars = {"xerr": _reach(point.x), "yerr": _reach(point.y)}
            panel.errorbar(point.x.mean, point.y.mean, **bars, color=colour, alpha=0.5, linewidth=1)
        filled = colour if not _is_partial(point) else "white"
        panel.plot(point.x.mean, point.y.mean, shape, color=colour, markerfacecolor=filled, markersize=6)
    further = []
    if scatter.base:
        panel.plot(*zip(*scatter.base, strict=True), "D", color="black", markersize=6)
        further.append(Line2D([], [], color="black", marker="D", linestyle="", label="before training"))
    fronts = [
        front
        for group in sorted({p.group for p in scatter.points})
        if len(front := sorted((p.x.mean, p.y.mean) for p in scatter.points if p.front and p.group == group)) > 1
    ]
    for front in fronts:
        panel.plot(*zip(*front, strict=True), color="black", linestyle="--", linewidth=1)
    if fronts:
        further.append(Line2D([], [], color="black", linestyle="--", label="front of the means"))
    panel.set(xlabel=scatter.x_title, ylabel=scatter.y_title)
    panel.set_xlim(_limits(panel.get_xlim(), [p.x.mean for p in scatter.points] + [x for x, _ in scatter.base]))
    panel.set_ylim(_limits(panel.get_ylim(), [p.y.mean for p in scatter.points] + [y for _, y in scatter.base]))
    joint = "bars hold jointly with 95 %; " if few else ""
    panel.set_title(f"{joint}hollow: fewer runs than planned", size="small")
    panel.grid(alpha=0.3)
    _legend(figure, [styles[point.cell] for point in scatter.points], further)
    return figure


def _is_partial(point: Point) -> bool:
    return min(point.x.n, point.y.n) < point.planned


def _reach(found: Estimate) -> list[list[float]] | None:
    if found.ci_low is None or found.ci_high is None:
        return None
    return [[found.mean - found.ci_low], [found.ci_high - found.mean]]


def _forest(forest: Forest) -> Any:
    figure, panel = _new(9, 1.2 + 0.35 * len(forest.contrasts))
    for place, one in enumerate(forest.contrasts):
        if one.ci_low is not None and one.ci_high is not None:
            panel.plot([one.ci_low, one.ci_high], [place, place], color="black", linewidth=1.2)
        told = one.adjusted is not None and one.adjusted < ALPHA
        panel.plot(one.mean, place, "o", color="black", markerfacecolor="black" if told else "white")
    panel.axvline(0, color="0.5", linewidth=1)
    panel.set_yticks(range(len(forest.contrasts)), [one.label for one in forest.contrasts])
    panel.set(xlabel=f"difference, {forest.x_title}", ylim=(len(forest.contrasts) - 0.5, -0.5))
    panel.set_title("95 % t intervals; filled: p < 0.05 by Holm", size="small")
    panel.grid(alpha=0.3, axis="x")
    return figure


def _map(stability: StabilityMap) -> Any:
    rows, columns = len(stability.rows), len(stability.columns)
    figure, panel = _new(2.8 + 0.8 * columns, 1.4 + 0.4 * rows)
    shares = np.full((rows, columns), np.nan)
    for i, line in enumerate(stability.rates):
        for j, rate in enumerate(line):
            if rate is not None:
                shares[i, j] = rate.k / rate.n
                partial = "*" if rate.n < stability.planned[i][j] else ""
                colour = "white" if shares[i, j] > 0.6 else "black"
                panel.text(j, i, f"{rate.k}/{rate.n}{partial}", ha="center", va="center", color=colour)
    panel.imshow(shares, vmin=0, vmax=1, cmap="Oranges", aspect="auto")
    panel.set_xticks(range(columns), stability.columns)
    panel.set_yticks(range(rows), stability.rows)
    panel.set(xlabel="β")
    panel.set_title(f"{stability.title}: diverged or collapsed / ended", size="small")
    return figure
