"""Who may do what: numbered turns, taken by exclusive creation alone. No file locks, no clocks of two hosts compared.

A turn's number is the token that fences: a holder looks before every write whether a later turn exists or its own has
been ended by another, and leaves without writing if so. Nothing is ever deleted to take a turn over, so two who try at
once cannot take each other's.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.record.files import Row, create_folder, create_json, make_readable, read_json, write_json

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 60.0  # without a heartbeat of the holder, by the clock of the one who waits


class Owner(NamedTuple):
    """A process. `started` tells it from a later process with the same id, `space` its host from one of equal name."""

    host: str
    space: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> "Owner":
        return cls(socket.gethostname(), _space(), os.getpid(), _process_start(os.getpid()) or "")

    def is_here(self) -> bool:
        """True if its process ids can be looked up from this process."""
        return (self.host, self.space) == (socket.gethostname(), _space())

    def is_gone(self) -> bool:
        """True if it ran here and has ended. Of a process elsewhere nobody can tell: False."""
        return self.is_here() and not (self.started == _process_start(self.pid) or _is_hidden(self.pid))


def _space() -> str:
    """What process ids here refer to: the machine's boot and the pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat), None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _is_hidden(pid: int) -> bool:
    """True for a living process of another user, which /proc may be mounted not to show."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except (ProcessLookupError, OverflowError):
        return False
    return False


@dataclass(frozen=True)
class Turns:
    """Turns 1, 2, … at something that one process may do: `path`/<n>/claim.json, over once the `ending` file exists."""

    path: Path
    ending: str = "end.json"

    def folder(self, number: int) -> Path:
        return self.path / str(number)

    def heartbeat(self, number: int) -> Path:
        return self.folder(number) / "heartbeat"

    def latest(self) -> int:
        """Number of the latest turn, 0 if nobody has had one."""
        try:
            return max((int(name) for name in os.listdir(self.path) if name.isdigit()), default=0)
        except FileNotFoundError:
            return 0

    def claim(self, number: int) -> Row:
        """Who took the turn, and what the holder noted; empty if the file is damaged."""
        try:
            return read_json(self.folder(number) / "claim.json") or {}
        except ValueError:
            return {}

    def end_of(self, number: int) -> Row | None:
        """How the turn ended; None if it goes on."""
        try:
            return read_json(self.folder(number) / self.ending)
        except ValueError:
            return {"state": "failed", "cause": f"{self.path.name}/{number}/{self.ending} is damaged"}

    def is_over(self, number: int) -> bool:
        """True if the turn has ended, or its process has, as far as can be seen from here."""
        owner = self.claim(number).get("owner")
        return self.end_of(number) is not None or (owner is not None and Owner(**owner).is_gone())

    def is_held_here(self, number: int) -> bool:
        """True if the turn's process lives on this machine."""
        owner = self.claim(number).get("owner")
        return owner is not None and Owner(**owner).is_here() and not self.is_over(number)

    def take(self, number: int, facts: Mapping[str, Any]) -> bool:
        """Create turn `number`; False if another was faster."""
        claim = {"owner": Owner.me()._asdict(), "time": time.time(), **facts}
        return create_folder(self.folder(number), "claim.json", claim)

    def note(self, number: int, facts: Mapping[str, Any]) -> None:
        """Add facts to the holder's own claim."""
        write_json(self.folder(number) / "claim.json", {**self.claim(number), **facts})

    def end(self, number: int, content: Mapping[str, Any]) -> bool:
        """End a turn; False if it has been ended already. Its holder may be the one, or who knows that it is dead."""
        return create_json(self.folder(number) / self.ending, content)

    def holds(self, number: int) -> bool:
        """True if nobody has ended turn `number` or taken the next."""
        return not (self.folder(number) / self.ending).exists() and not self.folder(number + 1).exists()


@contextmanager
def beating(file: Path) -> Iterator[None]:
    """Touch a file every few seconds for as long as this process lives and the block lasts."""
    stop = threading.Event()

    def beat() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk is found by those who write something
                file.touch()

    with contextlib.suppress(OSError):
        file.touch()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def wait_for_turn(turns: Turns, is_needless: Callable[[], bool], poll_seconds: float) -> int | None:
    """Take the next turn once the latest is over; None as soon as `is_needless`.

    A holder elsewhere whose heartbeat file stays as it is for PATIENCE_SECONDS of our own clock is passed over; should
    it live after all, it finds that it no longer `holds` its turn.
    """
    watched, since = (0, 0.0), 0.0
    while not is_needless():
        number = turns.latest()
        seen = (number, _modified(turns.heartbeat(number)))
        if seen != watched:
            watched, since = seen, time.monotonic()
        silent = time.monotonic() - since > PATIENCE_SECONDS and not turns.is_held_here(number)
        if number and not silent and not turns.is_over(number):
            time.sleep(poll_seconds)
        elif turns.take(number + 1, {}):
            return number + 1
    return None


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def shared_artifact(
    folder: Path, build: Callable[[Path], None], poll_seconds: float = 0.1, check: Callable[[], None] = lambda: None
) -> Path:
    """The artefact `folder`, built once by whoever comes first; others wait for it.

    `build(temporary_folder)` fills a folder that is then renamed into place. If the builder dies, another takes over.
    Should the first have lived after all, no harm is done: the first rename wins. `check` is called while waiting, and
    may raise.
    """

    def is_there() -> bool:
        check()
        return folder.is_dir()

    turns = Turns(folder.parent / "claims" / folder.name)
    number = wait_for_turn(turns, is_there, poll_seconds)
    if number is None:
        return folder
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with beating(turns.heartbeat(number)):
            if not folder.is_dir():  # it may have been finished between the look and the claim
                build(temporary)
                make_readable(temporary)
                os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            turns.end(number, {"built": folder.is_dir()})
    return folder
