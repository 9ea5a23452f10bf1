"""Records written by hand, as training writes them."""

from klsweep.record.files import append_rows, read_rows
from klsweep.record.folder import RunFolder, SweepFolder


def plan_row(cell: str, seed: int, **axes) -> dict:
    labels = {"model": "tiny", "estimator": "k1", "placement": "loss", "clip": "none", "sampling": "on_policy"}
    return {
        "run_id": f"{cell}-{seed}",
        "cell_id": cell,
        "eval_id": "e1",
        "seed": seed,
        "updates": 9,
        "axes": {**labels, **axes},
        "kl_coef": 0.1,
        "fields": {},
        "suites": {"add": "in", "sort": "out", "max": "out"},
    }


def write_run(
    sweep: SweepFolder,
    row: dict,
    state: str,
    add: float | None,
    science: str = "s1",
    cause: str | None = None,
    engine: str | None = None,
    **figures: float,
) -> None:
    """A run with base accuracies (add .4, sort .5, max .3) and the final ones given."""
    sweep.extend_plan([row])
    folder = sweep.run(row["run_id"])
    folder.path.mkdir(parents=True)
    append_rows(
        folder.metrics,
        [{"update": 0, "eval/add/pass@1": 0.4, "eval/sort/pass@1": 0.5, "eval/max/pass@1": 0.3, "eval/add/kl": 0.0}],
    )
    append_rows(folder.metrics, [{"update": u, "reward/mean": 0.1 * u} for u in range(1, 9)])
    last = {"update": 9, "reward/mean": 0.9}
    if add is not None:
        values = {"sort": 0.6, "max": 0.2, **figures}
        last |= {"eval/add/pass@1": add, "eval/add/kl": 1.5}
        last |= {f"eval/{suite}/pass@1": value for suite, value in values.items()}
    append_rows(folder.metrics, [last])
    made = {"science_hash": science, "eval_id": row["eval_id"], **({"engine": engine} if engine else {})}
    attempt = folder.claim(**made)
    assert attempt is not None
    if state != "running":
        attempt.finish(state, cause)


def write_items(
    folder: RunFolder, suite: str, update: int, correct: list[int], prompts: list[str] | None = None
) -> None:
    """An evaluation's items, four samples each, with prompt hashes p0, p1, … unless given."""
    folder.evaluations.mkdir(exist_ok=True)
    rows = [
        {
            "update": update,
            "item": i,
            "prompt_hash": f"p{i}" if prompts is None else prompts[i],
            "samples": 4,
            "correct": c,
            "greedy_correct": c > 1,
            "kl": 0.5,
            "entropy": 1.0,
        }
        for i, c in enumerate(correct)
    ]
    append_rows(folder.evaluations / f"{suite}.jsonl", rows)


def write_series(folder: RunFolder, figures: dict[str, list[float]]) -> None:
    """Learning curves in place of a run's updates; its last row, with the evaluation, comes after them as planned."""
    base, *_, last = read_rows(folder.metrics)
    curves = [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]
    rows = [{"update": update, **row} for update, row in enumerate(curves, 1)]
    folder.metrics.unlink()
    append_rows(folder.metrics, [base, *rows, {**last, "update": max(len(rows) + 1, last["update"])}])
