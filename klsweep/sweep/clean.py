"""What of a sweep folder nobody needs any more."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from klsweep.errors import BadInput
from klsweep.record.files import read_json, size_of
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.sweep.status import Observed, observe
from klsweep.sweep.submissions import placed, queued


class Rubbish(NamedTuple):
    """A file or folder, its size in bytes, and why it is not needed."""

    path: Path
    bytes: int
    reason: str


def rubbish(sweep: SweepFolder) -> list[Rubbish]:
    """Files on which no result, no unfinished run and no job in the queue depends. BadInput if SLURM does not answer.

    To be called while no launcher is at work: hold the turn at `sweep.submissions`.

    Records, final weights and milestones are never among them.
    """
    observed, trouble = observe(sweep, [row["run_id"] for row in sweep.plan()])
    if trouble is not None:
        raise BadInput(f"SLURM does not answer, so what jobs still need is unknown ({trouble})")
    found = [
        *(entry for run_id, seen in observed.items() for entry in _of_run(sweep.run(run_id), seen)),
        *_of_submissions(sweep, observed),
    ]
    if not any(seen.is_active for seen in observed.values()):
        found += [(path, "left by a process that was killed") for path in sweep.artifacts.glob(".*")]
    return [Rubbish(path, size_of(path), reason) for path, reason in found]


def remove(found: list[Rubbish]) -> None:
    """Delete them."""
    for entry in found:
        shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)


def _of_run(folder: RunFolder, seen: Observed) -> Iterator[tuple[Path, str]]:
    if seen.is_active:
        return
    left = {path for path in folder.path.glob("**/.*") if _is_ours(path)}
    yield from ((path, "left by a process that was killed") for path in sorted(left) if not left & {*path.parents})
    if seen.status["state"] in FINISHED:
        *earlier, _ = sorted(folder.checkpoints.glob("update-*")) or [folder.checkpoints]
        yield from ((path, "a checkpoint before the last") for path in earlier)
        yield from ((path, "only a run that goes on needs it") for path in folder.checkpoints.glob("rollout-*"))


def _is_ours(path: Path) -> bool:
    """Temporary names of ours: .writing.* in checkpoints, .<name>.* of files that were being replaced."""
    return "wandb" not in path.parts and path.name.count(".") > 1


def _of_submissions(sweep: SweepFolder, observed: dict[str, Observed]) -> Iterator[tuple[Path, str]]:
    """Code copies and pickled tasks that no job in the queue will read again."""
    needed = {Path(read_json(file)["code"]).name for file in sweep.path.glob("doctor/*/code.json")}
    waiting = {name.split("_")[0] for name in queued(sweep, {place.job for place in placed(sweep)})}
    for file in sweep.submissions.path.glob("*/chunk-*.json"):
        chunk, job = read_json(file), read_json(file.with_suffix(".job"))
        runs = [observed[run] for task in chunk["tasks"] for run in task if run in observed]
        if (job is None and any(seen.is_active for seen in runs)) or (job is not None and job["job"] in waiting):
            needed.add(Path(chunk["code"]).name)
        elif job is not None:
            yield from ((path, "its job is over") for path in file.parent.glob(f"logs/{job['job']}_*.pkl"))
    codes = [path for path in sweep.code.glob("*") if path.name not in (*needed, "claims")]
    yield from ((path, "no job in the queue runs it") for path in codes)
