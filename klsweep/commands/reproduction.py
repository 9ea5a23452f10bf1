"""The command on the papers' findings: reproduce."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from klsweep.commands.analysis import add_cache, records_of
from klsweep.commands.parser import OK, Commands, existing_sweep
from klsweep.errors import BadInput
from klsweep.record.files import write_text
from klsweep.record.origin import is_external
from klsweep.terminal import console, print_grid, progress

if TYPE_CHECKING:
    from klsweep.analysis.exact_claims import AuditRow
    from klsweep.analysis.reproduction import Reproduction


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    text = "each finding of the two papers against these sweeps: agrees, does not, or cannot be seen at this scale"
    reproduce = commands.add("reproduce", _reproduce, text)
    reproduce.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="what `make reproduction` has run")
    form = reproduce.add_mutually_exclusive_group()
    form.add_argument("--page", type=Path, metavar="FILE", help="write the page, in Markdown")
    form.add_argument("--json", action="store_true", help="print a list of objects, one per finding")
    add_cache(reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    from klsweep.analysis.collect import sweep_names
    from klsweep.analysis.compare import compare
    from klsweep.analysis.reproduction import as_objects, reproduce
    from klsweep.analysis.reproduction_page import page

    sweeps = [existing_sweep(path) for path in options.sweeps]
    for sweep in sweeps:
        if any(map(is_external, sweep.plan())):
            raise BadInput(f"{sweep.path}: holds imported runs; findings are held against runs of klsweep's own")
    file: Path | None = options.page
    if file is not None and (not file.parent.is_dir() or file.is_dir()):
        raise BadInput(f"--page={file}: a file in a folder that is there")
    comparison = compare(*sweeps, records=records_of(sweeps, options.cache))
    found = reproduce(comparison, audit_rows())
    if options.json:
        print(json.dumps(as_objects(found), indent=1, allow_nan=False))
    elif file is not None:
        command = ["klsweep", "reproduce", *map(str, options.sweeps), "--page", str(file)]
        write_text(file, page(found, sweep_names(sweeps), command))
        print(file)
    else:
        _print(found)
    return OK


def audit_rows() -> "list[AuditRow]":
    """The bias table on the policy with V = 3 and T = 4."""
    from klsweep.audit.bias import bias_table
    from klsweep.audit.cases import cases
    from klsweep.audit.tabular import instance
    from klsweep.config.compose import composer

    with composer() as session:
        chosen, _ = cases(session, [], "bias_table")
    with progress("configurations", len(chosen)) as advance:
        return [*bias_table(instance(4, 3), chosen, None, 0, advance)]


def _print(found: "Reproduction") -> None:
    from klsweep.analysis.reproduction import EXACT_HEADER, HEADER, exact_grid, grid, simulated_line

    for title, rows in found.parts.items():
        console().print(f"\n{title}", style="bold")
        print_grid(HEADER, grid(found, rows))
    console().print("\nThe bound, simulated", style="bold")
    print_grid(HEADER, [simulated_line(found)])
    console().print("\nWithout chance", style="bold")
    print_grid(EXACT_HEADER, exact_grid([*found.gradients, *found.numbers]))
