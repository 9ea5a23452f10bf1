"""The progress of a sync, and what it came to, for people."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from klsweep.mirror.account import Account
from klsweep.mirror.sync import INCOMPLETE, OUTCOMES, Synced, Told
from klsweep.terminal import PLAIN_SECONDS, console

SHOWN = 40  # incomplete runs


@contextmanager
def progress(runs: int) -> Iterator[Told]:
    """On stderr, a bar on a terminal and a line now and then elsewhere. Gives what is to be told each outcome."""
    out, told, rows, said_at = console(stderr=True), 0, 0, time.monotonic()
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rows]} rows"),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=runs, rows=0)

        def tell(outcome: Synced) -> None:
            nonlocal told, rows, said_at
            told, rows = told + 1, rows + outcome.sent
            bar.update(task, advance=1, rows=rows)
            if not out.is_terminal and time.monotonic() - said_at > PLAIN_SECONDS:
                said_at = time.monotonic()
                out.print(f"runs {told}/{runs}  {rows} rows sent")

        yield tell


def print_outcomes(account: Account, outcomes: Sequence[Synced]) -> None:
    """Runs by outcome, then each that is not whole at W&B."""
    out, counts = console(), Counter(outcome.outcome for outcome in outcomes)
    words = ", ".join(f"{counts[kind]} {kind}" for kind in OUTCOMES if counts[kind])
    rows = sum(outcome.sent for outcome in outcomes)
    out.print(f"{account.path}: {len(outcomes)} runs: {words}; {rows} rows sent", style="bold")
    lacking = [outcome for outcome in outcomes if outcome.outcome == INCOMPLETE]
    for outcome in lacking[:SHOWN]:
        out.print(Text(f"{outcome.run_id} ({outcome.state}): {outcome.detail}", style="red"))
    if len(lacking) > SHOWN:
        out.print(f"and {len(lacking) - SHOWN} more (--json has every run)")
    for outcome in outcomes:
        if outcome.outcome != INCOMPLETE and outcome.detail:
            out.print(f"{outcome.run_id} ({outcome.state}): {outcome.detail}")
    out.print(account.page)
