"""Records of any number of sweeps as three tables: runs, metrics, items. With a cache folder, one Parquet file each.

`runs` has a row per planned run and is made anew each time, for a run's state is more than a file. `metrics` has a row
per update and a column per metric, `items` a row per evaluated item, with its suite and update: of those, only runs
whose files have changed are read again. `sweep` and `run_id` name a run in all three. Sweep folders are only read.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from klsweep.analysis.columns import FLAG, NUMBER, TEXT, WHOLE, cast, column, empty, joined, logged_values, table, texts
from klsweep.analysis.store import Part, RunKey, Store, write_table
from klsweep.cells import describe
from klsweep.errors import BadInput
from klsweep.record.files import Row, read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.record.origin import origin
from klsweep.record.rollouts import verifier_errors

PROVENANCE = ("eval_id", "science_hash", "plugin_hash")

OnStep = Callable[[int, int], None]  # steps done, steps in all: a run has two, its metrics and its items


@dataclass(frozen=True)
class Planned:
    """A planned run: its plan row and status, and what of its record could not be read.

    `verifier_errors`: how many responses could not be graded, None if the file that says so is damaged. That is no
    `damage`, which leaves a run without rows.
    """

    key: RunKey
    plan: Row
    status: Row
    verifier_errors: int | None
    damage: str | None


@dataclass(frozen=True)
class Collected:
    """What was collected. `metrics` and `items` are tables in memory, or the Parquet files that hold them.

    `read` are the runs of which something was read anew.
    """

    runs: list[Planned]
    metrics: pa.Table | Path
    items: pa.Table | Path
    read: frozenset[RunKey]


@dataclass(frozen=True, eq=False)
class _Kind:
    """Metrics or items: which files of a run they come from, how those are read, and which columns are always there."""

    name: str
    columns: Mapping[str, pa.DataType]
    files: Callable[[RunFolder], list[Path]]
    read: Callable[[Path], pa.Table]


def collect(
    sweeps: Sequence[SweepFolder], cache: Path | None = None, on_step: OnStep = lambda done, of: None
) -> Collected:
    """Read sweeps into memory or, with a `cache`, into `runs.parquet`, `metrics.parquet` and `items.parquet` there.

    What is read anew is held in memory until it is written: about a quarter of the size of its files.
    BadInput if a plan is damaged. A record that is damaged is as good as none: its run has no rows, and says why.
    """
    named = sweep_names(sweeps)
    plans = {RunKey(name, row["run_id"]): row for name, sweep in named.items() for row in _plan(sweep)}
    folders = {key: named[key.sweep].run(key.run_id) for key in plans}
    stores = {kind: Store(cache and cache / f"{kind.name}.parquet", kind.columns) for kind in (METRICS, ITEMS)}
    steps = 0
    for kind, store in stores.items():
        for key, folder in folders.items():
            read = partial(_read, kind, key, folder.path)
            store.add(key, kind.files(folder), read)
            on_step(steps := steps + 1, 2 * len(folders))
    runs = []
    for key, row in plans.items():
        damage = next((found for store in stores.values() if (found := store.damage(key))), None)
        runs.append(_planned(key, row, folders[key], damage))
    if cache is not None:
        write_table(runs_table(runs), cache / "runs.parquet")
    read = frozenset(key for store in stores.values() for key in store.read)
    return Collected(runs, stores[METRICS].finish(), stores[ITEMS].finish(), read)


def sweep_names(sweeps: Sequence[SweepFolder]) -> dict[str, SweepFolder]:
    """Sweeps by the shortest ends of their paths that tell them apart; one that is given twice counts once."""
    paths = list(dict.fromkeys(sweep.path.resolve() for sweep in sweeps))
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, map(SweepFolder, paths), strict=True))
    return {}


def cache_folder(sweeps: Sequence[SweepFolder]) -> Path:
    """Where these sweeps are cached unless told otherwise: below $KLSWEEP_CACHE, $XDG_CACHE_HOME/klsweep or
    ~/.cache/klsweep, never in a sweep folder, which may be read-only or another's.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "klsweep"
    paths = sorted({str(sweep.path.resolve()) for sweep in sweeps})
    digest = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:12]
    return Path(os.environ.get("KLSWEEP_CACHE") or base) / f"collected-{digest}"


def runs_table(runs: Sequence[Planned]) -> pa.Table:
    """A row per planned run: names, state, provenance; then its axes, `kl_coef` and scientific fields as columns."""
    words = describe([run.plan for run in runs])
    rows = [
        {
            "sweep": run.key.sweep,
            "run_id": run.key.run_id,
            "cell": words[run.plan["cell_id"]],
            **{name: run.plan[name] for name in ("cell_id", "seed", "updates")},
            "origin": origin(run.plan),
            "kl_definition": run.plan.get("kl_definition"),
            **{name: run.status.get(name) for name in ("state", "cause", "attempt", *PROVENANCE)},
            "verifier_errors": run.verifier_errors,
            "damage": run.damage,
            **run.plan["axes"],
            "kl_coef": run.plan["kl_coef"],
            **run.plan["fields"],
        }
        for run in runs
    ]
    always = dict.fromkeys(("sweep", "run_id", "cell", "cell_id"), TEXT) | {"seed": WHOLE, "state": TEXT}
    return pa.concat_tables([empty(always), table(rows)], promote_options="permissive")


def _plan(sweep: SweepFolder) -> list[Row]:
    try:
        return sweep.plan()
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{sweep.plan_file}: is damaged ({error!r})") from error


def _planned(key: RunKey, row: Row, folder: RunFolder, damage: str | None) -> Planned:
    return Planned(key, row, folder.status(), verifier_errors(folder)[0], damage)


def _read(kind: _Kind, key: RunKey, folder: Path, files: Sequence[Path]) -> Part:
    """The rows of a run, or why they cannot be read."""
    found = []
    for file in files:
        try:
            found.append(_named(kind.read(file), key))
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            reason = _within(folder, str(error) if isinstance(error, ValueError) else repr(error))
            name = _within(folder, str(file))
            return Part(pa.table({}), reason if name in reason else f"{name}: {reason}")
    return Part(joined(found)[0] if found else pa.table({}), None)


def _within(folder: Path, text: str) -> str:
    """A text with paths as seen from the run's folder: tables must not depend on where a sweep lies."""
    return text.replace(f"{folder}/", "")


def _named(rows: pa.Table, key: RunKey) -> pa.Table:
    count = rows.num_rows
    names = {"sweep": texts([key.sweep] * count), "run_id": texts([key.run_id] * count)}
    return pa.table({**names, **{name: rows[name] for name in rows.column_names}})


def _metrics(file: Path) -> pa.Table:
    rows = list(read_rows(file))
    names: Row = {}
    for row in rows:
        names |= row
    columns = {name: logged_values(rows, name) for name in names if name != "update"}
    return pa.table({"update": column([int(row["update"]) for row in rows]), **columns} if rows else {})


def _items(file: Path) -> pa.Table:
    return cast(table([{"suite": file.stem, **row} for row in read_rows(file)]), ITEM_COLUMNS)


def _metrics_files(folder: RunFolder) -> list[Path]:
    return [folder.metrics]


def _items_files(folder: RunFolder) -> list[Path]:
    return sorted(folder.evaluations.glob("*.jsonl"))


ITEM_COLUMNS = {"suite": TEXT, "update": WHOLE, "item": WHOLE, "prompt_hash": TEXT}
ITEM_COLUMNS |= {"samples": WHOLE, "correct": WHOLE, "greedy_correct": FLAG, "kl": NUMBER, "entropy": NUMBER}
METRICS = _Kind("metrics", {"update": WHOLE}, _metrics_files, _metrics)
ITEMS = _Kind("items", ITEM_COLUMNS, _items_files, _items)
