"""Commands on a sweep folder: status, retry, cancel, clean."""

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from klsweep.commands.parser import FAILED, OK, Commands, existing_sweep
from klsweep.record.folder import SweepFolder
from klsweep.record.origin import check_own

if TYPE_CHECKING:
    from klsweep.sweep.launch_slurm import Submission


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    form = commands.on_sweep("status", _status, "state of every run of a sweep").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: counts by state, and a row per run")
    form.add_argument("--watch", action="store_true", help="show it live until nothing works on the runs any more")
    form.add_argument("--html", type=Path, metavar="FILE", help="write it as a page")
    text = "launch again what failed, timed out or was preempted and is not in the queue"
    retry = commands.on_sweep("retry", _retry, text, trains=True)
    retry.add_argument("--only", metavar="CAUSE", help="a state (cancelled comes back so), or a part of the cause")
    retry.add_argument("--wait", action="store_true", help="launcher=slurm: follow the runs until they have ended")
    text = "operational fields, e.g. launcher.mem_gb=80 launcher.time=8:00:00"
    retry.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    text = "mark runs as cancelled, then end their jobs; they come back by retry alone"
    commands.on_sweep("cancel", _cancel, text).add_argument("runs", nargs="*", metavar="RUN_ID", help="these runs only")
    clean = commands.on_sweep("clean", _clean, "delete what no result, unfinished run or queued job needs")
    clean.add_argument("--dry-run", action="store_true", help="only show it")


def conclude(sweep: SweepFolder, outcome: "int | Submission", run_ids: list[str], wait: bool) -> int:
    """After a launch: the table of what was run here, or what was submitted (and, with `wait`, what becomes of it)."""
    from klsweep.commands.analysis import print_comparison
    from klsweep.sweep.run import follow
    from klsweep.sweep.show import print_status, print_submission
    from klsweep.sweep.status import sweep_status

    if not isinstance(outcome, int):
        print_submission(sweep, outcome)
        if not wait:
            return OK
        outcome = follow(sweep, run_ids)
        if outcome:
            print_status(sweep_status(sweep))
    print_comparison([sweep])
    print(f"run folders: {sweep.path / 'runs'}")
    return FAILED if outcome else OK


def _status(options: argparse.Namespace) -> int:
    from klsweep.sweep.page import status_page
    from klsweep.sweep.show import print_status, watch
    from klsweep.sweep.status import sweep_status

    sweep = existing_sweep(options.sweep)
    if options.watch:
        watch(sweep)
    elif options.json:
        print(json.dumps(sweep_status(sweep), indent=1))
    elif options.html:
        options.html.write_text(status_page(sweep_status(sweep)))
        print(options.html)
    else:
        print_status(sweep_status(sweep))
    return OK


def _retry(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import retry

    sweep = own_sweep(options.sweep)
    outcome = retry(sweep, options.only, options.overrides)
    if outcome is None:
        which = f" that matches --only {options.only}" if options.only else ""
        print(f"nothing to retry{which} (klsweep status {sweep.path})")
        return OK
    return conclude(sweep, outcome, [row["run_id"] for row in sweep.plan()], options.wait)


def _cancel(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import cancel

    marked = cancel(own_sweep(options.sweep), options.runs)
    if not marked:
        print("nothing to cancel: every run of these is finished or cancelled")
        return OK
    print(
        f"cancelled {len(marked)} runs; those at work end after their update "
        "(klsweep retry --only cancelled brings them back)"
    )
    return OK


def _clean(options: argparse.Namespace) -> int:
    from klsweep.sweep.clean import remove, rubbish
    from klsweep.sweep.run import our_turn

    sweep = existing_sweep(options.sweep)
    with contextlib.nullcontext() if options.dry_run else our_turn(sweep):
        found = rubbish(sweep)
        if not options.dry_run:
            remove(found)
    for entry in found:
        print(f"{entry.bytes / 2**20:9.2f} MiB  {entry.path}  ({entry.reason})")
    total = sum(entry.bytes for entry in found) / 2**20
    print(f"{'would remove' if options.dry_run else 'removed'} {len(found)} entries, {total:.2f} MiB")
    return OK


def own_sweep(path: Path) -> SweepFolder:
    """The sweep folder at `path`, of runs that klsweep can carry out. BadInput for external ones."""
    sweep = existing_sweep(path)
    check_own(sweep.plan())
    return sweep
