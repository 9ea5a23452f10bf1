"""What SLURM says: its limits, the jobs in its queue, how a job ended. No accounting is needed, and no torch."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

ANSWER_SECONDS = 60
# How a job that is over ended, in our words: (state of a run it was working on, cause).
ENDINGS = {
    "CANCELLED": ("preempted", "SLURM ended the job as CANCELLED (scancel)"),
    "PREEMPTED": ("preempted", "SLURM preempted the job"),
    "TIMEOUT": ("timeout", "the time limit came before the next checkpoint"),
    "DEADLINE": ("timeout", "the job's deadline came before the next checkpoint"),
    "OUT_OF_MEMORY": ("failed", "vanished: out of memory (SLURM's OUT_OF_MEMORY)"),
    "NODE_FAIL": ("failed", "vanished: the node failed"),
    "BOOT_FAIL": ("failed", "vanished: the node failed to boot"),
}


OVER = {*ENDINGS, "COMPLETED", "FAILED", "REVOKED", "LAUNCH_FAILED"}
NO_VALUE = "4294967294"  # SLURM's NO_VAL
LATE = ("timed out", "Unable to contact", "Zero Bytes")  # what sbatch says when the job may have been taken after all


class NoAnswer(Exception):
    """SLURM is not there or does not answer: nothing can be concluded from its silence."""


@dataclass(frozen=True)
class QueuedJob:
    """A job, or task of a job array, that SLURM still has in its queue."""

    state: str
    restart: int
    reason: str
    node: str
    comment: str


@dataclass(frozen=True)
class Limits:
    """What the cluster allows: tasks of one array, and jobs (array tasks) that can be submitted now; None: unknown.

    `cluster` is its name.
    """

    array_size: int
    submittable: int | None
    cluster: str


def queue(ids: Collection[str] | None = None) -> dict[str, QueuedJob]:
    """The jobs of these arrays that are in the queue, by `job` or `array_task`; our own ones if no ids are given."""
    wanted = ["--me"] if ids is None else ["--jobs", ",".join(sorted({i.split("_")[0] for i in ids}))]
    if ids is not None and not ids:
        return {}
    fields = "JobArrayID:48,State:24,RestartCnt:12,Reason:64,NodeList:96,Comment:200"
    done = _ask("squeue", "--noheader", "--array", "--states=all", *wanted, "--Format", fields)
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return {}
        raise NoAnswer(f"squeue: {_complaint(done)}")
    widths = [int(field.partition(":")[2]) for field in fields.split(",")]
    jobs = {}
    for line in done.stdout.splitlines():
        cells, at = [], 0
        for width in widths:
            cells.append(line[at : at + width].strip())
            at += width
        name, state, restart, reason, node, comment = cells
        if state not in OVER:
            jobs[name] = QueuedJob(state, int(restart or 0), reason, node, comment)
    return jobs


def endings(jobs: Collection[str], mark: str) -> dict[str, tuple[str, str] | None]:
    """How jobs that are not in the queue ended: (state, cause) of a run they were working on.

    None where SLURM does not know the job: forgotten, not visible to us, or of another cluster. `mark` is what their
    comments begin with. Asks `scontrol`, which remembers jobs for some minutes, then `sacct`, which may not exist.
    """
    if not jobs:
        return {}
    known = _remembered(mark)
    known |= _accounted([job for job in jobs if job not in known])
    found = {job: known.get(job) or known.get(f"{job.split('_')[0]}_") for job in jobs}
    return {job: _in_our_words(*ended) if ended else None for job, ended in found.items()}


def _in_our_words(state: str, code: str) -> tuple[str, str]:
    if state in ENDINGS:
        return ENDINGS[state]
    if state == "COMPLETED":
        return "failed", "vanished: the job completed without a word from the run"
    return "failed", f"vanished: the job ended as {state} with exit code {code}"


def _remembered(mark: str) -> dict[str, tuple[str, str]]:
    """State and exit code of the marked jobs that are over and that the controller still remembers."""
    done = _ask("scontrol", "--oneliner", "show", "job")
    if done.returncode:
        raise NoAnswer(f"scontrol: {_complaint(done)}")
    jobs = {}
    for line in done.stdout.splitlines():  # "No jobs in the system" has no comment
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if not values.get("Comment", "").startswith(mark) or values.get("JobState") not in OVER:
            continue
        ended = values["JobState"], values.get("ExitCode", "?")
        array, tasks = values.get("ArrayJobId"), values.get("ArrayTaskId", "")
        if array is None:
            jobs[values["JobId"]] = ended
        elif tasks == NO_VALUE:  # the tasks of an array that were cancelled in the queue: which, it no longer says
            jobs[f"{array}_"] = ended
        else:
            jobs |= {f"{array}_{task}": ended for task in _expanded(tasks)}
    return jobs


def _expanded(tasks: str) -> list[int]:
    """Numbers of "3" or "0-2,7%4"."""
    parts = re.findall(r"(\d+)(?:-(\d+))?", tasks.partition("%")[0])
    return [task for low, high in parts for task in range(int(low), int(high or low) + 1)]


def _accounted(jobs: Collection[str]) -> dict[str, tuple[str, str]]:
    """The same from accounting, where there is one that answers."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    form = ("--allocations", "--noheader", "--parsable2", "--format", "JobID,State,ExitCode")
    done = _ask("sacct", "--jobs", ",".join(jobs), *form)
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return {job: (state.split()[0], code) for job, state, code in rows if state and state.split()[0] in OVER}


def requeue(job: str) -> None:
    """Put a running job, or this task of its array alone, back into the queue. NoAnswer if that fails."""
    done = _ask("scontrol", "requeue", job)
    if done.returncode:
        raise NoAnswer(f"scontrol requeue {job}: {_complaint(done)}")


def warn(job: str) -> None:
    """Send a job the signal that comes before its time limit."""
    _ask("scancel", "--signal=USR2", job)


def release(job: str) -> None:
    """Lift the hold of two minutes that a requeued job begins with."""
    _ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def cancel(jobs: Collection[str]) -> None:
    """End jobs, or remove them from the queue. NoAnswer if that fails for one that is still there."""
    done = _ask("scancel", *sorted(jobs)) if jobs else None
    if done and done.returncode and "already completing or completed" not in done.stderr.lower():
        raise NoAnswer(f"scancel: {_complaint(done)}")


def name() -> str:
    """The cluster's name. NoAnswer without SLURM."""
    return _settings()["ClusterName"]


def limits(asked: Collection[tuple[str | None, str | None]]) -> Limits:
    """The limits for our jobs of these (partition, QOS), now; None: the default one. NoAnswer without SLURM."""
    values = _settings()
    # jobs that are over, and others' jobs, count for MaxJobCount, too
    room = [int(values["MaxJobCount"]) - 1 - _count("--states=all")] if "MaxJobCount" in values else []
    room += _accounting_room(values["ClusterName"], asked)
    submittable = max(0, min(room)) if room else None
    return Limits(max(1, int(values.get("MaxArraySize", 1001))), submittable, values["ClusterName"])


def _settings() -> dict[str, str]:
    done = _ask("scontrol", "show", "config")
    if done.returncode:
        raise NoAnswer(f"scontrol: {_complaint(done)}")
    return dict(re.findall(r"^(\w+)\s*=\s*(\S+)", done.stdout, re.MULTILINE))


def _count(*which: str) -> int:
    """Jobs and array tasks in the queue."""
    done = _ask("squeue", "--noheader", "--array", "--format=.", *which)
    if done.returncode:
        raise NoAnswer(f"squeue: {_complaint(done)}")
    return len(done.stdout.splitlines())


def _accounting_room(where: str, asked: Collection[tuple[str | None, str | None]]) -> list[int]:
    """What accounting, where there is one, leaves us of MaxSubmit of our associations (whatever the partition), and of
    MaxSubmitJobsPerUser of the QOS that jobs would have by themselves or by their partition."""
    if shutil.which("sacctmgr") is None:
        return []
    whose = (f"user={getpass.getuser()}", f"cluster={where}")
    ours = _accounts("assoc", *whose, "format=MaxSubmit,DefaultQOS")
    room = [int(allowed) - _count("--me") for allowed, _ in ours if allowed]
    default = next((name for _, name in ours if name), "normal")
    allowed = {name: int(most) for name, most in _accounts("qos", "format=Name,MaxSubmitPU") if most}
    for partition, qos in asked if allowed else ():
        own, (name, added) = qos or default, _partition(partition)
        room += [allowed[own] - _count("--me", f"--qos={own}")] if own in allowed else []
        room += [allowed[added] - _count("--me", f"--partition={name}")] if added in allowed else []
    return room


def _partition(name: str | None) -> tuple[str, str]:
    """Name (of the default one, if none is given) and QOS of a partition; N/A without a QOS."""
    done = _ask("scontrol", "--oneliner", "show", "partition", *([name] if name else []))
    lines = [line for line in done.stdout.splitlines() if name or " Default=YES" in line]
    values = dict(re.findall(r"(\w+)=(\S*)", lines[0])) if lines else {}
    return values.get("PartitionName", ""), values.get("QoS", "N/A")


def _accounts(*what: str) -> list[list[str]]:
    """Rows of what accounting knows; none if it does not answer."""
    done = _ask("sacctmgr", "--noheader", "--parsable2", "show", *what)
    return [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []


def environment() -> dict[str, str]:
    """Ours, without what would filter an answer, and without the job's that we may be running in."""
    dropped = ("SQUEUE_", "SCANCEL_", "SLURM_")
    return {k: v for k, v in os.environ.items() if not k.startswith(dropped) or k == "SLURM_CONF"}


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=environment())
    except FileNotFoundError as error:
        raise NoAnswer(f"{command[0]} not found: no SLURM on this machine (SLURM_CONF, PATH)") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{command[0]} did not answer in {ANSWER_SECONDS} s") from error


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a program complained of, which says what it came to."""
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix(f"{done.args[0]}: ") if lines else f"exit code {done.returncode}"
