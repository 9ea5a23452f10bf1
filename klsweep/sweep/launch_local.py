"""The local launcher: worker processes that are reused from run to run, so that imports are paid once."""

import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from pydantic import PositiveInt

from klsweep.component import component
from klsweep.record import Row, RunFolder


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


@dataclass
class _Worker:
    process: Any
    connection: Connection
    folder: RunFolder | None = None


OnUpdate = Callable[[RunFolder, int, Row], None]
OnEnd = Callable[[RunFolder, Row], None]


def launch(launcher: Local, folders: Sequence[RunFolder], on_update: OnUpdate, on_end: OnEnd) -> None:
    """Execute every run; one that fails, or whose worker dies, takes no other with it.

    On SIGINT or SIGTERM the workers checkpoint and end their runs as preempted, and KeyboardInterrupt is raised. Must
    be called from the main thread.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    queue = deque(folders)
    workers = [_start(launcher) for _ in range(min(launcher.workers, len(queue)))]
    try:
        for worker in workers:
            _give(worker, queue)
        while workers:
            sources = {w.connection: w for w in workers}
            for ready in wait(list(sources)):
                worker = sources[ready]  # pyright: ignore[reportArgumentType]
                try:
                    kind, *content = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    workers.remove(worker)
                    if (folder := _bury(worker)) is not None:
                        on_end(folder, folder.status())
                    if queue:
                        workers.append(_start(launcher))
                        _give(workers[-1], queue)
                    continue
                assert worker.folder is not None
                if kind == "update":
                    on_update(worker.folder, *content)
                else:
                    on_end(worker.folder, *content)
                    _give(worker, queue)
    finally:  # on an interrupt, workers are still busy, or waiting for a run that will not come
        for worker in workers:
            worker.process.terminate()
            worker.connection.close()
        for worker in workers:
            worker.process.join()
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _start(launcher: Local) -> _Worker:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_work, args=(theirs, launcher.threads_per_worker), daemon=False)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, queue: deque[RunFolder]) -> None:
    """Hand out the next run, or the end: the worker then leaves and its connection closes."""
    worker.folder = queue.popleft() if queue else None
    try:
        worker.connection.send(worker.folder)
    except BrokenPipeError:
        if worker.folder is not None:
            queue.appendleft(worker.folder)
            worker.folder = None


def _bury(worker: _Worker) -> RunFolder | None:
    """Write down the end of a run whose worker died in it; None if it had none."""
    worker.process.join()
    folder, code = worker.folder, worker.process.exitcode
    if folder is None:
        return None
    status = folder.status()
    if status["state"] == "failed" and str(status.get("cause", "")).startswith("vanished"):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        folder.finish(status["attempt"], "failed", f"vanished: the worker process ended with {how}")
    return folder


def _work(connection: Connection, threads: int) -> None:
    """A worker: runs what it is given until it is given nothing. SIGTERM and SIGINT checkpoint and end the run."""
    os.environ.update(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    import torch

    from klsweep.sweep.job import execute
    from klsweep.tracking import flush

    torch.set_num_threads(threads)

    def report(kind: str, *content: Any) -> None:
        try:
            connection.send((kind, *content))
        except BrokenPipeError:  # the launcher is gone: nobody will hand out another run
            stop()

    while not stopping and (folder := _next(connection)) is not None:
        status = execute(folder, lambda: stopping, lambda update, row: report("update", update, row))
        report("ended", status)
    flush()


def _next(connection: Connection) -> RunFolder | None:
    """The run that the launcher hands out, None at the end or when the launcher is gone."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None
