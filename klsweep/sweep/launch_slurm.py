"""The SLURM launcher: what a run's job asks for, and submitting runs as job arrays through submitit."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from klsweep.component import component
from klsweep.config.build import one_line
from klsweep.errors import BadInput
from klsweep.record.files import read_json, write_json
from klsweep.record.folder import FINISHED, SweepFolder
from klsweep.sweep import cluster
from klsweep.sweep.budget import Budget
from klsweep.sweep.task import MARGIN_SECONDS, Task

PROFILES = Path(__file__).resolve().parent.parent / "slurm"
RESOURCES = (
    "partition",
    "account",
    "qos",
    "gres",
    "constraint",
    "time",
    "mem_gb",
    "cpus_per_task",
    "gpus_per_node",
    "nodes",
    "setup",
    "sbatch",
    "python",
)
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)")
OURS = {"array", "comment", "error", "job-name", "nodes", "ntasks", "open-mode", "output", "requeue", "signal", "time"}
BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@component
class Slurm:
    """The `launcher=slurm` node. Resources that are null come from the profile, or else from the cluster's defaults.

    `time` is "[days-]hours:minutes:seconds" or minutes; `sbatch` any further options of sbatch by their long names.
    """

    profile: str | None
    partition: str | None
    account: str | None
    qos: str | None
    gres: str | None
    constraint: str | None
    time: str | PositiveInt | None
    mem_gb: PositiveFloat | PositiveInt | None
    cpus_per_task: PositiveInt | None
    gpus_per_node: PositiveInt | None
    nodes: PositiveInt | None
    setup: list[str] | None
    sbatch: dict[str, Any] | None
    python: str | None
    runs_per_job: PositiveInt
    concurrent: PositiveInt
    threads: PositiveInt | None
    array_parallelism: PositiveInt | None
    signal_delay_s: Annotated[int, Ge(30)]
    max_preemptions: NonNegativeInt
    max_timeouts: NonNegativeInt
    max_failures: NonNegativeInt
    max_without_progress: PositiveInt
    dirty: Literal["record", "refuse"]
    max_hours: PositiveFloat | PositiveInt | None

    def __post_init__(self) -> None:
        if isinstance(self.time, str) and not _TIME.fullmatch(self.time):
            raise ValueError(f"launcher.time={self.time!r}: expected minutes or [days-]hours:minutes:seconds")
        if self.concurrent > self.runs_per_job:
            raise ValueError(
                f"launcher.concurrent={self.concurrent}: at most launcher.runs_per_job={self.runs_per_job}"
            )
        if isinstance(self.time, int) and self.time >= 3600 and self.time % 60 == 0:
            raise ValueError(
                f"launcher.time={self.time} minutes: YAML reads an unquoted 4:00:00 as such a number; quote it, or "
                "write days as '3-00:00:00'"
            )
        if taken := sorted(OURS & {str(key).replace("_", "-") for key in self.sbatch or {}}):
            raise ValueError(f"launcher.sbatch.{taken[0]}: klsweep sets it itself")
        if (self.nodes or 1) > 1:
            raise ValueError(f"launcher.nodes={self.nodes}: a run trains in one process, on one node")

    def settled(self) -> "Slurm":
        """With the profile's values where ours are null. BadInput if the profile or the outcome is not sound."""
        profile = read_profile(self.profile) if self.profile is not None else {}
        given = {key: value for key, value in profile.items() if getattr(self, key) is None}
        try:
            settled = dataclasses.replace(self, **given)
        except ValidationError as error:
            raise BadInput(f"profile {self.profile}: {one_line(error, Slurm, 'launcher.')}") from error
        if settled.time is None:
            raise BadInput("launcher.time=null: give the time limit of a job, here or in the profile (e.g. 4:00:00)")
        if settled.minutes * 60 <= self.signal_delay_s:
            raise BadInput(
                f"launcher.signal_delay_s={self.signal_delay_s}: must be less than launcher.time={settled.time}"
            )
        return settled

    @property
    def minutes(self) -> int:
        """The time limit in minutes, rounded up."""
        if self.time is None or isinstance(self.time, int):
            return self.time or 0
        match = _TIME.fullmatch(self.time)
        assert match is not None
        days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
        return days * 1440 + hours * 60 + minutes + (seconds > 0)

    @property
    def budget(self) -> Budget:
        return Budget(self.max_preemptions, self.max_timeouts, self.max_failures, self.max_without_progress)

    @property
    def gpus(self) -> int:
        """GPUs of a job, 0 if none are asked for."""
        in_gres = re.search(r"\bgpu(?::[a-zA-Z][\w.-]*)?(?::(\d+))?", self.gres or "")
        return self.gpus_per_node or (int(in_gres[1] or 1) if in_gres else 0)

    def parameters(self, name: str, comment: str, parallelism: int, dependency: str | None) -> dict[str, Any]:
        """What submitit's executor is told."""
        cpus = self.cpus_per_task
        return {
            "job_name": name,
            **{key: getattr(self, key) for key in ("partition", "account", "qos", "gres", "constraint")},
            "time": self.minutes,
            "mem": f"{int(self.mem_gb * 1024)}M" if self.mem_gb is not None else None,
            "cpus_per_task": cpus,
            "gpus_per_node": self.gpus_per_node,
            "nodes": 1,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": parallelism,
            "comment": comment,
            "dependency": dependency,
            "srun_args": [f"--cpus-per-task={cpus}"] if cpus else [],  # srun does not inherit it since SLURM 22.05
            "additional_parameters": {"requeue": True, **(self.sbatch or {})},
        }


class _ProfileLoader(yaml.SafeLoader):
    """YAML in which 4:00:00 is a text, not the number of seconds in four hours."""


_ProfileLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_ProfileLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
_ProfileLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+\.\d*$"), list("-+0123456789"))


def read_profile(name: str) -> dict[str, Any]:
    """A site's resources: a YAML file by path, or by name from ./slurm or the shipped profiles."""
    folders = [Path("slurm"), PROFILES]
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    path = Path(name) if name.endswith((".yaml", ".yml")) else found[0] if found else None
    if path is None or not path.is_file():
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise BadInput(f"launcher.profile={name!r}: no such profile (a path to a YAML file, or {', '.join(known)})")
    try:
        values = yaml.load(path.read_text(), Loader=_ProfileLoader) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"launcher.profile={name!r}: {' '.join(str(error).split())}") from error
    unknown = sorted(map(str, set(values) - set(RESOURCES))) if isinstance(values, dict) else [repr(values)]
    if unknown:
        raise BadInput(f"{path}: {unknown[0]}: unknown key (keys: {', '.join(RESOURCES)})")
    return values


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
    limits = cluster.limits()
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
        throttle = _share(parallel, lane, len(lanes)) or len(chunk)
        parameters = launcher.parameters(sweep.name, comment, throttle, lanes[lane])
        if not sweep.submissions.holds(number):
            raise cluster.NoAnswer("another launcher has taken over: this one was silent for too long")
        job = _submit_chunk(sweep.submissions.folder(number) / name, record, launcher, parameters, sweep)
        lanes[lane] = f"afterany:{job}"
        jobs.append(job)
    runs = sum(len(task) for _, chunk in chunks for task in chunk)
    return Submission(jobs, sum(len(chunk) for _, chunk in chunks), runs, len(wanted) - runs)


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


def mark(sweep: SweepFolder) -> str:
    """What the comments of this sweep's jobs begin with: job ids alone may come again on another cluster."""
    return f"klsweep:{hashlib.sha256(str(sweep.path.resolve()).encode()).hexdigest()[:12]}:"


def submitted(sweep: SweepFolder) -> dict[str, str]:
    """The job, or task of an array, that each run was last submitted with. NoAnswer if SLURM has to be asked and does
    not answer: a launcher that was killed in between may have submitted what it had no time to write down."""
    found = {}
    unsure: list[dict[str, Any]] = []
    for number in range(1, sweep.submissions.latest() + 1):
        folder = sweep.submissions.folder(number)
        for file in sorted(folder.glob("chunk-*.json"), key=lambda f: int(f.stem.partition("-")[2])):
            chunk = read_json(file)
            job = read_json(file.with_suffix(".job"))
            if job is None:
                unsure += [chunk] if _is_open(sweep, chunk) else []
            else:
                found |= _tasks(chunk, job["job"])
    if unsure:
        queued = {job.comment: name.split("_")[0] for name, job in cluster.queue().items()}
        for chunk in unsure:
            if chunk["comment"] in queued:
                found |= _tasks(chunk, queued[chunk["comment"]])
    return found


def clusters(sweep: SweepFolder) -> set[str]:
    """Names of the clusters that the sweep's jobs were submitted to."""
    return {read_json(file)["cluster"] for file in sweep.submissions.path.glob("*/chunk-*.json")}


def _is_open(sweep: SweepFolder, chunk: Mapping[str, Any]) -> bool:
    """True if a run of the chunk is not finished."""
    return any(sweep.run(run).status()["state"] not in FINISHED for task in chunk["tasks"] for run in task)


def _tasks(chunk: Mapping[str, Any], job: str) -> dict[str, str]:
    """Job or array task of each run of a chunk; an array of one is a plain job."""
    tasks = chunk["tasks"]
    return {run: f"{job}_{i}" if len(tasks) > 1 else job for i, task in enumerate(tasks) for run in task}


def log_file(sweep: SweepFolder, job: str, stream: str) -> Path | None:
    """What a job wrote outside of any run: `stream` is out or err."""
    files = sorted(sweep.submissions.path.glob(f"*/logs/{job}_0_log.{stream}"))
    return files[-1] if files else None


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
