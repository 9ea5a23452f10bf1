"""Plans and states on a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from klsweep.cells import describe
from klsweep.record.folder import SweepFolder
from klsweep.record.origin import is_external
from klsweep.sweep.launch_slurm import Submission
from klsweep.sweep.resources import Slurm
from klsweep.sweep.status import sweep_status
from klsweep.terminal import console

if TYPE_CHECKING:
    from klsweep.config.tags import Tagged
    from klsweep.sweep.cost import Cost
    from klsweep.sweep.doctor import Check
    from klsweep.sweep.plan import Plan
    from klsweep.sweep.planned import PlannedRun


SHOWN_ROWS = 40
WATCH_SECONDS = 2.0
EXCERPT = 48  # characters


def print_status(status: dict[str, Any]) -> None:
    """Counts by state, failures by cause, then runs that are not done."""
    console().print(status_lines(status))


def status_lines(status: dict[str, Any]) -> Group:
    """What `print_status` shows, for a live display too."""
    counts = ", ".join(f"{n} {state}" for state, n in status["counts"].items())
    external = sum(map(is_external, status["runs"]))
    counts += f" ({external} external)" if external else ""
    parts: list[Any] = [Text(f"{status['sweep']}: {len(status['runs'])} runs: {counts}", style="bold")]
    if status["slurm"] is not None:
        parts.append(Text(f"SLURM does not answer, so states are as last recorded: {status['slurm']}", style="red"))
    for failure in status["failures"]:
        parts.append(Text(f"{failure['count']} {failure['state']}: {failure['cause']}", style="red"))
        parts += [Text(f"    {line}", style="dim") for line in failure["last_lines"]]
    if failing := [run for run in status["runs"] if run["verifier_errors"]]:
        total = sum(run["verifier_errors"] for run in failing)
        where = f"rollouts/errors.jsonl of {failing[0]['run_id']}: {failing[0]['verifier_error']}"
        text = f"warning: verifiers could not grade {total} responses in {len(failing)} runs ({where})"
        parts.append(Text(text, style="yellow"))
    for run in status["runs"]:
        if run["verifier_errors"] is None:
            text = f"warning: how many responses of {run['run_id']} could not be graded is not known"
            parts.append(Text(f"{text}: {run['verifier_error']}", style="yellow"))
    rows = [run for run in status["runs"] if run["state"] != "done"]
    rows.sort(key=lambda run: (run["state"] == "pending", run["state"] == "running"))
    if not rows:
        parts.append(Text(f"klsweep compare {status['sweep']}"))
    else:
        table = Table(box=None, header_style="bold")
        for column in ("run", "cell", "seed", "state", "update", "job", "cause"):
            table.add_column(column, overflow="fold" if column == "cause" else "ellipsis", no_wrap=column != "cause")
        names = describe(status["runs"])
        for run in rows[:SHOWN_ROWS]:
            update = "-" if run["update"] is None else f"{run['update']}/{run['updates']}"
            cause = run["queue"] or run["cause"] or ""
            cells = (run["run_id"], names[run["cell_id"]], str(run["seed"]), run["state"], update, run["job"] or "")
            table.add_row(*map(Text, (*cells, cause)))
        parts.append(table)
    if len(rows) > SHOWN_ROWS:
        parts.append(Text(f"and {len(rows) - SHOWN_ROWS} more (--json has every run)"))
    return Group(*parts)


def print_submission(sweep: SweepFolder, what: Submission) -> None:
    """What was submitted, and what to do next."""
    out = console()
    if not what.jobs and not what.left:
        out.print("nothing to submit")
        return
    if not what.jobs:
        out.print(
            f"the cluster takes no more jobs of ours now: {what.left} runs are left for the same command", style="red"
        )
        return
    jobs = f"job {what.jobs[0]}" if len(what.jobs) == 1 else f"{len(what.jobs)} job arrays ({', '.join(what.jobs)})"
    out.print(f"submitted {what.runs} runs in {what.tasks} tasks as {jobs}", style="bold")
    if what.left:
        out.print(f"{what.left} runs are beyond what the cluster lets us submit now: the same command submits the rest")
    out.print(f"klsweep status {sweep.path} --watch    klsweep cancel {sweep.path}")


def print_plan(plan: Plan, cost: Cost | None, with_cells: bool) -> None:
    """raw → excluded → collapsed → done → to run, notes, cost, and with `with_cells` a row per cell."""
    out = console()
    if plan.outline:
        out.print(f"outline of {plan.folder.path}, without model and data: {_arithmetic(plan)}", style="bold")
    else:
        out.print(f"{plan.folder.path}: {_arithmetic(plan)}; {_to_do(plan)}", style="bold")
    for reason, count in Counter(e.reason for e in plan.excluded).items():
        out.print(f"  excluded {count}: {reason}")
    print_values(plan)
    print_notes(plan)
    if plan.conflict is not None:
        out.print(f"  note: {plan.conflict}")
    if not plan.outline:
        for line in _cost_lines(plan, cost):
            out.print(f"  {line}")
    if with_cells:
        out.print(_cells_table(plan))


def _arithmetic(plan: Plan) -> str:
    """What a grid comes to."""
    return f"{plan.raw} raw − {len(plan.excluded)} excluded − {plan.collapsed} collapsed = {len(plan.runs)} runs"


def _to_do(plan: Plan) -> str:
    """What is left of it."""
    elsewhere = f"{len(plan.active)} running or queued elsewhere, " if plan.active else ""
    cancelled = f"{len(plan.cancelled)} cancelled (klsweep retry --only cancelled), " if plan.cancelled else ""
    return f"{len(plan.finished)} done, {elsewhere}{cancelled}{len(plan.to_run)} to run"


def _cells_table(plan: Plan) -> Table:
    """A row per cell; an outline knows neither ids nor what is done."""
    table, shown = Table(box=None, header_style="bold"), slice(1, 3) if plan.outline else slice(None)
    for column in ("cell", "configuration", "seeds", "to run")[shown]:
        table.add_column(column, no_wrap=True)
    names, to_run = plan.names(), {run.run_id for run in plan.to_run}
    cells: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        cells.setdefault(run.row["cell_id"], []).append(run)
    for cell, runs in cells.items():
        waiting = sum(run in to_run for run in (r.run_id for r in runs))
        table.add_row(*(cell, names[cell], str(len(runs)), str(waiting))[shown])
    return table


def print_values(plan: Plan) -> None:
    """Where the experiment's values come from: each that is not the paper's, and how many are."""
    if not plan.values:
        return
    out, counts = console(), Counter[str]()
    for entry in plan.values:
        counts[entry.tag] += len(entry.fields)
    out.print(f"  values: {', '.join(f'{count} {tag}' for tag, count in counts.items())}")
    for entry in plan.values:
        if entry.tag != "paper":
            out.print(f"    {entry.tag} {_fields(entry)}{': ' if entry.note else ''}{entry.note}")


def _fields(entry: Tagged) -> str:
    """What a tag covers, in a line: a key with a star and the values found under it, or each field with its values."""
    fields = entry.fields
    if "*" in entry.key:
        fields = {entry.key: [value for values in fields.values() for value in values]}
    shown = {name: dict.fromkeys(map(_excerpt, values)) for name, values in fields.items()}
    return " ".join(f"{name}={','.join(values)}" for name, values in shown.items())


def _excerpt(value: Any) -> str:
    """A value in a line; of a long text, how it begins."""
    text = " ".join(str(value).split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"


def print_notes(plan: Plan) -> None:
    """What the plan has to say beforehand."""
    for note in plan.notes:
        console().print(f"  note: {note}")


def plan_json(plan: Plan, cost: Cost | None) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "sweep": str(plan.folder.path),
        "raw": plan.raw,
        "excluded": [{"point": e.point, "reason": e.reason} for e in plan.excluded],
        "collapsed": plan.collapsed,
        "finished": sorted(plan.finished),
        "active": sorted(plan.active),
        "cancelled": sorted(plan.cancelled),
        "to_run": [run.run_id for run in plan.to_run],
        "notes": plan.notes,
        "values": [dataclasses.asdict(entry) for entry in plan.values],
        "outline": plan.outline,
        "cost": dataclasses.asdict(cost) if cost is not None else None,
        "runs": [run.row for run in plan.runs],
    }


def _hours(hours: float) -> str:
    """Hours as 3:05:10 (hours:minutes:seconds)."""
    seconds = round(hours * 3600)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _jobs_lines(plan: Plan) -> list[str]:
    """What would be submitted: a line for each group of runs with equal resources."""
    groups: list[tuple[Slurm, int]] = []
    for each in (run.spec.launcher for run in plan.to_run):
        if isinstance(each, Slurm) and each not in [launcher for launcher, _ in groups]:
            groups.append((each, sum(run.spec.launcher == each for run in plan.to_run)))
    return [_jobs_line(launcher.settled(), runs) for launcher, runs in groups]


def _jobs_line(launcher: Slurm, count: int) -> str:
    tasks = -(-count // launcher.runs_per_job)
    runs = f"{launcher.runs_per_job} runs, {launcher.concurrent} at a time" if launcher.runs_per_job > 1 else "1 run"
    limit = f"time limit {_hours(launcher.minutes / 60)}"
    asked = {"partition": launcher.partition, "GPUs": launcher.gpus or None, "CPUs": launcher.cpus_per_task}
    parts = [f"{name} {value}" for name, value in asked.items() if value is not None]
    return f"jobs: {tasks} of {runs} each, {', '.join([limit, *parts])}"


def _cost_lines(plan: Plan, cost: Cost | None) -> list[str]:
    """The plan's cost, and where it collides with a time limit."""
    if not plan.to_run:
        return ["cost: nothing to run"]
    launcher = plan.to_run[0].spec.launcher
    jobs = _jobs_lines(plan)
    if cost is None:
        unknown = "cost: unknown: no finished run in this sweep to go by (klsweep plan --calibrate measures one)"
        return [*jobs, unknown]
    disk = f"; disk {cost.disk / 2**20:.0f} MiB"
    if not isinstance(launcher, Slurm):
        workers = min(launcher.workers, len(plan.to_run))
        low, mid, high = (hours * 3600 / workers for hours in (cost.low, cost.hours, cost.high))
        return [f"cost: {_per_run(cost)}, in all {mid:.0f} s on {workers} workers ({low:.0f} to {high:.0f}){disk}"]
    low, mid, high = (_hours(hours) for hours in (cost.low, cost.hours, cost.high))
    lines = [*jobs, f"cost: {_per_run(cost)}, in all {mid} {cost.unit} ({low} to {high}){disk}"]
    for axis, values in cost.by_axis.items():
        lines.append(f"  by {axis}: {', '.join(f'{value} {_hours(hours)}' for value, hours in values.items())}")
    settled = launcher.settled()
    job = cost.longest_run * settled.runs_per_job / settled.concurrent
    if job > settled.minutes * 60:
        lines.append(
            f"note: a job needs about {job / 60:.0f} min and may take {settled.minutes} (launcher.time): it comes back "
            f"about {job / settled.minutes / 60:.0f} times"
        )
    if cost.slowest_update > settled.signal_delay_s:
        lines.append(
            f"note: an update takes {cost.slowest_update:.0f} s, more than the warning before the time limit "
            f"(launcher.signal_delay_s={settled.signal_delay_s}): the last update of each job would be lost"
        )
    return lines


def _per_run(cost: Cost) -> str:
    """What a run takes, and from what that is known."""
    run = cost.per_run
    return f"about {run.expected:.0f} s a run ({run.low:.0f} to {run.high:.0f}, from {run.source})"


def print_checks(checks: list[Check]) -> None:
    """The doctor's findings, and what they come to."""
    out, failed = console(), sum(not check.passed for check in checks)
    for check in checks:
        out.print(
            Text(
                f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.found}", style="" if check.passed else "red"
            )
        )
    out.print(
        f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed", style="bold"
    )


def watch(sweep: SweepFolder) -> None:
    """Show the status until nothing works on the runs any more; one line per change where the output is no terminal."""
    out, said = console(), None
    with Live(console=out, auto_refresh=False) if out.is_terminal else contextlib.nullcontext() as live:
        while True:
            status = sweep_status(sweep)
            if live is not None:
                live.update(status_lines(status), refresh=True)
            elif status["counts"] != said:
                said = status["counts"]
                out.print(status_lines(status))
            if status["slurm"] is None and not any(r["state"] == "running" or r["queue"] for r in status["runs"]):
                return
            time.sleep(WATCH_SECONDS)
