"""Trying a run out: two updates at maximum length with a resume between them, then its evaluation, and what it took."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from klsweep.config.build import RunSpec
from klsweep.model.parallel import ALONE, Ranks
from klsweep.objective.objective import build_objective
from klsweep.record.files import read_rows, write_json
from klsweep.record.folder import Attempt, Lost
from klsweep.rollout.hf import HF
from klsweep.tasks.longest import longest
from klsweep.tasks.reward import LearnedReward
from klsweep.tracking import Tracker
from klsweep.training import memory
from klsweep.training.checkpoint import newest_sound
from klsweep.training.collect import longest_sequence
from klsweep.training.loop import Outcome, Progress, train
from klsweep.training.trainer import Trainer

UPDATES = 2
FINDINGS = "smoke.json"


class SmokeFailed(Exception):
    """A stage failed; which, and how."""


class _Stages:
    """What each stage took; written down as it goes, for one that runs out of memory may not come back."""

    def __init__(self, file: Path) -> None:
        self._file, self.findings = file, dict[str, Any]({"seconds": {}})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.note(stage=name)
        start = time.perf_counter()
        try:
            yield
        except Lost:
            raise
        except Exception as error:
            raise SmokeFailed(f"{name}: {type(error).__name__}: {error}") from error
        self.findings["seconds"][name] = time.perf_counter() - start
        memory.release()  # a run has one trainer, and its peak is that of one
        self.note(peak=memory.peak()._asdict())

    def note(self, **facts: Any) -> None:
        self.findings |= facts
        write_json(self._file, self.findings)


def smoke(
    spec: RunSpec,
    attempt: Attempt,
    artifacts: Path,
    tracker: Tracker,
    should_stop: Callable[[], str | None],
    on_update: Progress,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train an update, go on from its checkpoint, evaluate what is left; `smoke.json` gets seconds and memory.

    Prompts are the longest there are, as many as one batch holds; `rollout.ignore_stop` makes the responses as long.
    SmokeFailed names the stage.
    """
    whole, spec, folder = spec, cut_to_longest(spec), attempt.folder
    stages = _Stages(folder.path / FINDINGS)
    share = _eval_prompts(spec) / _eval_prompts(whole)
    stages.note(process=memory.without_model(), eval_share=share)
    begun: list[int] = []

    def after_one() -> str | None:
        return should_stop() or ("preempted" if 1 in begun else None)

    def tell(update: int, row: Any) -> None:
        begun.append(update)
        on_update(update, row)

    with stages.stage("train"):
        outcome = train(spec, attempt, artifacts, tracker, after_one, tell, ranks)
        if reason := should_stop():
            return Outcome(reason)
        _expect(outcome.cause or outcome.state, outcome.state == "preempted")
    with stages.stage("checkpoint"):
        kept = newest_sound(folder)
        _expect("no sound checkpoint of update 1", kept is not None and kept.name == "update-000001")
    with stages.stage("resume"):
        outcome = train(spec, attempt, artifacts, tracker, should_stop, tell, ranks)
        if outcome.state not in ("done", "diverged"):
            return outcome
        resumed = folder.attempts.claim(attempt.number).get("resumed_from")
        _expect(f"went on from update {resumed}, not 1", resumed == 1)
        _expect(outcome.cause or outcome.state, outcome.state == "done")
    times = list(read_rows(folder.timing))
    stages.note(update_seconds=min(row["seconds/total"] - row.get("seconds/eval", 0.0) for row in times))
    with stages.stage("evaluate"):
        trainer = Trainer(spec, build_objective(*spec.objective_parts), ranks)
        trainer.load_weights(folder, UPDATES)
        _check_evaluation(spec, trainer, folder.evaluations)
    terms = memory.formula(spec, memory.sizes(trainer.policy), longest_sequence(spec, trainer.policy), ranks.size)
    stages.note(stage=None, formula=terms, at_most=memory.at_most(spec, terms))
    return Outcome("done")


def cut_to_longest(spec: RunSpec) -> RunSpec:
    """The run with its longest prompts alone: enough to train on, and to fill a batch of an evaluation.

    A reward model is left out: training sees the true reward.
    """
    samples = spec.eval.samples_per_prompt
    batch = max(spec.eval.batch_size, spec.rollout.batch_size if isinstance(spec.rollout, HF) else 0)
    asked = -(-batch // samples)
    suites = {name: longest(suite, 0, asked) for name, suite in spec.eval.suites.items()}
    task = longest(spec.task, spec.train.prompts_per_update, asked)
    reward = spec.reward.truth if isinstance(spec.reward, LearnedReward) else spec.reward
    return dataclasses.replace(spec, task=task, reward=reward, eval=dataclasses.replace(spec.eval, suites=suites))


def _eval_prompts(spec: RunSpec) -> int:
    return sum(len(suite.eval_items()) for suite in spec.eval.suites.values())


def _check_evaluation(spec: RunSpec, trainer: Trainer, recorded: Path) -> None:
    """The weights on disk give the rows that training recorded after its last update, where equal gives equal."""
    found = trainer.evaluate()
    for name, rows in found.items():
        there = [row for row in read_rows(recorded / f"{name}.jsonl") if row.pop("update") == UPDATES]
        _expect(f"{name}: {len(there)} rows on record, {len(rows)} now", len(there) == len(rows))
        same = not trainer.repeats_itself or there == rows
        _expect(f"{name}: the checkpoint is evaluated to other rows than training recorded", same)


def _expect(otherwise: str, holds: bool) -> None:
    if not holds:
        raise RuntimeError(otherwise)
