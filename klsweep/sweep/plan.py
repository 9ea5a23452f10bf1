"""From overrides to a plan: every cell built, undefined ones excluded with the reason, equal ones collapsed."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from torch.cuda import device_count

from klsweep.cells import describe
from klsweep.config.build import Builder, RunSpec
from klsweep.config.compose import Composer, parse_overrides
from klsweep.config.grid import Cell, Exclusion, Expansion, expand
from klsweep.config.identity import (
    eval_fields,
    with_neutral,
)
from klsweep.config.tags import Tagged, check_tags, tagged
from klsweep.errors import BadInput
from klsweep.objective.objective import Undefined, build_objective
from klsweep.record.files import Row, append_text, write_text
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.record.origin import is_external
from klsweep.sweep.notes import evaluation_notes, expectation_notes, inert_notes
from klsweep.sweep.planned import PlannedRun, planned_run
from klsweep.sweep.resources import Local
from klsweep.sweep.status import Observed, observe


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
        run = planned_run(cell, spec, objective, expansion.given, outline)
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
            *inert_notes(expansion, planned),
            *expectation_notes(planned),
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
                found.setdefault(key, set()).add("–" if value is None else str(value))
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


def _sweep_folder(cells: list[Cell]) -> SweepFolder:
    folders = sorted({cell.config["sweep_dir"] for cell in cells})
    if len(folders) > 1:
        raise BadInput(f"sweep_dir={','.join(folders)}: a sweep has one folder, sweep_dir cannot be an axis")
    sweep = SweepFolder(Path(folders[0]))
    if not folders[0] or not sweep.plan_file.exists():  # one that is there can be looked at, if nothing else
        check_writable(folders[0])
    if any(map(is_external, sweep.plan())):
        raise BadInput(f"sweep_dir={folders[0]}: holds external runs (klsweep import): give another folder")
    return sweep


def check_writable(sweep_dir: str) -> None:
    """BadInput for a sweep folder that is not there and cannot be made, or cannot be written to."""
    path = Path(sweep_dir).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not sweep_dir or not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"sweep_dir={sweep_dir!r}: no folder that can be written to")
