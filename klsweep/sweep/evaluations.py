"""Planning evaluations of what runs have left behind, or of any folder that holds a model in HF format.

An evaluation is a sweep folder, `<sweep>/evaluations/<id>`, whose runs are weights: what launches, packs, resumes,
shows and compares training runs does so with evaluations.
"""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.override_parser.types import Override

from klsweep.cells import AXES
from klsweep.config.build import Builder, RunSpec
from klsweep.config.compose import Composer, check_key, parse_overrides, resolve, sweep_values
from klsweep.config.grid import Exclusion, expand, with_values
from klsweep.config.identity import canonical, eval_id, is_operational
from klsweep.config.sources import pinned
from klsweep.errors import BadInput
from klsweep.objective.objective import build_objective
from klsweep.record.files import Row, read_json
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.record.origin import check_own
from klsweep.sweep.notes import evaluation_notes
from klsweep.sweep.plan import Plan, check_engines, where
from klsweep.sweep.planned import PlannedRun, suite_roles
from klsweep.sweep.status import observe

WHICH = ("last", "all")
RECORD = "klsweep.json"  # in an exported folder: which run its weights are of
CHANGEABLE = ("eval", "rollout", "parallel", "launcher", "wandb")
# Responses are sampled for the evaluation alone: how rollouts are sampled is how it samples.
MEANT = {"rollout.temperature": "eval.temperature", "rollout.top_p": "eval.top_p"}


class Weights(NamedTuple):
    """Weights to evaluate, after `update` of `run`: in HF format in `folder`, else in the run's last checkpoint.

    `config` and `row` (of the plan) are the run's, or those that a model folder without a run is given.
    """

    config: dict[str, Any]
    row: Row
    run: RunFolder | None
    folder: Path | None
    update: int


@dataclass(frozen=True)
class Changes:
    """What an evaluation does otherwise than training did: nodes of other choices, then single values."""

    choices: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def applied(self, config: dict[str, Any]) -> dict[str, Any]:
        """A run's configuration with these changes. BadInput for a key that is not in it."""
        changed = {**config, **self.nodes, "choices": {**config["choices"], **self.choices}}
        for key in self.values:
            check_key(changed, key)
        changed = with_values(changed, self.values)
        return resolve(changed) if "${" in repr(changed) else changed


def plan_evaluations(composer: Composer, target: Path, overrides: Sequence[str]) -> list[Plan]:
    """One plan per evaluation id: of a sweep's finished runs, of one run, or of a model folder in HF format.

    `overrides` change the nodes eval, rollout, parallel, launcher and wandb, and operational fields; several values of
    a key are so many evaluations. `checkpoint=last` (the default) or `all` (milestones, too). Of a model folder they
    compose, as for training, what it is evaluated with; the base, to which KL is measured, is the folder itself unless
    they say.
    BadInput if nothing is there to evaluate, and for anything wrong, before anything is written.
    """
    which, parsed = _which(parse_overrides(overrides))
    sweep, found, left_out = _found(composer, target, which, parsed)
    if not found:
        reasons = "; ".join(sorted({exclusion.reason for exclusion in left_out})) or "its sweep has no such run"
        raise BadInput(f"{target}: nothing to evaluate ({reasons})")
    if found[0].run is None:  # the others have been composed, but for those that say where
        composed = not (target / RECORD).exists()
        parsed = [o for o in parsed if o.key_or_group.split(".")[0] in CHANGEABLE or not composed]
        parsed = [o for o in parsed if o.key_or_group != "sweep_dir"]
    points = list(_changes(composer, parsed))
    return [plan for point in points for plan in _plans(sweep, found, left_out, point, list(overrides))]


def _which(parsed: Sequence[Override]) -> tuple[str, list[Override]]:
    """The value of `checkpoint=`, and the other overrides."""
    which = "last"
    for override in parsed:
        if override.key_or_group == "checkpoint":
            which = str(override.value())
            if which not in WHICH:
                raise BadInput(f"{override.input_line}: choose from {', '.join(WHICH)}")
    return which, [override for override in parsed if override.key_or_group != "checkpoint"]


def _found(
    composer: Composer, target: Path, which: str, parsed: Sequence[Override]
) -> tuple[SweepFolder, list[Weights], list[Exclusion]]:
    """The sweep that a target belongs to, its weights, and the runs that have none, with the reason."""
    if (sweep := SweepFolder(target)).plan_file.exists():
        return sweep, *_kept(sweep, sweep.plan(), which)
    if (run := RunFolder(target.resolve())).config.exists():
        rows = [row for row in run.sweep.plan() if row["run_id"] == run.run_id]
        return run.sweep, *_kept(run.sweep, rows, which)
    if (record := read_json(target / RECORD)) is not None:
        place, weights = _exported(composer, target, record, parsed)
        return place, [weights], []
    if (target / "config.json").exists():
        place, weights = _model_folder(composer, target, parsed)
        return place, [weights], []
    raise BadInput(f"{target}: no sweep, no run folder and no model in HF format is there")


def _kept(sweep: SweepFolder, rows: Sequence[Row], which: str) -> tuple[list[Weights], list[Exclusion]]:
    """The weights that these runs have kept, and the runs that have none."""
    found, left_out = list[Weights](), list[Exclusion]()
    check_own(rows)
    for row in rows:
        run = sweep.run(row["run_id"])
        if "evaluates" in row:
            raise BadInput(f"{sweep.path}: is an evaluation itself (evaluate the sweep {sweep.evaluated.path})")
        state, updates, there = run.status()["state"], row["updates"], available(run)
        last = state == "done" and updates in there
        milestones = sorted(update for update in there if there[update] is not None and update != updates)
        if not last:
            why = {"done": "done, but no checkpoint is left", "diverged": "diverged: its last weights are not kept"}
            left_out.append(Exclusion({"run_id": run.run_id}, why.get(state, f"{state}: not finished")))
        chosen = (milestones if which == "all" and state in FINISHED else []) + ([updates] if last else [])
        config = yaml.load(run.config.read_text(), Loader=yaml.CSafeLoader) if chosen else {}
        found += [Weights(config, row, run, there[update], update) for update in chosen]
    return found, left_out


def available(run: RunFolder) -> dict[int, Path | None]:
    """By update, the weights that a run has kept: a milestone's folder, None for those of its last checkpoint."""
    there: dict[int, Path | None] = {
        int(path.name.rpartition("-")[2]): path for path in run.path.glob("models/update-*")
    }
    return {**there, last: None} if (last := run.checkpointed()) else there


def _exported(
    composer: Composer, target: Path, record: dict[str, Any], parsed: Sequence[Override]
) -> tuple[SweepFolder, Weights]:
    """An exported folder, which says what it is: evaluated as the run is that it comes from, without its adapter."""
    config = {**record["config"], "adapter": composer.compose(["adapter=none"]).config["adapter"]}
    if config["model"]["reference"] == "adapter_base":
        config["model"] = {**config["model"], "reference": "device"}
    row = {**record["row"], "run_id": f"{target.resolve().name}-{record['row']['run_id']}"}
    places = [str(override.value()) for override in parsed if override.key_or_group == "sweep_dir"]
    sweep = SweepFolder(Path(places[0] if places else f"sweeps/{target.resolve().name}"))
    return sweep, Weights(config, row, None, target, record["update"])


def _model_folder(composer: Composer, target: Path, parsed: Sequence[Override]) -> tuple[SweepFolder, Weights]:
    """A model folder as the weights after update 1 of a run that was not recorded, from the base that is given."""
    texts = [str(o.input_line) for o in parsed if o.key_or_group.split(".")[0] not in CHANGEABLE]
    given = {override.key_or_group for override in parsed}
    (cell,) = expand(composer, texts, single=True).cells
    name = re.sub(r"[^\w.-]+", "-", target.resolve().name)
    path = str(target.resolve())
    has_base = bool(given & {"model", "model.path", "experiment", "preset"})
    model = cell.config["model"] if has_base else {**cell.config["model"], "path": path, "revision": None}
    content = Builder().node({**model, "path": path, "revision": None}, "model", ("klsweep",)).content()
    run_id = f"{name}-{content.rpartition(':')[2][:8]}"
    row: Row = {"run_id": run_id, "cell_id": run_id, "seed": cell.config["seed"], "kl_coef": None, "fields": {}}
    row["axes"] = {axis: name if axis == "model" else None for axis in AXES}
    sweep_dir = cell.config["sweep_dir"] if given & {"sweep_dir", "name", "experiment"} else f"sweeps/{name}"
    weights = Weights({**cell.config, "model": model}, row, None, target if has_base else None, 1)
    return SweepFolder(Path(sweep_dir)), weights


def _changes(composer: Composer, parsed: Sequence[Override]) -> Iterator[Changes]:
    """The changes that overrides ask for, one for each combination of several values."""
    values: dict[str, list[Any]] = {}
    for override in parsed:
        key = MEANT.get(override.key_or_group, override.key_or_group)
        _check_changeable(composer, override)
        if values.setdefault(key, sweep_values(override, composer)) != sweep_values(override, composer):
            raise BadInput(f"{override.input_line}: {key} is given another value besides")
    for combination in itertools.product(*values.values()):
        point = dict(zip(values, combination, strict=True))
        choices = {key: value for key, value in point.items() if composer.is_group(key)}
        for group, choice in choices.items():
            composer.check_choice(group, choice)
        nodes = {group: composer.compose([f"{group}={choice}"]).config[group] for group, choice in choices.items()}
        yield Changes(choices, nodes, {key: value for key, value in point.items() if key not in choices})


def _check_changeable(composer: Composer, override: Override) -> None:
    key = override.key_or_group
    if override.is_add() or override.is_delete() or override.package is not None:
        raise BadInput(f"{override.input_line}: an evaluation takes key=value only")
    if key.split(".")[0] in CHANGEABLE and ("." in key or composer.is_group(key)):
        return
    if "." not in key or key.split(".")[0] == "checkpoint" or not is_operational(key):
        raise BadInput(
            f"{key}: a field of training, which is over (an evaluation takes {', '.join(CHANGEABLE)}, "
            "operational fields, and checkpoint=last|all)"
        )


def _plans(
    sweep: SweepFolder, found: Sequence[Weights], left_out: list[Exclusion], changes: Changes, overrides: list[str]
) -> Iterator[Plan]:
    builder = Builder()
    planned: dict[str, list[PlannedRun]] = {}
    for weights in found:
        config = changes.applied(weights.config)
        spec = builder.run_spec(config)
        _check_model(spec, weights)
        name = _name(spec)
        planned.setdefault(name, []).append(_planned(weights, config, spec, changes, sweep.evaluation(name)))
    check_engines(run.spec for runs in planned.values() for run in runs)
    for name, runs in planned.items():
        folder = sweep.evaluation(name)
        observed, trouble = observe(folder, [run.run_id for run in runs])
        yield Plan(
            folder=folder,
            overrides=overrides,
            raw=len(runs) + len(left_out),
            excluded=left_out,
            collapsed=0,
            runs=runs,
            finished=where(observed, lambda seen: seen.status["state"] in FINISHED),
            active=where(observed, lambda seen: seen.is_active),
            cancelled=where(observed, lambda seen: seen.status["state"] == "cancelled"),
            conflict=None,
            trouble=trouble,
            notes=evaluation_notes(runs, {run_id: seen.status for run_id, seen in observed.items()}),
            values=[],
            outline=False,
        )


def _name(spec: RunSpec) -> str:
    """Name of an evaluation's folder: its id, and the engine if that is not `hf`, whose draws are others."""
    engine = type(spec.rollout).__name__
    return eval_id(spec) if engine == "HF" else f"{eval_id(spec)}-{engine.lower()}"


def _check_model(spec: RunSpec, weights: Weights) -> None:
    """BadInput if the base is not the one that the run started from."""
    content, began = spec.model.content(), weights.row["fields"].get("model.content")
    if began not in (None, content):
        raise BadInput(
            f"model.path={spec.model.path!r}: holds {content}, but {weights.row['run_id']} was trained from {began}"
        )


def _planned(
    weights: Weights, config: dict[str, Any], spec: RunSpec, changes: Changes, sweep: SweepFolder
) -> PlannedRun:
    """The evaluation of these weights as a run of `sweep`; its updates are the suites."""
    row, update = weights.row, weights.update
    is_last = weights.run is None or update == row["updates"]
    suffix = "" if weights.run is None else f"-u{update}"
    axes = {**row["axes"], **{axis: choice for axis, choice in changes.choices.items() if axis in AXES}}
    target = sweep.run(f"{row['run_id']}{suffix}")
    planned = {
        "run_id": target.run_id,
        "cell_id": row["cell_id"] if is_last else f"{row['cell_id']}{suffix}",
        "eval_id": eval_id(spec),
        "seed": row["seed"],
        "updates": len(spec.eval.suites),
        "axes": axes,
        "kl_coef": row["kl_coef"],
        "fields": {**row["fields"], **({"checkpoint.update": update} if weights.run else {})},
        "suites": suite_roles(spec, config["choices"]["task"]),
        "evaluates": {"run_id": row["run_id"], "update": update},
    }
    model = {**config["model"], "revision": spec.model.pinned_revision()}
    subject = {
        "run": _relative(weights.run.path, target) if weights.run is not None else None,
        "folder": _relative(weights.folder, target) if weights.folder is not None else None,
        "update": update,
    }
    own = {**pinned(config), "model": model, "sweep_dir": str(sweep.path), "evaluate": subject}
    objective = build_objective(*spec.objective_parts)
    return PlannedRun(planned, own, spec, objective, canonical(spec.simplified(objective)))


def _relative(path: Path, run: RunFolder) -> str:
    """A path as seen from a run folder: a sweep may be moved with its evaluations."""
    return os.path.relpath(path.resolve(), run.path.resolve())
