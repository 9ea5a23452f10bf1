"""What the page of `report` draws and links, as JSON: cells, runs and where their files lie, and the figures."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from klsweep.analysis.build import SHORT
from klsweep.analysis.charts import Forest, Scatter, StabilityMap, forests, scatters, stability_maps
from klsweep.analysis.choose import BETA, cell_label, text_of
from klsweep.analysis.compare import Comparison, has_collapsed
from klsweep.analysis.curves import STALE, Band, Curves, learning_curves
from klsweep.analysis.load import RunResult
from klsweep.analysis.stats import Estimate
from klsweep.analysis.store import RunKey
from klsweep.analysis.table import Table
from klsweep.cells import varying
from klsweep.record.folder import SweepFolder
from klsweep.record.origin import EXTERNAL, is_external

METRICS = ("in", "out", "kl", "reward")  # of single runs
DIGITS = 4


def page_data(
    comparison: Comparison, tables: Mapping[str, Table], effects: Table, sweeps: Mapping[str, SweepFolder], file: Path
) -> dict[str, Any]:
    """`tables` by the id of their element: of each row, the runs behind it. Links are relative to `file`."""
    members = [(i, run) for i, cell in enumerate(comparison.cells) for run in cell.runs]
    places = {run.key: n for n, (_, run) in enumerate(members)}
    bases = {name: _relative(sweep.path, file) for name, sweep in sweeps.items()}
    plans = [cell.plan for cell in comparison.cells]
    axes, fields = varying(plans)
    keys = [*axes, *([BETA] if any(plan["kl_coef"] is not None for plan in plans) else []), *fields]
    of = [comparison.metric(name) for name in METRICS]
    runs = []
    for i, run in members:
        folder = sweeps[run.key.sweep].run(run.key.run_id)
        runs.append(
            {
                "id": run.key.run_id,
                "cell": i,
                "seed": run.seed,
                "state": run.status["state"],
                "note": _note(run),
                "at": f"{bases[run.key.sweep]}/runs/{quote(run.key.run_id)}",
                "files": _files(folder.path),
                "metrics": [_rounded(one.value(run)) for one in of],
            }
        )
    return {
        "keys": [SHORT.get(key, key) for key in keys],
        "cells": [
            {
                "id": cell.plan["cell_id"],
                "name": cell.name,
                "labels": [text_of(cell_label(cell.plan, key)) for key in keys],
            }
            for cell in comparison.cells
        ],
        "metrics": [one.title for one in of],
        "runs": runs,
        "tables": {name: [[places[key] for key in line.runs] for line in table.rows] for name, table in tables.items()},
        "curves": [_curves(one, places) for one in learning_curves(comparison)],
        "scatters": [_scatter(one) for one in scatters(comparison)],
        "forests": [_forest(one) for one in forests(effects)],
        "maps": [_map(one) for one in stability_maps(comparison)],
    }


def as_script(data: Any) -> str:
    """JSON that ends no script element, whatever its texts say."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _relative(folder: Path, file: Path) -> str:
    return quote(os.path.relpath(folder.resolve(), file.resolve().parent))


def _files(folder: Path) -> list[str]:
    """What can be opened of a run; a folder ends with a slash."""
    names = ("config.yaml", "import.json", "status.json", "metrics.jsonl", "eval/", "rollouts/", "attempts/")
    there = set(os.listdir(folder)) if folder.is_dir() else set[str]()
    return [name for name in names if name.rstrip("/") in there]


def _note(run: RunResult) -> str:
    """Why a run is not simply done."""
    parts = [str(run.status["cause"])] if run.status.get("cause") else []
    parts += ["collapsed"] if has_collapsed(run) else []
    parts += [f"record cannot be read: {run.damage}"] if run.damage else []
    parts += [EXTERNAL] if is_external(run.plan) else []
    return "; ".join(parts)


def _rounded(value: float | None) -> float | None:
    """Four digits are more than a figure shows; JSON has no number that is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def _all(values: Iterable[float] | np.ndarray) -> list[float | None]:
    return [_rounded(float(value)) for value in values]


def _curves(one: Curves, places: Mapping[RunKey, int]) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "log": one.logarithmic,
        "stale": one.name in STALE,
        "per": one.updates_per_point,
        "x": _all(one.updates),
        "bands": [
            {
                "cell": band.cell,
                "n": band.seeds.tolist(),
                "mean": _all(band.mean),
                "whole": None if (partial := _partial(band)) is None else _all(band.whole),
                "partial": partial,
                "low": _all(band.low),
                "high": _all(band.high),
            }
            for band in one.bands
        ],
        "runs": {places[key]: _all(values) for key, values in one.runs.items() if key in places},
    }


def _partial(band: Band) -> list[float | None] | None:
    """None, as mostly, if no planned seed is missing anywhere: the line is whole."""
    return _all(band.partial) if bool((band.seeds < band.planned).any()) else None


def _scatter(one: Scatter) -> dict[str, Any]:
    points = [
        {"cell": p.cell, "group": p.group, "planned": p.planned, "x": _estimate(p.x), "y": _estimate(p.y)}
        for p in one.points
    ]
    base = [_all(place) for place in one.base]
    names = {"name": one.name, "title": one.title, "x": one.x_title, "y": one.y_title, "note": one.note}
    return {**names, "points": points, "base": base, "front": one.has_front}


def _estimate(found: Estimate) -> list[float | int | None]:
    """Mean, limits, runs."""
    return [*map(_rounded, (found.mean, found.ci_low, found.ci_high)), found.n]


def _forest(one: Forest) -> dict[str, Any]:
    contrasts = [[c.label, *map(_rounded, (c.mean, c.ci_low, c.ci_high, c.adjusted))] for c in one.contrasts]
    return {"name": one.name, "title": one.title, "x": one.x_title, "note": one.note, "contrasts": contrasts}


def _map(one: StabilityMap) -> dict[str, Any]:
    def place(i: int, j: int) -> dict[str, Any]:
        rate = one.rates[i][j]
        found: Sequence[Any] = (
            [None] * 4 if rate is None else [rate.k, rate.n, *map(_rounded, (rate.ci_low, rate.ci_high))]
        )
        return {"rate": list(found), "cells": one.cells[i][j], "counts": one.counts[i][j]}

    grid = [[place(i, j) for j in range(len(one.columns))] for i in range(len(one.rows))]
    names = {"name": one.name, "title": one.title, "note": one.note}
    return {**names, "rows": one.rows, "columns": one.columns, "grid": grid}
