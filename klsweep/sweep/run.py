"""Carrying out a plan: on this machine, or by submitting it to SLURM."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from klsweep.cells import describe
from klsweep.config.build import RunSpec
from klsweep.errors import BadInput
from klsweep.model.source import Model
from klsweep.record.claims import beating, wait_for_turn
from klsweep.record.files import Row, read_rows, write_json
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.sweep import cluster
from klsweep.sweep.cost import Cost, Measured, calibration, estimate, measured
from klsweep.sweep.launch_local import launch
from klsweep.sweep.launch_slurm import Submission, submit
from klsweep.sweep.plan import Plan, check_writable, write_config, write_plan
from klsweep.sweep.planned import PlannedRun
from klsweep.sweep.progress import SweepProgress
from klsweep.sweep.ranks import check, processes
from klsweep.sweep.resources import Local, Slurm
from klsweep.sweep.snapshot import snapshot
from klsweep.sweep.status import observe
from klsweep.terminal import console

CALIBRATION_UPDATES = 3
MEASURED_RUNS = 100  # finished runs looked at for an estimate: reading a thousand takes longer than it tells
POLL_SECONDS = 2.0


def run_plan(plan: Plan) -> int | Submission:
    """Write the sweep folder and carry out what is left to do: the runs that did not end well, or what was submitted.

    BadInput, before anything is submitted, if SLURM does not answer, an input is not cached, or the budget is exceeded;
    and before anything is written, if that cannot be, or responses are longer than their model.
    """
    check_writable(str(plan.folder.path))
    if not plan.to_run:
        write_plan(plan)
        return 0
    _check_lengths(run.spec for run in plan.to_run)
    launchers = launchers_of({run.run_id: run.spec for run in plan.to_run})
    if not isinstance(launchers, dict):
        write_plan(plan)
        return run_here(plan.folder, [run.row for run in plan.to_run], launchers, plan.names())
    if plan.trouble is not None:
        raise BadInput(f"launcher=slurm: SLURM does not answer, so what is queued already is unknown ({plan.trouble})")
    check_budget(plan, launchers)
    specs = {run.run_id: run.spec for run in plan.to_run}
    return submit_runs(plan.folder, launchers, specs, lambda wanted: write_plan(plan, wanted), revive=False)


def _check_lengths(specs: Iterable[RunSpec]) -> None:
    """BadInput if a response may be as long as all positions of its model; with its prompts, each run looks itself."""
    found = set[tuple[Model, str, int]]()
    for spec in specs:
        tasks = {"task": spec.task, **{f"eval.suites.{name}": suite for name, suite in spec.eval.suites.items()}}
        found |= {(spec.model, name, task.max_response_tokens) for name, task in tasks.items()}
    for model, name, tokens in found:
        model.check_room(name, tokens)


def run_here(sweep: SweepFolder, rows: Sequence[Row], launcher: Local, names: Mapping[str, str]) -> int:
    """Execute these rows of the plan on this machine; the number of runs that did not end well."""
    if not rows:
        return 0
    states: list[str] = []
    with SweepProgress(rows, names, console(stderr=True)) as progress:

        def on_end(folder: RunFolder, status: Row) -> None:
            states.append(status["state"])
            progress.on_end(folder, status)

        launch(launcher, [sweep.run(row["run_id"]) for row in rows], progress.on_update, on_end)
    # running: another launcher took it between our look and our claim
    return sum(state not in (*FINISHED, "running") for state in states)


def submit_runs(
    sweep: SweepFolder,
    launchers: Mapping[str, Slurm],
    specs: Mapping[str, RunSpec],
    prepare: Callable[[Collection[str]], None],
    revive: bool,
) -> Submission:
    """Submit these runs, once it is our turn, less those that another launcher has submitted meanwhile.

    `prepare` writes what the jobs of the runs it is given will read. Budgets begin anew; cancelled runs come back only
    to `revive`. BadInput if a model is not in the cache, or SLURM does not answer or refuses.
    """
    for model in {spec.model: None for spec in specs.values()}:
        if not model.is_cached():
            raise BadInput(
                f"model.path={model.path!r}: not in this machine's Hugging Face cache, and jobs do not download "
                "(klsweep fetch, with the same overrides, fills the cache)"
            )
    plugins = sorted({plugin for spec in specs.values() for plugin in spec.root.plugins})
    allow_dirty = all(launcher.dirty == "record" for launcher in launchers.values())
    with our_turn(sweep) as number:
        code = snapshot(sweep, plugins, allow_dirty)  # in our turn: `clean` would find that no job needs it yet
        observed, trouble = observe(sweep, launchers)
        if trouble is not None:
            raise BadInput(f"launcher=slurm: {trouble}")
        settled = FINISHED if revive else (*FINISHED, "cancelled")
        wanted = {
            run_id: launcher
            for run_id, launcher in launchers.items()
            if not observed[run_id].is_active and observed[run_id].status["state"] not in settled
        }
        prepare(wanted)
        for run_id in wanted:
            sweep.run(run_id).bring_back(uncancel=revive)
        try:
            return submit(sweep, number, wanted, code.resolve())
        except cluster.NoAnswer as error:
            raise BadInput(f"launcher=slurm: {error}") from error


@contextmanager
def our_turn(sweep: SweepFolder) -> Iterator[int]:
    """Our turn at submitting: of two launchers at once, the second waits for the first and then sees what it did."""
    latest = sweep.submissions.latest()
    if latest and not sweep.submissions.is_over(latest):
        owner = sweep.submissions.claim(latest).get("owner", {})
        console(stderr=True).print(
            f"waiting: process {owner.get('pid')} on {owner.get('host')} is submitting this sweep"
        )
    number = wait_for_turn(sweep.submissions, lambda: False, poll_seconds=0.2)
    assert number is not None
    with beating(sweep.submissions.heartbeat(number)):
        try:
            yield number
        finally:
            sweep.submissions.end(number, {"time": time.time()})


def follow(sweep: SweepFolder, run_ids: Sequence[str]) -> int:
    """Show the state of runs until nothing works on them any more; the number that did not end well."""
    out, said = console(stderr=True), ""
    while True:
        observed, trouble = observe(sweep, run_ids)
        states = [seen.status["state"] for seen in observed.values()]
        text = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        if text != said:
            out.print(f"{time.strftime('%H:%M:%S')} {text}{f' (SLURM: {trouble})' if trouble else ''}")
            said = text
        if trouble is None and not any(seen.is_active for seen in observed.values()):
            return sum(state not in FINISHED for state in states)
        time.sleep(POLL_SECONDS)


def plan_cost(plan: Plan) -> Cost | None:
    """What running the plan will cost, from finished siblings or a calibration; None if there is nothing to go by."""
    if not plan.to_run:
        return None
    launchers = launchers_of({run.run_id: run.spec for run in plan.to_run})
    held, unit = [1.0] * len(plan.to_run), "job-hours"
    if isinstance(launchers, dict):
        asked = [launchers[run.run_id] for run in plan.to_run]
        held = [max(1, each.gpus * (each.nodes or 1)) / each.concurrent for each in asked]
        unit = "GPU-hours" if any(each.gpus for each in asked) else unit
    finished = [run.row for run in plan.runs if run.run_id in plan.finished]
    siblings = measured(plan.folder, finished[:: 1 + len(finished) // MEASURED_RUNS])
    return estimate([run.row for run in plan.to_run], held, unit, siblings, calibration(plan.folder))


def check_budget(plan: Plan, launchers: Mapping[str, Slurm]) -> None:
    """BadInput if the plan costs more than `launcher.max_hours`, or that cannot be told."""
    ceilings = [launcher.max_hours for launcher in launchers.values() if launcher.max_hours is not None]
    ceiling = min(ceilings, default=None)
    if ceiling is None:
        return
    cost = plan_cost(plan)
    if cost is None:
        raise BadInput(
            f"launcher.max_hours={ceiling:g}: the cost is unknown, nothing has been measured (klsweep plan --calibrate)"
        )
    if cost.hours > ceiling:
        raise BadInput(
            f"launcher.max_hours={ceiling:g}: the plan would cost about {cost.hours:.2f} {cost.unit} "
            f"({cost.low:.2f} to {cost.high:.2f}, from {cost.per_run.source})"
        )


def calibrate(plan: Plan) -> None:
    """Train the first run of each kind in the plan for a few updates here, and write down what an update takes."""
    check_writable(str(plan.folder.path))
    sweep = SweepFolder(plan.folder.path / "calibration")
    found: list[Measured] = []
    seen: list[tuple[Any, ...]] = []
    for run in plan.to_run:
        kind = tuple(run.row["axes"].get(axis) for axis in ("model", "task", "algorithm"))
        if kind in seen:
            continue
        seen.append(kind)
        short = {**run.config, "train": {**run.config["train"], "updates": CALIBRATION_UPDATES}}
        config = {**short, "wandb": {**run.config["wandb"], "mode": "disabled"}}
        folder = sweep.run(f"{run.run_id}-{time.time_ns()}")
        folder.path.mkdir(parents=True)
        write_config(folder, config)
        row = {**run.row, "run_id": folder.run_id, "updates": CALIBRATION_UPDATES}
        if run_here(sweep, [row], Local(parallel=1, threads=None), describe([row])):
            raise BadInput(f"calibration: {folder.status()['cause']} ({folder.path})")
        found.append(extrapolated(run, sweep, row))
    write_calibration(plan, found)


def extrapolated(
    run: PlannedRun, sweep: SweepFolder, row: Row, eval_share: float = 1.0, beside: float = 0.0
) -> Measured:
    """What `run` will take, from a run of a few updates in `sweep` that is evaluated once.

    `eval_share` of the evaluation's prompts were asked; `beside` seconds of it are none of a run's.
    """
    times = list(read_rows(sweep.run(row["run_id"]).timing))
    rest = [t["seconds/total"] - t.get("seconds/eval", 0.0) for t in times]
    every, updates = run.spec.eval.every, run.spec.train.updates
    evaluations = 1 + (updates // every if every else 0)
    evaluation = sum(t.get("seconds/eval", 0.0) for t in times) / eval_share
    (short_run,) = measured(sweep, [row])
    per_update = min(rest) + evaluation * evaluations / updates
    return Measured(run.row["axes"], per_update, max(0.0, short_run.overhead - beside), short_run.bytes)


def write_calibration(plan: Plan, found: Sequence[Measured]) -> None:
    """Keep what was measured, for the plan's cost."""
    plan.folder.path.mkdir(parents=True, exist_ok=True)
    write_json(plan.folder.path / "calibration.json", [dataclasses.asdict(row) for row in found])


def launchers_of(specs: Mapping[str, RunSpec]) -> Local | dict[str, Slurm]:
    """The local launcher of these runs, or the settled SLURM launcher of each.

    BadInput if there are both, or a run's processes do not fit its launcher. Runs of several processes take turns here
    unless `launcher.parallel` says otherwise.
    """
    for spec in specs.values():
        check(spec)
    kinds = {type(spec.launcher) for spec in specs.values()}
    if len(kinds) > 1:
        raise BadInput("launcher: some of the runs are for SLURM and others are not: give one launcher to all")
    found = {run_id: spec.launcher for run_id, spec in specs.items()}
    local = next((launcher for launcher in found.values() if isinstance(launcher, Local)), None)
    if local is not None:
        together = [processes(spec) for spec in specs.values() if spec.parallel.is_sharded]
        return dataclasses.replace(local, parallel=1) if together and local.parallel is None else local
    settled = {run_id: each.settled() for run_id, each in found.items() if isinstance(each, Slurm)}
    for run_id, launcher in settled.items():
        launcher.check_ranks(specs[run_id].parallel)
    return settled
