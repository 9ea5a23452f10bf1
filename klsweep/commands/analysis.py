"""Commands that only read records: compare, query."""

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klsweep.commands.parser import OK, Commands
from klsweep.commands.sweeps import existing_sweep
from klsweep.errors import BadInput
from klsweep.record.folder import SweepFolder
from klsweep.terminal import print_grid, progress

if TYPE_CHECKING:
    from klsweep.analysis.query import Answer

SHOWN_ROWS = 200


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
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


def _query(options: argparse.Namespace) -> int:
    from klsweep.analysis.collect import collect
    from klsweep.analysis.query import ask

    sweeps = [existing_sweep(path) for path in options.sweeps]
    with progress("reading records") as on_step:
        collected = collect(sweeps, cache_for(sweeps, options.cache), on_step)
    answer = ask(collected, options.sql)
    if options.json:
        rows = [dict(zip(answer.columns, map(_plain, row), strict=True)) for row in answer.rows]
        print(json.dumps(rows, indent=1, default=str))
    elif options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([answer.columns, *answer.rows])
    else:
        _print_answer(answer)
    return OK


def _print_answer(answer: "Answer") -> None:
    rows = [[_shown(value) for value in row] for row in answer.rows[:SHOWN_ROWS]]
    print_grid(answer.columns, rows)
    if len(answer.rows) > SHOWN_ROWS:
        print(f"{len(answer.rows) - SHOWN_ROWS} more rows (--csv or --json prints all)")


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: what is not finite is null, as in records."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
