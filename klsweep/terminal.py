"""The terminal, or what stands in for it, and grids of text for it and for Markdown."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.table import Table

FIGURE = re.compile(r"[-−+]?\d|[–]|$")
PIPE_WIDTH = 200  # a pipe has no width of its own: never fold a line for it
PATIENCE_SECONDS = 1.0  # what is done sooner needs no progress bar
PLAIN_SECONDS = 10.0  # between lines where the output is no terminal


class Advance(Protocol):
    """Told how much is done, and of how much if that was not known before."""

    def __call__(self, done: int, of: int | None = None) -> None: ...


def console(stderr: bool = False) -> Console:
    """A console on stdout or stderr. Text is printed as it is: brackets in a cause or a path are no mark-up."""
    found = Console(stderr=stderr, markup=False, highlight=False)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found


@contextmanager
def progress(name: str, total: int | None = None) -> Iterator[Advance]:
    """A progress bar on stderr for what takes longer than a second; where that is no terminal, now and then a line."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    begun = said = time.monotonic()
    shown = sys.stderr.isatty()
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(name, total=total, visible=False)

        def advance(done: int, of: int | None = None) -> None:
            nonlocal said
            if not shown and (now := time.monotonic()) - said > PLAIN_SECONDS:
                said = now
                print(f"{name}: {done}/{of or total or '?'} after {now - begun:.0f} s", file=sys.stderr, flush=True)
            bar.update(task, completed=done, total=of, visible=time.monotonic() - begun > PATIENCE_SECONDS)

        yield advance


def listed(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """So many of them, and how many more there are: `a, b, and 3 more`."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])


def print_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns of figures are flush right, those of words left. No word or figure is ever cut."""
    out = console()
    table = Table(box=None, header_style="bold", padding=(0, 1))
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    while _total(widths) > out.width and widths != least:  # too narrow: break lines where most can be gained
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    out.width = max(out.width, _total(widths))
    for name, width, column in zip(header, widths, columns, strict=True):
        figures = all(FIGURE.match(cell) for cell in column[1:])
        table.add_column(name, justify="right" if figures else "left", width=width)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def markdown_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _total(widths: Sequence[int]) -> int:
    """Characters of a line: each column has a space on either side."""
    return sum(widths) + 2 * len(widths)
