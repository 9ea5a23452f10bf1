"""SQL over what was collected: the tables `runs`, `metrics` and `items`, by DuckDB."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from klsweep.analysis.collect import Collected, runs_table
from klsweep.errors import BadInput


class Answer(NamedTuple):
    """Names of columns, and rows."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


@contextmanager
def connected(collected: Collected) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that has the tables."""
    with duckdb.connect() as connection:
        connection.register("runs", runs_table(collected.runs))
        for name, table in (("metrics", collected.metrics), ("items", collected.items)):
            if isinstance(table, Path):
                plain = re.sub(r"([*?\[\]])", r"[\1]", str(table))  # a path is a pattern to DuckDB
                quoted = plain.replace("'", "''")
                connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{quoted}')")
            else:
                connection.register(name, table)
        yield connection


def ask(collected: Collected, sql: str) -> Answer:
    """The answer to one query. BadInput with DuckDB's reason if it has none."""
    with connected(collected) as connection:
        try:
            found = connection.execute(sql)
            if found is None:  # of an empty text, whatever its type says
                raise BadInput("query: nothing is asked")
            return Answer([column[0] for column in found.description or []], found.fetchall())
        except duckdb.Error as error:
            reason = str(error).split("\nLINE ")[0]  # without the query, which the user knows
            raise BadInput(f"query: {' '.join(reason.split())}") from error
