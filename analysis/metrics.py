"""Run-level metrics by name: what `--columns` and `--metric` take. A metric is one number per run, or none."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from klsweep.analysis.load import RunResult
from klsweep.errors import BadInput
from klsweep.record.folder import LAST_UPDATES

ACCURACY = "pass@1"

# of an item, as SQL over the table of items; a run's metric is the mean over items
ITEM_SCORES = {
    ACCURACY: "correct / samples",
    "greedy": "greedy_correct::INT",
    "likelihood": "option_correct::INT",
    "kl": "kl",
    "entropy": "entropy",
}
HIGHER_IS_BETTER = ("pass@", "greedy", "likelihood", "reward/mean", "reward/correct")
ROLES = {"in": "in mean", "out": "out mean"}
NOTES = {
    "kl": "KL: KL(π‖π_ref) in nats per response, on fresh samples for the trained task.",
    "entropy": "entropy: of the token distributions in nats, summed over a response; samples as for KL.",
    "reward": f"reward: of the last {LAST_UPDATES} training batches.",
}


@dataclass(frozen=True)
class Metric:
    """One number per run: `value(run)`, None where there is none; `base(run)` the same of the base it started from.

    `higher_is_better` is None for what is neither good nor bad in itself. `suites(run)` are those over which it is a
    mean, of their `key`; none for a training metric.
    """

    name: str
    title: str
    higher_is_better: bool | None
    value: Callable[[RunResult], float | None]
    base: Callable[[RunResult], float | None]
    suites: Callable[[RunResult], Sequence[str]]
    key: str


def metric(name: str, suites: Iterable[str], logged: Iterable[str]) -> Metric:
    """The metric of a name: `in`, `out` (pass@1, mean over the suites in and out of distribution), `in/<metric>`,
    `out/<metric>`, `kl`, `entropy` (of the trained task), a suite (pass@1), `eval/<suite>/<metric>`, `reward`, or any
    metric that is logged while training (mean over the last updates).

    BadInput with the choices for another.
    """
    names, known = list(suites), list(logged)
    short = {"kl": "in/kl", "entropy": "in/entropy", "reward": "reward/mean"}
    head, _, metric = short.get(name, name).partition("/")
    evaluated = {found.split("/", 2)[-1] for found in known if found.startswith("eval/")}
    if head in ROLES and (not metric or metric in evaluated or name in short):
        return _of_role(name, head, metric or ACCURACY)
    if name in names:
        return _of_suite(name, name, ACCURACY)
    parts = name.split("/")
    if parts[0] == "eval" and len(parts) == 3 and name in known:
        return _of_suite(name, parts[1], parts[2])
    full = short.get(name, name)
    if (full in known and not full.startswith("eval/")) or name in short:
        return _training(name, full)
    choices = [*ROLES, *short, *names, *(found for found in known if not found.startswith("eval/"))]
    further = "in/<metric>, out/<metric>, eval/<suite>/<metric>"
    raise BadInput(f"{name!r}: no metric of that name (choose from {', '.join(choices)}, {further})")


def suites_of(run: RunResult, role: str) -> list[str]:
    """The suites that are in ("in") or out of distribution ("out") for a run."""
    return [suite for suite, found in run.plan["suites"].items() if found == role]


def _better(metric: str) -> bool | None:
    return True if metric.startswith(HIGHER_IS_BETTER) else None


def _of_role(name: str, role: str, metric: str) -> Metric:
    title = {"kl": "KL", "entropy": "entropy"}.get(name) or ROLES[role] + ("" if metric == ACCURACY else f" {metric}")
    return Metric(
        name,
        title,
        _better(metric),
        lambda run: _mean(run.evaluation(suite, metric) for suite in suites_of(run, role)),
        lambda run: _mean(run.base_evaluation(suite, metric) for suite in suites_of(run, role)),
        lambda run: suites_of(run, role),
        metric,
    )


def _of_suite(name: str, suite: str, metric: str) -> Metric:
    return Metric(
        name,
        name.removeprefix("eval/"),
        _better(metric),
        lambda run: run.evaluation(suite, metric),
        lambda run: run.base_evaluation(suite, metric),
        lambda run: [suite],
        metric,
    )


def _training(name: str, logged: str) -> Metric:
    value = partial(RunResult.training, metric=logged)
    return Metric(name, name, _better(logged), value, lambda run: None, lambda run: [], logged)


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean over suites within one run, so that the run stays the unit; None if one of them is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(found) else None
