"""The `rollouts/` of a run folder: single responses, to be looked at. JSON lines; no torch.

`base.jsonl` has ten of the base's, `probes.jsonl` those to the probe prompts, `last_batches.jsonl` the batches before a
divergence, and `errors.jsonl` counts the responses that a verifier could not grade.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from klsweep.record.files import Row, read_rows
from klsweep.record.folder import RunFolder

Kind = Literal["base", "probes", "last_batches", "errors"]
SHOWN = 100  # characters of a text in a line about it


def rollout_file(folder: RunFolder, kind: Kind) -> Path:
    """Where the responses of a kind are."""
    return folder.rollouts / f"{kind}.jsonl"


def rollout_rows(folder: RunFolder, kind: Kind) -> list[Row]:
    """The responses of a kind, in the order they were written."""
    return list(read_rows(rollout_file(folder, kind)))


def verifier_errors(folder: RunFolder) -> tuple[int | None, str | None]:
    """How many responses could not be graded, in training and evaluation, and what the last error was.

    None if the file that says so is damaged, and that it is.
    """
    try:
        rows = rollout_rows(folder, "errors")
        return sum(row["errors"] for row in rows), rows[-1]["examples"][-1]["error"] if rows else None
    except (ValueError, LookupError, TypeError):
        return None, "its errors.jsonl is damaged"


def base_summary(base: Row, task: str | None = None) -> str:
    """One line on the base's first batch: `base on add: 25 % right, 0 % truncated (256 responses)`."""
    right, truncated = (f"{100 * base[key]:.3g} %" for key in ("right", "truncated"))
    trouble = f"; warning: {base['trouble']}" if base["trouble"] else ""
    where = f"base on {task}" if task else "base"
    return f"{where}: {right} right, {truncated} truncated ({base['responses']} responses){trouble}"


def base_lines(rows: Iterable[Row]) -> list[str]:
    """Prompt, response and verdict of each of the base's first responses."""
    return [f"  {verdict(row)}: {shown(row['prompt'])} → {shown(row['response'])}{read(row)}" for row in rows]


def verdict(row: Row) -> str:
    """right, wrong, or that it could not be graded."""
    if row["error"] is not None:
        return f"not graded ({row['error']})"
    return "right" if row["correct"] else "wrong"


def read(row: Row) -> str:
    """What the verifier read in the response, where that is not the response itself, and whether it was cut off."""
    parts = [] if row["extracted"] == row["response"] else [f"read {shown(row['extracted'])}"]
    parts += ["truncated"] if row["truncated"] else []
    return f" ({', '.join(parts)})" if parts else ""


def shown(text: str | None) -> str:
    """A text in one line, its middle left out if it is long; `nothing` for None."""
    if text is None:
        return "nothing"
    half = SHOWN // 2
    return repr(text if len(text) <= SHOWN else f"{text[:half]} … {text[-half:]}")


def at_update(rows: Sequence[Row], update: int | None) -> list[Row]:
    """The rows of an update, of the last one if it is None."""
    wanted = update if update is not None else max((row["update"] for row in rows), default=0)
    return [row for row in rows if row["update"] == wanted]
