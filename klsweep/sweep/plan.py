"""From overrides to a plan: every cell built, undefined ones excluded with the reason, equal ones collapsed."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from torch.cuda import device_count

from klsweep.audit.expectation import Claim, claim
from klsweep.cells import describe
from klsweep.config.build import Builder, RunSpec
from klsweep.config.compose import Composer, parse_overrides
from klsweep.config.grid import Cell, Exclusion, Expansion, expand
from klsweep.config.identity import (
    NEUTRAL,
    Canonical,
    canonical,
    cell_id,
    covers,
    eval_fields,
    eval_id,
    inert_keys,
    run_id,
    with_neutral,
)
from klsweep.config.plugins import plugin_hash
from klsweep.config.sources import pinned
from klsweep.config.tags import Tagged, check_tags, tagged
from klsweep.errors import BadInput
from klsweep.objective.objective import Objective, Undefined, build_objective
from klsweep.provenance import science_hash
from klsweep.record.files import Row, append_text, write_text
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.sweep.launch_local import Local
from klsweep.sweep.status import Observed, observe
from klsweep.tasks.base import shared_prompts
from klsweep.tasks.reward import LearnedReward

AXES = ("model", "adapter", "estimator", "placement", "clip", "correction", "sampling")
AXES += ("algorithm", "task", "reward", "rollout")
KL_TERM = ("estimator", "placement", "clip", "kl.weight", "kl.weight_over", "kl.weight_grad", "kl.weight_cap", "seed")
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


@dataclass(frozen=True)
class Plan:
    """What a command asks for. raw − excluded − collapsed = runs; to run are those not finished, active or cancelled.

    `active` are running or in SLURM's queue; `trouble` says why SLURM could not be asked if it had to be,
    `conflict` how the sweep that the folder holds differs, if it has no run in common with this one. `values` says
    where the experiment's values come from, if it does. An `outline` has looked at neither model, data nor records:
    its ids mean nothing.
    """

    folder: SweepFolder
    overrides: list[str]
    raw: int
    excluded: list[Exclusion]
    collapsed: int
    runs: list[PlannedRun]
    finished: frozenset[str]
    active: frozenset[str]
    cancelled: frozenset[str]
    conflict: str | None
    trouble: str | None
    notes: list[str]
    values: list[Tagged]
    outline: bool

    @property
    def to_run(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.run_id not in self.finished | self.active | self.cancelled]

    def names(self) -> dict[str, str]:
        """Each cell in words, by cell id."""
        return describe([run.row for run in self.runs])


def make_plan(composer: Composer, overrides: Sequence[str], single: bool = False, outline: bool = False) -> Plan:
    """Plan a sweep, or with `single` exactly one run (an experiment's grid is then ignored).

    Raises BadInput for anything wrong, a `single` run's undefined combination included, before anything is written.
    """
    return _plan(expand(composer, overrides, single), list(overrides), single, outline)


def plan_cell(cell: Cell, overrides: Sequence[str]) -> Plan:
    """The plan of one cell that was composed elsewhere, from `overrides`."""
    given = frozenset(override.key_or_group for override in parse_overrides(overrides))
    return _plan(Expansion(raw=1, cells=[cell], excluded=[], given=given, values={}), list(overrides), single=True)


def _plan(expansion: Expansion, overrides: list[str], single: bool, outline: bool = False) -> Plan:
    builder = Builder()
    runs: dict[str, PlannedRun] = {}
    excluded = list(expansion.excluded)
    for cell in expansion.cells:
        spec = builder.run_spec(cell.config)
        try:
            objective = build_objective(*spec.objective_parts)
        except Undefined as reason:
            if single:
                raise BadInput(str(reason)) from reason
            excluded.append(Exclusion(cell.point, str(reason)))
            continue
        run = _planned(cell, spec, objective, expansion.given, outline)
        runs.setdefault(run.run_id, run)
    planned = list(runs.values())
    if not planned:
        reasons = "; ".join(sorted({exclusion.reason for exclusion in excluded}))
        raise BadInput(f"nothing to run: all {expansion.raw} cells are excluded ({reasons})")
    _check_overlap(planned)
    folder = _sweep_folder(expansion.cells)
    observed, trouble = observe(folder, [] if outline else [run.run_id for run in planned])
    statuses = {run_id: seen.status for run_id, seen in observed.items()}
    plan = Plan(
        folder=folder,
        overrides=overrides,
        raw=expansion.raw,
        excluded=excluded,
        collapsed=expansion.raw - len(excluded) - len(planned),
        runs=planned,
        finished=where(observed, lambda seen: seen.status["state"] in FINISHED),
        active=where(observed, lambda seen: seen.is_active),
        cancelled=where(observed, lambda seen: seen.status["state"] == "cancelled"),
        conflict=None if single or outline else _conflict(folder, [run.row for run in planned]),
        trouble=trouble,
        notes=[
            *_inert_notes(expansion, planned),
            *_expectation_notes(planned),
            *([] if outline else evaluation_notes(planned, statuses)),
        ],
        values=_values(expansion, overrides, planned),
        outline=outline,
    )
    if not outline:
        check_engines(run.spec for run in plan.to_run)
    return plan


def _check_overlap(runs: Sequence[PlannedRun]) -> None:
    """BadInput if overlap was asked for and no run can have it, or if a run's second GPU is not there."""
    asked = [run for run in runs if run.config["sampling"].get("overlap")]
    if asked and not any(run.spec.sampling.overlap for run in asked):
        raise BadInput(
            "sampling.overlap=true: on policy, a batch is sampled from the weights of the update before it, and has to "
            "wait for that (sampling=off_policy)"
        )
    for sampling in {r.spec.sampling for r in asked if r.spec.sampling.overlap and isinstance(r.spec.launcher, Local)}:
        if sampling.device is not None and sampling.device >= (gpus := device_count()):
            raise BadInput(f"sampling.device={sampling.device}: there are {gpus} GPUs here, numbered from 0")


def check_engines(specs: Iterable[RunSpec]) -> None:
    """BadInput if one of these runs could not sample, or has no GPU."""
    for engine, model, here in {(s.rollout, s.model, isinstance(s.launcher, Local)) for s in specs}:
        engine.check(model, here)
        if here and model.device == "cuda" and not device_count():
            raise BadInput("model.device=cuda: there is no GPU here that torch can use (auto, or cpu)")


def _values(expansion: Expansion, overrides: list[str], runs: list[PlannedRun]) -> list[Tagged]:
    """Where the values of the runs come from, if the experiment says so."""
    overridden = {override.key_or_group for override in parse_overrides(overrides)}
    check_tags(expansion.values, overridden, [cell.config for cell in expansion.cells])
    if not expansion.values:
        return []
    return tagged(expansion.values, overridden, [with_neutral(r.canonical) | eval_fields(r.spec) for r in runs])


def _conflict(folder: SweepFolder, rows: list[Row]) -> str | None:
    """How a sweep differs from the one its folder holds, if they have no run in common."""
    there = folder.plan()
    if not there or {row["run_id"] for row in there} & {row["run_id"] for row in rows}:
        return None

    def values(planned: list[Row]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in planned:
            for key, value in {**row["axes"], "kl.coef": row["kl_coef"], **row["fields"], "seed": row["seed"]}.items():
                found.setdefault(key, set()).add(str(value))
        return found

    old, new = values(there), values(rows)
    apart = [key for key in new if key in old and not old[key] & new[key]]
    parts = [f"{key} is {' '.join(sorted(old[key]))} there, {' '.join(sorted(new[key]))} here" for key in apart]
    differ = "; ".join(parts[:4]) or "no run in common"
    return f"sweep_dir={folder.path} holds another sweep of {len(there)} runs ({differ})"


def where(observed: dict[str, Observed], holds: Callable[[Observed], bool]) -> frozenset[str]:
    """Ids of the runs of which this holds."""
    return frozenset(run_id for run_id, seen in observed.items() if holds(seen))


def write_plan(plan: Plan, launched: Collection[str] | None = None) -> None:
    """Write the sweep folder: `plan.jsonl`, what was asked for, and the resolved `config.yaml` of each run to launch.

    `launched` are those that are, if another launcher has taken some since the plan was made.
    """
    known = {row["run_id"] for row in plan.folder.plan()}
    to_run = [run for run in plan.to_run if launched is None or run.run_id in launched]
    settled = known - {run.run_id for run in to_run}  # their rows say how they were run, not how they would be today
    plan.folder.extend_plan(run.row for run in plan.runs if run.run_id not in settled)
    _record_launch(plan)
    for run in to_run:
        write_config(plan.folder.run(run.run_id), run.config)


def write_config(folder: RunFolder, config: dict[str, Any]) -> None:
    """Write the resolved configuration that a job reads, and all it reads."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))


def _record_launch(plan: Plan) -> None:
    """Append to `sweep.yaml`: the command's overrides and what became of its grid, exclusions with their reasons."""
    launch = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": plan.overrides,
        "raw": plan.raw,
        "excluded": [{"point": e.point, "reason": e.reason} for e in plan.excluded],
        "collapsed": plan.collapsed,
        "runs": len(plan.runs),
        "finished_before": len(plan.finished),
    }
    append_text(plan.folder.launches, yaml.dump([launch], Dumper=yaml.CSafeDumper, sort_keys=False))


def _planned(cell: Cell, spec: RunSpec, objective: Objective, given: frozenset[str], outline: bool) -> PlannedRun:
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


def _sweep_folder(cells: list[Cell]) -> SweepFolder:
    folders = sorted({cell.config["sweep_dir"] for cell in cells})
    if len(folders) > 1:
        raise BadInput(f"sweep_dir={','.join(folders)}: a sweep has one folder, sweep_dir cannot be an axis")
    path = Path(folders[0])
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not folders[0] or not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"sweep_dir={folders[0]!r}: no folder that can be written to")
    return SweepFolder(path)


def evaluation_notes(runs: list[PlannedRun], statuses: dict[str, Row]) -> list[str]:
    """How many finished runs were evaluated otherwise. BadInput if a run that has begun would be."""
    other = [r for r in runs if statuses[r.run_id].get("eval_id") not in (None, r.row["eval_id"])]
    begun = [run for run in other if statuses[run.run_id]["state"] not in FINISHED]
    if begun:
        raise BadInput(
            f"eval: run {begun[0].run_id} has begun with other evaluation settings "
            f"({statuses[begun[0].run_id]['eval_id']}, not {begun[0].row['eval_id']}): finish it with those, "
            "or give another sweep_dir"
        )
    notes = []
    if other:
        notes.append(
            f"{len(other)} finished runs were evaluated with other settings and stay as they are "
            "(another sweep_dir trains and evaluates anew)"
        )
    notes += _code_notes(runs, statuses)
    alone = sum("in" not in run.row["suites"].values() for run in runs)
    if alone:
        notes.append(f"{alone} runs have no suite with their task's evaluation prompts: nothing in distribution")
    return notes


def _code_notes(runs: list[PlannedRun], statuses: dict[str, Row]) -> list[str]:
    """How many finished runs were made by other code, of klsweep or of plugins."""
    finished = [run for run in runs if statuses[run.run_id]["state"] in FINISHED]
    code = [statuses[run.run_id].get("science_hash") for run in finished]
    plugins = [(statuses[run.run_id].get("plugin_hash"), plugin_hash(run.spec.root.plugins)) for run in finished]
    kinds = {
        "other code": [found for found in code if found != science_hash()],
        "other plugin code": [found for found, now in plugins if found != now],
    }
    return [
        f"{len(older)} finished runs were made by {what} than this ({', '.join(sorted(set(map(str, older))))})"
        for what, older in kinds.items()
        if older
    ]


def _inert_notes(expansion: Expansion, runs: list[PlannedRun]) -> list[str]:
    """Keys the user set that no run's result depends on."""
    inert = inert_keys(expansion.given, [(run.spec, run.canonical) for run in runs])
    return [f"{key} has no effect on any of these runs" for key in inert]


def _expectation_notes(runs: list[PlannedRun]) -> list[str]:
    """Cells whose KL term has the same gradient in expectation, and those where it is zero."""
    names = describe([run.row for run in runs])
    kinds: list[tuple[Claim, str, dict[str, str]]] = []
    for run in {run.row["cell_id"]: run for run in runs}.values():
        found = _claim(run)
        if found is None:
            continue
        rest = repr([(k, v) for k, v in run.canonical.items() if not covers(KL_TERM, k)])
        same = [cells for other, others, cells in kinds if others == rest and other.equals(found)]
        if not same:
            kinds.append((found, rest, same_cells := {}))
            same = [same_cells]
        same[0][run.row["cell_id"]] = names[run.row["cell_id"]]
    notes = []
    for found, _, cells in kinds:
        what = (
            "the gradient of the sequence KL" if found.verdict == "unbiased" else found.verdict.removeprefix("biased: ")
        )
        if found.verdict.startswith("zero"):
            notes.append(f"KL term with zero expected gradient (β adds only noise): {'; '.join(cells.values())}")
        elif len(cells) > 1:
            notes.append(f"equal in expectation ({what}): {'; '.join(cells.values())}")
    return notes


def _claim(run: PlannedRun) -> Claim | None:
    """What the audit says of the run's KL term, where it carries over to the run."""
    stale = run.spec.sampling.is_stale or run.spec.train.minibatches > 1
    truncated = run.spec.rollout.top_p < 1  # the sampler is then not π, and E_μ[∇log π] is not 0
    return None if stale or truncated else claim(run.objective)
