"""What it costs that a run can be killed at any time, and is only ever held by one process."""

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contestants.ours import claimed, composed
from benchmarks.frame import Row
from klsweep.record.files import read_rows
from klsweep.record.folder import Attempt
from klsweep.tracking import Tracker
from klsweep.training.loop import train


def rows(folder: Path) -> Iterator[Row]:
    """Shares of an update of the shipped model, 32 prompts × 8 responses."""
    spec, attempt = composed(["train.checkpoint_seconds=0", "train.updates=40"]), claimed(folder)
    looks, look = [], Attempt.check

    def timed(self: Attempt) -> None:
        start = time.perf_counter()
        look(self)
        looks.append(time.perf_counter() - start)

    Attempt.check = timed
    try:
        train(spec, attempt, folder / "artifacts", Tracker(None), lambda: None, lambda *_: None)
    finally:
        Attempt.check = look
    timing = list(read_rows(attempt.folder.timing))
    total = sum(row["seconds/total"] - row.get("seconds/eval", 0) for row in timing)
    checkpoints = sum(row["seconds/checkpoint"] for row in timing)
    yield Row("a checkpoint after every update (0.2 M parameters, with fsync)", f"{checkpoints / total:.3f}")
    yield Row("looking whether the run is still ours", f"{sum(looks) / total:.4f}")
