"""Plans and states on a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.table import Table

from klsweep.cells import describe
from klsweep.terminal import console

if TYPE_CHECKING:
    from klsweep.sweep.plan import Plan, PlannedRun


def print_status(status: dict[str, Any]) -> None:
    """Counts by state, then the runs that are not done, each with its cause."""
    out = console()
    counts = ", ".join(f"{n} {state}" for state, n in status["counts"].items())
    out.print(f"{status['sweep']}: {len(status['runs'])} runs: {counts}", style="bold")
    rows = [run for run in status["runs"] if run["state"] != "done"]
    if not rows:
        return
    table = Table(box=None, header_style="bold")
    for column in ("run", "cell", "seed", "state", "update", "cause"):
        table.add_column(column, overflow="fold" if column == "cause" else "ellipsis", no_wrap=column != "cause")
    names = describe(status["runs"])
    for run in rows:
        update = "-" if run["update"] is None else f"{run['update']}/{run['updates']}"
        table.add_row(run["run_id"], names[run["cell_id"]], str(run["seed"]), run["state"], update, run["cause"] or "")
    out.print(table)


def print_plan(plan: Plan, with_cells: bool) -> None:
    """raw → excluded → collapsed → done → to run, notes, cost, and with `with_cells` a row per cell."""
    out = console()
    running = f"{len(plan.running)} running elsewhere, " if plan.running else ""
    out.print(
        f"{plan.folder.path}: {plan.raw} raw − {len(plan.excluded)} excluded − {plan.collapsed} collapsed "
        f"= {len(plan.runs)} runs; {len(plan.finished)} done, {running}{len(plan.to_run)} to run",
        style="bold",
    )
    for reason, count in Counter(e.reason for e in plan.excluded).items():
        out.print(f"  excluded {count}: {reason}")
    print_notes(plan)
    out.print(f"  cost: {_cost(plan)}")
    if with_cells:
        table = Table(box=None, header_style="bold")
        for column in ("cell", "configuration", "seeds", "to run"):
            table.add_column(column, no_wrap=True)
        names = plan.names()
        cells: dict[str, list[PlannedRun]] = {}
        for run in plan.runs:
            cells.setdefault(run.row["cell_id"], []).append(run)
        for cell, runs in cells.items():
            waiting = sum(run.run_id not in plan.finished | plan.running for run in runs)
            table.add_row(cell, names[cell], str(len(runs)), str(waiting))
        out.print(table)


def print_notes(plan: Plan) -> None:
    """What the plan has to say beforehand."""
    for note in plan.notes:
        console().print(f"  note: {note}")


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "sweep": str(plan.folder.path),
        "raw": plan.raw,
        "excluded": [{"point": e.point, "reason": e.reason} for e in plan.excluded],
        "collapsed": plan.collapsed,
        "finished": sorted(plan.finished),
        "running": sorted(plan.running),
        "to_run": [run.run_id for run in plan.to_run],
        "notes": plan.notes,
        "runs": [run.row for run in plan.runs],
    }


def _cost(plan: Plan) -> str:
    seconds = plan.seconds_per_run()
    if not plan.to_run:
        return "nothing to run"
    if seconds is None:
        return "unknown: no finished run in this sweep to estimate from"
    workers = min(plan.to_run[0].spec.launcher.workers, len(plan.to_run))
    total = seconds * len(plan.to_run) / workers
    return (
        f"about {total:.0f} s on {workers} workers (median {seconds:.1f} s per run, from this sweep's "
        f"{len(plan.finished)} finished runs)"
    )
