"""A table of many runs in one Parquet file that knows of each run what it was read from: the cache of `collect`."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from klsweep.analysis.columns import TEXT, empty, joined

FORMAT = 2  # of the file: one of another is made anew
ROWS_PER_GROUP = 2**17
METADATA = b"klsweep"


class RunKey(NamedTuple):
    """Names a run among all that were collected."""

    sweep: str
    run_id: str


class Part(NamedTuple):
    """The rows of one run, none if its files are damaged, and how they are."""

    rows: pa.Table
    damage: str | None


@dataclass(frozen=True)
class _Entry:
    """What is known of a run's rows: the state of its files, which rows they are, and damage."""

    seen: list[list[Any]]
    rows: int
    damage: str | None
    start: int = 0


class Store:
    """Gathers the rows of runs in turn, those that it holds already without reading their files again."""

    def __init__(self, file: Path | None, columns: Mapping[str, pa.DataType]) -> None:
        """`file`: where the table is kept; None keeps it in memory. `columns` are there even if no run has any."""
        self._file = file
        self._empty = empty({"sweep": TEXT, "run_id": TEXT, **columns})
        self._old, self._known = _opened(file)
        self._entries: dict[RunKey, _Entry] = {}
        self._fresh: dict[RunKey, pa.Table] = {}

    @property
    def read(self) -> set[RunKey]:
        """The runs of which a file was read anew."""
        return {key for key in self._fresh if self._entries[key].seen}

    def damage(self, key: RunKey) -> str | None:
        """Why a run has no rows, if its files are damaged."""
        return self._entries[key].damage

    def add(self, key: RunKey, files: Sequence[Path], read: Callable[[Sequence[Path]], Part]) -> None:
        """Take the rows of a run: those of last time if its files are as they were, else what `read` makes of them."""
        seen = [state for file in files if (state := _state(file)) is not None]
        known = self._known.get(key)
        if known is not None and known.seen == seen:
            self._entries[key] = known
            return
        part = read([file for file in files if file.exists()])
        self._fresh[key] = part.rows
        self._entries[key] = _Entry(seen, part.rows.num_rows, part.damage)

    def finish(self) -> pa.Table | Path:
        """The table of all runs that were added, in that order; written only if anything changed."""
        if self._file and self._old and not self._fresh and list(self._entries) == list(self._known):
            return self._file
        old = self._old.read() if self._old is not None and len(self._fresh) < len(self._entries) else None
        parts, entries, start = [], {}, 0
        for key, entry in self._entries.items():
            rows = self._fresh.get(key)
            if rows is None:
                assert old is not None
                rows = old.slice(entry.start, entry.rows)
            parts.append(rows)
            entries[key] = _Entry(entry.seen, entry.rows, entry.damage, start)
            start += entry.rows
        filled = [part for part in parts if part.num_columns]
        table, forced = joined([self._empty, *filled])
        if self._file is None:
            return table
        content = [[*key, e.seen, e.rows, e.damage, e.start] for key, e in entries.items()]
        write_table(table, self._file, {"format": FORMAT, "forced": forced, "runs": content})
        return self._file


def write_table(table: pa.Table, file: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Replace a Parquet file atomically; `facts` are kept in its metadata."""
    table = table.replace_schema_metadata({METADATA: json.dumps(facts or {}).encode()})
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(descriptor, "wb") as stream:
            named: Any = _texts(table)  # typed as a flag, documented as a list of columns, too
            pq.write_table(table, stream, ROWS_PER_GROUP, compression="zstd", use_dictionary=named)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _texts(table: pa.Table) -> list[str]:
    """Columns of texts, which repeat; figures hardly do."""
    return [field.name for field in table.schema if pa.types.is_large_string(field.type)]


def _state(file: Path) -> list[Any] | None:
    """What tells a file from itself at another time; None if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return [file.name, found.st_size, found.st_mtime_ns, found.st_ino]


def _opened(file: Path | None) -> tuple[pq.ParquetFile | None, dict[RunKey, _Entry]]:
    """A file that `Store` wrote, and what it knows; nothing if it is not there, damaged, or of another format.

    Nor of one in which a column was forced to be text: the next one may have no need of that.
    """
    if file is None or not file.exists():
        return None, {}
    try:
        stored = pq.ParquetFile(file)
        facts = json.loads((stored.schema_arrow.metadata or {}).get(METADATA, b"{}"))
    except (pa.ArrowInvalid, ValueError, OSError):
        return None, {}
    if facts.get("format") != FORMAT or facts["forced"]:
        return None, {}
    return stored, {RunKey(sweep, run_id): _Entry(*entry) for sweep, run_id, *entry in facts["runs"]}
