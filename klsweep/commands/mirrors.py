"""Commands that fill W&B from records: sync, report."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from klsweep.commands.analysis import records_of
from klsweep.commands.parser import FAILED, OK, Commands, existing_sweep
from klsweep.errors import BadInput
from klsweep.record.files import Row
from klsweep.record.folder import SweepFolder

if TYPE_CHECKING:
    from klsweep.mirror.sync import Mirror, Synced


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    text = "fill W&B from the records: one W&B run per run, and only what is missing there (docs/wandb.md)"
    sync = commands.add("sync", _sync, text)
    sync.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP", help="a sweep folder, or one of an evaluation")
    _add_place(sync)
    text = "that W&B may take to count what it was sent (60)"
    sync.add_argument("--patience", type=float, default=60.0, metavar="SECONDS", help=text)
    form = sync.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: where, and a row per run")
    form.add_argument("--watch", action="store_true", help="go on until nothing works on the runs any more")
    sync.add_argument(
        "--every", type=float, default=30.0, metavar="SECONDS", help="with --watch: between two looks (30)"
    )
    text = "write a sweep's W&B report, or write it anew: tables, curves, scatter plots (docs/wandb.md)"
    report = commands.on_sweep("report", _report, text)
    _add_place(report)
    form = report.add_mutually_exclusive_group()
    form.add_argument("--dry-run", action="store_true", help="print its specification as JSON; W&B is not asked")
    form.add_argument("--json", action="store_true", help="print JSON: its address and id, and whether it is new")


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project", help="a W&B project other than wandb.project of the sweep's runs")
    command.add_argument(
        "--entity", help="a W&B entity other than wandb.entity (if both are absent, the account's own)"
    )


def _sync(options: argparse.Namespace) -> int:
    from klsweep.mirror.account import opened
    from klsweep.mirror.show import print_outcomes, progress
    from klsweep.mirror.sync import INCOMPLETE, Mirror

    sweeps = [existing_sweep(path) for path in options.sweeps]
    with opened(sweeps[0], options.project, options.entity) as account:
        mirror = Mirror(account, sweeps, options.patience)
        if options.watch:
            outcomes = _watched(mirror, options.every)
        else:
            states, _ = _states(sweeps)
            with progress(sum(map(len, states.values()))) as told:
                outcomes = mirror.sync(states, told)
        if options.json:
            where = {"entity": account.entity, "project": account.project, "url": account.page}
            print(json.dumps({**where, "runs": [outcome.to_json() for outcome in outcomes]}, indent=1))
        else:
            print_outcomes(account, outcomes)
    return FAILED if any(outcome.outcome == INCOMPLETE for outcome in outcomes) else OK


def _report(options: argparse.Namespace) -> int:
    if find_spec("wandb_workspaces") is None:
        raise BadInput("klsweep report needs wandb-workspaces (pip install 'klsweep[report]')")
    from klsweep.analysis.wandb_report import build_report, findings, marker, specification
    from klsweep.mirror.account import checked_project, opened, settings_of
    from klsweep.mirror.report import save_report
    from klsweep.tracking import wandb_group, wandb_id

    sweep = existing_sweep(options.sweep)
    name = wandb_group(sweep)
    if options.dry_run:
        settings = settings_of(sweep)
        place = options.entity or settings["entity"] or "", checked_project(options.project or settings["project"])
        found = findings(sweep, name, records_of([sweep]))
        print(json.dumps(specification(build_report(found, *place, name)), indent=1))
        return OK
    with opened(sweep, options.project, options.entity) as account:
        ids = [wandb_id(sweep.run(row["run_id"])) for row in sweep.plan()]
        there = len(account.held(ids))
        found = findings(sweep, name, records_of([sweep]))
        report = build_report(found, account.entity, account.project, name)
        saved = save_report(account, report, marker(name))
    if options.json:
        print(json.dumps({**asdict(saved), "runs": len(ids), "runs_there": there}, indent=1))
        return OK
    print(f"{'created' if saved.created else 'updated'} {saved.url}")
    if there < len(ids):
        print(f"its plots show {there} of {len(ids)} runs: the others are not at W&B (klsweep sync {sweep.path})")
    return OK


def _watched(mirror: "Mirror", seconds: float) -> "list[Synced]":
    """Sync again and again until nothing works on the runs any more; the last outcomes. A look at which W&B does not
    answer is a line, not the end.
    """
    from klsweep.mirror.account import NoService
    from klsweep.mirror.show import print_outcomes, progress

    while True:
        states, at_work = _states(mirror.sweeps)
        try:
            with progress(sum(map(len, states.values()))) as told:
                outcomes = mirror.sync(states, told)
        except NoService as error:
            print(f"klsweep: {error}; again in {seconds:g} s", file=sys.stderr, flush=True)
        else:
            if not at_work:
                return outcomes
            if any(outcome.sent for outcome in outcomes):
                print_outcomes(mirror.account, outcomes)
        time.sleep(seconds)


def _states(sweeps: "Sequence[SweepFolder]") -> tuple[dict[SweepFolder, dict[str, Row]], bool]:
    """The status of every run, and whether something works on any, or will."""
    from klsweep.sweep.status import observe

    observed = {sweep: observe(sweep, [row["run_id"] for row in sweep.plan()])[0] for sweep in sweeps}
    states = {sweep: {run_id: seen.status for run_id, seen in found.items()} for sweep, found in observed.items()}
    return states, any(seen.is_active for found in observed.values() for seen in found.values())
