"""What has been submitted to SLURM, from the sweep folder: which run went into which job of which cluster."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.record.files import read_json
from klsweep.record.folder import FINISHED, SweepFolder
from klsweep.sweep import cluster


def mark(sweep: SweepFolder) -> str:
    """What the comments of this sweep's jobs begin with: job ids alone may come again on another cluster."""
    return f"klsweep:{hashlib.sha256(str(sweep.path.resolve()).encode()).hexdigest()[:12]}:"


class Placed(NamedTuple):
    """A run's place in a job, or task of an array; `after` is the number of attempts it had when it was submitted."""

    run_id: str
    job: str
    after: int


def placed(sweep: SweepFolder) -> list[Placed]:
    """Every place that was ever submitted, in order. NoAnswer if SLURM has to be asked and does not answer: a launcher
    that was killed in between may have submitted what it had no time to write down."""
    found: list[Placed] = []
    unsure: list[dict[str, Any]] = []
    for number in range(1, sweep.submissions.latest() + 1):
        folder = sweep.submissions.folder(number)
        for file in sorted(folder.glob("chunk-*.json"), key=lambda f: int(f.stem.partition("-")[2])):
            chunk, job = read_json(file), read_json(file.with_suffix(".job"))
            if job is not None:
                found += _places(chunk, job["job"])
            elif _is_open(sweep, chunk):
                unsure.append(chunk)
    if unsure:
        in_queue = {job.comment: name.split("_")[0] for name, job in cluster.queue().items()}
        for chunk in unsure:
            found += _places(chunk, in_queue[chunk["comment"]]) if chunk["comment"] in in_queue else []
    return found


def submitted(sweep: SweepFolder) -> dict[str, Placed]:
    """The last place of each run that was ever submitted."""
    return {place.run_id: place for place in placed(sweep)}


def queued(sweep: SweepFolder, jobs: Collection[str]) -> dict[str, cluster.QueuedJob]:
    """Which of these jobs are in the queue, and are this sweep's: an id may come again on another cluster."""
    return {name: job for name, job in cluster.queue(jobs).items() if job.comment.startswith(mark(sweep))}


def clusters(sweep: SweepFolder) -> set[str]:
    """Names of the clusters that the sweep's jobs were submitted to."""
    return {read_json(file)["cluster"] for file in sweep.submissions.path.glob("*/chunk-*.json")}


def _is_open(sweep: SweepFolder, chunk: Mapping[str, Any]) -> bool:
    """True if a run of the chunk is not finished."""
    return any(sweep.run(run).status()["state"] not in FINISHED for task in chunk["tasks"] for run in task)


def _places(chunk: Mapping[str, Any], job: str) -> list[Placed]:
    """The places of a chunk's runs; an array of one is a plain job."""
    names = [f"{job}_{i}" if len(chunk["tasks"]) > 1 else job for i in range(len(chunk["tasks"]))]
    pairs = [(run, name) for name, task in zip(names, chunk["tasks"], strict=True) for run in task]
    return [Placed(run, name, chunk["after"][run]) for run, name in pairs]


def log_file(sweep: SweepFolder, job: str, stream: str) -> Path | None:
    """What a job wrote outside of any run: `stream` is out or err."""
    files = sorted(sweep.submissions.path.glob(f"*/logs/{job}_0_log.{stream}"))
    return files[-1] if files else None
