"""Trying a plan out before hours are spent: of each group of cells that take equal memory, the heaviest."""

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from klsweep.cells import describe
from klsweep.errors import BadInput
from klsweep.record.files import Row, read_json
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.sweep.cost import Measured
from klsweep.sweep.plan import Plan, check_writable, write_config
from klsweep.sweep.planned import PlannedRun
from klsweep.sweep.resources import Local
from klsweep.sweep.run import extrapolated, follow, launchers_of, run_here, submit_runs, write_calibration
from klsweep.tasks.base import Task
from klsweep.terminal import console, print_grid

UPDATES = 2
FINDINGS = "smoke.json"


@dataclass(frozen=True)
class MemoryGroup:
    """Planned runs that differ in nothing that takes memory, and the one of them that is tried: the largest batch."""

    signature: dict[str, Any]
    runs: list[PlannedRun]

    @property
    def heaviest(self) -> PlannedRun:
        return max(self.runs, key=lambda run: (_batch(run), run.spec.sampling.lag))

    @property
    def cells(self) -> int:
        return len({run.row["cell_id"] for run in self.runs})


@dataclass(frozen=True)
class Trial:
    """What became of a group's trial. Bytes: `peak` was measured, `formula` is by part, `at_most` its sum."""

    group: MemoryGroup
    name: str
    folder: RunFolder
    passed: bool
    cause: str | None
    stage: str | None
    seconds: dict[str, float]  # of each stage
    update_seconds: float | None
    process: int | None
    peak: dict[str, int | None] | None
    formula: dict[str, float] | None
    at_most: float | None
    eval_share: float | None  # of the evaluation's prompts, those that were asked

    def to_json(self) -> Row:
        """As plain data."""
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("group", "folder")}
        tried, cells = self.group.heaviest, self.group.cells
        return {
            "signature": self.group.signature,
            "cells": cells,
            "runs": len(self.group.runs),
            "tried": tried.run_id,
            "folder": str(self.folder.path),
            **rest,
        }


def groups(plan: Plan) -> list[MemoryGroup]:
    """The planned runs by what decides their memory."""
    found: dict[str, MemoryGroup] = {}
    for run in plan.runs:
        signature = _signature(run)
        found.setdefault(repr(signature), MemoryGroup(signature, [])).runs.append(run)
    return list(found.values())


def _signature(run: PlannedRun) -> dict[str, Any]:
    """What decides the memory of a run, but for its batch: where the batch is cut, its size costs little."""
    spec = run.spec
    rollout: Any = spec.rollout
    suites = spec.eval.suites.values()
    return {
        "model": run.row["axes"]["model"],
        **{name: getattr(spec.model, name) for name in ("dtype", "attention", "reference", "logprob_chunk")},
        "gradient_checkpointing": spec.model.gradient_checkpointing,
        "micro_batch_size": min(spec.train.micro_batch_size, _batch(run) // spec.train.minibatches),
        "prompt_characters": max(map(_longest, (spec.task, *suites))),
        "response_tokens": max(task.max_response_tokens for task in (spec.task, *suites)),
        "adapter": dataclasses.asdict(spec.adapter),  # pyright: ignore[reportArgumentType]
        "distributions": run.objective.loss_needs_distributions,
        "engine": run.row["axes"]["rollout"] or type(rollout).__name__,
        "engine_fields": {k: v for k, v in dataclasses.asdict(rollout).items() if k not in ("temperature", "top_p")},
        "eval_batch_size": spec.eval.batch_size,
        "parallel": dataclasses.asdict(spec.parallel),  # pyright: ignore[reportArgumentType]
    }


def _batch(run: PlannedRun) -> int:
    return run.spec.train.prompts_per_update * run.spec.algorithm.group_size


def _longest(task: Task) -> int:
    return max(len(item.prompt) for item in (*task.train_items(), *task.eval_items()))


def smoke(plan: Plan) -> list[Trial]:
    """Try each group's heaviest run out, by the plan's launcher but one at a time; then calibrate the plan's cost.

    Responses ignore the stop tokens, so that they have the full length. Everything is in `<sweep>/smoke`.
    """
    check_writable(str(plan.folder.path))
    found, sweep = groups(plan), SweepFolder(plan.folder.path / "smoke")
    launchers = launchers_of({group.heaviest.run_id: group.heaviest.spec for group in found})
    stamp = time.strftime("%Y%m%dT%H%M%S")
    tried = {f"{group.heaviest.run_id}-{stamp}": group for group in found}
    rows = [{**group.heaviest.row, "run_id": name, "updates": UPDATES} for name, group in tried.items()]
    configs = {name: _config(group.heaviest.config) for name, group in tried.items()}
    sweep.extend_plan(rows)

    def write(names: Collection[str]) -> None:
        for name in names:
            write_config(sweep.run(name), configs[name])

    if isinstance(launchers, Local):
        write(tried)
        here = Local(parallel=1, threads=launchers.threads_per_worker)
        for row in rows:  # each in a process of its own: the memory of one is not another's
            run_here(sweep, [row], here, describe(rows))
    else:
        alone = {
            name: dataclasses.replace(launchers[group.heaviest.run_id], runs_per_job=1, concurrent=1)
            for name, group in tried.items()
        }
        specs = {name: group.heaviest.spec for name, group in tried.items()}
        submission = submit_runs(sweep, alone, specs, write, revive=False)
        if submission.left:
            raise BadInput(f"the cluster takes only {submission.runs} of {len(tried)} jobs now: try again later")
        follow(sweep, list(tried))
    names = plan.names()
    trials = [_trial(group, names, sweep.run(name)) for name, group in tried.items()]
    passed = [(trial, row) for trial, row in zip(trials, rows, strict=True) if trial.passed]
    if passed:
        write_calibration(plan, [_measured(trial, sweep, row) for trial, row in passed])
    return trials


def _config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration, changed to be tried out: short, without limits, responses at full length."""
    train = {**config["train"], "updates": UPDATES, "max_kl": None, "min_reward": None, "base_check": "off"}
    return {
        **config,
        "train": train,
        "rollout": {**config["rollout"], "ignore_stop": True},
        "eval": {**config["eval"], "every": 0},
        "checkpoint": {**config["checkpoint"], "keep_at": []},
        "wandb": {**config["wandb"], "mode": "disabled"},
        "smoke": True,
    }


def _trial(group: MemoryGroup, names: dict[str, str], folder: RunFolder) -> Trial:
    status, findings = folder.status(), read_json(folder.path / FINDINGS) or {}
    return Trial(
        group=group,
        name=names[group.heaviest.row["cell_id"]],
        folder=folder,
        passed=status["state"] == "done",
        cause=status.get("cause") or (None if status["state"] == "done" else status["state"]),
        stage=findings.get("stage"),
        seconds=findings.get("seconds", {}),
        update_seconds=findings.get("update_seconds"),
        process=findings.get("process"),
        peak=findings.get("peak"),
        formula=findings.get("formula"),
        at_most=findings.get("at_most"),
        eval_share=findings.get("eval_share"),
    )


def _measured(trial: Trial, sweep: SweepFolder, row: Row) -> Measured:
    assert trial.eval_share is not None
    return extrapolated(trial.group.heaviest, sweep, row, trial.eval_share, trial.seconds["evaluate"])


def print_trials(trials: Sequence[Trial]) -> None:
    """Which groups passed, what they took at most beside the formula, and why others did not."""
    out = console()
    header = ["heaviest cell", "cells", "runs", "result", "peak", "formula", "process", "s/update", "cause"]
    rows = []
    for trial in trials:
        measured = trial.peak["device"] or trial.peak["host"] if trial.peak else None
        rows.append(
            [
                trial.name,
                str(trial.group.cells),
                str(len(trial.group.runs)),
                "ok" if trial.passed else "FAIL",
                *(_mib(size) for size in (measured, trial.at_most, trial.process)),
                "–" if trial.update_seconds is None else f"{trial.update_seconds:.2f}",
                "" if trial.passed else (trial.cause or ""),
            ]
        )
    print_grid(header, rows)
    parts = list(dict.fromkeys(part for trial in trials for part in trial.formula or {}))
    if parts:
        out.print(
            "by formula, in MiB (sampling, logits with activations, and the checkpoint are not there at the same time):"
        )
        print_grid(["heaviest cell", *parts], [_parts(trial, parts) for trial in trials if trial.formula])
    out.print(
        "peak: of the GPU if there is one, else of the process, which takes `process` before there is a model; in MiB. "
        "Responses ignored the stop tokens: all have the full length."
    )


def _parts(trial: Trial, parts: Sequence[str]) -> list[str]:
    assert trial.formula is not None
    return [trial.name, *(_mib(trial.formula.get(part)) for part in parts)]


def _mib(size: float | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"
