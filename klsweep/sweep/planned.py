"""A cell as a run to be: who it is, what it is called, and what its evaluation stands for."""

from dataclasses import dataclass
from typing import Any

from klsweep.cells import AXES
from klsweep.config.build import RunSpec
from klsweep.config.grid import Cell
from klsweep.config.identity import NEUTRAL, Canonical, canonical, cell_id, eval_id, run_id, with_neutral
from klsweep.config.sources import pinned
from klsweep.errors import BadInput
from klsweep.objective.objective import Objective
from klsweep.record.files import Row
from klsweep.tasks.base import shared_prompts
from klsweep.tasks.reward import LearnedReward

SIMPLE_PLACEMENTS = {"NoKL": "none", "InReward": "reward", "InLoss": "loss"}  # what a half with β = 0 leaves


@dataclass(frozen=True)
class PlannedRun:
    """A run to be: its identity, its resolved configuration, and the row it gets in `plan.jsonl`."""

    row: Row
    config: dict[str, Any]
    spec: RunSpec
    objective: Objective
    canonical: Canonical

    @property
    def run_id(self) -> str:
        return self.row["run_id"]


def planned_run(cell: Cell, spec: RunSpec, objective: Objective, given: frozenset[str], outline: bool) -> PlannedRun:
    """A cell as a run: `given` are the keys of the command line, an `outline` reads neither model nor data.

    BadInput for what cannot be trained or evaluated so.
    """
    if objective.has_kl:
        try:
            spec.kl.check_horizon(spec.train.prompts_per_update * spec.algorithm.group_size)
        except ValueError as error:
            raise BadInput(str(error)) from error
    flat = canonical(spec.simplified(objective), read=not outline)
    row = {
        "run_id": run_id(flat),
        "cell_id": cell_id(flat),
        "eval_id": None if outline else eval_id(spec),
        "seed": spec.root.seed,
        "updates": spec.train.updates,
        "axes": _labels(cell, spec, flat, given),
        "kl_coef": flat.get("kl.coef"),
        "fields": {k: v for k, v in with_neutral(flat).items() if "." in k and k != "kl.coef"},
        "suites": {} if outline else suite_roles(spec, cell.choices["task"]),
    }
    if outline:
        return PlannedRun(row, cell.config, spec, objective, flat)
    if not spec.task.train_items():
        raise BadInput(
            f"task={cell.choices['task']}: nothing to train on, it is there to be evaluated (its source is null)"
        )
    if isinstance(spec.reward, LearnedReward):
        spec.reward.check(len(spec.task.train_items()))
    model = {**cell.config["model"], "revision": spec.model.pinned_revision()}  # `main` may move before the run starts
    return PlannedRun(row, {**pinned(cell.config), "model": model}, spec, objective, flat)


def suite_roles(spec: RunSpec, task: str) -> dict[str, str]:
    """Which evaluation suites are in distribution ("in"), which are not ("out"): as `eval.in_distribution` says, else
    those with the trained task's evaluation prompts are.

    BadInput if one asks prompts that are trained on, or there is none of that name; `task` is the name of that choice.
    """
    if absent := set(spec.eval.in_distribution or ()) - set(spec.eval.suites):
        raise BadInput(
            f"eval.in_distribution: no suite {min(absent)!r} is evaluated (suites: {', '.join(spec.eval.suites)})"
        )
    for name, suite in spec.eval.suites.items():
        if shared := shared_prompts(spec.task, suite):
            raise BadInput(
                f"eval.suites.{name}: {shared} of its prompts are trained on: give it the data, the seed and the "
                f"eval_prompts of task={task}"
            )
    own = spec.task.eval_items()
    inside = spec.eval.in_distribution
    if inside is None:
        inside = [name for name, suite in spec.eval.suites.items() if suite.eval_items() == own]
    return {name: "in" if name in inside else "out" for name in spec.eval.suites}


def _labels(cell: Cell, spec: RunSpec, flat: Canonical, given: frozenset[str]) -> dict[str, str | None]:
    """The choice taken on each axis, None where it is inert, and the name of what it comes to where two are equal."""
    labels = {axis: cell.choices.get(axis) if axis in flat or axis in NEUTRAL else None for axis in AXES}
    if "preset" in given:
        labels["preset"] = cell.choices.get("preset")
    if "model.path" in given:
        labels["model"] = spec.model.path
    if flat.get("clip") == "NoClip":
        labels["clip"] = "none"
    labels["placement"] = SIMPLE_PLACEMENTS.get(flat["placement"], labels["placement"])
    if flat["placement"] == "InLoss" and spec.placement.loss_estimator not in (None, "same"):
        labels["estimator"] = spec.placement.loss_estimator
    elif "placement.loss_estimator" in flat:
        labels["estimator"] = f"{labels['estimator']}+{flat['placement.loss_estimator']}"
    if not spec.sampling.is_stale:
        labels["sampling"] = "on_policy"
    return labels
