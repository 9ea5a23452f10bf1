"""What has been submitted to SLURM, from the sweep folder: which run went into which job of which cluster."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klsweep.record.files import read_json
from klsweep.record.folder import FINISHED, SweepFolder
from klsweep.sweep import cluster


def mark(sweep: SweepFolder) -> str:
    """What the comments of this sweep's jobs begin with: job ids alone may come again on another cluster."""
    return f"klsweep:{hashlib.sha256(str(sweep.path.resolve()).encode()).hexdigest()[:12]}:"


def submitted(sweep: SweepFolder) -> dict[str, str]:
    """The job, or task of an array, that each run was last submitted with. NoAnswer if SLURM has to be asked and does
    not answer: a launcher that was killed in between may have submitted what it had no time to write down."""
    found = {}
    unsure: list[dict[str, Any]] = []
    for number in range(1, sweep.submissions.latest() + 1):
        folder = sweep.submissions.folder(number)
        for file in sorted(folder.glob("chunk-*.json"), key=lambda f: int(f.stem.partition("-")[2])):
            chunk = read_json(file)
            job = read_json(file.with_suffix(".job"))
            if job is None:
                unsure += [chunk] if _is_open(sweep, chunk) else []
            else:
                found |= _tasks(chunk, job["job"])
    if unsure:
        queued = {job.comment: name.split("_")[0] for name, job in cluster.queue().items()}
        for chunk in unsure:
            if chunk["comment"] in queued:
                found |= _tasks(chunk, queued[chunk["comment"]])
    return found


def clusters(sweep: SweepFolder) -> set[str]:
    """Names of the clusters that the sweep's jobs were submitted to."""
    return {read_json(file)["cluster"] for file in sweep.submissions.path.glob("*/chunk-*.json")}


def _is_open(sweep: SweepFolder, chunk: Mapping[str, Any]) -> bool:
    """True if a run of the chunk is not finished."""
    return any(sweep.run(run).status()["state"] not in FINISHED for task in chunk["tasks"] for run in task)


def _tasks(chunk: Mapping[str, Any], job: str) -> dict[str, str]:
    """Job or array task of each run of a chunk; an array of one is a plain job."""
    tasks = chunk["tasks"]
    return {run: f"{job}_{i}" if len(tasks) > 1 else job for i, task in enumerate(tasks) for run in task}


def log_file(sweep: SweepFolder, job: str, stream: str) -> Path | None:
    """What a job wrote outside of any run: `stream` is out or err."""
    files = sorted(sweep.submissions.path.glob(f"*/logs/{job}_0_log.{stream}"))
    return files[-1] if files else None
