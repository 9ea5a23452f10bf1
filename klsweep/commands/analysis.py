"""Commands that only read records: compare, query."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klsweep.commands.parser import OK, Commands, existing_sweep
from klsweep.errors import BadInput
from klsweep.record.files import finite, write_text
from klsweep.record.folder import SweepFolder
from klsweep.terminal import print_grid, progress

if TYPE_CHECKING:
    from klsweep.analysis.build import Layout
    from klsweep.analysis.compare import Comparison
    from klsweep.analysis.load import Records
    from klsweep.analysis.outputs import Choice
    from klsweep.analysis.query import Answer
    from klsweep.analysis.table import Table

SHOWN_ROWS = 200


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    _declare_compare(commands)
    text = "SQL over the records of sweeps: tables runs, metrics, items, joined by (sweep, run_id)"
    query = commands.add("query", _query, text)
    query.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="sweep folders, also read-only ones")
    query.add_argument(
        "sql", metavar="SQL", help="one query in DuckDB's SQL, e.g. 'SELECT state, count(*) FROM runs GROUP BY ALL'"
    )
    form = query.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of objects")
    form.add_argument("--csv", action="store_true", help="print CSV")
    add_cache(query)


def _declare_compare(commands: Commands) -> None:
    text = "comparison table: a row per cell, means over seeds with 95 %% t intervals, differences from a baseline"
    compare = commands.add("compare", _compare, text)
    compare.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="sweep folders, also read-only ones")
    add_choice(compare)
    text = "instead: what each axis does, and each two together, on those of --metric (default: in, out)"
    compare.add_argument("--effects", action="store_true", help=text)
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the cells as a list of objects")
    form.add_argument("--markdown", action="store_true", help="the same as --format markdown")
    text = "write a self-contained page: findings, tables, figures, links to runs"
    form.add_argument("--html", type=Path, metavar="FILE", help=text)
    form.add_argument("--plots", type=Path, metavar="DIR", help="draw every figure there, as PNG, SVG and PDF")
    text = "print the table so; json: with coverage, notes, and the numbers and runs behind each entry"
    form.add_argument("--format", choices=["terminal", "markdown", "latex", "csv", "json", "html"], help=text)
    add_cache(compare)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options of what is compared, and how it is shown."""
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    text = "only runs of which this holds: estimator=k1,k3 'kl.coef>=0.1' seed!=2"
    parser.add_argument("--where", help=text, **several)
    text = "the cell that others are held against, by its labels: placement=none; or base, the model before training"
    parser.add_argument("--baseline", help=text, **several)
    text = "axes and fields that make a row, separated by commas (default: all in which cells differ)"
    parser.add_argument("--rows", type=_words, default=[], metavar="KEY,…", help=text)
    text = "paper, overview, runs, suites, in, out, kl, entropy, reward, divergence, collapse, trouble, outcome, "
    text += "iqm/out, a suite, any logged metric; or axes: a column for each of their levels"
    parser.add_argument("--columns", type=_words, default=[], metavar="NAME,…", help=text)
    text = "metrics that are held against the baseline (default: in, out, kl) or fill a column per level (default: out)"
    parser.add_argument("--metric", type=_words, default=[], metavar="NAME,…", help=text)
    text = "with --baseline: how many more seeds would find a difference of that size"
    parser.add_argument("--detect", type=float, metavar="D", help=text)
    text = "take results together though they differ in evaluation, engine, science, plugins, prompts, origin (or all)"
    parser.add_argument("--mix", type=_words, default=[], metavar="KIND,…", help=text)


def choice_of(options: argparse.Namespace) -> "Choice":
    """What `add_choice` has been given."""
    from klsweep.analysis.build import Layout
    from klsweep.analysis.outputs import Choice

    layout = Layout(options.rows, options.columns, options.metric, options.baseline, options.detect)
    return Choice(options.where, options.mix, layout)


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The option of where collected records are kept."""
    text = "where what was read is kept as Parquet (default: below $KLSWEEP_CACHE or ~/.cache/klsweep)"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=text)


def cache_for(sweeps: Sequence[SweepFolder], asked: Path | None) -> Path | None:
    """The folder to cache in, made if need be; None, and a word about it, if the usual one cannot be written.

    BadInput if the one asked for cannot.
    """
    from klsweep.analysis.collect import cache_folder

    folder = asked or cache_folder(sweeps)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is read-only")
    except OSError as error:
        if asked is not None:
            raise BadInput(f"--cache={asked}: cannot be written ({error})") from error
        print(f"klsweep: nothing is cached ({error}); --cache DIR names another place", file=sys.stderr)
        return None
    return folder


def records_of(sweeps: Sequence[SweepFolder], cache: Path | None = None) -> "Records":
    """What these sweeps hold, by way of the cache."""
    from klsweep.analysis.load import load

    with progress("reading records") as on_step:
        return load(sweeps, cache_for(sweeps, cache), on_step)


def print_comparison(sweeps: Sequence[SweepFolder]) -> None:
    """The overview of sweeps on the terminal."""
    from klsweep.analysis.build import Layout, build
    from klsweep.analysis.compare import compare
    from klsweep.analysis.tables import print_table

    print_table(build(compare(*sweeps, records=records_of(sweeps)), Layout()))


def _compare(options: argparse.Namespace) -> int:
    from klsweep.analysis.build import build
    from klsweep.analysis.compare import compare
    from klsweep.analysis.tables import TEXTS, cells_json, print_table

    sweeps = [existing_sweep(path) for path in options.sweeps]
    choice = choice_of(options)
    _check_json(options)
    records = records_of(sweeps, options.cache)
    comparison = compare(*sweeps, records=records, where=choice.where, mix=choice.mix)
    if options.json:
        print(json.dumps(cells_json(comparison), indent=1))
        _tell_coverage(comparison)
        return OK
    if options.html is not None:
        return _write_report(options, comparison, sweeps, choice)
    if options.plots is not None:
        return _draw(options.plots, comparison, choice.layout)
    table = _effects(comparison, choice.layout) if options.effects else build(comparison, choice.layout)
    form = "markdown" if options.markdown else options.format
    if form in TEXTS:
        print(TEXTS[form](table))
    else:
        print_table(table)
    return OK


def _check_json(options: argparse.Namespace) -> None:
    """BadInput for what a list of cells has no place for."""
    ignored = ("rows", "columns", "metric", "baseline", "detect", "effects")
    if options.json and (given := [name for name in ignored if getattr(options, name) not in ([], None, False)]):
        raise BadInput(f"--json: prints cells as a list, without --{given[0]}; --format json prints the table")


def _tell_coverage(comparison: "Comparison") -> None:
    """Coverage and warnings besides an output that has no place for them."""
    from klsweep.analysis.coverage import coverage_lines

    for line in (*coverage_lines(comparison), *(f"warning: {text}" for text in comparison.warnings)):
        print(line, file=sys.stderr)


def _write_report(
    options: argparse.Namespace, comparison: "Comparison", sweeps: Sequence[SweepFolder], choice: "Choice"
) -> int:
    from klsweep.analysis.report import report

    if options.effects:
        raise BadInput("--effects: is in the page of --html anyway; leave it out")
    file: Path = options.html
    if not file.parent.is_dir() or file.is_dir():
        raise BadInput(f"--html={file}: a file in a folder that is there")
    again = ["klsweep", "compare", *map(str, options.sweeps), *choice.words(), "--html", str(file)]
    write_text(file, report(comparison, sweeps, choice.layout, file, again))
    print(file)
    return OK


def _draw(folder: Path, comparison: "Comparison", layout: "Layout") -> int:
    from klsweep.analysis.sweep_plots import plot_all

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--plots={folder}: cannot be a folder ({error.strerror})") from error
    with progress("drawing") as on_step:
        written = plot_all(comparison, _effects(comparison, layout), folder, on_step)
    for file in written or ["no run has a result or a curve yet: nothing is drawn"]:
        print(file)
    _tell_coverage(comparison)
    return OK


def _effects(comparison: "Comparison", layout: "Layout") -> "Table":
    from klsweep.analysis.outputs import effects_of

    if layout.rows or layout.columns or layout.detect is not None:
        raise BadInput("--effects and --plots go with --metric, --baseline and --where; rows and columns are given")
    return effects_of(comparison, layout)


def _query(options: argparse.Namespace) -> int:
    from klsweep.analysis.collect import collect
    from klsweep.analysis.query import ask

    sweeps = [existing_sweep(path) for path in options.sweeps]
    with progress("reading records") as on_step:
        collected = collect(sweeps, cache_for(sweeps, options.cache), on_step)
    answer = ask(collected, options.sql)
    if options.json:
        rows = [dict(zip(answer.columns, map(finite, row), strict=True)) for row in answer.rows]
        print(json.dumps(rows, indent=1, default=str))
    elif options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([answer.columns, *answer.rows])
    else:
        _print_answer(answer)
    for run in collected.runs:
        if run.damage is not None:
            print(f"warning: {run.key.run_id} has no rows: {run.damage}", file=sys.stderr)
    return OK


def _print_answer(answer: "Answer") -> None:
    rows = [[_shown(value) for value in row] for row in answer.rows[:SHOWN_ROWS]]
    print_grid(answer.columns, rows)
    if len(answer.rows) > SHOWN_ROWS:
        print(f"{len(answer.rows) - SHOWN_ROWS} more rows (--csv or --json prints all)")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
