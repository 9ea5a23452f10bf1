"""The local launcher: worker processes on this machine."""

import os
from collections.abc import Sequence

from pydantic import PositiveInt

from klsweep.component import component
from klsweep.record.folder import RunFolder
from klsweep.sweep.pool import OnEnd, OnUpdate, Pool


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


def launch(launcher: Local, folders: Sequence[RunFolder], on_update: OnUpdate, on_end: OnEnd) -> None:
    """Execute every run. On SIGINT or SIGTERM the workers checkpoint and KeyboardInterrupt is raised."""
    with Pool(launcher.workers, launcher.threads_per_worker, on_update, on_end) as pool:
        pool.run(folders)
    if pool.stopped:
        raise KeyboardInterrupt
