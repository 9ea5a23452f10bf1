"""A sweep as a W&B report: what the statistics say, its tables, and panels over the runs that `klsweep sync` sends.

W&B's own client writes it (`wandb_workspaces`, imported here alone); nothing is asked of W&B.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from klsweep.analysis.build import BASE_MODEL, Layout, build
from klsweep.analysis.compare import compare
from klsweep.analysis.coverage import coverage_lines
from klsweep.analysis.curves import curve_titles
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.headline import headline, usual_baseline
from klsweep.analysis.load import Records
from klsweep.analysis.table import Table
from klsweep.analysis.tables import markdown
from klsweep.record.folder import SweepFolder

RUNSETS = 12  # cells of which each is a run set of its own; more are one, grouped by cell
SCATTERS = 4  # suites out of distribution against the trained task


@dataclass(frozen=True)
class Findings:
    """What a report says of a sweep: sentences, tables as Markdown by heading, its cells' names by cell id, the suites
    that are in distribution and those that are not, and what to draw over updates.
    """

    headline: list[str]
    tables: dict[str, str]
    cells: dict[str, str]
    inside: list[str]
    outside: list[str]
    curves: dict[str, str]


def findings(sweep: SweepFolder, name: str, records: Records | None = None) -> Findings:
    """What the records of a sweep say; `name` is what W&B calls it. `records` if those have been read already.

    The headline is coverage, what the tests have found, and warnings, in this order.
    """
    comparison = replace(compare(sweep, records=records), sweep=name)
    against = usual_baseline(comparison)
    held = "the model before training" if against == [BASE_MODEL] else "the cells without KL"
    effects = effect_table(comparison)
    tables = {
        "Comparison": build(comparison, Layout()),
        f"Against {held}": build(comparison, Layout(baseline=against)),
        "Effects of the axes": effects,
    }
    warnings = [f"Warning: {text}" for text in comparison.warnings]
    return Findings(
        headline=[*coverage_lines(comparison), *headline(comparison, effects, against), *warnings],
        tables={heading: _below_coverage(table) for heading, table in tables.items() if table.rows},
        cells={cell.plan["cell_id"]: cell.name for cell in comparison.cells},
        inside=[suite for suite, role in comparison.suites.items() if role != "out"],
        outside=[suite for suite, role in comparison.suites.items() if role == "out"],
        curves=curve_titles(comparison),
    )


def _below_coverage(table: Table) -> str:
    """A table as Markdown; coverage and warnings head the report, once."""
    return markdown(replace(table, coverage=[], warnings=[])).strip()


def title(name: str) -> str:
    """The title of a sweep's report."""
    return f"klsweep {name}"[:128]


def marker(name: str) -> str:
    """By which a sweep's report is found again: its description begins with it."""
    return f"Written by `klsweep report` from the records of `{name}`."


def build_report(found: Findings, entity: str, project: str, name: str) -> Any:
    """The report, a `wandb_workspaces.reports.v2.Report`: the same findings give the same specification."""
    from wandb_workspaces.reports.v2 import interface as wr

    ids = (f"klsweep{number}" for number in count())
    blocks: list[Any] = [wr.MarkdownBlock("\n".join(f"- {line}" for line in found.headline)), wr.TableOfContents()]
    for heading, table in found.tables.items():
        blocks += [wr.H2(heading), wr.MarkdownBlock(table)]
    curves = [
        wr.LinePlot(title=text, x="Step", y=[metric], groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for metric, text in found.curves.items()
    ]
    scatters = [
        wr.ScatterPlot(title=text, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y)) for x, y, text in _scatters(found)
    ]
    blocks += [
        wr.H2("Over updates"),
        wr.P("A line per cell: the mean over its seeds, and a band from the smallest to the largest."),
        wr.PanelGrid(runsets=_runsets(found, name, ids, grouped=True), panels=_with_ids(curves, ids)),
    ]
    if scatters:
        grid = wr.PanelGrid(runsets=_runsets(found, name, ids, grouped=False), panels=_with_ids(scatters, ids))
        blocks += [wr.H2("In against out of distribution"), wr.P("A point per run, after its last update."), grid]
    return wr.Report(
        entity=entity,
        project=project,
        title=title(name),
        description=f"{marker(name)} The next call replaces its blocks.",
        blocks=blocks,
        width="fluid",
    )


def _scatters(found: Findings) -> Iterator[tuple[str, str, str]]:
    """x, y and title of each scatter plot."""
    for suite in found.inside[:1]:
        trained = f"eval/{suite}/pass@1"
        yield f"eval/{suite}/kl", trained, f"Accuracy on {suite} against KL to the base"
        for other in found.outside[:SCATTERS]:
            yield trained, f"eval/{other}/pass@1", f"Accuracy on {other} against that on {suite}"


def _runsets(found: Findings, name: str, ids: Iterator[str], grouped: bool) -> list[Any]:
    """A run set per cell, or one for all where they are too many to be told apart."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import interface as wr

    ours = expr.Config("sweep_name") == name
    grouping: dict[str, Any] = {"groupby": ["config.cell"]} if grouped else {}
    if len(found.cells) > RUNSETS:
        return _with_ids([wr.Runset(name=f"{len(found.cells)} cells", filters=expr.And(ours), **grouping)], ids)
    return _with_ids(
        [
            wr.Runset(name=words, filters=expr.And(expr.Config("cell_id") == cell, ours), **grouping)
            for cell, words in found.cells.items()
        ],
        ids,
    )


def _with_ids(parts: Sequence[Any], ids: Iterator[str]) -> list[Any]:
    """Run sets or panels with ids that are the same each time; the client draws them at random."""
    for part in parts:
        part._id = next(ids)
    return list(parts)


def specification(report: Any) -> dict[str, Any]:
    """A report as it is sent to W&B."""
    spec = report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return {"title": report.title, "description": report.description, "spec": json.loads(spec)}
