"""The run folder and the plan file: the whole state of a sweep, in plain files. No torch, no Hydra.

Whole files are replaced atomically; logs are appended a line at a time, and a torn last line is skipped by readers.
"""

import errno
import json
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FINISHED = ("done", "diverged")
KEPT_FACTS = ("eval_id",)  # of a run, not of an attempt: what it began with
STATES = ("pending", "running", *FINISHED, "preempted", "timeout", "cancelled", "failed")

Row = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically: readers see the old content or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        stream.write(text)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows in one write. Numbers that are not finite are written as null: JSON has no other way."""
    append_text(path, "".join(json.dumps({k: _finite(v) for k, v in row.items()}) + "\n" for row in rows))


def append_text(path: Path, text: str) -> None:
    """Append in one system call, which the kernel does not interleave with others' on a local disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON-lines file; a missing file has none, a torn last line is skipped.

    ValueError for a broken line that is not the last: that is damage, not an interrupted write.
    """
    try:
        lines = path.read_text().split("\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error


def truncate_rows(path: Path, after_update: int) -> None:
    """Drop rows of later updates than `after_update`, and a torn last line: a resumed run writes them again."""
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["update"] <= after_update]
        write_text(path, "".join(kept))


class Owner(NamedTuple):
    """The process that works on an attempt. `started` tells it from a later process with the same id."""

    host: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid(), _process_start(os.getpid()) or "")

    def is_gone(self) -> bool:
        """True if this is the owner's host and its process has ended. From another host nobody can tell: False."""
        return self.host == socket.gethostname() and _process_start(self.pid) != self.started


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat), None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


@dataclass(frozen=True)
class RunFolder:
    """`<sweep>/runs/<run_id>`: where everything about a run lies."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def heartbeat(self) -> Path:
        return self.path / "heartbeat"

    @property
    def environment(self) -> Path:
        return self.path / "env.json"

    def attempt(self, number: int) -> Path:
        return self.path / "attempts" / str(number)

    def status(self) -> Row:
        """`status.json`, or pending; a run whose process vanished on this host is failed, whatever it last wrote."""
        status = read_json(self.path / "status.json") or {"state": "pending", "attempt": 0}
        if status["state"] == "running" and Owner(**status["owner"]).is_gone():
            return {**status, "state": "failed", "cause": "vanished: the process ended without a word"}
        return status

    def write_status(self, status: Mapping[str, Any]) -> None:
        write_json(self.path / "status.json", status)

    def beat(self) -> None:
        """A sign of life: the heartbeat file's time."""
        self.heartbeat.touch()

    def claim(self, **facts: Any) -> int | None:
        """Take the run for this process: the number of a new attempt, or None if it is finished or taken.

        `facts` are kept in the run's status. The attempt's folder appears at once with its owner in it, so of two
        claimants one loses.
        """
        attempts = sorted(int(folder.name) for folder in self.path.glob("attempts/[0-9]*"))
        latest = attempts[-1] if attempts else 0
        status = self.status()
        if status["state"] in FINISHED or (latest and self._is_held(latest)):
            return None
        number = latest + 1
        if not _create_exclusively(self.attempt(number), "owner.json", Owner.me()._asdict()):
            return None
        self.write_status(
            {
                **{key: status[key] for key in KEPT_FACTS if key in status},
                "state": "running",
                "attempt": number,
                "owner": Owner.me()._asdict(),
                "started": time.time(),
                **facts,
            }
        )
        return number

    def _is_held(self, number: int) -> bool:
        """True if an attempt has neither ended nor lost its process."""
        folder = self.attempt(number)
        return not (folder / "attempt.json").exists() and not Owner(**read_json(folder / "owner.json")).is_gone()

    def finish(self, number: int, state: str, cause: str | None = None, traceback: str | None = None) -> Row:
        """End an attempt: its own `attempt.json`, and the run's `status.json`."""
        if state not in STATES:
            raise ValueError(f"state={state!r}: choose from {', '.join(STATES)}")
        ended = {
            **self.status(),
            "state": state,
            "attempt": number,
            "cause": cause,
            "traceback": traceback,
            "ended": time.time(),
        }
        self.write_status(ended)  # first: once the attempt has ended, others may claim the run
        write_json(self.attempt(number) / "attempt.json", ended)
        return ended


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


def shared_artifact(folder: Path, build: Any, poll_seconds: float = 0.1) -> Path:
    """The artefact `folder`, built once by whoever comes first; others wait for it.

    `build(temporary_folder)` fills a folder that is then renamed into place. The builder is marked by an exclusively
    created claim folder; if its process ends without a result, another takes over. Two builders at once do no harm:
    the first rename wins.
    """
    claim = folder.with_name(f"{folder.name}.claim")
    folder.parent.mkdir(parents=True, exist_ok=True)
    while not folder.is_dir():
        if not _create_exclusively(claim, "owner.json", Owner.me()._asdict()):
            owner = read_json(claim / "owner.json")
            if owner is not None and Owner(**owner).is_gone():
                shutil.rmtree(claim, ignore_errors=True)
            else:
                time.sleep(poll_seconds)
            continue
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            if not folder.is_dir():  # it may have been finished between the look and the claim
                build(temporary)
                os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(claim, ignore_errors=True)
    return folder


def _create_exclusively(folder: Path, name: str, content: Any) -> bool:
    """Create `folder` with one JSON file in it, at once; False if it exists.

    A folder cannot be renamed onto one that is not empty, so the rename is both the test and the creation.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    os.chmod(temporary, 0o755)
    write_json(temporary / name, content)
    try:
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
