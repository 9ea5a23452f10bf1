"""From a mapping to runs: which files and rows are whose, and the record that each makes. Nothing is written."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain

from klsweep.errors import BadInput
from klsweep.external import mapping as declared
from klsweep.external.files import Labels, Parts, Reader, pieces, together
from klsweep.external.labels import check_distinct, checked, plan_row
from klsweep.external.mapping import UPDATE
from klsweep.external.rows import evaluations, item_rows, merge, metric_rows
from klsweep.record.files import Row

METRICS = "metrics"


@dataclass(frozen=True)
class ExternalRun:
    """A run as its mapping declares it, and its record: rows of metrics by update, items of each suite in order.

    `sources` are the files that it was read from: name from the mapping, and SHA-256.
    """

    row: Row
    labels: Labels
    metrics: list[Row]
    items: dict[str, list[Row]]
    sources: list[Row]

    @property
    def is_evaluated(self) -> bool:
        """True if there is an evaluation of its end: of its planned updates, or of those before it diverged."""
        whole = self.labels["state"] == "diverged" or self.metrics[-1][UPDATE] >= self.row["updates"]
        return whole and any(key.startswith("eval/") for key in self.metrics[-1])


def external_runs(mapping: declared.Mapping) -> list[ExternalRun]:
    """All runs that a mapping declares. BadInput for anything wrong in it or in its files."""
    reader = Reader(mapping.folder)
    found: list[tuple[ExternalRun, str]] = []
    used: set[tuple[str, int]] = set()
    logged: set[str] = set()
    for number, group in enumerate(mapping.runs):
        patterns = {METRICS: group.metrics, **group.items}
        read = {one: pieces(reader, one, group.columns, group.labels) for ones in patterns.values() for one in ones}
        for told, parts in together(patterns, read):
            where = f"runs.{number} ({reader.name(next(iter(parts.values()))[0].files[0])})"
            labels = checked({**group.labels, **told}, mapping, where)
            used |= {(line.file, line.number) for own in parts.values() for piece in own for line in piece.lines}
            logged |= {column for piece in parts.get(METRICS, ()) for line in piece.lines for column in line.values}
            found.append((_run(mapping, labels, parts, reader, where), where))
    if lost := next((line for line in reader.all_lines() if (line.file, line.number) not in used), None):
        raise BadInput(f"{lost.where}: belongs to no run of this mapping")
    _check_logged(mapping, logged)
    check_distinct([(run.row, where) for run, where in found])
    return [run for run, _ in found]


def _sources(reader: Reader, parts: Parts) -> list[Row]:
    paths = sorted({path for own in parts.values() for piece in own for path in piece.files})
    return [{"file": reader.name(path), "sha256": reader.sha256(path)} for path in paths]


def _check_logged(mapping: declared.Mapping, logged: Collection[str]) -> None:
    """BadInput for a column that no file of metrics has. Where single runs lack it, it was not logged."""
    for metric, column in mapping.metrics.items():
        if logged and column not in logged:
            raise BadInput(f"metrics.{metric}: no file has a column {column!r} (columns: {', '.join(sorted(logged))})")


def _run(mapping: declared.Mapping, labels: Labels, parts: Parts, reader: Reader, where: str) -> ExternalRun:
    offset = mapping.update_offset
    lines = {kind: [line for piece in own for line in piece.lines] for kind, own in parts.items()}
    metrics = metric_rows(lines.get(METRICS, ()), mapping.metrics, offset)
    planned = {labels["updates"]} if "updates" in labels else set[int]()
    # what names no update is of the run's end, which the log of one that was carried through need not reach
    last = max(metrics if metrics and labels["state"] == "diverged" else planned.union(metrics), default=None)
    suites = {name: suite for name, suite in mapping.suites.items() if name in lines}
    logged = {metric.split("/")[1] for metric in mapping.metrics if METRICS in lines and metric.startswith("eval/")}
    items = {name: item_rows(lines[name], suite, last, offset) for name, suite in suites.items()}
    for update, figures in evaluations(items).items():
        merge(metrics, update, figures, f"{where}: items")
    return ExternalRun(
        row=plan_row(labels, mapping, max(labels.get("updates", 0), *metrics), {*suites, *logged}),
        labels=labels,
        metrics=[metrics[update] for update in sorted(metrics)],
        items={name: list(chain.from_iterable(rows for _, rows in sorted(own.items()))) for name, own in items.items()},
        sources=_sources(reader, parts),
    )
