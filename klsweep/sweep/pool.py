"""Worker processes that are reused from run to run: imports and the base model are paid once, and a crash takes down
one run, never its neighbours.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from klsweep.record.files import Row
from klsweep.record.folder import Job, RunFolder

OnUpdate = Callable[[RunFolder, int, Row], None]
OnEnd = Callable[[RunFolder, Row], None]
# What a signal means: SLURM (or a person) wants the process gone, or the time limit is near.
REASONS = {
    signal.SIGINT: "preempted",
    signal.SIGTERM: "preempted",
    signal.SIGHUP: "preempted",
    signal.SIGUSR1: "timeout",
    signal.SIGUSR2: "timeout",
}
POLL_SECONDS = 0.5


@dataclass
class _Worker:
    process: Any
    connection: Connection
    folder: RunFolder | None = None
    reported: bool = False

    def holds(self) -> bool:
        """True if the latest attempt at the run that it was given is its own."""
        if self.folder is None:
            return False
        turns = self.folder.attempts
        return turns.claim(turns.latest()).get("owner", {}).get("pid") == self.process.pid

    def end(self) -> str:
        """How its process ended."""
        code = self.process.exitcode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Pool:
    """`workers` processes of `threads` torch threads each that execute runs. A context manager for the main thread.

    After SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2, `stopped` says why (preempted or timeout): no further run begins,
    and those at work checkpoint at their next update and end with that state. A worker still busy `grace_seconds`
    later, or at a second SIGINT, is killed, and its run ended as what it was stopped for.
    """

    def __init__(
        self,
        workers: int,
        threads: int,
        on_update: OnUpdate,
        on_end: OnEnd,
        job: Job | None = None,
        gpus: Sequence[str] = (),
        grace_seconds: float | None = None,
    ) -> None:
        self.stopped: str | None = None
        self._workers: list[_Worker] = []
        self._size, self._threads, self._job, self._gpus = workers, threads, job, gpus
        self._on_update, self._on_end = on_update, on_end
        self._grace, self._deadline = grace_seconds, float("inf")
        self._oom = _OomCounter()
        self._stillborn = 0  # workers in a row that ended before they had begun a run

    def __enter__(self) -> "Pool":
        self._handlers = {number: signal.signal(number, self._stop) for number in _heeded()}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, folders: Sequence[RunFolder]) -> None:
        """Execute every run; one that fails, or whose worker dies, takes no other with it.

        OSError if worker after worker ends before it begins a run: something is wrong here, and not with the runs.
        """
        queue = deque(folders)
        try:
            for place in range(min(self._size, len(queue))):
                self._start(place)
                self._give(self._workers[place], queue)
            while self._workers:
                self._step(queue)
        finally:  # on an error of ours, workers are still busy, or waiting for a run that will not come
            for worker in self._workers:
                worker.process.terminate()
                worker.connection.close()
            for worker in self._workers:
                worker.process.join()

    def _step(self, queue: deque[RunFolder]) -> None:
        """Handle what workers report, and the end of those that have left or died."""
        sources = {worker.connection: worker for worker in self._workers}
        for ready in wait(list(sources), timeout=POLL_SECONDS):
            worker = sources[ready]  # pyright: ignore[reportArgumentType]
            try:
                kind, *content = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._bury(worker, queue)
                continue
            assert worker.folder is not None
            worker.reported = True
            if kind == "update":
                self._on_update(worker.folder, *content)
            else:
                self._on_end(worker.folder, *content)
                self._give(worker, queue)
        if time.monotonic() > self._deadline:
            for worker in self._workers:
                worker.process.kill()

    def _stop(self, number: int, _: Any) -> None:
        if self.stopped is None:
            self.stopped = REASONS[signal.Signals(number)]
            self._deadline = time.monotonic() + self._grace if self._grace is not None else float("inf")
        elif number == signal.SIGINT:  # Ctrl-C a second time
            self._deadline = time.monotonic()
        for worker in self._workers:  # SLURM signals every process of a step, others only the first
            if worker.process.is_alive():
                os.kill(worker.process.pid, number)

    def _start(self, place: int) -> None:
        ours, theirs = get_context("spawn").Pipe()
        gpus = self._gpus[place % len(self._gpus)] if self._gpus and self._size > 1 else None
        arguments = (theirs, self._threads, self._job, gpus)
        process = get_context("spawn").Process(target=_work, args=arguments, daemon=False)
        with _blocked_signals():  # a worker has them blocked until its handlers are in place
            process.start()
            self._workers.insert(place, _Worker(process, ours))
        theirs.close()

    def _give(self, worker: _Worker, queue: deque[RunFolder]) -> None:
        """Hand out the next run, or the end: the worker then leaves and its connection closes."""
        worker.folder = queue.popleft() if queue and self.stopped is None else None
        try:
            worker.connection.send(worker.folder)
        except BrokenPipeError:
            if worker.folder is not None:
                queue.appendleft(worker.folder)
                worker.folder = None

    def _bury(self, worker: _Worker, queue: deque[RunFolder]) -> None:
        """Write down the end of a run whose worker died in it, and put another worker in its place."""
        worker.process.join()
        place = self._workers.index(worker)
        self._workers.remove(worker)
        if worker.folder is not None:
            self._on_end(worker.folder, self._ended(worker.folder, worker))
        if worker.reported or worker.holds():
            self._stillborn = 0
        elif worker.process.exitcode != 0 and self.stopped is None:
            self._stillborn += 1
        if self._stillborn > self._size:
            raise OSError(f"worker processes end with {worker.end()} before they begin a run; nothing is lost")
        if queue and self.stopped is None:
            self._start(place)
            self._give(self._workers[place], queue)

    def _ended(self, folder: RunFolder, worker: _Worker) -> Row:
        """The status of a run whose worker is dead, ended by us if the worker could not."""
        number = folder.attempts.latest()
        if not worker.holds():
            return {"cause": f"the worker process ended with {worker.end()} before it began", **folder.status()}
        if folder.attempts.end_of(number) is not None:
            return folder.status()
        state, cause = "failed", f"vanished: the worker process ended with {worker.end()}"
        if self.stopped is not None and time.monotonic() > self._deadline:
            state, cause = self.stopped, "killed: no update ended in time after the signal"
        elif worker.process.exitcode == -signal.SIGKILL and self._oom.rose():
            cause = "vanished: out of memory (the memory limit's cgroup killed the worker process)"
        try:
            if folder.end(number, state, cause):
                folder.write_status(folder.status())
        except OSError as error:  # a full disk; SLURM's exit code and log still tell
            return {**folder.recorded(), "state": state, "cause": f"{cause}; not on record: {error}"}
        return folder.status()


class _OomCounter:
    """How many processes the kernel has killed in this process's memory cgroup (version 1 or 2)."""

    def __init__(self) -> None:
        self._seen = self._read()

    def rose(self) -> bool:
        """True if the kernel has killed one since we last looked."""
        before, self._seen = self._seen, self._read()
        return self._seen > before

    @staticmethod
    def _read() -> int:
        total = 0
        try:
            lines = Path("/proc/self/cgroup").read_text().splitlines()
        except OSError:
            return 0
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            file = f"memory{path}/memory.oom_control" if controllers else f"{path.lstrip('/')}/memory.events"
            try:
                counts = dict(entry.split() for entry in Path("/sys/fs/cgroup", file).read_text().splitlines())
            except (OSError, ValueError):
                continue
            total += int(counts.get("oom_kill", 0))
        return total


def _heeded() -> list[signal.Signals]:
    """The signals to act upon: not a hang-up that `nohup` has us ignore."""
    return [n for n in REASONS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REASONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, threads: int, job: Job | None, gpus: str | None) -> None:
    """A worker: runs what it is given until it is given nothing, or is told by a signal to stop."""
    os.environ.update(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    reason: str | None = None

    def stop(number: int, _: Any) -> None:
        nonlocal reason
        reason = reason or REASONS[signal.Signals(number)]

    for number in _heeded():
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REASONS)

    from klsweep.sweep.job import execute
    from klsweep.tracking import flush

    def report(kind: str, *content: Any) -> None:
        try:
            connection.send((kind, *content))
        except BrokenPipeError:  # the launcher is gone: nobody will hand out another run
            stop(signal.SIGTERM, None)

    while reason is None and (folder := _next(connection)) is not None:
        status = execute(folder, lambda: reason, lambda update, row: report("update", update, row), threads, job)
        report("ended", status)
    flush()


def _next(connection: Connection) -> RunFolder | None:
    """The run that the launcher hands out, None at the end or when the launcher is gone."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None
