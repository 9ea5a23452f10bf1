"""What the records of sweeps hold, one `RunResult` per planned run, and series and items on demand."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klsweep.analysis.collect import Collected, OnStep, Planned, collect
from klsweep.analysis.query import connected
from klsweep.analysis.store import RunKey
from klsweep.record.files import Row
from klsweep.record.folder import FINISHED, LAST_UPDATES, SweepFolder
from klsweep.record.origin import is_external, origin

DIVERGED_AT = re.compile(r"update (\d+): ")  # how the cause of a divergence begins


class Series(NamedTuple):
    """A metric over a run: updates in order and its values, NaN where it was not finite. Both [U]."""

    updates: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class RunResult:
    """A planned run and what its record says of it so far."""

    key: RunKey
    plan: Row
    status: Row
    base: Row | None  # metrics row of update 0: the base's evaluation
    last: list[Row]  # metrics rows of the last updates
    final_eval: Row | None  # the last row, once the run is finished, if it is of the run's end and has an evaluation
    prompts: dict[str, str]  # suite → digest of its prompt hashes, of the last evaluation or else the base's
    verifier_errors: int | None  # responses that could not be graded, and count as wrong; None: cannot be told
    damage: str | None  # why its record could not be read; it has no rows then

    @property
    def seed(self) -> int:
        return self.plan["seed"]

    @property
    def finished(self) -> bool:
        return self.status["state"] in FINISHED

    @property
    def origin(self) -> str:
        """`klsweep`, or `external` for results made elsewhere."""
        return origin(self.plan)

    def evaluation(self, suite: str, metric: str) -> float | None:
        """A metric of the final evaluation, None before it or where it is not finite."""
        return _number(self.final_eval, f"eval/{suite}/{metric}")

    def base_evaluation(self, suite: str, metric: str) -> float | None:
        """The same of the base."""
        return _number(self.base, f"eval/{suite}/{metric}")

    def training(self, metric: str) -> float | None:
        """Mean of a training metric over the last updates, for finished runs."""
        values = [v for row in self.last if (v := _number(row, metric)) is not None]
        return math.fsum(values) / len(values) if values and self.finished else None


def _number(row: Row | None, key: str) -> float | None:
    value = None if row is None else row.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Records:
    """The runs of some sweeps in the order of their plans, each once, and `repeated`: how often one was left out.

    A run that several sweeps hold is one run: a finished one counts before others, an earlier sweep before a later. Two
    that were evaluated otherwise, by another engine say, or trained by other code, are two; so are external ones with
    other content.
    """

    collected: Collected
    runs: list[RunResult]
    repeated: int

    def series(self, metric: str) -> dict[RunKey, Series]:
        """A metric over all updates, of the runs that logged it."""
        quoted = metric.replace('"', '""')
        sql = f'SELECT sweep, run_id, "update", "{quoted}" FROM metrics WHERE "{quoted}" IS NOT NULL ORDER BY ALL'
        if metric not in self.metric_names:
            return {}
        with connected(self.collected) as connection:
            found = connection.execute(sql).fetchnumpy()
        sweeps, runs, updates, values = (np.ma.getdata(column) for column in found.values())
        starts = np.flatnonzero(np.r_[True, (sweeps[1:] != sweeps[:-1]) | (runs[1:] != runs[:-1])]) if len(runs) else []
        ends = [*starts[1:], len(runs)]
        return {
            RunKey(str(sweeps[a]), str(runs[a])): Series(updates[a:b], values[a:b].astype(float))
            for a, b in zip(starts, ends, strict=False)
        }

    @property
    def metric_names(self) -> list[str]:
        """Every metric that any run logged, `eval/<suite>/<metric>` among them."""
        return [name for name in _columns(self.collected.metrics) if name not in ("sweep", "run_id", "update")]

    def item_scores(self, suite: str, score: str, keys: Iterable[RunKey]) -> dict[RunKey, dict[str, float]]:
        """A score of each item of the final evaluation by prompt hash, of the runs named.

        `score`: an SQL expression over the columns of `items`. Items that were asked more than once count as the mean.
        """
        sql = (
            f'SELECT sweep, run_id, prompt_hash, avg({score}) FROM items WHERE suite = ? AND "update" > 0 '
            'GROUP BY sweep, run_id, prompt_hash, "update" '
            'QUALIFY "update" = max("update") OVER (PARTITION BY sweep, run_id)'
        )
        wanted, found = set(keys), defaultdict[RunKey, dict[str, float]](dict)
        with connected(self.collected) as connection:
            for sweep, run_id, prompt, value in connection.execute(sql, [suite]).fetchall():
                if (key := RunKey(sweep, run_id)) in wanted and prompt is not None and value is not None:
                    found[key][prompt] = value
        return dict(found)


def load(sweeps: Sequence[SweepFolder], cache: Path | None = None, on_step: OnStep = lambda done, of: None) -> Records:
    """Read sweeps, see `collect`."""
    collected = collect(sweeps, cache, on_step)
    with connected(collected) as connection:
        found = connection.execute(_LAST_ROWS)
        names = [column[0] for column in found.description or []]
        rows = defaultdict[RunKey, list[Row]](list)
        for values in found.fetchall():
            row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            rows[RunKey(row["sweep"], row["run_id"])].append(row)
        prompts = defaultdict[RunKey, dict[str, str]](dict)
        for sweep, run_id, suite, digest in connection.execute(_PROMPTS).fetchall():
            prompts[RunKey(sweep, run_id)][suite] = digest
    runs = [_result(planned, rows[planned.key], prompts[planned.key]) for planned in collected.runs]
    kept = _distinct(runs)
    return Records(collected, kept, len(runs) - len(kept))


_LAST_ROWS = f"""
SELECT * FROM metrics
QUALIFY "update" = 0
OR row_number() OVER (PARTITION BY sweep, run_id ORDER BY "update" DESC) <= {LAST_UPDATES}
ORDER BY sweep, run_id, "update"
"""
_PROMPTS = """
SELECT sweep, run_id, suite, md5(string_agg(prompt_hash, ' ' ORDER BY prompt_hash))[:8] FROM items
GROUP BY sweep, run_id, suite, "update"
QUALIFY "update" = max("update") OVER (PARTITION BY sweep, run_id)
"""


def _result(planned: Planned, rows: list[Row], prompts: dict[str, str]) -> RunResult:
    base = rows[0] if rows and rows[0]["update"] == 0 else None
    updates = [row for row in rows if row["update"] > 0]
    finished = planned.status["state"] in FINISHED
    # an earlier evaluation is not the final one: a run can diverge long after it
    ended = bool(updates) and updates[-1]["update"] >= _end(planned)
    evaluated = updates[-1] if ended and any(key.startswith("eval/") for key in updates[-1]) else None
    return RunResult(
        key=planned.key,
        plan=planned.plan,
        status=planned.status,
        base=base,
        last=updates,
        final_eval=evaluated if finished else None,
        prompts={suite: digest for suite, digest in prompts.items() if digest and finished},
        verifier_errors=planned.verifier_errors,
        damage=planned.damage,
    )


def _end(planned: Planned) -> int:
    """The update after which a finished run is evaluated: its last; of a diverged one, which its cause names, the one
    that it diverged in. That has no row if responses could not even be sampled, and the row before is not its end."""
    if planned.status["state"] == "diverged":
        told = DIVERGED_AT.match(planned.status.get("cause") or "")
        return int(told[1]) if told else 0
    return planned.plan["evaluates"]["update"] if "evaluates" in planned.plan else planned.plan["updates"]


def _distinct(runs: Sequence[RunResult]) -> list[RunResult]:
    """Each run once, in the order given."""
    by_id = defaultdict[str, list[RunResult]](list)
    for run in runs:
        by_id[run.plan["run_id"]].append(run)
    kept = set[RunKey]()
    for same in by_id.values():
        finished = {_made(run): run for run in reversed(same) if run.finished}
        kept |= {run.key for run in finished.values()} or {same[0].key}
    return [run for run in runs if run.key in kept]


def _made(run: RunResult) -> tuple[str, ...]:
    """What makes another result of the same run."""
    content = ("source_hash",) if is_external(run.plan) else ()
    return tuple(str(run.status.get(key)) for key in ("eval_id", "engine", "science_hash", "plugin_hash", *content))


def _columns(table: pa.Table | Path) -> list[str]:
    return pq.read_schema(table).names if isinstance(table, Path) else table.column_names
