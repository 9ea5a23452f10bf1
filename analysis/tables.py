"""A table in every format: terminal, Markdown, LaTeX, CSV, JSON, HTML; and a comparison's cells as JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from klsweep.analysis.compare import ACCURACY, CellResult, Comparison
from klsweep.analysis.latex import latex
from klsweep.analysis.stats import Estimate
from klsweep.analysis.table import SIGNS, Column, Entry, Table
from klsweep.record.origin import is_external, origin
from klsweep.terminal import console, markdown_grid, print_grid

DIGITS = 9  # of a number in CSV, JSON and HTML: the last ones of a double depend on the processor and its libm


def text_grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows as plain text, marks as signs behind their entry."""
    header = [f"{column.group} {column.title}".strip() for column in table.columns]
    return header, [[entry.text + SIGNS[entry.mark] for entry in line.entries] for line in table.rows]


def print_table(table: Table) -> None:
    """The table on a terminal, coverage first."""
    out = console()
    for line in table.coverage:
        out.print(line, style="bold")
    print_grid(*text_grid(table))
    for note in remarks(table):
        out.print(note)


def markdown(table: Table) -> str:
    """A Markdown table between its coverage and its notes."""
    head = "  \n".join(table.coverage)
    header, rows = text_grid(table)
    plain = [[text.replace("|", "\\|") for text in row] for row in (header, *rows)]
    return "\n".join([head, "", markdown_grid(plain[0], plain[1:]), "", *(f"{note}  " for note in remarks(table))])


def remarks(table: Table) -> list[str]:
    """Notes and warnings."""
    return [*table.notes, *(f"warning: {text}" for text in table.warnings)]


def as_csv(table: Table) -> str:
    """A column per number: `out.mean`, `out.ci_low`, …; empty without one. Coverage and warnings: lines with #."""
    parts = [_parts(column, [line.entries[i] for line in table.rows]) for i, column in enumerate(table.columns)]
    header = [
        f"{column.group + ' ' if column.group else ''}{column.name}{'.' * bool(part)}{part}"
        for column, names in zip(table.columns, parts, strict=True)
        for part in names
    ]
    stream = io.StringIO()
    stream.writelines(f"# {line}\n" for line in (*table.coverage, *(f"warning: {text}" for text in table.warnings)))
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for line in table.rows:
        found = zip(line.entries, parts, strict=True)
        writer.writerow([_cell(entry, part) for entry, names in found for part in names])
    return stream.getvalue()


def _parts(column: Column, entries: list[Entry]) -> list[str]:
    """The numbers that a column has, and `mark` if something is marked; "", itself, of a label or a text."""
    fullest = sorted(entries, key=lambda entry: -len(entry.values))
    numbers = [] if column.label else list(dict.fromkeys(name for entry in fullest for name in entry.values))
    return [*(numbers or [""]), *(["mark"] if any(entry.mark for entry in entries) else [])]


def _cell(entry: Entry, part: str) -> Any:
    if part == "mark":
        return entry.mark
    value = entry.values.get(part) if part else entry.values.get("value", entry.text)
    return json.dumps(_finite(value)) if isinstance(value, list | dict) else _rounded(value)


def as_json(table: Table) -> str:
    """The whole table: coverage, columns, rows with the numbers behind each entry and the runs they come from."""
    content = {
        "coverage": table.coverage,
        "columns": [vars(column) for column in table.columns],
        "rows": [
            {
                "entries": [{"text": e.text, "mark": e.mark, **_finite(e.values)} for e in line.entries],
                "cells": line.cells,
                "runs": [key._asdict() for key in line.runs],
            }
            for line in table.rows
        ],
        "notes": table.notes,
        "warnings": table.warnings,
    }
    return json.dumps(content, indent=1)


def _finite(value: Any) -> Any:
    """Numbers to DIGITS. JSON has no number that is not finite: null."""
    if isinstance(value, Mapping):
        return {key: _finite(found) for key, found in value.items()}
    if isinstance(value, list):
        return [_finite(found) for found in value]
    return None if isinstance(value, float) and not math.isfinite(value) else _rounded(value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def html(table: Table) -> str:
    """A fragment without style: classes `label`, `best` and `tied`, numbers to sort by in `data-value`."""
    head = "".join(f"<th>{escape(f'{c.group} {c.title}'.strip())}</th>" for c in table.columns)
    rows = "\n".join(
        f'<tr data-cells="{escape(" ".join(line.cells))}">{"".join(map(_html_cell, table.columns, line.entries))}</tr>'
        for line in table.rows
    )
    notes = "\n".join(f'<p class="note">{escape(text)}</p>' for text in table.notes)
    warnings = "\n".join(f'<p class="warning">{escape(text)}</p>' for text in table.warnings)
    coverage = "\n".join(f'<p class="coverage">{escape(text)}</p>' for text in table.coverage)
    body = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return "\n".join(['<section class="klsweep-table">', coverage, warnings, body, notes, "</section>"])


def _html_cell(column: Column, entry: Entry) -> str:
    names = [*(["label"] if column.label else []), *([entry.mark] if entry.mark else [])]
    numbers = [entry.values[name] for name in ("mean", "value", "k") if isinstance(entry.values.get(name), int | float)]
    kind = f' class="{" ".join(names)}"' if names else ""
    value = f' data-value="{_rounded(numbers[0])!r}"' if numbers else ""
    return f"<td{kind}{value}>{escape(entry.text)}{SIGNS[entry.mark]}</td>"


TEXTS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
    "json": as_json,
    "html": html,
}


def cells_json(comparison: Comparison) -> list[dict[str, Any]]:
    """A list of cells; inert values are null, and so are intervals below two runs."""
    return [_cell_json(comparison, cell) for cell in comparison.cells]


def _cell_json(comparison: Comparison, cell: CellResult) -> dict[str, Any]:
    named = {"in_distribution": "in", "out_of_distribution": "out", "kl": "kl", "reward": "reward"}
    base = cell.base
    return {
        "cell_id": cell.plan["cell_id"],
        "origin": origin(cell.plan),
        **({"kl_definition": cell.plan["kl_definition"]} if is_external(cell.plan) else {}),
        **cell.plan["axes"],
        "kl_coef": cell.plan["kl_coef"],
        "n_seeds": cell.n_seeds,
        "planned": cell.planned,
        "states": cell.states,
        "collapsed": cell.collapsed,
        "provenance": cell.provenance,
        "suites": {
            name: {"role": cell.plan["suites"].get(name), **_numbers(cell.estimate(comparison.metric(name)))}
            for name in comparison.suites
        },
        **{key: _numbers(cell.estimate(comparison.metric(name))) for key, name in named.items()},
        "base": base and {suite: base.base_evaluation(suite, ACCURACY) for suite in comparison.suites},
        "fields": cell.plan["fields"],
        "runs": [{**run.key._asdict(), "seed": run.seed, "state": run.status["state"]} for run in cell.runs],
    }


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"n": 0, "mean": None, "ci_low": None, "ci_high": None}
    return _finite(estimate._asdict())
