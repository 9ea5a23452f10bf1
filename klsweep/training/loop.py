"""The training loop: rollout → reward → KL in reward → advantage → loss → step → evaluate → checkpoint."""

import dataclasses
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from klsweep.config.build import RunSpec
from klsweep.config.identity import base_eval_id
from klsweep.model.parallel import ALONE, Ranks
from klsweep.objective.objective import Objective, build_objective
from klsweep.record.claims import shared_artifact
from klsweep.record.files import append_rows, read_rows
from klsweep.record.folder import Attempt
from klsweep.rollout.buffer import RolloutQueue
from klsweep.rollout.engine import Rollout
from klsweep.tasks.accuracy import summary
from klsweep.tracking import Tracker
from klsweep.training import checkpoint
from klsweep.training import metrics as measure
from klsweep.training.evaluate import ItemRow
from klsweep.training.probe import Witness
from klsweep.training.shift import Shift, reward_model_artifact, shift_metrics
from klsweep.training.threshold import Threshold
from klsweep.training.trainer import Trainer


class Outcome(NamedTuple):
    """How training ended; `cause` says why it diverged or failed."""

    state: str  # done, diverged, failed (the base was refused), or what should_stop said
    cause: str | None = None


Progress = Callable[[int, measure.Metrics], None]


def train(
    spec: RunSpec,
    attempt: Attempt,
    artifacts: Path,
    tracker: Tracker,
    should_stop: Callable[[], str | None],
    on_update: Progress,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train one run, or go on with it from its last checkpoint. The record in its folder is the only result.

    `artifacts` holds what runs share: the base's evaluation, and a reward model (`prepare_reward_model` comes first).
    `should_stop` is asked between updates, and why; `on_update` is told each update's metrics. `ranks`: the processes
    that train it, led by this one. Raises Lost as soon as the run has become another process's.
    """
    objective = build_objective(*spec.objective_parts)
    artifact = reward_model_artifact(spec, artifacts)
    with Trainer(spec, objective, ranks, None if artifact is None else artifact / "model") as trainer:
        return _train(spec, objective, trainer, attempt, artifacts, tracker, should_stop, on_update)


def _train(
    spec: RunSpec,
    objective: Objective,
    trainer: Trainer,
    attempt: Attempt,
    artifacts: Path,
    tracker: Tracker,
    should_stop: Callable[[], str | None],
    on_update: Progress,
) -> Outcome:
    settings, folder = spec.train, attempt.folder
    state = trainer.load(attempt)
    done, beta_scale = state.update, state.beta_scale
    threshold = Threshold(objective.clip, spec.algorithm.group_size, state.calibrated)
    queue = RolloutQueue(spec.sampling.lag, settings.updates, state.waiting, spec.sampling.period)
    kept = {} if trainer.repeats_itself else checkpoint.load_rollouts(folder, trainer.device)
    folder.evaluations.mkdir(exist_ok=True)
    suites = {suite: folder.evaluations / f"{suite}.jsonl" for suite in spec.eval.suites}
    witness = Witness(spec, attempt, trainer)
    artifact = reward_model_artifact(spec, artifacts)
    shift = None if artifact is None else Shift.load(artifact, spec)
    attempt.begin_logs([folder.metrics, folder.timing, *suites.values(), *witness.logs], done or -1)

    def begin(index: int) -> Callable[[], Rollout]:
        if index in kept:
            return lambda: kept[index]
        fetch = trainer.begin(index, version=done)
        if trainer.repeats_itself:
            return fetch
        fetch_and_save = cache(lambda: _saved(attempt, fetch()))
        if not trainer.samples_ahead:  # it is there: a run that is killed before its turn finds it
            fetch_and_save()
        return fetch_and_save

    def record_evaluation(update: int, rows: dict[str, list[ItemRow]]) -> measure.Metrics:
        for suite, suite_rows in rows.items():
            attempt.append(suites[suite], [{"update": update, **row} for row in suite_rows])
        witness.sees_evaluation(update, rows)
        return {**summary(rows, spec.eval.pass_at), **({} if shift is None else shift.metrics(trainer))}

    def record_update(update: int, row: measure.Metrics) -> None:
        attempt.append(folder.metrics, [{"update": update, **row}])
        tracker.log(update, row)
        on_update(update, row)

    def save() -> None:
        trainer.save(attempt, checkpoint.State(done, beta_scale, list(queue.waiting), threshold.state))

    if done == 0:
        rows = base_evaluation(spec, artifacts, trainer.evaluate)
        record_update(0, record_evaluation(0, rows))
        witness.probe(0, objective, objective.kl.betas(1, settings.updates, beta_scale).reward)
    saved, saved_at = state.update, time.monotonic()
    while done < settings.updates:
        if reason := should_stop():
            if saved != done:
                save()
            return Outcome(reason)
        update, clock = done + 1, Clock()
        betas = objective.kl.betas(update, settings.updates, beta_scale)
        try:
            with clock.phase("rollout"):
                rollout = queue.next(update, begin)
        except FloatingPointError as error:
            witness.diverged()
            return Outcome("diverged", f"update {update}: {error}")
        if done == 0 and (refusal := witness.sees_base(rollout)) is not None:
            return Outcome("failed", refusal)
        tokens = rollout.generation.tokens
        with clock.phase("score"):
            scores = trainer.score_batch(tokens)
        clipped = objective.at(threshold.tau)
        advantages = clipped.advantages(
            rollout.rewards, scores.old_logprobs, scores.ref_logprobs, tokens.mask, betas.reward, scores.exact_kl
        )
        witness.sees(rollout, dataclasses.replace(scores, kept=None), advantages)  # it must not hold on to the graph
        with clock.phase("step"):
            steps = trainer.update(
                rollout.generation, scores, advantages, betas.loss, threshold.tau, settings.lr_at(update)
            )
        log_ratios = measure.sequence_log_ratios(scores, tokens.mask)
        row: measure.Metrics = {
            **measure.reward_metrics(rollout, spec.algorithm.group_size),
            **({} if shift is None else shift_metrics(rollout)),
            **measure.kl_metrics(scores, tokens.mask),
            **measure.clip_metrics(scores, tokens.mask, clipped),
            **threshold.metrics(log_ratios, rollout.rewards, objective, betas),
            **measure.strength_metrics(betas, tokens.lengths, objective, spec.task.max_response_tokens),
            **measure.staleness_metrics(rollout, scores, update, objective),
            **measure.length_metrics(rollout),
            **steps,
            "lr": settings.lr_at(update),
        }
        beta_scale = objective.kl.adapted(beta_scale, row["kl/k1_sequence"], len(rollout.rewards))
        cause = measure.divergence(row, settings.max_kl, settings.min_reward)
        refusal = threshold.sees(update, log_ratios)
        done = update
        every = spec.eval.every
        if done == settings.updates or cause is not None or (every and done % every == 0):
            try:
                with clock.phase("eval"):
                    row.update(record_evaluation(update, trainer.evaluate()))
            except FloatingPointError as error:
                cause = cause or str(error)
        record_update(update, row)
        if cause is None:
            with clock.phase("probe"):
                witness.probe(update, clipped, betas.reward)
        if update in spec.checkpoint.keep_at:  # before the checkpoint: a run that goes on from that does not come here
            trainer.save_milestone(attempt, update)
        if refusal is not None and cause is None:
            return Outcome("failed", refusal)
        due = done == settings.updates or time.monotonic() - saved_at >= settings.checkpoint_seconds
        if due and cause is None:  # a run killed while it ends as diverged must not go on after its divergence
            with clock.phase("checkpoint"):
                save()
            saved, saved_at = done, time.monotonic()
        attempt.append(folder.timing, [{"update": update, **clock.row(int(tokens.mask.sum().item()))}])
        if cause is not None:
            witness.diverged()
            return Outcome("diverged", f"update {update}: {cause}")
    checkpoint.keep_weights_only(attempt)
    return Outcome("done")


def _saved(attempt: Attempt, rollout: Rollout) -> Rollout:
    """Keep a batch for a resumed run, which might not sample it again."""
    checkpoint.save_rollout(attempt, rollout)
    return rollout


class Clock:
    """Seconds spent in each phase of an update."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self._phases[f"seconds/{name}"] = time.perf_counter() - start

    def row(self, tokens: int) -> dict[str, float]:
        """Phases, total, generated tokens per second of the whole update, and peak resident memory in MiB."""
        total = time.perf_counter() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = {**self._phases, "seconds/total": total, "tokens_per_second": tokens / total, "peak_rss_mib": peak}
        if torch.cuda.is_available():
            row["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return row


def base_evaluation(
    spec: RunSpec, artifacts: Path, run: Callable[[], dict[str, list[ItemRow]]]
) -> dict[str, list[ItemRow]]:
    """The base model's evaluation: computed by the first run of a sweep that needs it, read by the others."""

    def build(folder: Path) -> None:
        for suite, rows in run().items():
            append_rows(folder / f"{suite}.jsonl", rows)

    folder = shared_artifact(artifacts / base_eval_id(spec), build)
    return {suite: list(read_rows(folder / f"{suite}.jsonl")) for suite in spec.eval.suites}
