"""Sweeps as training leaves them, written in milliseconds through the same record."""

from dataclasses import dataclass
from pathlib import Path

from klsweep.record.files import Row, append_rows, write_json, write_text
from klsweep.record.folder import Attempt, RunFolder, SweepFolder

AXES = {"model": "tiny", "estimator": "k1", "placement": "reward", "clip": "none", "sampling": "on_policy"}
CONFIG = "wandb:\n  mode: offline\n  project: klsweep\n  entity: null\n"


def figures(seed: int, update: int) -> Row:
    """A row of metrics: the reward is 1/3 plus a bit per update and seed, a number of many digits.

    Update 10 has a figure that no other row has.
    """
    row = {"update": update, "reward/mean": 1 / 3 + update / 7 + seed, "lr": 0.0005}
    if update == 10:
        row["probe/entropy"] = 3.25
    return {"update": 0, "eval/add/pass@1": 0.25, "eval/sort/pass@1": 0.5} if update == 0 else row


@dataclass
class Work:
    """An attempt at a run, going on."""

    attempt: Attempt
    seed: int

    @property
    def folder(self) -> RunFolder:
        return self.attempt.folder

    def update(self, first: int, last: int, **more: float | None) -> "Work":
        """Record these updates, each of 2 seconds."""
        rows = [{**figures(self.seed, update), **more} for update in range(first, last + 1)]
        append_rows(self.folder.metrics, rows)
        append_rows(self.folder.timing, [{"update": row["update"], "seconds/total": 2.0} for row in rows])
        return self

    def end(self, state: str = "done", cause: str | None = None) -> None:
        self.attempt.finish(state, cause)


def planned(path: Path, seeds: int = 2, updates: int = 5, **more) -> SweepFolder:
    """A sweep of one cell per coefficient 0.1 and 0.4, none of its runs begun."""
    sweep = SweepFolder(path)
    rows = [
        {
            "run_id": f"r1-{cell}{seed}",
            "cell_id": f"c1-{cell}",
            "eval_id": "e1-00",
            "seed": seed,
            "updates": updates,
            "axes": AXES,
            "kl_coef": coef,
            "fields": {"train.lr": 0.0005, "train.updates": updates},
            "suites": {"add": "in", "sort": "out"},
            **more,
        }
        for cell, coef in (("a", 0.1), ("b", 0.4))
        for seed in range(seeds)
    ]
    sweep.extend_plan(rows)
    return sweep


def begin(sweep: SweepFolder, run_id: str, device: str = "cpu") -> Work:
    """Begin a run, or try it again."""
    folder = sweep.run(run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, CONFIG)
    write_json(folder.environment, {"device": device})
    attempt = folder.claim(science_hash="abc", node="node7", eval_id="e1-00")
    assert attempt is not None
    return Work(attempt, int(run_id[-1]))


def finished(path: Path, seeds: int = 2, updates: int = 5) -> SweepFolder:
    """A sweep of which every run is done."""
    sweep = planned(path, seeds, updates)
    for row in sweep.plan():
        work = begin(sweep, row["run_id"]).update(0, updates - 1)
        work.update(updates, updates, **{"eval/add/pass@1": 0.7, "eval/sort/pass@1": 0.4}).end()
    return sweep
