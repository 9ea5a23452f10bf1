"""Commands that bring in what others have made: import."""

import argparse
import json
from pathlib import Path

from klsweep.commands.parser import OK, Commands
from klsweep.errors import BadInput
from klsweep.record.folder import SweepFolder


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    text = "bring in runs that were made elsewhere: metrics and evaluated items, as external runs (docs/import.md)"
    sub = commands.add("import", _import, text)
    sub.add_argument("mapping", type=Path, help="a YAML file: which files hold which runs, and what their columns mean")
    sub.add_argument("--into", type=Path, metavar="SWEEP", help="a sweep folder (default: sweeps/<its name>)")
    sub.add_argument("--replace", action="store_true", help="take the new content of runs that were imported otherwise")
    sub.add_argument("--json", action="store_true", help="print JSON: run ids that are new, replaced, unchanged")


def _import(options: argparse.Namespace) -> int:
    from klsweep.external.mapping import load_mapping
    from klsweep.external.runs import external_runs
    from klsweep.external.write import write_runs

    mapping = load_mapping(options.mapping)
    sweep = SweepFolder(options.into or Path("sweeps") / mapping.name)
    if sweep.path.exists() and not sweep.path.is_dir():
        raise BadInput(f"--into={sweep.path}: is no folder")
    runs = external_runs(mapping)
    done = write_runs(sweep, runs, mapping, options.mapping, options.replace)
    bare = [run.row["run_id"] for run in runs if not run.is_evaluated]
    if options.json:
        print(json.dumps({"sweep": str(sweep.path), **vars(done), "not_evaluated": bare}, indent=1))
        return OK
    counts = [f"{len(ids)} {word}" for word, ids in vars(done).items() if ids and word != "others"]
    print(f"{sweep.path}: {len(runs)} external runs: {', '.join(counts)}")
    if done.others:
        print(f"{len(done.others)} runs of this folder are not of this mapping, and stay as they are")
    if bare:
        print(f"{len(bare)} runs have no evaluation after their last update, and count as not evaluated, as {bare[0]}")
    print(f"klsweep compare {sweep.path}")
    return OK
