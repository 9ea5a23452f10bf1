"""What sweeps need from a cluster, tried out by two short jobs before GPU-hours are spent."""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.errors import BadInput
from klsweep.record.claims import Turns
from klsweep.record.files import read_json, write_json
from klsweep.sweep import cluster
from klsweep.sweep.launch_slurm import sbatch
from klsweep.sweep.plan import Plan, check_writable
from klsweep.sweep.resources import Slurm
from klsweep.sweep.run import launchers_of
from klsweep.sweep.snapshot import snapshot
from klsweep.sweep.task import this_job

CONTESTS = 40
START_SECONDS = 600.0  # in the queue, before the doctor gives up
STEP_SECONDS = 240.0
MIN_SCRATCH = 2**30


class Check(NamedTuple):
    """One finding: what was looked at, whether sweeps can live with it, and what was seen."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Patient:
    """The function that submitit calls in a doctor's job. Two of them, a and b, contest turns in a shared folder."""

    folder: str
    name: str
    models: tuple[Any, ...]
    gpus: int

    def __call__(self) -> None:
        folder, job = Path(self.folder), this_job()
        warned, ended = _Flag(signal.SIGUSR2), _Flag(signal.SIGTERM)
        if job.restart == 0:
            checks = [*self._python(), *self._files()]
            write_json(folder / f"{self.name}.json", [check._asdict() for check in checks])
            self._contest(folder)
        write_json(folder / f"{self.name}-{job.restart}.started", {"node": _node()})
        if self.name == "b" or job.restart:
            return
        _until(lambda: warned.at, STEP_SECONDS)
        write_json(folder / "signal.json", {"seen": warned.at is not None})
        cluster.requeue(job.id)
        while True:  # until SLURM kills us: how long that takes after SIGTERM is the grace
            if ended.at is not None:
                write_json(folder / "grace.json", {"seconds": time.monotonic() - ended.at})
            time.sleep(0.1)

    def _python(self) -> list[Check]:
        import torch

        import klsweep

        code = Path(klsweep.__file__).parent
        checks = [
            Check("code", "code" in code.parts, f"klsweep from {code}, Python {sys.version.split()[0]}"),
            Check("offline", os.environ.get("HF_HUB_OFFLINE") == "1", "jobs do not download (HF_HUB_OFFLINE=1)"),
        ]
        if not self.gpus:
            return [*checks, Check("torch", True, f"torch {torch.__version__}, no GPU asked for")]
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = f"torch {torch.__version__} for CUDA {torch.version.cuda} sees {count} of {self.gpus} GPUs"
        try:
            torch.ones(8, device="cuda").sum().item()
            found += f" ({torch.cuda.get_device_name(0)})"
        except (AssertionError, RuntimeError) as error:  # a torch for the CPU; a driver that is too old for this one
            return [*checks, Check("torch", False, f"{found}, driver {_driver()}: {str(error).splitlines()[0]}")]
        return [*checks, Check("torch", count >= self.gpus, f"{found}, driver {_driver()}")]

    def _files(self) -> list[Check]:
        scratch = Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
        free = shutil.disk_usage(scratch).free if os.access(scratch, os.W_OK) else 0
        checks = [Check("scratch", free >= MIN_SCRATCH, f"{scratch}: {free / 2**30:.1f} GiB free")]
        for model in self.models:
            checks.append(Check("model", model.is_cached(), f"{model.path} at {model.location}"))
        return checks

    def _contest(self, folder: Path) -> None:
        """Try to take each of many turns at the same moment as the other job, and write down which we got."""
        write_json(folder / f"{self.name}.ready", {"node": _node()})
        both = [folder / f"{name}.ready" for name in "ab"]
        if _until(lambda: all(file.exists() for file in both) or None, STEP_SECONDS) is None:
            return
        turns = Turns(folder / "turns")
        taken, ended, trouble = [], [], ""
        for number in random.sample(range(1, CONTESTS + 1), CONTESTS):  # so that now one, now the other comes first
            time.sleep(0.01)
            taken += [number] if turns.take(number, {"by": self.name}) else []
            try:
                ended += [number] if turns.end(number, {"by": self.name}) else []
            except OSError as error:  # a file system without hard links
                trouble = f" ({error.strerror})"
        write_json(folder / f"{self.name}.won", {"taken": taken, "ended": ended, "trouble": trouble})


class _Flag:
    """When a signal came, None before."""

    def __init__(self, number: signal.Signals) -> None:
        self.at: float | None = None
        signal.signal(number, self._set)

    def _set(self, *_: Any) -> None:
        self.at = self.at or time.monotonic()


def examine(plan: Plan) -> list[Check]:
    """Submit the two jobs with the plan's profile, wait for them, and say what holds. BadInput without SLURM."""
    launchers = launchers_of({run.run_id: run.spec for run in plan.runs})
    if not isinstance(launchers, dict):
        raise BadInput("doctor looks at a cluster: give launcher=slurm launcher.profile=NAME")
    check_writable(str(plan.folder.path))
    launcher = dataclasses.replace(next(iter(launchers.values())), nodes=1)
    folder = plan.folder.path.resolve() / "doctor" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    code = snapshot(plan.folder, plan.runs[0].spec.root.plugins, allow_dirty=True).resolve()
    write_json(folder / "code.json", {"code": str(code)})  # so that `clean` leaves it
    models = tuple({run.spec.model: None for run in plan.runs})
    jobs: list[str] = []
    try:
        checks = list(_examine(launcher, folder, code, models, jobs))
    except cluster.NoAnswer as error:
        raise BadInput(f"launcher=slurm: {error}") from error
    finally:
        (folder / "code.json").unlink()
        with contextlib.suppress(cluster.NoAnswer):
            cluster.cancel(jobs)
    return checks


def _examine(launcher: Slurm, folder: Path, code: Path, models: Sequence[Any], jobs: list[str]) -> list[Check]:
    limits = cluster.limits({(launcher.partition, launcher.qos)})
    room = "unknown" if limits.submittable is None else str(limits.submittable)
    checks = [Check("limits", limits.submittable != 0, f"arrays of {limits.array_size}, room for {room} jobs")]

    def send(name: str, **more: Any) -> None:
        patient = Patient(str(folder), name, tuple(models), launcher.gpus)
        parameters = launcher.parameters("klsweep-doctor", "klsweep:doctor", 1, None)
        jobs.append(sbatch(folder / "logs", launcher, code, [patient], {**parameters, "time": 10, **more}))

    send("a")
    if not _starts(folder / "a.ready", jobs[0], START_SECONDS):
        return [*checks, Check("start", False, f"job {jobs[0]}: {_whereabouts(jobs[0])}{_last_words(folder, jobs[0])}")]
    apart = False
    with contextlib.suppress(cluster.NoAnswer):  # the partition has one node
        send("b", exclude=read_json(folder / "a.ready")["node"])
        apart = _starts(folder / "b.ready", jobs[-1], STEP_SECONDS / 8)
    if not apart:  # no other node is free, or there is none
        cluster.cancel(jobs[1:])
        send("b")
        if not _starts(folder / "b.ready", jobs[-1], STEP_SECONDS / 2):
            where = f"{_whereabouts(jobs[-1])}{_last_words(folder, jobs[-1])}"
            return [*checks, Check("claims", False, f"a second job did not start: {where}")]
    for name in "ab":
        _until(lambda name=name: (folder / f"{name}-0.started").exists() or None, STEP_SECONDS)
        checks += [Check(f"{c['name']} ({name})", c["passed"], c["found"]) for c in read_json(folder / f"{name}.json")]
    nodes = [(read_json(folder / f"{name}-0.started") or {}).get("node") for name in "ab"]
    won = [_until(lambda name=name: read_json(folder / f"{name}.won"), STEP_SECONDS) for name in "ab"]
    where = f"on {nodes[0]} and {nodes[1]}" if nodes[0] != nodes[1] else f"both on {nodes[0]}: not tried across nodes"
    for what, check in (("taken", "claims"), ("ended", "ends")):  # by renaming a folder, by a hard link
        a, b = (each[what] if each else [] for each in won)
        once = sorted([*a, *b]) == list(range(1, CONTESTS + 1))
        trouble = next((each["trouble"] for each in won if each), "") if check == "ends" else ""
        checks.append(Check(check, once, f"{CONTESTS} turns, {len(a)} + {len(b)} {what}, {where}{trouble}"))
    return [*checks, *_signals(folder, jobs[0])]


def _signals(folder: Path, job: str) -> list[Check]:
    """The warning signal, requeueing from within a job, and the time between SIGTERM and SIGKILL."""
    cluster.warn(job)
    seen = _until(lambda: read_json(folder / "signal.json"), STEP_SECONDS)
    checks = [Check("signal", bool(seen and seen["seen"]), "USR2 reaches the process" if seen else "USR2 did not come")]
    if _until(lambda: _waits_again(job), STEP_SECONDS) is None:
        return [*checks, Check("requeue", False, f"the job is not back in the queue: {_whereabouts(job)}")]
    grace = read_json(folder / "grace.json")
    found = f"SIGKILL came {grace['seconds']:.0f} s after SIGTERM" if grace else "killed without a SIGTERM to act upon"
    cluster.release(job)
    back = _until(lambda: (folder / "a-1.started").exists() or None, STEP_SECONDS)
    again = "a job puts itself back into the queue and starts again" if back else _whereabouts(job)
    return [*checks, Check("grace", bool(grace), found), Check("requeue", bool(back), again)]


def _waits_again(job: str) -> bool | None:
    queued = cluster.queue([job]).get(job)
    return True if queued and queued.restart > 0 and queued.state in ("PENDING", "RUNNING") else None


def _starts(sign: Path, job: str, seconds: float) -> bool:
    """Wait until a job gives a sign of life; False if it does not, or is over before it has."""

    def ask() -> bool | None:
        gone = job not in cluster.queue([job])  # asked first: it may give its sign and end in between
        return True if sign.exists() else False if gone else None

    return bool(_until(ask, seconds))


def _last_words(folder: Path, job: str) -> str:
    """The end of what a job wrote to stderr."""
    file = folder / "logs" / f"{job}_0_log.err"
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    last = next((line for line in reversed(lines) if line.strip() and not line.startswith("srun:")), "")
    return f"; it wrote {last.strip()!r} last ({file})" if last else f" (see {folder / 'logs'})"


def _driver() -> str:
    """Version of this node's NVIDIA driver."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return "not loaded"


def _whereabouts(job: str) -> str:
    queued = cluster.queue([job]).get(job)
    return f"{queued.state} ({queued.reason})" if queued else "no longer in the queue"


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)


def _until(ask: Callable[[], Any], seconds: float) -> Any:
    """The first answer that is not None; None if there is none in time."""
    deadline = time.monotonic() + seconds
    while (answer := ask()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer
