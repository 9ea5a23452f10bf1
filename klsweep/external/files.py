"""The files that a mapping names: found by pattern, with the labels in their paths, and read as numbered rows."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.errors import BadInput
from klsweep.tasks.source import FORMATS, read_file

PLACE = re.compile(r"\{([\w.]+)\}")  # a label in a path
WHOLE = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
NUMERIC = ("seed", "kl.coef", "updates")  # labels that are numbers: what follows one in a path is not part of it
Labels = dict[str, Any]
Parts = dict[str, list["Piece"]]  # of a run, by kind: of metrics, or of a suite's items


class SourceLine(NamedTuple):
    """A row of a file: the file as it is named in errors, the row's number from 1, and its values by column."""

    file: str
    number: int
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.number}"

    def value(self, column: str) -> Any:
        """What stands in a column. BadInput if there is no such column."""
        if column not in self.values:
            raise BadInput(f"{self.where}: no column {column!r} (columns: {', '.join(self.values)})")
        return self.values[column]


def scalar(text: Any) -> Any:
    """A number where a text is one, else the value as it is: `0.10` is 0.1, as in a path or in CSV."""
    if not isinstance(text, str) or not NUMBER.fullmatch(text):
        return text
    return int(text) if WHOLE.fullmatch(text) else float(text)


def matching(folder: Path, pattern: str) -> list[tuple[Labels, Path]]:
    """The files that a pattern names, each with the labels in its path. BadInput if there are none."""
    template = os.path.join(folder, pattern)
    keys = list(dict.fromkeys(PLACE.findall(template)))
    parts = PLACE.split(template)
    wild, regex, seen = "", "", set[str]()
    for place, part in enumerate(parts):
        if place % 2:
            number = keys.index(part)
            text = NUMBER.pattern if part in NUMERIC else "[^/]+?"
            regex += f"(?P=p{number})" if part in seen else f"(?P<p{number}>{text})"
            seen.add(part)
            wild += "*"
        else:
            wild += glob.escape(part).replace("[*]", "*")
            regex += re.escape(part).replace(r"\*", "[^/]*")
    found = []
    for path in sorted(glob.glob(wild)):
        matched = re.fullmatch(regex, path)
        if matched is not None and os.path.isfile(path):
            found.append(({key: scalar(matched[f"p{i}"]) for i, key in enumerate(keys)}, Path(path)))
    if not found:
        raise BadInput(f"{pattern}: no such file in {folder}")
    return found


class Reader:
    """Reads files once, however many runs they hold, and knows the hashes of their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, list[SourceLine]] = {}
        self._hashes: dict[Path, str] = {}

    def name(self, path: Path) -> str:
        """A file's path from the mapping."""
        return os.path.relpath(path, self.folder)

    def lines(self, path: Path) -> list[SourceLine]:
        """The rows of a file. BadInput for what cannot be read, or has no rows."""
        if path not in self._read:
            if path.suffix not in FORMATS:
                raise BadInput(f"{self.name(path)}: expected a file ending in {', '.join(FORMATS)}")
            rows = [SourceLine(self.name(path), n, _flat(row)) for n, row in enumerate(read_file(path), 1)]
            if not rows:
                raise BadInput(f"{self.name(path)}: has no rows")
            if path.suffix == ".csv" and (ragged := next(filter(_is_ragged, rows), None)):
                raise BadInput(f"{ragged.where}: has more or fewer values than the header has columns")
            self._read[path] = rows
        return self._read[path]

    def all_lines(self) -> Iterator[SourceLine]:
        """The rows of all files that were read."""
        return chain.from_iterable(self._read.values())

    def sha256(self, path: Path) -> str:
        """The hash of a file's bytes."""
        if path not in self._hashes:
            self._hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._hashes[path]


def _is_ragged(line: SourceLine) -> bool:
    """As Python's csv says it: values beyond the header are those of None, and those that lack are None."""
    return None in line.values or None in line.values.values()


def _flat(row: Mapping[Any, Any], prefix: str = "") -> dict[Any, Any]:
    """A row without nesting: `{"data": {"kl": 1}}` has the column `data.kl`."""
    found: dict[Any, Any] = {}
    for key, value in row.items():
        name = key if key is None else f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


@dataclass(frozen=True)
class Piece:
    """The rows of one run, or of several that share them, in the files of one pattern; `labels` say of which."""

    labels: Labels
    lines: list[SourceLine] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def pieces(reader: Reader, pattern: str, columns: Mapping[str, str], declared: Labels) -> list[Piece]:
    """What the files of a pattern hold, by the labels in their paths, and those in their columns besides.

    Rows whose labels are not as `declared` are others'. BadInput if no row is left.
    """
    found: dict[tuple[Any, ...], Piece] = {}
    for labels, path in matching(reader.folder, pattern):
        for line in reader.lines(path):
            own = {**labels, **_by_row(line, columns, labels, declared)}
            if any(scalar(declared.get(key, value)) != value for key, value in own.items()):
                continue
            piece = found.setdefault(tuple(sorted(own.items())), Piece(own))
            piece.lines.append(line)
            if path not in piece.files:
                piece.files.append(path)
    if not found:
        told = [key for key in declared if key in (*PLACE.findall(pattern), *columns)]
        raise BadInput(f"{pattern}: no row has {_named({key: declared[key] for key in told})}")
    return list(found.values())


def _by_row(line: SourceLine, columns: Mapping[str, str], known: Labels, declared: Labels) -> Labels:
    """The labels in a row's columns that its file's path does not tell; one that is declared need not be there."""
    needed = {key: name for key, name in columns.items() if key not in known}
    return {key: scalar(line.value(name)) for key, name in needed.items() if key not in declared or name in line.values}


def together(patterns: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[Piece]]) -> list[tuple[Labels, Parts]]:
    """The runs that the patterns of a group span (by kind), and the pieces of each, given what each pattern has found.

    The pattern with the most labels makes the runs; to a run belong the pieces whose labels agree with its own.
    BadInput for a label that it lacks, and for a run without a piece of each pattern.
    """
    widest = max(found, key=lambda pattern: len(found[pattern][0].labels))
    runs: list[tuple[Labels, Parts]] = [(piece.labels, {}) for piece in found[widest]]
    for kind, ones in patterns.items():
        for pattern in ones:
            keys = list(found[pattern][0].labels)
            if further := [key for key in keys if key not in runs[0][0]]:
                raise BadInput(f"{pattern}: the label {{{further[0]}}} is not in {widest}")
            by_labels = {tuple(piece.labels[key] for key in keys): piece for piece in found[pattern]}
            for labels, parts in runs:
                piece = by_labels.get(tuple(labels[key] for key in keys))
                if piece is None:
                    raise BadInput(f"{pattern}: nothing there of the run with {_named(labels)} ({kind})")
                parts.setdefault(kind, []).append(piece)
    return runs


def _named(labels: Labels) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
