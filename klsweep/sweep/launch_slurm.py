"""The SLURM launcher: what a run's job asks for, and submitting runs as job arrays through submitit."""

import dataclasses
import json
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
from klsweep.record.folder import SweepFolder
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
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]?\d)(?::([0-5]?\d))?")
BLOCKED = (signal.SIGINT, signal.SIGTERM)


@component
class Slurm:
    """The `launcher=slurm` node. Resources that are null come from the profile, or else from the cluster's defaults.

    `time` is "[days-]hours:minutes[:seconds]" or minutes; `sbatch` any further options of sbatch by their long names.
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
            raise ValueError(f"launcher.time={self.time!r}: expected minutes or [days-]hours:minutes[:seconds]")
        if self.concurrent > self.runs_per_job:
            raise ValueError(
                f"launcher.concurrent={self.concurrent}: at most launcher.runs_per_job={self.runs_per_job}"
            )
        if (self.nodes or 1) > 1:
            raise ValueError(f"launcher.nodes={self.nodes}: a run trains in one process, on one node")

    def settled(self) -> "Slurm":
        """With the profile's values where ours are null. BadInput if the profile or the outcome is not sound."""
        profile = read_profile(self.profile) if self.profile is not None else {}
        given = {key: value for key, value in profile.items() if getattr(self, key) is None}
        try:
            settled = dataclasses.replace(self, **given)
        except ValidationError as error:
            raise BadInput(one_line(error, Slurm, f"profile {self.profile}: ")) from error
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
        in_gres = re.search(r"gpu(?::[\w.-]+)?:(\d+)", self.gres or "")
        return self.gpus_per_node or (int(in_gres[1]) if in_gres else 0)

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


def read_profile(name: str) -> dict[str, Any]:
    """A site's resources: a YAML file by path, or by name from ./slurm or the shipped profiles."""
    folders = [Path("slurm"), PROFILES]
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    path = Path(name) if name.endswith((".yaml", ".yml")) else found[0] if found else None
    if path is None or not path.is_file():
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise BadInput(f"launcher.profile={name!r}: no such profile (a path to a YAML file, or {', '.join(known)})")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise BadInput(f"launcher.profile={name!r}: {' '.join(str(error).split())}") from error
    unknown = sorted(set(values) - set(RESOURCES)) if isinstance(values, dict) else [repr(values)]
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
        key = json.dumps(dataclasses.asdict(launcher), sort_keys=True)  # pyright: ignore[reportArgumentType]
        groups.setdefault(key, []).append(run_id)
        launchers[key] = launcher
    limits = cluster.limits()
    room, jobs, tasks_done, runs_done = limits.submittable, [], 0, 0
    for key, run_ids in groups.items():
        launcher = launchers[key]
        tasks = list(_slices(run_ids, launcher.runs_per_job))
        if room is not None:
            tasks, room = tasks[:room], max(0, room - len(tasks))
        chunks = list(_slices(tasks, limits.array_size))
        lanes: list[str | None] = [None] * min(len(chunks), launcher.array_parallelism or len(chunks))
        for index, chunk in enumerate(chunks):
            lane = index % len(lanes)
            throttle = _share(launcher.array_parallelism, lane, len(lanes)) or len(chunk)
            name = f"chunk-{len(jobs)}"
            comment = f"klsweep:{sweep.path.resolve()}:{number}:{name}"
            folder = sweep.submissions.folder(number)
            record = {"comment": comment, "tasks": chunk, "launcher": json.loads(key), "code": str(code)}
            write_json(folder / f"{name}.json", record)
            functions = [_task(sweep, launcher, task) for task in chunk]
            parameters = launcher.parameters(sweep.name, comment, throttle, lanes[lane])
            with _uninterrupted():
                job = sbatch(folder / "logs", launcher, code, functions, parameters)
                write_json(folder / f"{name}.job", {"job": job})
            lanes[lane] = f"afterany:{job}"
            jobs.append(job)
            tasks_done += len(chunk)
            runs_done += sum(len(task) for task in chunk)
    return Submission(jobs, tasks_done, runs_done, len(wanted) - runs_done)


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
                unsure.append(chunk)
            else:
                found |= _tasks(chunk, job["job"])
    if unsure:
        queued = {job.comment: name.split("_")[0] for name, job in cluster.queue().items()}
        for chunk in unsure:
            if chunk["comment"] in queued:
                found |= _tasks(chunk, queued[chunk["comment"]])
    return found


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
        f"export PYTHONPATH={shlex.quote(str(code))}",
        "export PYTHONSAFEPATH=1",  # otherwise `python -m` would prefer the folder the job starts in
        "export HF_HUB_OFFLINE=1",  # what is not in the cache was refused before
    ]
    given = {key: value for key, value in parameters.items() if value is not None}
    executor.update_parameters(**given, setup=setup, wckey=None)
    try:
        jobs = executor.submit_array(functions)
    except (FailedJobError, FailedSubmissionError) as error:
        raise cluster.NoAnswer(f"sbatch: {_reason(str(error))}") from error
    return jobs[0].job_id.split("_")[0]


def _reason(text: str) -> str:
    """The line of sbatch's complaint that says what is wrong."""
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return " ".join(line.split("error:", 1)[-1].strip() for line in lines) or " ".join(text.split())


def _share(total: int | None, lane: int, lanes: int) -> int | None:
    """What of `total` tasks at a time one of several arrays running side by side may take."""
    return None if total is None else total // lanes + (lane < total % lanes)


def _slices(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[i : i + size]) for i in range(0, len(items), size))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what is being submitted is on record; sbatch does not see it either."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
