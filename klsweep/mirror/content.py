"""What W&B is to hold of a run, read from its record, and what of it is missing there. No W&B."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from klsweep.cells import describe
from klsweep.record.files import Row, read_json, read_rows
from klsweep.record.folder import FINISHED, STATES, RunFolder, SweepFolder
from klsweep.record.origin import EXTERNAL, is_external
from klsweep.tracking import flat, wandb_group, wandb_id

STATE, CAUSE, UPDATE = "klsweep/state", "klsweep/cause", "klsweep/update"
RELATIVE_ERROR = 1e-9  # of a number that went through two JSON libraries


class Differs(Exception):
    """W&B holds something else than the beginning of the record, and takes no step back."""


@dataclass(frozen=True)
class Content:
    """A run as W&B is to show it. `rows` of `metrics.jsonl` in order, each an update's figures.

    `marks` are tags beside the state. `withheld` counts rows that a resumed run may write anew, otherwise: they wait
    until it cannot.
    """

    run_id: str
    wandb_id: str
    name: str
    group: str
    job_type: str
    marks: tuple[str, ...]
    state: str
    host: str | None
    config: Row
    summary: Row
    rows: list[Row]
    withheld: int

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def at_work(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class Held:
    """What W&B holds of a run: `lines` of history, and the summary, which has the latest value of each metric."""

    lines: int
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    tags: frozenset[str]
    name: str
    state: str  # as W&B says it: running, finished, failed, crashed, …


def contents(sweep: SweepFolder, statuses: Mapping[str, Row]) -> dict[str, Callable[[], Content]]:
    """What reads the content of each planned run that has begun, by run id."""
    plan = sweep.plan()
    names = describe(plan)
    return {
        row["run_id"]: partial(_content, sweep, row, status, names[row["cell_id"]])
        for row in plan
        if (status := statuses[row["run_id"]])["attempt"]
    }


def _content(sweep: SweepFolder, plan: Row, status: Row, cell: str) -> Content:
    folder = sweep.run(plan["run_id"])
    recorded = list(read_rows(folder.metrics))
    external = is_external(plan)
    made = {"origin": EXTERNAL, "kl_definition": plan["kl_definition"]} if external else {}
    rows = recorded if external or status["state"] in FINISHED else _settled(folder, recorded)
    group = wandb_group(sweep)
    # `run`, `sweep` or `group` alone would be taken for W&B's own by wandb-workspaces, even in a configuration
    ids = {"run_id": folder.run_id, "cell_id": plan["cell_id"], "cell": cell, "sweep_name": group}
    code = {key: status.get(key) for key in ("science_hash", "plugin_hash", "eval_id")}
    axes = {f"choice.{axis}": choice for axis, choice in plan["axes"].items()}
    fields = {"seed": plan["seed"], "kl.coef": plan["kl_coef"], **plan["fields"]}
    stamped = list(_stamped(folder, rows))
    return Content(
        run_id=folder.run_id,
        wandb_id=wandb_id(folder),
        name=f"{cell} seed {plan['seed']}",
        group=group,
        job_type=EXTERNAL if external else "evaluate" if "evaluates" in plan else "train",
        marks=(EXTERNAL,) if external else (),
        state=status["state"],
        host=EXTERNAL if external else status.get("node"),
        config={k: value for k, value in flat({**axes, **fields, **ids, **code, **made}).items() if value is not None},
        summary={**_latest(stamped), STATE: status["state"], CAUSE: status.get("cause") or ""},
        rows=stamped,
        withheld=len(recorded) - len(rows),
    )


def _settled(folder: RunFolder, rows: list[Row]) -> list[Row]:
    """The rows that the run will not take back: on the CPU all, because a resumed run repeats every byte; on other
    devices those up to its last checkpoint.
    """
    if (read_json(folder.environment) or {}).get("device") == "cpu":
        return rows
    return [row for row in rows if row["update"] <= folder.checkpointed()]


def _stamped(folder: RunFolder, rows: Sequence[Row]) -> Iterator[Row]:
    """Rows as W&B takes them: with the time when an update was done, as far as the record tells it (without pauses
    and the base's evaluation), and null, which stands for a number that is not finite, as NaN.
    """
    seconds = {row["update"]: row["seconds/total"] for row in read_rows(folder.timing)}
    time = folder.attempts.claim(1).get("time")
    for row in rows:
        figures = {key: math.nan if value is None else value for key, value in row.items()}
        if time is None:
            yield figures
        else:
            time += seconds.get(row["update"], 0.0)
            yield {**figures, "_timestamp": time}


def _latest(rows: Sequence[Row]) -> Row:
    """The latest value of each figure, as W&B's own summary has it, and at which update the record is.

    Sent besides, because the client forgets them where a sync was killed, or had nothing but a new state to say.
    """
    found = {key: value for row in rows for key, value in row.items() if key not in ("update", "_timestamp")}
    return {**found, UPDATE: rows[-1]["update"]} if rows else {}


def missing_rows(content: Content, held: Held | None) -> list[Row]:
    """The rows that W&B lacks. Differs if what it holds is not how the record begins, as far as it can be told."""
    if held is None:
        return content.rows
    if held.lines > len(content.rows):
        if content.finished:
            raise Differs(f"it holds {held.lines} rows, and {len(content.rows)} are recorded")
        return []  # of an attempt that ended after its last checkpoint: the next one writes them again
    if found := _departure(content.rows, held):
        raise Differs(found)
    if is_unsettled(content, held):
        raise Differs(f"it holds {held.lines} rows up to step {_step(held)}: some before that are missing")
    return content.rows[held.lines :]


def is_unsettled(content: Content, held: Held) -> bool:
    """True if the summary is further than as many rows can be: W&B has not counted them all yet, or lacks some."""
    reached = content.rows[held.lines - 1]["update"] if 0 < held.lines <= len(content.rows) else -1
    step = _step(held)
    return step is not None and held.lines <= len(content.rows) and step > reached


def _step(held: Held) -> int | None:
    return held.summary.get("_step", held.summary.get(UPDATE))


def _departure(rows: Sequence[Row], held: Held) -> str | None:
    """What a summary, which may lag behind the history, has otherwise than the row of its step."""
    if (step := _step(held)) is None:
        return None
    summary = held.summary
    row = next((row for row in rows if row["update"] == step), None)
    if row is None:
        return f"it is at step {step}, which is not recorded"
    for key, value in row.items():
        if key not in ("update", "_timestamp") and not _agree(summary.get(key), value):
            return f"at step {step}, {key} is {summary.get(key)} there, {value} in the record"
    return None


def _agree(there: Any, here: Any) -> bool:
    """True if W&B holds a value. How it holds a number that is not finite, or no text, is not looked at."""
    if isinstance(here, str):
        return (there or "") == here
    return not math.isfinite(here) or (
        isinstance(there, int | float) and math.isclose(there, here, rel_tol=RELATIVE_ERROR)
    )


def tags(content: Content, held: Held | None) -> tuple[str, ...]:
    """The state and marks as tags, beside the tags that users have given."""
    theirs = held.tags - {*STATES, *content.marks} if held is not None else set()
    return (*sorted(theirs), *content.marks, content.state)


def facts_agree(content: Content, held: Held) -> bool:
    """True if what W&B says of a run beside its rows is as recorded."""
    return (
        all(held.config.get(key) == value for key, value in content.config.items())
        and all(_agree(held.summary.get(key), value) for key, value in content.summary.items())
        and held.name == content.name
        and held.tags == set(tags(content, held))
        and (content.at_work or ((held.state == "finished") == content.finished and held.state != "running"))
    )


def is_whole(content: Content, held: Held | None) -> bool:
    """True if W&B holds all that is recorded, and says so. Differs as in `missing_rows`."""
    return not missing_rows(content, held) and held is not None and facts_agree(content, held)
