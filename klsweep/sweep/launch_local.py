"""The local launcher: worker processes on this machine."""

from collections.abc import Sequence

from klsweep.record.folder import RunFolder
from klsweep.sweep.pool import OnEnd, OnUpdate, Pool
from klsweep.sweep.resources import Local


def launch(launcher: Local, folders: Sequence[RunFolder], on_update: OnUpdate, on_end: OnEnd) -> None:
    """Execute every run. On SIGINT or SIGTERM the workers checkpoint and KeyboardInterrupt is raised."""
    with Pool(launcher.workers, launcher.threads_per_worker, on_update, on_end) as pool:
        pool.run(folders)
    if pool.stopped:
        raise KeyboardInterrupt
