"""Labels of runs and cells by key, and choosing among them: what `--where`, `--baseline` and `--rows` take."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from klsweep.analysis.load import RunResult
from klsweep.errors import BadInput
from klsweep.record.files import Row
from klsweep.record.origin import origin
from klsweep.terminal import listed

BETA, ORIGIN = "kl.coef", "origin"
OF_RUNS = ("seed", "sweep", "run_id", "cell_id", "eval_id", "science_hash", "state")
SHOWN_CHOICES = 12

CONDITION = re.compile(r"\s*([\w./@]+)\s*(>=|<=|!=|=|>|<)\s*(.*)\s*")


class Condition(NamedTuple):
    """`key` is one of `values`, is none of them (`!=`), or compares so with the one value that is given."""

    key: str
    operator: str
    values: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        if self.operator in ("=", "!="):
            return any(_is(value, given) for given in self.values) == (self.operator == "=")
        if not isinstance(value, int | float):
            return False
        bound = float(self.values[0])
        return {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[self.operator]


def text_of(value: Any) -> str:
    """A label as it is printed and chosen: `–`, or `null` when given, for one that is inert."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def conditions(texts: Iterable[str], runs: Sequence[RunResult]) -> list[Condition]:
    """Conditions such as `estimator=k1,k3`, `kl.coef>=0.1`, `placement!=none`.

    BadInput for a key or value that no run has, if there are runs.
    """
    found = []
    for text in texts:
        matched = CONDITION.fullmatch(text)
        if matched is None:
            raise BadInput(f"{text!r}: a condition is KEY=VALUE,… (or !=, >=, <=, >, <), e.g. estimator=k1,k3")
        key, operator, given = matched.groups()
        values = tuple(value.strip() for value in given.split(","))
        if runs:
            _check(text, key, operator, values, runs)
        found.append(Condition(key, operator, values))
    return found


def _is(value: Any, given: str) -> bool:
    """True if a label is meant by a text: as it is printed, or a number in another form; `null` is an inert one."""
    if value is None or isinstance(value, str | bool):
        return given == text_of(value) or (value is None and given == "null")
    try:
        return given == text_of(value) or float(given) == value
    except (ValueError, TypeError):
        return False


def _check(text: str, key: str, operator: str, values: Sequence[str], runs: Sequence[RunResult]) -> None:
    check_keys([key], [run.plan for run in runs], OF_RUNS)
    if operator not in ("=", "!="):
        try:
            (bound,) = values
            float(bound)
        except ValueError:
            raise BadInput(f"{text!r}: {operator} takes one number") from None
        return
    labels = {text_of(found): found for run in runs for found in [label(run, key)]}
    if absent := [value for value in values if not any(_is(found, value) for found in labels.values())]:
        there = listed(sorted(labels), SHOWN_CHOICES)
        raise BadInput(f"{key}={absent[0]}: no run has that (choose from {there})")


def check_keys(keys: Iterable[str], plans: Sequence[Row], besides: Sequence[str] = ()) -> None:
    """BadInput for a key that is no axis, no field, not `kl.coef` or `origin` and not among `besides`."""
    axes = dict.fromkeys(axis for plan in plans for axis in plan["axes"])
    fields = {name for plan in plans for name in plan["fields"]}
    for key in keys:
        if plans and key not in (*axes, BETA, ORIGIN, *besides) and key not in fields:
            choices = ", ".join([*axes, BETA, ORIGIN, *besides])
            raise BadInput(f"{key!r}: no such key (choose from {choices}, or a field as in {example(fields)})")


def example(fields: Iterable[str]) -> str:
    """A field's name, to show what one looks like."""
    return "train.lr" if "train.lr" in (found := set(fields)) or not found else min(found)


def cell_label(plan: Row, key: str) -> Any:
    """The label of a cell: an axis, `kl.coef`, `origin` or a scientific field; None where it is inert."""
    if key == BETA:
        return plan["kl_coef"]
    if key == ORIGIN:
        return origin(plan)
    return plan["axes"][key] if key in plan["axes"] else plan["fields"].get(key)


def label(run: RunResult, key: str) -> Any:
    """The same, or one of a run."""
    own = {
        "seed": run.seed,
        "sweep": run.key.sweep,
        "run_id": run.key.run_id,
        "cell_id": run.plan["cell_id"],
        **{name: run.status.get(name) for name in ("eval_id", "science_hash", "state")},
    }
    return own[key] if key in own else cell_label(run.plan, key)


def chosen(runs: Sequence[RunResult], where: Iterable[str]) -> list[RunResult]:
    """The runs of which all conditions hold. BadInput if none is left."""
    asked = conditions(where, runs)
    kept = [run for run in runs if all(condition.holds(label(run, condition.key)) for condition in asked)]
    if runs and not kept:
        raise BadInput(f"--where {' '.join(where)}: no run is left of {len(runs)}")
    return kept
