"""From rows of files to rows of a record: what was logged of updates, and the items of evaluations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from klsweep.errors import BadInput
from klsweep.external.files import SourceLine
from klsweep.external.mapping import UPDATE, Suite
from klsweep.record.files import Row
from klsweep.tasks.accuracy import summary
from klsweep.tasks.base import Item

EMPTY = ("", None)  # not logged
TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


def metric_rows(lines: Iterable[SourceLine], columns: Mapping[str, str], offset: int) -> dict[int, Row]:
    """Figures by update, as `metrics.jsonl` has them. Rows of the same update are one.

    A figure that was not logged is absent, one that is not finite NaN. BadInput for what is no number, and for an
    update that has one figure twice, with two values.
    """
    figures = {metric: column for metric, column in columns.items() if metric != UPDATE}
    found: dict[int, Row] = {}
    for line in lines:
        update = _update(line, columns[UPDATE], offset)
        there = {m: line.values[c] for m, c in figures.items() if line.values.get(c) not in EMPTY}
        logged = {metric: _number(line, figures[metric], value) for metric, value in there.items()}
        merge(found, update, logged, line.where)
    return found


def merge(rows: dict[int, Row], update: int, figures: Mapping[str, float], where: str) -> None:
    """Add figures to an update. BadInput for one that it has with another value."""
    own = rows.setdefault(update, {UPDATE: update})
    for metric, value in figures.items():
        if metric in own and not _same(own[metric], value):
            raise BadInput(f"{where}: {metric}={value!r} of update {update}: was {own[metric]!r} before")
    own.update(figures)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _update(line: SourceLine, column: str, offset: int) -> int:
    value = line.value(column)
    number = _number(line, column, value)
    if not (math.isfinite(number) and number == int(number) and number + offset >= 0):
        raise BadInput(f"{line.where}: {column}={value!r}: expected a whole number, at least {-offset} (an update)")
    return int(number) + offset


def _number(line: SourceLine, column: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise BadInput(f"{line.where}: {column}={value!r}: expected a number") from None


def item_rows(lines: Sequence[SourceLine], suite: Suite, last: int | None, offset: int) -> dict[int, list[Row]]:
    """Evaluated items by update, as `eval/<suite>.jsonl` has them; `last`: the update of a row that names none.

    Without a column of samples a row is one response, and the rows of one item are its samples. BadInput for an outcome
    that is neither right nor wrong, for an item without a name, and for one that has a figure twice.
    """
    columns = suite.columns()
    by_item: dict[tuple[int, str], list[SourceLine]] = {}
    for line in lines:
        update = last if suite.update is None else _update(line, suite.update, offset)
        if update is None:
            raise BadInput(f"{line.where}: of which update? (metrics, a column update, or the label updates say it)")
        by_item.setdefault((update, _name(line, suite)), []).append(line)
    found: dict[int, list[Row]] = {}
    for (update, _), members in by_item.items():
        rows = found.setdefault(update, [])
        for group in [[line] for line in members] if suite.samples is not None else [members]:
            rows.append({UPDATE: update, "item": len(rows), **_item(group, suite, columns)})
    return found


def _name(line: SourceLine, suite: Suite) -> str:
    """What an item is known by."""
    column = suite.prompt or suite.prompt_hash or suite.item
    assert column is not None
    value = line.value(column)
    if value in EMPTY:
        raise BadInput(f"{line.where}: {column} is empty: it says which item a row is")
    return str(value)


def _item(lines: Sequence[SourceLine], suite: Suite, columns: Mapping[str, str]) -> Row:
    """One item: its hash, how many of its samples were right, and what else is known of it."""
    name = _name(lines[0], suite)
    hashed = Item(name, "").prompt_hash if suite.prompt else name if suite.prompt_hash else None
    row: Row = {"prompt_hash": hashed, **_outcome(lines, columns)}
    for figure in ("greedy_correct", "kl", "entropy"):
        if figure in columns:
            row[figure] = _figure(lines, columns[figure], figure)
    if "response" in columns:
        row["responses"] = [str(line.value(columns["response"])) for line in lines]
    return row


def _outcome(lines: Sequence[SourceLine], columns: Mapping[str, str]) -> Row:
    column = columns["correct"]
    if "samples" not in columns:
        return {"samples": len(lines), "correct": sum(_is_right(line, column) for line in lines)}
    (line,) = lines
    samples, correct = (_count(line, columns[name]) for name in ("samples", "correct"))
    if not 0 < samples >= correct:
        raise BadInput(f"{line.where}: {column}={correct} of {columns['samples']}={samples}: expected 0 ≤ right ≤ all")
    return {"samples": samples, "correct": correct}


def _count(line: SourceLine, column: str) -> int:
    value = line.value(column)
    number = _number(line, column, value)
    if not (number >= 0 and math.isfinite(number) and number == int(number)):
        raise BadInput(f"{line.where}: {column}={value!r}: expected a whole number")
    return int(number)


def _is_right(line: SourceLine, column: str) -> bool:
    value = line.value(column)
    text = str(value).lower()
    if text not in (*TRUE, *FALSE):
        more = " (with a column of samples: how many of those)" if isinstance(value, int | float | str) else ""
        raise BadInput(f"{line.where}: {column}={value!r}: choose from true, false, 1, 0{more}")
    return text in TRUE


def _figure(lines: Sequence[SourceLine], column: str, figure: str) -> float | bool:
    """A figure of an item: whether its greedy response is right, or the mean over its samples."""
    if figure == "greedy_correct":
        answers = {_is_right(line, column) for line in lines}
        if len(answers) > 1:
            raise BadInput(f"{lines[0].where}: {column}: differs between the rows of this item")
        return answers.pop()
    values = [_number(line, column, line.value(column)) for line in lines]
    if not all(map(math.isfinite, values)):
        raise BadInput(f"{lines[0].where}: {column}={values}: expected finite numbers")
    return math.fsum(values) / len(values)


def evaluations(items: Mapping[str, Mapping[int, Sequence[Row]]]) -> dict[int, Row]:
    """The figures `eval/<suite>/…` of items, by update, computed as klsweep does."""
    found: dict[int, Row] = {}
    for suite, by_update in items.items():
        for update, rows in by_update.items():
            found.setdefault(update, {}).update(summary({suite: rows}, ()))
    return found
