"""Submitting runs to SLURM as job arrays, through submitit."""

import contextlib
import dataclasses
import io
import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klsweep.record.files import write_json
from klsweep.record.folder import SweepFolder
from klsweep.sweep import cluster
from klsweep.sweep.resources import Slurm
from klsweep.sweep.submissions import mark
from klsweep.sweep.task import MARGIN_SECONDS, Task

BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Submission:
    """What became of a launch: SLURM's job ids, tasks and runs submitted, and runs the cluster has no room for now."""

    jobs: list[str]
    tasks: int
    runs: int
    left: int


def submit(sweep: SweepFolder, number: int, wanted: Mapping[str, Slurm], code: Path) -> Submission:
    """Submit runs, in groups of equal resources, as job arrays of at most the cluster's size. NoAnswer without SLURM.

    `wanted` maps run ids to settled launchers; `number` is the turn that the caller holds at `sweep.submissions`. Each
    array is on record before it is submitted, and marked with a comment by which it can be found in the queue: a
    launcher that dies in between has lost nothing.
    """
    groups: dict[str, list[str]] = {}
    launchers: dict[str, Slurm] = {}
    for run_id, launcher in wanted.items():
        key = json.dumps(_plain(launcher), sort_keys=True)
        groups.setdefault(key, []).append(run_id)
        launchers[key] = launcher
    limits = cluster.limits({(each.partition, each.qos) for each in launchers.values()})
    room, chunks = limits.submittable, list[tuple[Slurm, list[list[str]]]]()
    for key, run_ids in groups.items():
        tasks = list(_slices(run_ids, launchers[key].runs_per_job))
        if room is not None:
            tasks, room = tasks[:room], max(0, room - len(tasks))
        chunks += [(launchers[key], chunk) for chunk in _slices(tasks, limits.array_size)]
    parallel = min((each.array_parallelism for each, _ in chunks if each.array_parallelism is not None), default=None)
    lanes: list[str | None] = [None] * min(len(chunks), parallel or len(chunks))
    jobs: list[str] = []
    for index, (launcher, chunk) in enumerate(chunks):
        lane = index % len(lanes)
        name = f"chunk-{index}"
        comment = f"{mark(sweep)}{number}:{name}"
        record = {"comment": comment, "tasks": chunk, "launcher": _plain(launcher), "code": str(code)}
        record["cluster"] = limits.cluster
        record["after"] = {run: sweep.run(run).attempts.latest() for task in chunk for run in task}
        throttle = _share(parallel, lane, len(lanes)) or len(chunk)
        parameters = launcher.parameters(sweep.name, comment, throttle, lanes[lane])
        if not sweep.submissions.holds(number):
            raise cluster.NoAnswer("another launcher has taken over: this one was silent for too long")
        try:
            job = _submit_chunk(sweep.submissions.folder(number) / name, record, launcher, parameters, sweep)
        except cluster.NoAnswer as error:
            raise cluster.NoAnswer(f"{error}{_said(jobs, chunks[:index], wanted)}") from error
        lanes[lane] = f"afterany:{job}"
        jobs.append(job)
    runs = sum(len(task) for _, chunk in chunks for task in chunk)
    return Submission(jobs, sum(len(chunk) for _, chunk in chunks), runs, len(wanted) - runs)


def _said(jobs: Sequence[str], chunks: Sequence[tuple[Slurm, list[list[str]]]], wanted: Mapping[str, Slurm]) -> str:
    """What had been submitted before sbatch refused, to be said with its reason; empty if nothing."""
    runs = sum(len(task) for _, chunk in chunks for task in chunk)
    before = f"{runs} of {len(wanted)} runs were submitted before that, as {', '.join(jobs)}"
    return f" ({before}: the same command submits the rest)" if jobs else ""


def _submit_chunk(
    path: Path, record: dict[str, Any], launcher: Slurm, parameters: dict[str, Any], sweep: SweepFolder
) -> str:
    """Record one array, submit it, record its job id. What sbatch clearly refused is not left on record."""
    functions = [_task(sweep, launcher, task) for task in record["tasks"]]
    write_json(path.with_suffix(".json"), record)
    with _uninterrupted():
        try:
            job = sbatch(path.parent / "logs", launcher, Path(record["code"]), functions, parameters)
        except cluster.NoAnswer as error:
            if not any(sign in str(error) for sign in cluster.LATE):
                path.with_suffix(".json").unlink()
            raise
        write_json(path.with_suffix(".job"), {"job": job})
    return job


def _plain(launcher: Slurm) -> dict[str, Any]:
    return dataclasses.asdict(launcher)  # pyright: ignore[reportArgumentType]


def _task(sweep: SweepFolder, launcher: Slurm, run_ids: Sequence[str]) -> Task:
    return Task(
        sweep=str(sweep.path.resolve()),
        runs=tuple(run_ids),
        concurrent=launcher.concurrent,
        threads=launcher.threads,
        grace_seconds=launcher.signal_delay_s - MARGIN_SECONDS,
        budget=launcher.budget,
    )


def sbatch(
    folder: Path, launcher: Slurm, code: Path, functions: Sequence[Callable[[], None]], parameters: dict[str, Any]
) -> str:
    """Submit one array (a plain job if it is of one task); its job id."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(folder=folder, python=launcher.python)
    setup = [
        *(launcher.setup or []),
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",  # otherwise `python -m` would prefer the folder the job starts in
        "export HF_HUB_OFFLINE=1",  # what is not in the cache was refused before
    ]
    given = {key: value for key, value in parameters.items() if value is not None}
    executor.update_parameters(**given, setup=setup, wckey=None)
    try:
        # submitit repeats what sbatch says besides raising it, and takes itself to be in the job we may be running in
        with contextlib.redirect_stderr(io.StringIO()), _outside_of_jobs():
            jobs = executor.submit_array(functions)
    except (FailedJobError, FailedSubmissionError) as error:
        raise cluster.NoAnswer(f"sbatch: {_reason(str(error))}") from error
    return jobs[0].job_id.split("_")[0]


def _reason(text: str) -> str:
    """The line of sbatch's complaint that says what is wrong."""
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return "; ".join(line.split("error:", 1)[-1].strip() for line in lines) or " ".join(text.split())


def _share(total: int | None, lane: int, lanes: int) -> int | None:
    """What of `total` tasks at a time one of several arrays running side by side may take."""
    return None if total is None else total // lanes + (lane < total % lanes)


def _slices(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[i : i + size]) for i in range(0, len(items), size))


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the environment of a SLURM job: what is submitted from within one is not part of it."""
    before = dict(os.environ)
    for key in set(before) - set(cluster.environment()):
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what is being submitted is on record; sbatch, which inherits the mask, does not see it."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in BLOCKED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if seen:
            raise KeyboardInterrupt
