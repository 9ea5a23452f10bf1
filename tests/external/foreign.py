"""A sweep of klsweep's own, written in milliseconds with figures of many digits, and what another's files of it say."""

import csv
import json
from pathlib import Path

import numpy as np
import yaml

from klsweep.record.files import Row, append_rows, read_rows
from klsweep.record.folder import SweepFolder
from klsweep.tasks.accuracy import summary
from klsweep.tasks.base import Item

AXES = {"model": "tiny", "estimator": "k1", "placement": "loss", "clip": "none", "sampling": "on_policy", "task": "add"}
SAMPLES, ITEMS, UPDATES = 4, 7, 12
SUITES = {"add": "in", "sort": "out", "max": "out"}
DEFINITION = "batch mean of k1"


def own_sweep(path: Path, seeds: int = 3) -> SweepFolder:
    """Two cells, β 0.1 and 0.4, whose runs are done, but for the last one of β 0.4, which has diverged."""
    sweep, rng = SweepFolder(path), np.random.default_rng(7)
    for cell, coef in (("a", 0.1), ("b", 0.4)):
        for seed in range(seeds):
            row: Row = {"run_id": f"r1-{cell}{seed}", "cell_id": f"c1-{cell}", "eval_id": "e1-00", "seed": seed}
            row |= {"updates": UPDATES, "axes": AXES, "kl_coef": coef, "fields": {"train.lr": 5e-4}, "suites": SUITES}
            sweep.extend_plan([row])
            folder = sweep.run(row["run_id"])
            folder.evaluations.mkdir(parents=True)
            metrics: list[Row] = [{"update": update} for update in range(UPDATES + 1)]
            for figures in metrics[1:]:
                figures |= {"reward/mean": rng.random() / 3, "kl/k1_sequence": rng.normal()}
            for update in (0, UPDATES):
                items = {suite: _items(rng, suite) for suite in SUITES}
                metrics[update] |= summary(items, ())
                for suite, rows in items.items():
                    append_rows(folder.evaluations / f"{suite}.jsonl", [{"update": update, **item} for item in rows])
            append_rows(folder.metrics, metrics)
            attempt = folder.claim(science_hash="s1", eval_id="e1-00")
            assert attempt is not None
            attempt.finish("diverged" if row["run_id"] == "r1-b2" else "done")
    return sweep


def prompt(suite: str, item: int) -> str:
    return f'{suite}: "{item}", please\n='


def _items(rng: np.random.Generator, suite: str) -> list[Row]:
    return [
        {
            "item": i,
            "prompt_hash": Item(prompt(suite, i), "").prompt_hash,
            "samples": SAMPLES,
            "correct": int(rng.integers(0, SAMPLES + 1)),
            "greedy_correct": bool(rng.integers(0, 2)),
            "kl": rng.random() * 3,
            "entropy": rng.random(),
        }
        for i in range(ITEMS)
    ]


def write_foreign(sweep: SweepFolder, folder: Path) -> Path:
    """The same results in files of another's: CSV of logged figures, suites as CSV with a row per response (add), as
    JSONL with a row per item (sort), and in one CSV for all runs (max). The mapping's path.
    """
    (folder / "logs").mkdir(parents=True)
    everything = []
    for row in sweep.plan():
        run, name = sweep.run(row["run_id"]), f"beta{row['kl_coef']}_seed{row['seed']}"
        logged = [r for r in read_rows(run.metrics) if r["update"] > 0]
        figures = [[r["update"] - 1, r["reward/mean"], r["kl/k1_sequence"], ""] for r in logged]
        _csv(folder / "logs" / f"{name}.csv", ["step", "train/reward", "objective/kl", "note"], figures)
        items = {suite: list(read_rows(run.evaluations / f"{suite}.jsonl")) for suite in SUITES}
        responses = [
            [
                r["update"] - 1,
                prompt("add", r["item"]),
                str(k < r["correct"]),
                r["greedy_correct"],
                r["kl"],
            ]
            for r in items["add"]
            for k in range(SAMPLES)
        ]
        _csv(folder / "logs" / f"{name}_add.csv", ["step", "question", "ok", "greedy", "kl"], responses)
        nested = [
            {"step": r["update"] - 1, "doc": {"q": prompt("sort", r["item"]), "n": SAMPLES}, "right": r["correct"],
             "greedy": int(r["greedy_correct"])} for r in items["sort"]
        ]  # fmt: skip
        (folder / "logs" / f"{name}_sort.jsonl").write_text("".join(json.dumps(r) + "\n" for r in nested))
        everything += [
            [row["kl_coef"], row["seed"], r["update"] - 1, r["prompt_hash"], r["correct"], SAMPLES, r["greedy_correct"]]
            for r in items["max"]
        ]
    _csv(folder / "max.csv", ["beta", "run_seed", "step", "hash", "right", "n", "greedy"], everything)
    (folder / "study.yaml").write_text(yaml.safe_dump(MAPPING))
    return folder / "study.yaml"


def _csv(file: Path, header: list[str], rows: list[list]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


LABELS = {**AXES, "trainer": "theirs"}


def _group(state: str, coef: float, seed: int | None = None) -> Row:
    """Runs of one state: those of a coefficient, or of a seed besides."""
    name = f"logs/beta{coef}_seed{{seed}}" if seed is None else f"logs/beta{coef}_seed{seed}"
    labels = {**LABELS, "state": state, "kl.coef": coef} | ({} if seed is None else {"seed": seed})
    items = {"add": f"{name}_add.csv", "sort": f"{name}_sort.jsonl", "max": "max.csv"}
    columns = {"kl.coef": "beta", "seed": "run_seed"}
    return {"labels": labels, "metrics": f"{name}.csv", "items": items, "columns": columns}


_ASKED = {"update": "step", "greedy_correct": "greedy"}
MAPPING: Row = {
    "name": "theirs",
    "fields": ["trainer"],
    "runs": [_group("done", 0.1), _group("done", 0.4, 0), _group("done", 0.4, 1), _group("diverged", 0.4, 2)],
    "metrics": {"update": "step", "reward/mean": "train/reward", "kl/k1_sequence": "objective/kl"},
    "suites": {
        "add": {"role": "in", "prompt": "question", "correct": "ok", "kl": "kl", **_ASKED},
        "sort": {"role": "out", "prompt": "doc.q", "samples": "doc.n", "correct": "right", **_ASKED},
        "max": {"role": "out", "prompt_hash": "hash", "samples": "n", "correct": "right", **_ASKED},
    },
    "update_offset": 1,
    "kl_definition": DEFINITION,
}
