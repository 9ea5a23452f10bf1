"""What runs inside a SLURM job: some runs of a sweep, and the one place that talks back to SLURM. No torch.

USR1 or USR2, the warning before the time limit: the runs at work checkpoint at their next update, and the task, not
its array, goes back into the queue. SIGTERM: they checkpoint and the job exits; SLURM alone decides whether it returns,
for scancel and `scontrol requeue` send the same signal.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klsweep.record.files import Row
from klsweep.record.folder import FINISHED, Job, RunFolder, SweepFolder
from klsweep.sweep import cluster
from klsweep.sweep.budget import Budget
from klsweep.sweep.pool import Pool
from klsweep.sweep.ranks import SIGNALS, serve

REQUEUE_TRIES = 5
MARGIN_SECONDS = 15.0  # of the time between the warning and the limit, left for what comes after the checkpoint


@dataclass(frozen=True)
class Task:
    """The function that submitit calls in a job. Exits with 1 if a run did not end well, so that SLURM says FAILED."""

    sweep: str
    runs: tuple[str, ...]
    concurrent: int
    threads: int | None
    grace_seconds: float  # from a signal to the killing of workers that are still busy
    budget: Budget

    def __call__(self) -> None:
        sys.exit(self._work())

    def _work(self) -> int:
        job = this_job()
        sweep = SweepFolder(Path(self.sweep))
        folders = [sweep.run(run_id) for run_id in self.runs]
        print(f"job {job.id}, start {job.restart}: {len(folders)} runs of {sweep.path}", flush=True)
        if (node := int(os.environ.get("SLURM_NODEID", 0))) > 0:
            return self._assist(folders, job, node)
        with Pool(
            workers=self.concurrent,
            threads=self._threads(),
            on_update=lambda *_: None,
            on_end=_say,
            job=job,
            gpus=_shares(os.environ.get("CUDA_VISIBLE_DEVICES", ""), self.concurrent),
            grace_seconds=self.grace_seconds,
        ) as pool:
            waiting = folders
            while waiting := self._due(waiting, job):
                pool.run(waiting)
                if pool.stopped is not None:
                    self._leave(pool.stopped, job, folders)
                    break
                waiting = [folder for folder in waiting if folder.status()["state"] == "failed"]
        return 0 if all(folder.status()["state"] in FINISHED for folder in folders) else 1

    def _assist(self, folders: list[RunFolder], job: Job, node: int) -> int:
        """On a job's other nodes: serve its leader, the first node's task, until nothing is left to do or a signal.

        What is to be done about a signal the leader decides, who gets it, too; ranks at work leave with it.
        """
        stopped: list[int] = []
        for number in SIGNALS:
            signal.signal(number, lambda number, _: stopped.append(number))

        def is_over() -> bool:
            states = [(folder, folder.status()["state"]) for folder in folders]
            left = [folder for folder, state in states if state not in (*FINISHED, "cancelled")]
            return bool(stopped) or all(self.budget.spent(folder) for folder in left)

        serve(folders, job, node, is_over)
        return 0

    def _due(self, folders: list[RunFolder], job: Job) -> list[RunFolder]:
        """The runs that are neither finished nor cancelled nor given up."""
        left = [folder for folder in folders if folder.status()["state"] not in (*FINISHED, "cancelled")]
        return [folder for folder in left if not self.budget.give_up(folder, job)]

    def _leave(self, reason: str, job: Job, folders: list[RunFolder]) -> None:
        """Stopped by a signal: back into the queue if that was the warning and there is something left to do."""
        if reason == "timeout" and self._due(folders, job):
            for pause in range(1, REQUEUE_TRIES + 1):
                try:
                    cluster.requeue(job.id)
                    print(f"job {job.id} is back in the queue", flush=True)
                    break
                except cluster.NoAnswer as error:
                    print(error, file=sys.stderr, flush=True)
                    time.sleep(pause)

    def _threads(self) -> int:
        """Torch threads of each worker: the CPUs of the task divided among them, unless given."""
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0))
        return self.threads or max(1, cpus // self.concurrent)


def this_job() -> Job:
    """The job this process runs in. KeyError outside of SLURM."""
    import submitit

    environment = submitit.JobEnvironment()
    return Job(environment.job_id, int(os.environ.get("SLURM_RESTART_COUNT", 0)), environment.num_nodes)


def _shares(devices: str, workers: int) -> list[str]:
    """The job's GPUs divided among workers; with fewer GPUs than workers, several share one."""
    names = [name for name in devices.split(",") if name]
    size = max(1, len(names) // workers)
    return [",".join(names[i : i + size]) for i in range(0, len(names) - size + 1, size)]


def _say(folder: RunFolder, status: Row, *_: Any) -> None:
    print(f"{folder.run_id}: {status['state']} {status.get('cause') or ''}", flush=True)
