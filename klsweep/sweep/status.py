"""The state of every planned run, from the records alone."""

from collections import Counter
from typing import Any

from klsweep.record import Row, SweepFolder, read_rows


def sweep_status(sweep: SweepFolder) -> dict[str, Any]:
    """`counts` by state and a row per run: id, cell, seed, state, cause, attempt, update."""
    runs = [_run_row(sweep, planned) for planned in sweep.plan()]
    return {"sweep": str(sweep.path), "counts": dict(Counter(r["state"] for r in runs)), "runs": runs}


def _run_row(sweep: SweepFolder, planned: Row) -> Row:
    folder = sweep.run(planned["run_id"])
    status = folder.status()
    update = None
    if status["state"] != "pending":
        for row in read_rows(folder.timing):
            update = row["update"]
    return {
        "run_id": planned["run_id"],
        "cell_id": planned["cell_id"],
        "seed": planned["seed"],
        "axes": planned["axes"],
        "kl_coef": planned["kl_coef"],
        "fields": planned["fields"],
        "state": status["state"],
        "cause": status.get("cause"),
        "attempt": status["attempt"],
        "update": update,
        "updates": planned["updates"],
    }
