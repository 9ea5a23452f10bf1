"""The progress of a local sweep: runs done of all, and for each worker update, reward and KL; ETA."""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from klsweep.record.files import Row
from klsweep.record.folder import RunFolder
from klsweep.record.rollouts import base_lines, base_summary, rollout_rows
from klsweep.terminal import PLAIN_SECONDS


class SweepProgress:
    """A live display on a terminal, a line now and then elsewhere. Use as a context manager."""

    def __init__(self, rows: Iterable[Row], names: Mapping[str, str], console: Console) -> None:
        """`rows` of the plan that are run; `names` of cells by cell id."""
        self._runs = {row["run_id"]: row for row in rows}
        self._names = names
        self._console = console
        self._live = Live(console=console, transient=True) if console.is_terminal else None
        self._active: dict[str, Row] = {}
        self._updates_done = dict.fromkeys(self._runs, 0)
        self._updates_planned = {run_id: row["updates"] for run_id, row in self._runs.items()}
        self._bases_shown: set[tuple[str | None, ...]] = set()
        self._ended = 0
        self._start = self._said_at = time.monotonic()

    def __enter__(self) -> "SweepProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def on_update(self, folder: RunFolder, update: int, row: Row) -> None:
        """A worker finished an update."""
        if update == 1:
            self._show_base(folder, folder.recorded())
        self._active[folder.run_id] = {"update": update, **row}
        self._updates_done[folder.run_id] = update
        self._show()

    def on_end(self, folder: RunFolder, status: Row) -> None:
        """A run ended."""
        self._show_base(folder, status)
        self._ended += 1
        self._active.pop(folder.run_id, None)
        if status["state"] == "done":
            self._updates_done[folder.run_id] = self._updates_planned[folder.run_id]
        else:  # what is left of it nobody waits for
            self._updates_planned[folder.run_id] = self._updates_done[folder.run_id]
            cause = status.get("cause") or ""
            self._console.print(
                Text(f"{status['state']}: {self._name(folder.run_id)}: {cause} ({folder.path})", style="red")
            )
        self._show()

    def _show_base(self, folder: RunFolder, status: Row) -> None:
        """Once per model and task: how the base does, and, of a run on its own, its first responses."""
        axes = self._runs[folder.run_id]["axes"]
        kind = axes.get("model"), axes.get("task")
        if kind in self._bases_shown or not status.get("base"):
            return
        self._bases_shown.add(kind)
        lines = base_lines(rollout_rows(folder, "base")) if len(self._runs) == 1 else []
        for line in (base_summary(status["base"], axes.get("task")), *lines):
            self._console.print(Text(line))

    def _show(self) -> None:
        if self._live:
            self._live.update(Group(self._headline(), *(self._line(run) for run in self._active)))
        elif time.monotonic() - self._said_at > PLAIN_SECONDS or self._ended == len(self._runs):
            self._said_at = time.monotonic()
            self._console.print(Group(self._headline(), *(self._line(run) for run in self._active)))

    def _headline(self) -> Text:
        total = sum(self._updates_planned.values())
        done = sum(self._updates_done.values())
        elapsed = time.monotonic() - self._start
        eta = f"{elapsed * (total - done) / done:.0f} s" if done else "unknown"
        return Text(
            f"runs {self._ended}/{len(self._runs)}  updates {done}/{total}  "
            f"elapsed {elapsed:.0f} s  ETA {eta if self._ended < len(self._runs) else '0 s'}",
            style="bold",
        )

    def _line(self, run_id: str) -> Text:
        row = self._active[run_id]
        figures = f"update {row['update']}/{self._runs[run_id]['updates']}"
        if "reward/mean" in row:
            figures += f"  reward {row['reward/mean']:.3f}  KL {row['kl/full_sequence']:.3f}"
        return Text(f"  {self._name(run_id)}: {figures}")

    def _name(self, run_id: str) -> str:
        row = self._runs[run_id]
        return f"{self._names[row['cell_id']]} seed {row['seed']}"
