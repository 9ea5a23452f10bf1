"""The state of every planned run: what the records say, held against what SLURM says."""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.record.claims import PATIENCE_SECONDS, Owner
from klsweep.record.files import Row, last_row
from klsweep.record.folder import FINISHED, KEPT_FACTS, RunFolder, SweepFolder
from klsweep.record.origin import is_external, origin
from klsweep.record.rollouts import verifier_errors
from klsweep.sweep import cluster
from klsweep.sweep.submissions import Placed, clusters, log_file, mark, queued, submitted

LOST_SECONDS = 5 * PATIENCE_SECONDS  # without a heartbeat from a host that cannot be asked
TRACEBACK_LINES = 3
DIRECT_CAUSE = "\nThe above exception was the direct cause of"  # as Python writes it between two tracebacks
WAITING = ("pending", "preempted", "timeout")  # states in which a run is still to be tried by the job it is in


class Observed(NamedTuple):
    """A run's state now. `queue`: what SLURM says of its job, None if that is no longer in the queue."""

    status: Row
    job: str | None
    queue: cluster.QueuedJob | None

    @property
    def is_active(self) -> bool:
        """True if something works on the run or will without being asked: it must not be launched again."""
        return self.status["state"] == "running" or self.waits

    @property
    def waits(self) -> bool:
        """True if a job in the queue, or at work on other runs, will come to this one."""
        return self.queue is not None and self.status["state"] in WAITING


def observe(sweep: SweepFolder, run_ids: Collection[str]) -> tuple[dict[str, Observed], str | None]:
    """The state of these runs, and why SLURM could not be asked if it had to be.

    Attempts whose job SLURM has no longer, or has started again, are ended on record where the folder can be written
    to: SLURM forgets in minutes how a job ended. The records are read before SLURM is asked, so what has begun in
    between is not taken for vanished.
    """
    folders = {run_id: sweep.run(run_id) for run_id in run_ids}
    statuses = {run_id: folder.recorded() for run_id, folder in folders.items()}
    trouble, queue, jobs = None, {}, {}
    try:
        places = submitted(sweep)
        statuses |= {run_id: _anew(status, places.get(run_id)) for run_id, status in statuses.items()}
        jobs = {run_id: place.job for run_id, place in places.items() if run_id in folders}
        jobs |= {run_id: status["job"]["id"] for run_id, status in statuses.items() if _works_in_job(status)}
        open_jobs = {job for run_id, job in jobs.items() if statuses[run_id]["state"] in ("running", *WAITING)}
        queue = queued(sweep, open_jobs)
        asked = {jobs[run_id] for run_id in jobs if statuses[run_id]["state"] in ("running", "pending")} - set(queue)
        if asked and (here := cluster.name()) not in (names := clusters(sweep)):
            raise cluster.NoAnswer(f"this is cluster {here}, and the jobs are on {', '.join(sorted(names))}")
        ended = cluster.endings(asked, mark(sweep))
    except cluster.NoAnswer as error:
        trouble, ended = str(error), {}
    found = {}
    for run_id, folder in folders.items():
        status, job = statuses[run_id], jobs.get(run_id)
        place = queue.get(job) if job else None
        ending = _ending(folder, status, job, place, ended.get(job or "")) if trouble is None else None
        if ending is not None and status["state"] == "pending" and folder.attempts.latest() > status["attempt"]:
            ending, status = None, folder.recorded()  # it has begun, and perhaps ended, since we looked
        if ending is None:
            # in a job at work, whoever started the process sees its end first, and knows how it came
            status = folder.status() if status["state"] == "running" and place is None else status
        elif status["state"] == "pending":
            state = "failed" if ending[0] == "failed" else "pending"  # cancelled in the queue: nothing went wrong
            status = {**status, "state": state, "cause": f"never started: {ending[1].removeprefix('vanished: ')}"}
        else:
            status = _end(folder, status, *ending)
        found[run_id] = Observed(status, job, place)
    return found, trouble


def _anew(status: Row, place: Placed | None) -> Row:
    """A run that was submitted again and has not begun since is pending, however its last attempt ended."""
    if place is None or status["attempt"] != place.after or status["state"] in (*FINISHED, "running", "cancelled"):
        return status
    kept = {key: status[key] for key in KEPT_FACTS if key in status}
    return {**kept, "state": "pending", "attempt": status["attempt"]}


def _works_in_job(status: Row) -> bool:
    return status["state"] == "running" and bool(status.get("job"))


def _ending(
    folder: RunFolder, status: Row, job: str | None, place: cluster.QueuedJob | None, ended: tuple[str, str] | None
) -> tuple[str, str] | None:
    """(state, cause) of an attempt that is over without having said so, or of a job that never got to its run.

    None if there is no such thing. `ended` is how SLURM says that the run's job ended, None if it does not know.
    """
    if status["state"] == "pending":
        waits = job is None or place is not None
        return None if waits else ended or ("failed", f"SLURM no longer knows job {job}")
    if status["state"] != "running":
        return None
    if (working := status.get("job")) is None:
        owner = Owner(**status["owner"]) if "owner" in status else None  # None: the claim is damaged
        silent = folder.silent_seconds(status["attempt"])
        if (owner is not None and owner.is_here()) or silent < LOST_SECONDS:
            return None
        return "failed", f"vanished: no heartbeat from {owner.host if owner else 'its host'} for {silent:.0f} s"
    if place is None:
        unknown = "failed", f"vanished: SLURM does not know job {job}, and its heartbeat has stopped"
        # silence about a job proves nothing while its heart beats: it may be another cluster's, or hidden from us
        return ended or (unknown if folder.silent_seconds(status["attempt"]) > PATIENCE_SECONDS else None)
    if place.restart > working["restart"] or place.state == "PENDING":
        return "preempted", f"SLURM put job {job} back into the queue before the next checkpoint"
    return None


def _end(folder: RunFolder, status: Row, state: str, cause: str) -> Row:
    """End an attempt on record."""
    with contextlib.suppress(OSError):  # a colleague's sweep, or a full disk: the state is as true unwritten
        if folder.end(status["attempt"], state, cause):
            folder.write_status(folder.recorded())
        return folder.recorded()
    return {**status, "state": state, "cause": cause}


def sweep_status(sweep: SweepFolder) -> dict[str, Any]:
    """`counts` by state, `slurm` (why it could not be asked, else None), failures by cause, and a row per run."""
    plan = sweep.plan()
    observed, trouble = observe(sweep, [row["run_id"] for row in plan])
    runs = [_run_row(sweep, row, observed[row["run_id"]]) for row in plan]
    return {
        "sweep": str(sweep.path),
        "counts": dict(Counter(run["state"] for run in runs)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "slurm": trouble,
        "failures": _failures(sweep, runs, observed),
        "runs": runs,
    }


def _run_row(sweep: SweepFolder, planned: Row, observed: Observed) -> Row:
    status, queue = observed.status, observed.queue
    folder, begun = sweep.run(planned["run_id"]), status["state"] != "pending" or status["attempt"] > 0
    last = last_row(folder.metrics if is_external(planned) else folder.timing) if begun else None
    errors, error = verifier_errors(folder) if begun else (0, None)
    return {
        **{key: planned[key] for key in ("run_id", "cell_id", "seed", "axes", "kl_coef", "fields")},
        "origin": origin(planned),
        "state": status["state"],
        "cause": _cause(sweep, planned["run_id"], observed),
        "attempt": status["attempt"],
        "update": last["update"] if last else None,
        "verifier_errors": errors,
        "verifier_error": error,
        "updates": planned["updates"],
        "job": observed.job,
        "queue": _place(queue) if observed.waits and queue else None,
        "host": (queue.node if queue and queue.node else None) or status.get("node"),
    }


def _cause(sweep: SweepFolder, run_id: str, observed: Observed) -> str | None:
    """Why the run is in its state, or what will become of it."""
    if observed.status["state"] == "running" and sweep.run(run_id).cancellation.exists():
        return "klsweep cancel: ends after the update at work"
    if observed.status["state"] == "pending" and observed.job is None and sweep.submissions.latest():
        return "not submitted"
    return observed.status.get("cause")


def _place(queue: cluster.QueuedJob) -> str:
    return "its job has begun and will come to it" if queue.state == "RUNNING" else f"{queue.state} ({queue.reason})"


def _failures(sweep: SweepFolder, runs: Iterable[Row], observed: dict[str, Observed]) -> list[Row]:
    """Runs that did not end well by cause, most first, with the last lines of one log, or of where its error began."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for run in runs:
        if run["state"] == "failed" or (run["state"] in ("timeout", "preempted") and run["queue"] is None):
            groups.setdefault((run["state"], without_numbers(run["cause"] or "")), []).append(run)
    rows = []
    for (state, _), members in sorted(groups.items(), key=lambda group: -len(group[1])):
        first = members[0]
        text = observed[first["run_id"]].status.get("traceback") or (_log_of(sweep, first) if state == "failed" else "")
        began = text.split(DIRECT_CAUSE, 1)[0]  # the end of the chain is in `cause` already
        rows.append(
            {
                "state": state,
                "cause": first["cause"],
                "count": len(members),
                "runs": [run["run_id"] for run in members],
                "last_lines": [line for line in began.splitlines() if line.strip()][-TRACEBACK_LINES:],
            }
        )
    return rows


def _log_of(sweep: SweepFolder, run: Row) -> str:
    """What a run that left no traceback last wrote to its stderr, or its job."""
    stderr = sweep.run(run["run_id"]).attempt(run["attempt"]) / "stderr"
    log = log_file(sweep, run["job"], "err") if run["job"] else None
    for file in (stderr, log):
        if file is not None and file.exists() and (text := _tail(file)):
            return text
    return ""


def _tail(file: Path, size: int = 4096) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read().decode(errors="replace").strip()


def without_numbers(text: str) -> str:
    """A cause without what differs between runs that failed alike: texts in double quotes, numbers, ids and paths."""
    words = re.sub(r'"(?:[^"\\]|\\.)*"', "…", text).split()
    return " ".join("…" if "/" in word or any(c.isdigit() for c in word) else word for word in words)
