"""Python values as Arrow columns. By way of numpy buffers: `pyarrow.array` imports pandas, which takes 0.3 s."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

TEXT, NUMBER, WHOLE, FLAG = pa.large_string(), pa.float64(), pa.int64(), pa.bool_()
_ABSENT = object()


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of rows; a key that a row lacks is NULL there, columns stand in the order in which keys first appear."""
    names: dict[str, Any] = {}
    for row in rows:
        names |= row
    return pa.table({name: column([row.get(name) for row in rows]) for name in names})


def empty(columns: Mapping[str, pa.DataType]) -> pa.Table:
    """A table without rows."""
    return pa.table({name: pa.nulls(0, kind) for name, kind in columns.items()})


def cast(rows: pa.Table, kinds: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns of these names as these kinds, the others as they are. ValueError where that would lose anything."""
    found = {name: rows[name] for name in rows.column_names}
    for name in kinds.keys() & found.keys():
        own, kind = found[name], kinds[name]
        if own.type == kind:
            continue
        try:
            found[name] = own.cast(kind)
            kept = found[name].cast(own.type).equals(own)
        except pa.ArrowException:
            kept = False
        if not kept:
            raise ValueError(f"{name}: expected {kind}, not {own.type}")
    return pa.table(found)


def joined(tables: Sequence[pa.Table]) -> tuple[pa.Table, list[str]]:
    """Tables one below the other, and which columns became JSON texts for it: numbers in one, texts in another, say."""
    try:
        return pa.concat_tables(tables, promote_options="permissive"), []
    except pa.ArrowException:
        odd = [name for name in dict.fromkeys(n for t in tables for n in t.column_names) if not _alike(tables, name)]
    return pa.concat_tables([_as_texts(one, odd) for one in tables], promote_options="permissive"), odd


def _alike(tables: Sequence[pa.Table], name: str) -> bool:
    kinds = {one.schema.field(name).type for one in tables if name in one.column_names}
    try:
        pa.unify_schemas([pa.schema({name: kind}) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _as_texts(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    return pa.table({n: _json_texts(rows[n].to_pylist()) if n in names else rows[n] for n in rows.column_names})


def column(values: Sequence[Any]) -> pa.Array:
    """Booleans, integers, numbers, texts or lists of numbers as such, anything else as JSON text; None is NULL."""
    present = np.array([value is not None for value in values], bool)
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds <= {bool, int, float}:
        dtype = next(kind for kind in (float, int, bool) if kind in kinds)
        return _numbers(np.array([0 if value is None else value for value in values], dtype), present)
    if kinds == {list} and all(isinstance(x, int | float) for value in values for x in value or ()):
        return _lists(values, present)
    return _json_texts(values)


def _json_texts(values: Sequence[Any]) -> pa.Array:
    return texts([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


def logged_values(rows: Sequence[Mapping[str, Any]], name: str) -> pa.Array:
    """One metric of logged rows as float64: NULL where a row has none, NaN where it was not finite.

    A record has null for a number that is not finite, as JSON has no other way. ValueError for what is no number.
    """
    try:
        try:
            values = np.array([row[name] for row in rows], np.float64)  # None becomes NaN
            return _numbers(values, None)
        except KeyError:
            found = [row.get(name, _ABSENT) for row in rows]
            present = np.array([value is not _ABSENT for value in found], bool)
            return _numbers(np.array([0.0 if v is _ABSENT else v for v in found], np.float64), present)
    except (TypeError, ValueError):
        wrong = next(row[name] for row in rows if not isinstance(row.get(name), int | float | None))
        raise ValueError(f"{name} = {wrong!r} is no number") from None


def texts(values: Sequence[str | None]) -> pa.Array:
    """Texts, None as NULL."""
    encoded = [b"" if value is None else value.encode(errors="replace") for value in values]
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    present = np.array([value is not None for value in values], bool)
    buffers = [_validity(present), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(TEXT, len(values), buffers)


def _numbers(values: np.ndarray, present: np.ndarray | None) -> pa.Array:
    kinds = {"f": NUMBER, "i": WHOLE, "b": FLAG}
    data = np.packbits(values, bitorder="little") if values.dtype.kind == "b" else values
    return pa.Array.from_buffers(kinds[values.dtype.kind], len(values), [_validity(present), pa.py_buffer(data)])


def _lists(values: Sequence[Sequence[float] | None], present: np.ndarray) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value or ()) for value in values], out=offsets[1:])
    flat = _numbers(np.array([x for value in values for x in value or ()], np.float64), None)
    kind = pa.large_list(NUMBER)
    return pa.Array.from_buffers(kind, len(values), [_validity(present), pa.py_buffer(offsets)], children=[flat])


def _validity(present: np.ndarray | None) -> pa.Buffer | None:
    return None if present is None or present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
