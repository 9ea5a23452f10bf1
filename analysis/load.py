"""What the records of a sweep hold, one `RunResult` per planned run."""

import math
from dataclasses import dataclass

from klsweep.record.files import Row, read_rows
from klsweep.record.folder import FINISHED, SweepFolder
from klsweep.record.rollouts import verifier_errors

LAST_UPDATES = 5  # training figures are means over a run's last updates: one update is noise


@dataclass(frozen=True)
class RunResult:
    """A planned run and what its record says of it so far."""

    plan: Row
    status: Row
    base: Row | None  # metrics row of update 0: the base's evaluation
    last: list[Row]  # metrics rows of the last updates
    final_eval: Row | None  # the last row with an evaluation, once the run is finished
    verifier_errors: int  # responses that could not be graded, and count as wrong

    @property
    def finished(self) -> bool:
        return self.status["state"] in FINISHED

    def evaluation(self, suite: str, metric: str) -> float | None:
        """A figure of the final evaluation, None before it or where it is not finite."""
        return _number(self.final_eval, f"eval/{suite}/{metric}")

    def base_evaluation(self, suite: str, metric: str) -> float | None:
        """The same of the base."""
        return _number(self.base, f"eval/{suite}/{metric}")

    def training(self, metric: str) -> float | None:
        """Mean of a training figure over the last updates, for finished runs."""
        values = [v for row in self.last if (v := _number(row, metric)) is not None]
        return math.fsum(values) / len(values) if values and self.finished else None


def _number(row: Row | None, key: str) -> float | None:
    value = None if row is None else row.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


def load_runs(sweep: SweepFolder) -> list[RunResult]:
    """Every planned run, in the order of the plan."""
    return [_load(sweep, row) for row in sweep.plan()]


def _load(sweep: SweepFolder, plan: Row) -> RunResult:
    folder = sweep.run(plan["run_id"])
    status = folder.status()
    rows = [] if status["state"] == "pending" else list(read_rows(folder.metrics))
    base = rows[0] if rows and rows[0]["update"] == 0 else None
    updates = [row for row in rows if row["update"] > 0]
    finished = status["state"] in FINISHED
    # an earlier evaluation is not the final one: a run can diverge long after it
    evaluated = updates[-1] if updates and any(key.startswith("eval/") for key in updates[-1]) else None
    return RunResult(
        plan, status, base, updates[-LAST_UPDATES:], evaluated if finished else None, verifier_errors(folder)[0]
    )
