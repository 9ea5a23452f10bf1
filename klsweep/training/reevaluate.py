"""Evaluating weights that training left behind: a run's last checkpoint, a milestone, or any folder of a model."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from klsweep.config.build import RunSpec
from klsweep.model.parallel import ALONE, Ranks
from klsweep.objective.objective import build_objective
from klsweep.record.files import Row, read_rows
from klsweep.record.folder import Attempt, RunFolder
from klsweep.record.rollouts import rollout_file
from klsweep.tasks.accuracy import summary
from klsweep.tracking import Tracker
from klsweep.training.evaluate import ItemRow, ungraded
from klsweep.training.loop import Outcome, Progress, base_evaluation
from klsweep.training.settings import Subject
from klsweep.training.trainer import Trainer

Suites = dict[str, list[ItemRow]]


def reevaluate(
    spec: RunSpec,
    subject: Subject,
    attempt: Attempt,
    artifacts: Path,
    tracker: Tracker,
    should_stop: Callable[[], str | None],
    on_suite: Progress,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Evaluate `subject` by the settings of `spec`, and its base, as training does after its last update.

    The record is a run's: `eval/<suite>.jsonl` gets the base's rows (update 0) and the subject's (its update) in one
    piece, `timing.jsonl` a row per suite, and `metrics.jsonl` a row of each when all suites are done. A suite that an
    earlier attempt has completed is not done again. `artifacts` holds the base's evaluation, which is shared;
    `should_stop` is asked between suites, and why; `on_suite` is told how many are done, and their figures.
    """
    folder, trainer = attempt.folder, Trainer(spec, build_objective(*spec.objective_parts), ranks)
    base = base_evaluation(spec, artifacts, trainer.evaluate)
    _load(subject, folder, trainer)
    logs = {name: folder.evaluations / f"{name}.jsonl" for name in spec.eval.suites}
    found = _begin(attempt, logs, subject.update, base)
    for number, name in enumerate((name for name in logs if name not in found), len(found) + 1):
        if reason := should_stop():
            return Outcome(reason)
        start = time.perf_counter()
        try:
            found |= trainer.evaluate([name])
        except FloatingPointError as error:
            return Outcome("diverged", f"eval.suites.{name}: {error}")
        attempt.append(logs[name], [*_at(0, base[name]), *_at(subject.update, found[name])])
        seconds = time.perf_counter() - start
        attempt.append(folder.timing, [{"update": number, "suite": name, "seconds/total": seconds}])
        on_suite(number, summary({name: found[name]}, spec.eval.pass_at))
    for update, rows in ((0, base), (subject.update, found)):
        row = summary({name: rows[name] for name in logs}, spec.eval.pass_at)
        attempt.append(folder.metrics, [{"update": update, **row}])
        attempt.append(rollout_file(folder, "errors"), ungraded(update, rows))
        tracker.log(update, row)
    return Outcome("done")


def _load(subject: Subject, folder: RunFolder, trainer: Trainer) -> None:
    """Put the subject's weights into the policy. Its paths are relative to the evaluation's run folder."""
    if subject.folder is not None:
        trainer.load_model(folder.path / subject.folder)
    elif subject.run is not None:
        trainer.load_weights(RunFolder(folder.path / subject.run), subject.update)


def _begin(attempt: Attempt, logs: Mapping[str, Path], update: int, base: Suites) -> Suites:
    """Make the logs ours; the subject's rows of the suites that an earlier attempt has completed."""
    folder = attempt.folder
    folder.evaluations.mkdir(exist_ok=True)
    found = {name: _complete(log, update, base[name]) for name, log in logs.items()}
    complete = {name: rows for name, rows in found.items() if rows}
    folder.rollouts.mkdir(exist_ok=True)
    attempt.begin_logs([folder.metrics, rollout_file(folder, "errors")], -1)
    attempt.begin_logs([folder.timing], len(complete))
    for name, log in logs.items():
        attempt.begin_logs([log], update if name in complete else -1)
    return complete


def _complete(log: Path, update: int, base: Sequence[ItemRow]) -> list[ItemRow]:
    """The subject's rows in a suite's log, none unless the log is of these items and whole."""
    rows = list(read_rows(log))
    ours = [_without_update(row) for row in rows if row["update"] == update]
    theirs = [_without_update(row) for row in rows if row["update"] == 0]
    same = [row["prompt_hash"] for row in ours] == [row["prompt_hash"] for row in base]
    return ours if same and theirs == list(base) else []


def _at(update: int, rows: Sequence[ItemRow]) -> list[Row]:
    return [{"update": update, **row} for row in rows]


def _without_update(row: Row) -> ItemRow:
    return {key: value for key, value in row.items() if key != "update"}
