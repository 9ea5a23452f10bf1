"""What runs are launched with: the `launcher=local` and `launcher=slurm` nodes, and the latter's profiles."""

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from klsweep.component import component, one_line
from klsweep.errors import BadInput
from klsweep.sweep.budget import Budget

if TYPE_CHECKING:
    from klsweep.model.parallel import Parallel

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
# If a node's task dies, those of the others go, too; also if one has left and others have not noticed, in seconds.
TOGETHER = ["--kill-on-bad-exit=1", "--wait=300"]


@component
class Local:
    """The `launcher=local` node: `parallel` workers of `threads` torch threads each; null divides the cores."""

    parallel: PositiveInt | None
    threads: PositiveInt | None

    @property
    def workers(self) -> int:
        """Worker processes to start: by default as many as the cores allow."""
        return self.parallel or max(1, len(os.sched_getaffinity(0)) // (self.threads or 1))

    @property
    def threads_per_worker(self) -> int:
        """Torch threads of each worker: by default the cores divided among the workers."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.workers)


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
    time: Any
    mem_gb: PositiveFloat | None
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
    max_hours: PositiveFloat | None

    def __post_init__(self) -> None:
        minutes = isinstance(self.time, int) and not isinstance(self.time, bool) and self.time > 0
        if not (self.time is None or minutes or (isinstance(self.time, str) and _TIME.fullmatch(self.time))):
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

    def settled(self) -> "Slurm":
        """With the profile's values where ours are null. BadInput if the profile or the outcome is not sound."""
        profile = read_profile(self.profile) if self.profile is not None else {}
        given = {key: value for key, value in profile.items() if getattr(self, key) is None}
        try:
            settled = dataclasses.replace(self, **given)
        except ValidationError as error:
            raise BadInput(f"{profile_file(str(self.profile))}: {one_line(error, Slurm, 'launcher.')}") from error
        if settled.time is None:
            raise BadInput("launcher.time=null: give the time limit of a job, here or in the profile (e.g. 4:00:00)")
        if settled.minutes * 60 <= self.signal_delay_s:
            raise BadInput(
                f"launcher.signal_delay_s={self.signal_delay_s}: must be less than launcher.time={settled.time}"
            )
        return settled

    def check_ranks(self, parallel: "Parallel") -> None:
        """BadInput if the processes that train a run do not fit its job. To be asked once settled."""
        nodes, processes = self.nodes or 1, parallel.processes
        if not parallel.is_sharded:
            if nodes > 1:
                raise BadInput(
                    f"launcher.nodes={nodes}: parallel=single trains in one process, on one node (parallel=fsdp2)"
                )
        elif self.concurrent > 1:
            raise BadInput(f"launcher.concurrent={self.concurrent}: runs with parallel=fsdp2 take turns in a job")
        elif processes is None and not self.gpus:
            raise BadInput(
                "parallel.processes=null: one per GPU, but the job asks for none (launcher.gpus_per_node=…, or give "
                "the number of processes on each node)"
            )
        elif self.gpus and (processes or 0) > self.gpus:
            raise BadInput(f"parallel.processes={processes}: more than the {self.gpus} GPUs of a node")

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
        """GPUs of each node of a job, 0 if none are asked for."""
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
            "nodes": self.nodes or 1,
            "ntasks_per_node": 1,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": parallelism,
            "comment": comment,
            "dependency": dependency,
            "srun_args": [
                *([f"--cpus-per-task={cpus}"] if cpus else []),  # srun does not inherit it since SLURM 22.05
                *(TOGETHER if (self.nodes or 1) > 1 else []),
            ],
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


def profile_file(name: str) -> Path:
    """The file of a site's resources: by path, or by name from ./slurm or the shipped profiles. BadInput without."""
    folders = [Path("slurm"), PROFILES]
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    path = Path(name) if name.endswith((".yaml", ".yml")) else found[0] if found else None
    if path is None or not path.is_file():
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise BadInput(f"launcher.profile={name!r}: no such profile (a path to a YAML file, or {', '.join(known)})")
    return path


def read_profile(name: str) -> dict[str, Any]:
    """What a profile says. BadInput if it is not a mapping of known keys."""
    path = profile_file(name)
    try:
        values = yaml.load(path.read_text(), Loader=_ProfileLoader) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected lines of KEY: VALUE (keys: {', '.join(RESOURCES)})")
    if unknown := sorted(map(str, set(values) - set(RESOURCES))):
        raise BadInput(f"{path}: {unknown[0]}: unknown key (keys: {', '.join(RESOURCES)})")
    return values
