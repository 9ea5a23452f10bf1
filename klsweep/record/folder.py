"""The run folder and the sweep folder: the whole state of a sweep. No torch, no Hydra."""

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.record.claims import Owner, Turns
from klsweep.record.files import (
    Row,
    append_rows,
    append_to,
    last_row,
    read_json,
    read_rows,
    rows_text,
    truncate_rows,
    write_json,
)

FINISHED = ("done", "diverged")
ENDS = (*FINISHED, "preempted", "timeout", "cancelled", "failed")
LAST_UPDATES = 5  # training figures of a run are means over so many: one update is noise
STATES = ("pending", "running", *ENDS)
VANISHED = "vanished: the process ended without a word"
KEPT_FACTS = ("eval_id",)  # of a run, not of an attempt: what it began with
CODE_FACTS = ("science_hash", "plugin_hash")  # of the attempts whose updates the run holds, all of them


class Job(NamedTuple):
    """A SLURM job, or task of a job array, how often SLURM has started it again, and how many nodes it has."""

    id: str
    restart: int
    nodes: int = 1


class Lost(Exception):
    """The attempt is no longer ours: it was ended by others, or a later one has begun. Leave without writing."""


@dataclass(frozen=True)
class RunFolder:
    """`<sweep>/runs/<run_id>`: where everything about a run lies."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def sweep(self) -> "SweepFolder":
        return SweepFolder(self.path.parent.parent)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def environment(self) -> Path:
        return self.path / "env.json"

    @property
    def cancellation(self) -> Path:
        return self.path / "cancelled.json"

    @property
    def retry(self) -> Path:
        return self.path / "retried.json"

    @property
    def attempts(self) -> Turns:
        return Turns(self.path / "attempts", "attempt.json")

    def attempt(self, number: int) -> Path:
        return self.attempts.folder(number)

    def recorded(self) -> Row:
        """State, cause and facts of the latest attempt as they were written; pending without one.

        The attempts are the truth, `status.json` their copy for people. A run that was cancelled is so unless it is
        finished or an attempt goes on.
        """
        number = self.attempts.latest()
        status: Row = {"state": "pending", "attempt": 0}
        if number:
            claim, end = self.attempts.claim(number), self.attempts.end_of(number)
            status = {**claim, **self._code(number, claim), "attempt": number}
            status |= end or {"state": "running", "cause": None}
        if status["state"] not in (*FINISHED, "running"):
            cancelled = self.cancellation.exists()
            if cancelled:
                status |= {"state": "cancelled", "cause": "klsweep cancel"}
            elif status["state"] == "cancelled":
                status |= {"state": "preempted", "cause": "cancelled, and brought back since"}
        return status

    def _code(self, latest: int, claim: Row) -> Row:
        """The hashes of the code that made the run, joined by "+" from the first attempt on where they differ.

        An attempt counts if a later one has gone on from a checkpoint that its updates, or the latest's, led to.
        """
        held, start = [claim], claim.get("resumed_from") or 0
        for number in range(latest - 1, 0, -1):
            if start == 0:
                break
            earlier = self.attempts.claim(number)
            if (begun := earlier.get("resumed_from")) is not None and begun < start:
                held.append(earlier)
                start = begun
        found = {key: list(dict.fromkeys(str(c[key]) for c in reversed(held) if key in c)) for key in CODE_FACTS}
        return {key: "+".join(values) for key, values in found.items() if len(values) > 1}

    def status(self) -> Row:
        """The same, but an attempt whose process has vanished on this host is failed."""
        status = self.recorded()
        if status["state"] == "running" and self.attempts.is_over(status["attempt"]):
            ended = self.attempts.end_of(status["attempt"])  # in between, by itself
            return self.recorded() if ended else {**status, "state": "failed", "cause": VANISHED}
        return status

    def write_status(self, status: Mapping[str, Any]) -> None:
        """The copy of `status()` for people."""
        write_json(self.path / "status.json", status)

    def claim(self, job: Job | None = None, **facts: Any) -> "Attempt | None":
        """Take the run for this process: a new attempt, or None if it is finished, cancelled or taken.

        `facts` are kept with the attempt. An attempt of the same job before SLURM started it again is over, even if
        its process still lives: SLURM says so, and it will find out.
        """
        status = self.status()
        latest = status["attempt"]  # if there is a later one by now, the next number will not be free
        restarted = _is_earlier(status.get("job"), job)
        if status["state"] in (*FINISHED, "cancelled"):
            return None
        if latest and not self.attempts.is_over(latest) and not restarted:
            return None
        facts = {**{key: status[key] for key in KEPT_FACTS if key in status}, **facts, "job": job and job._asdict()}
        if not self.attempts.take(latest + 1, facts):
            return None
        if latest and self.attempts.end_of(latest) is None:
            state, cause = "failed", VANISHED
            if job is not None and restarted:
                state, cause = "preempted", f"SLURM started job {job.id} again before it had ended"
            self.end(latest, state, cause)
        attempt = Attempt(self, latest + 1)
        if self.cancellation.exists():  # marked while we claimed
            attempt.finish("cancelled", "klsweep cancel")
            return None
        self.write_status(self.status())
        return attempt

    def end(self, number: int, state: str, cause: str | None, traceback: str | None = None) -> bool:
        """End an attempt, of our own or of a process that is dead; False if that has been done already."""
        if state not in ENDS:
            raise ValueError(f"state={state!r}: choose from {', '.join(ENDS)}")
        content = {"state": state, "cause": cause, "traceback": traceback, "ended": time.time()}
        return self.attempts.end(number, content)

    def threads(self) -> int | None:
        """Torch threads that the run began with, None if it has not."""
        return (read_json(self.environment) or {}).get("threads")

    def silent_seconds(self, number: int) -> float:
        """Time since an attempt's last heartbeat, both by the file server's clock: a file written now tells it."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".now.") as now:
                signs = [self.attempts.heartbeat(number), self.attempts.folder(number) / "claim.json"]
                last = max(file.stat().st_mtime for file in signs if file.exists())
                return os.fstat(now.fileno()).st_mtime - last
        except (OSError, ValueError):  # not ours to write
            return 0.0

    def checkpointed(self) -> int:
        """Updates that the newest checkpoint holds, 0 without one."""
        names = [path.name for path in self.checkpoints.glob("update-*") if (path / "state.json").exists()]
        return max((int(name.removeprefix("update-")) for name in names), default=0)

    def stands(self, writer: int, update: int, before: int | None) -> bool:
        """Whether attempt `writer`'s checkpoint of `update` is what later attempts (those before `before`) built on.

        A process that has lost its run may still be writing one checkpoint when it does.
        """
        last = self.attempts.latest() + 1 if before is None else before
        begun = [self.attempts.claim(number).get("resumed_from") for number in range(writer + 1, last)]
        return all(update <= start for start in begun if start is not None)

    def cancel(self) -> None:
        """Mark the run as cancelled: no process may begin it, and one that works on it stops at its next update."""
        write_json(self.cancellation, {"time": time.time(), "owner": Owner.me()._asdict()})

    def bring_back(self, uncancel: bool) -> None:
        """Begin all budgets anew, and undo a cancellation if asked: the user wants the run to be tried again."""
        if uncancel:
            self.cancellation.unlink(missing_ok=True)
        if latest := self.attempts.latest():
            write_json(self.retry, {"after_attempt": latest, "time": time.time()})

    def tries(self) -> list[Row]:
        """The ended attempts since the run was last brought back, in order: claim and end."""
        after = (read_json(self.retry) or {"after_attempt": 0})["after_attempt"]
        numbers = range(after + 1, self.attempts.latest() + 1)
        ends = [(n, self.attempts.end_of(n)) for n in numbers]
        return [{"attempt": n, **self.attempts.claim(n), **end} for n, end in ends if end is not None]


def _is_earlier(claimed: Any, job: Job | None) -> bool:
    """True if `claimed` is the same job before it was started again."""
    return job is not None and bool(claimed) and claimed["id"] == job.id and claimed["restart"] < job.restart


@dataclass(frozen=True)
class Attempt:
    """One process's try at a run. Everything it writes into the record goes through here, and stops once it is lost."""

    folder: RunFolder
    number: int
    _logs: dict[Path, int] = field(default_factory=dict, compare=False)

    @property
    def path(self) -> Path:
        return self.folder.attempt(self.number)

    def check(self) -> None:
        """Raise Lost unless the run is still ours."""
        if not self.folder.attempts.holds(self.number):
            raise Lost(f"attempt {self.number} at {self.folder.path} is no longer ours: leaving without writing")

    def note(self, **facts: Any) -> None:
        """Keep facts with the attempt."""
        self.check()
        self.folder.attempts.note(self.number, facts)
        self.folder.write_status(self.folder.status())

    def begin_logs(self, paths: Iterable[Path], after_update: int) -> None:
        """Make logs ours: new files with the rows up to an update. What an earlier process still appends is lost.

        RuntimeError if the first log, which has a row of every update, does not reach that far.
        """
        for path in paths:
            self.check()
            truncate_rows(path, after_update)
            last = last_row(path)
            if not self._logs and after_update >= 0 and (last is None or last["update"] != after_update):
                raise RuntimeError(f"{path} has no row of update {after_update}, which the run goes on from")
            self._logs[path] = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a log that `begin_logs` opened."""
        self.check()
        if os.fstat(self._logs[path]).st_ino != path.stat().st_ino:
            raise Lost(f"{path} is no longer the file that attempt {self.number} began")
        append_to(self._logs[path], rows_text(rows))

    def flush_logs(self) -> None:
        """Bring the rows written so far to the disk, before a checkpoint that builds on them."""
        for descriptor in self._logs.values():
            os.fsync(descriptor)

    def finish(self, state: str, cause: str | None = None, traceback: str | None = None) -> Row:
        """End the attempt; the run's status, which is another's if the attempt was lost."""
        for descriptor in self._logs.values():
            os.close(descriptor)
        self._logs.clear()
        if self.folder.attempts.holds(self.number) and self.folder.end(self.number, state, cause, traceback):
            self.folder.write_status(self.folder.status())
        return self.folder.status()


@dataclass(frozen=True)
class SweepFolder:
    """A planned set of runs in one folder."""

    path: Path

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.jsonl"

    @property
    def launches(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def code(self) -> Path:
        return self.path / "code"

    def evaluation(self, name: str) -> "SweepFolder":
        """A sweep folder whose runs are evaluations of this one's."""
        return SweepFolder(self.path / "evaluations" / name)

    @property
    def evaluated(self) -> "SweepFolder":
        """The sweep that this one is an evaluation of."""
        return SweepFolder(self.path.parent.parent)

    @property
    def submissions(self) -> Turns:
        """Turns at submitting jobs: of two launchers, the second waits and then sees what the first submitted."""
        return Turns(self.path / "submissions")

    @cached_property
    def name(self) -> str:
        return self.path.resolve().name

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.path / "runs" / run_id)

    def plan(self) -> list[Row]:
        """Planned runs, one row each, in the order they were first planned; the last row of a run holds."""
        return list({row["run_id"]: row for row in read_rows(self.plan_file)}.values())

    def extend_plan(self, rows: Iterable[Row]) -> None:
        """Add runs to the plan, or a new row for a run whose row changed.

        Only appends, in one write, so that planners at work at the same time lose nothing of each other's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        known = {row["run_id"]: row for row in self.plan()}
        append_rows(self.plan_file, [row for row in rows if known.get(row["run_id"]) != row])
