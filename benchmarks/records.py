"""How long a study of thousands of runs takes to be read, asked and compared. Its records are invented, not trained."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.frame import Row, command, seconds
from klsweep.analysis.collect import collect
from klsweep.analysis.query import connected
from klsweep.record.files import rows_text
from klsweep.record.folder import SweepFolder

RUNS, UPDATES, FIGURES, SEEDS, ITEMS = 2_000, 500, 30, 5, 100

QUERIES = {
    "mean of one figure for each run": 'SELECT run_id, avg("figure/3") FROM metrics GROUP BY ALL',
    "mean curves with spread, by estimator and β": (
        'SELECT estimator, kl_coef, update, avg("reward/mean"), stddev("reward/mean") '
        "FROM metrics JOIN runs USING (sweep, run_id) GROUP BY ALL"
    ),
    "mean of all figures": "SELECT avg(COLUMNS(* EXCLUDE (sweep, run_id))) FROM metrics",
    "the last row of every run": (
        "SELECT * FROM metrics QUALIFY row_number() OVER (PARTITION BY sweep, run_id ORDER BY update DESC) = 1"
    ),
    "accuracy of each item over runs": (
        "SELECT prompt_hash, avg(correct / samples) FROM items WHERE update > 0 GROUP BY ALL"
    ),
}


def rows(folder: Path) -> Iterator[Row]:
    """A study of 2,000 runs × 500 updates × 30 figures, and 100 items of two evaluations for each run."""
    sweep, cache = SweepFolder(folder / "study"), folder / "cache"
    cache.mkdir()
    invent(sweep, RUNS)
    size = sum(file.stat().st_size for file in sweep.path.rglob("*.jsonl")) / 2**20
    start = time.perf_counter()
    collect([sweep], cache)
    parquet = sum(file.stat().st_size for file in cache.iterdir()) / 2**20
    took = time.perf_counter() - start
    yield Row(f"collect {size:,.0f} MiB of records into Parquet (aim: under 60 s)", f"{took:.1f} s, {parquet:,.0f} MiB")
    low, median = seconds(lambda: collect([sweep], cache), 3)
    yield Row("collect again, nothing changed", f"{low:.2f} s min, {median:.2f} s median")
    with sweep.run(sweep.plan()[7]["run_id"]).metrics.open("a") as stream:
        stream.write(rows_text([{"update": UPDATES + 1, "reward/mean": 0.5}]))
    low, _ = seconds(lambda: collect([sweep], cache), 1)
    yield Row("collect again, one run has gone on", f"{low:.1f} s")
    collected = collect([sweep], cache)
    with connected(collected) as connection:
        for what, sql in QUERIES.items():
            low, median = seconds(lambda sql=sql: connection.execute(sql).fetchall(), 5)
            yield Row(f"query: {what} (aim: under 1 s)", f"{low:.2f} s min, {median:.2f} s median")
    for what, arguments in (
        ("`klsweep query`, from process start to end", ["query", "study", "SELECT count(*) FROM metrics"]),
        ("`klsweep compare`", ["compare", "study"]),
        ("`klsweep compare --baseline …`", ["compare", "study", "--baseline", "estimator=k0", "kl.coef=0"]),
    ):
        low, median = seconds(command(folder, *arguments, "--cache", "cache"), 3)
        yield Row(f"{what}, 400 cells × 5 seeds", f"{low:.2f} s min, {median:.2f} s median")


def invent(sweep: SweepFolder, runs: int, updates: int = UPDATES, figures: int = FIGURES, items: int = ITEMS) -> None:
    """Write a sweep whose records look like those of finished runs: random figures, two evaluations."""
    rng = np.random.default_rng(0)
    plan = [_plan_row(i, updates) for i in range(runs)]
    names = ["reward/mean", "reward/correct", "grad_norm", *(f"figure/{i}" for i in range(figures - 3))]
    for row in plan:
        folder = sweep.run(row["run_id"])
        (folder.path / "attempts" / "1").mkdir(parents=True)
        folder.evaluations.mkdir()
        claim = {"science_hash": "0" * 12, "eval_id": "e1", "plugin_hash": None}
        (folder.attempt(1) / "claim.json").write_text(json.dumps(claim))
        (folder.attempt(1) / "attempt.json").write_text(json.dumps({"state": "done", "cause": None}))
        values = rng.random((updates, figures)).tolist()
        accuracy = rng.random(2).tolist()
        base = {"update": 0, "eval/add/pass@1": 0.25, "eval/sort/pass@1": 0.4, "eval/add/kl": 0.0}
        last = {"eval/add/pass@1": accuracy[0], "eval/sort/pass@1": accuracy[1], "eval/add/kl": 1.0}
        logged = [{"update": u, **dict(zip(names, found, strict=True))} for u, found in enumerate(values, 1)]
        folder.metrics.write_text(rows_text([base, *logged[:-1], {**logged[-1], **last}]))
        right = rng.integers(0, 5, (2, items)).tolist()
        for suite in ("add", "sort"):
            text = rows_text(_item(u, i, right[u > 0][i]) for u in (0, updates) for i in range(items // 2))
            (folder.evaluations / f"{suite}.jsonl").write_text(text)
    sweep.extend_plan(plan)


def _plan_row(number: int, updates: int) -> dict:
    cell, seed = divmod(number, SEEDS)
    axes = {"model": "invented", "estimator": f"k{cell % 4}", "placement": ("reward", "loss")[cell // 4 % 2]}
    return {
        "run_id": f"r1-{number:012d}",
        "cell_id": f"c1-{cell:012d}",
        "eval_id": "e1",
        "seed": seed,
        "updates": updates,
        "axes": {**axes, "clip": "none", "sampling": "on_policy", "task": "add"},
        "kl_coef": (cell // 8) / 100,
        "fields": {"train.lr": 0.001, "train.updates": updates},
        "suites": {"add": "in", "sort": "out"},
    }


def _item(update: int, item: int, correct: int) -> dict:
    hashed = {"item": item, "prompt_hash": f"{item:012x}", "samples": 4, "temperature": 1.0, "top_p": 1.0}
    return {"update": update, **hashed, "correct": correct, "greedy_correct": correct > 2, "kl": 0.1, "entropy": 1.0}
