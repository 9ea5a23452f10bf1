"""A comparison as one self-contained page: coverage, findings, tables that sort and filter, figures, links to runs.

It works from disk: no server, no network, no library. Without JavaScript it still has its findings and tables.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from klsweep.analysis.build import Layout, build
from klsweep.analysis.choose import conditions
from klsweep.analysis.collect import sweep_names
from klsweep.analysis.compare import Comparison
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.headline import headline, usual_baseline
from klsweep.analysis.origins import Origin, origins
from klsweep.analysis.page_data import as_script, page_data
from klsweep.analysis.table import Table
from klsweep.analysis.tables import html
from klsweep.record.folder import SweepFolder

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("draw.js", "charts.js", "tables.js", "cell.js", "start.js")
COLUMNS = ("runs", "suites", "out", "kl", "entropy", "reward", "divergence", "collapse", "trouble")


def report(
    comparison: Comparison, sweeps: Sequence[SweepFolder], layout: Layout, file: Path, command: Sequence[str]
) -> str:
    """The page, which is to be `file`: its links are relative to that. `command` is told as what makes it again.

    The same records give the same bytes. BadInput for a name in `layout` that is not there.
    """
    baseline = list(layout.baseline) or (usual_baseline(comparison) if comparison.cells else [])
    shown = replace(layout, columns=layout.columns or layout.metrics or COLUMNS, baseline=baseline)
    table = build(comparison, shown)
    runs = [run for cell in comparison.cells for run in cell.runs]
    effects = effect_table(comparison, layout.metrics, conditions([c for c in baseline if "=" in c], runs))
    named = sweep_names(sweeps)
    data = page_data(comparison, {"comparison": table}, effects, named, file)
    script = "'use strict';\n(() => {\n" + "\n".join((PARTS / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    style = (PARTS / "page.css").read_text("utf-8")
    title = ", ".join(named) or comparison.sweep
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>klsweep: {escape(title)}</title>",
            f"<style>{style}</style></head><body>",
            f"<header><h1>{escape(title)}</h1>{_coverage(comparison, table)}</header><main>",
            _section("findings", "Findings", _list(headline(comparison, effects, baseline))),
            _section("table", "Comparison", _filters(), _table("comparison", table)),
            _section("figures", "Figures", '<div id="charts"></div>'),
            _section("effects", "Effects of axes", _table("contrasts", effects)),
            _section("runs", "Runs", '<div id="run-list"></div>'),
            _section("origins", "How to make it again", *map(_origin, origins(comparison, named, command))),
            '</main><dialog id="cell"></dialog><div id="hint" hidden></div>',
            "<noscript><p>Figures, filters and links to runs need JavaScript.</p></noscript>",
            f'<script type="application/json" id="data">{as_script(data)}</script>',
            f"<script>{script}</script></body></html>\n",
        ]
    )


def _policy(script: str) -> str:
    """Nothing is fetched, and no script runs but ours: a text that slipped through as mark-up could not."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _coverage(comparison: Comparison, table: Table) -> str:
    total = sum(comparison.states.values())
    bar = "".join(
        f'<span class="state {escape(state)}" style="flex-grow:{count}" title="{count} {escape(state)}">'
        f"{count} {escape(state)}</span>"
        for state, count in comparison.states.items()
    )
    lines = "".join(f'<p class="coverage">{escape(line)}</p>' for line in table.coverage)
    warnings = "".join(f'<p class="warning">warning: {escape(text)}</p>' for text in table.warnings)
    return (f'<div class="bar">{bar}</div>' if total else "") + lines + warnings


def _section(name: str, heading: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{escape(heading)}</h2>\n' + "\n".join(parts) + "\n</section>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _filters() -> str:
    return '<form id="filters" autocomplete="off"></form>'


def _table(name: str, table: Table) -> str:
    """Without coverage and warnings, which head the page."""
    return f'<div id="{name}">{html(replace(table, coverage=[], warnings=[]))}</div>'


def _origin(origin: Origin) -> str:
    commands = "".join(f"<pre>{escape(command)}</pre>" for command in origin.commands)
    return f"<h3>{escape(origin.name)}</h3>{commands}{_list(origin.facts) if origin.facts else ''}"
