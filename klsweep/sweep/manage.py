"""What a user does to a sweep that exists: retry, cancel, run one again, read logs."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from klsweep.cells import describe
from klsweep.config.build import Builder, RunSpec
from klsweep.config.compose import check_key, parse_overrides
from klsweep.config.identity import canonical, eval_id, is_operational
from klsweep.config.identity import run_id as id_of
from klsweep.errors import BadInput
from klsweep.objective.objective import build_objective
from klsweep.record.files import Row
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.sweep import cluster
from klsweep.sweep.launch_slurm import Submission
from klsweep.sweep.plan import write_config
from klsweep.sweep.resources import Local
from klsweep.sweep.run import launchers_of, run_here, submit_runs
from klsweep.sweep.status import Observed, observe
from klsweep.sweep.submissions import log_file, placed, queued


class _Prepared(NamedTuple):
    row: Row
    config: dict[str, Any]
    spec: RunSpec


def retry(sweep: SweepFolder, only: str | None, overrides: Sequence[str]) -> int | Submission | None:
    """Launch again what is neither finished nor cancelled and nothing works on any more; None if there is nothing.

    `only` is a state, or a part of the cause (case does not matter); cancelled runs come back if it says so. Overrides
    may change operational fields alone: a run with other science is another run.
    """
    if only is not None and not only.strip():
        raise BadInput("--only='': give a state, or a part of the cause")
    rows = {row["run_id"]: row for row in sweep.plan()}
    observed, trouble = observe(sweep, rows)
    if trouble is not None:
        raise BadInput(f"SLURM does not answer, so what is queued already is unknown ({trouble})")
    chosen = [run_id for run_id, seen in observed.items() if _is_meant(seen, only)]
    prepared = {run_id: _prepare(sweep.run(run_id), rows[run_id], overrides) for run_id in chosen}
    if not prepared:
        return None
    launchers = launchers_of({run_id: run.spec for run_id, run in prepared.items()})

    def write(wanted: Collection[str]) -> None:
        for run_id in wanted:
            write_config(sweep.run(run_id), prepared[run_id].config)

    if isinstance(launchers, dict):
        specs = {run_id: run.spec for run_id, run in prepared.items()}
        return submit_runs(sweep, launchers, specs, write, revive=True)
    write(prepared)
    for run_id in prepared:
        sweep.run(run_id).bring_back(uncancel=True)
    return run_here(sweep, [run.row for run in prepared.values()], launchers, describe(list(rows.values())))


def _is_meant(seen: Observed, only: str | None) -> bool:
    state, cause = seen.status["state"], seen.status.get("cause") or ""
    if seen.is_active or state in FINISHED:
        return False
    if only is None:
        return state != "cancelled"
    return only.lower() == state or only.lower() in cause.lower()


def _prepare(folder: RunFolder, row: Row, overrides: Sequence[str]) -> _Prepared:
    """The run's configuration with operational overrides. BadInput for others, and for a run without one."""
    if not folder.config.exists():
        raise BadInput(f"{folder.path}: no config.yaml in it (`klsweep sweep` writes it)")
    config = yaml.load(folder.config.read_text(), Loader=yaml.CSafeLoader)
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if "." not in key or override.is_sweep_override():
            raise BadInput(f"{override.input_line}: give one value to a dotted key, e.g. launcher.time=8:00:00")
        check_key(config, key)
        if not is_operational(key):
            raise BadInput(
                f"{key} is not an operational field: a run with another value is another run (klsweep sweep)"
            )
        node = config
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = override.value()
    spec = Builder().run_spec(config)
    objective = build_objective(*spec.objective_parts)
    found = id_of(canonical(spec.simplified(objective)))
    if "evaluates" not in row and found != row["run_id"]:
        raise BadInput(f"{folder.path}: its configuration, or its model, is that of another run ({found})")
    begun = folder.status().get("eval_id")
    if begun not in (None, eval_id(spec)):
        raise BadInput(f"{folder.path}: has begun with other evaluation settings ({begun}): finish it with those")
    return _Prepared(row, config, spec)


def cancel(sweep: SweepFolder, run_ids: Sequence[str]) -> list[str]:
    """Mark unfinished runs as cancelled, all if none are named, then end the jobs that have nothing else to do.

    The mark comes first, so no job that starts in between begins one. Returns the runs marked.
    """
    rows = [row["run_id"] for row in sweep.plan()]
    if unknown := sorted(set(run_ids) - set(rows)):
        raise BadInput(f"{unknown[0]}: no run of {sweep.path} has this id (klsweep status {sweep.path})")
    states = {run_id: sweep.run(run_id).status()["state"] for run_id in run_ids or rows}
    marked = [run_id for run_id, state in states.items() if state not in (*FINISHED, "cancelled")]
    for run_id in marked:
        sweep.run(run_id).cancel()
    try:
        places = placed(sweep)
        idle = {place.job for place in places} - {p.job for p in places if _needs_job(sweep.run(p.run_id))}
        cluster.cancel(queued(sweep, idle).keys() & idle)
    except cluster.NoAnswer as error:
        raise BadInput(f"the runs are marked and will not begin, but their jobs could not be ended: {error}") from error
    for run_id in marked:
        folder = sweep.run(run_id)
        folder.write_status(folder.status())
    return marked


def _needs_job(folder: RunFolder) -> bool:
    return folder.status()["state"] not in FINISHED and not folder.cancellation.exists()


def run_again(folder: RunFolder, into: Path | None) -> tuple[RunFolder, int]:
    """Carry out one run here, from its folder, or its configuration anew in another sweep folder; failures (0 or 1)."""
    plan = {row["run_id"]: row for row in folder.sweep.plan()}
    if folder.run_id not in plan:
        raise BadInput(f"{folder.path}: no run folder of a sweep (one is <sweep>/runs/<run id>)")
    prepared = _prepare(folder, plan[folder.run_id], [])
    sweep = folder.sweep if into is None else SweepFolder(into)
    if into is not None and into.resolve() == folder.sweep.path.resolve():
        raise BadInput(f"--into={str(into)!r}: the run is in this sweep already (give another folder)")
    target = sweep.run(folder.run_id)
    observed, trouble = observe(sweep, [target.run_id])
    if trouble is not None or observed[target.run_id].is_active:
        raise BadInput(f"{target.path}: {trouble or 'in work, or in the queue'} (klsweep status {sweep.path})")
    state = observed[target.run_id].status["state"]
    if state == "cancelled":
        raise BadInput(f"{target.path}: cancelled (klsweep retry {sweep.path} --only cancelled brings it back)")
    if state in FINISHED:
        return target, 0
    if into is not None:
        sweep.extend_plan([prepared.row])
        write_config(target, prepared.config)
    target.bring_back(uncancel=True)
    here = Local(parallel=1, threads=folder.threads() or prepared.spec.launcher.threads)
    return target, run_here(sweep, [prepared.row], here, describe([prepared.row]))


def logs(folder: RunFolder, attempt: int | None) -> str:
    """How an attempt (the latest) ended, what it wrote to stdout and stderr, and what its job wrote besides."""
    number = attempt or folder.attempts.latest()
    if attempt is not None and not folder.attempt(attempt).exists():
        raise BadInput(f"--attempt={attempt}: {folder.path} has {folder.attempts.latest()} attempts")
    claim = folder.attempts.claim(number)
    seen = observe(folder.sweep, [folder.run_id])[0][folder.run_id]
    end = seen.status if attempt is None else folder.attempts.end_of(number) or {"state": "running"}
    job = claim["job"]["id"] if attempt and claim.get("job") else seen.job
    files = [folder.attempt(number) / name for name in ("stdout", "stderr")] if number else []
    files += [log_file(folder.sweep, job, stream) for stream in ("out", "err")] if job else []
    head = [
        f"attempt {number} on {claim.get('node')}" if number else "no attempt yet",
        *([f"job {job}"] if job else []),
    ]
    what = ": ".join(part for part in (end["state"], end.get("cause")) if part)
    parts = [f"{folder.path}: {', '.join(head)}, checkpoint of update {folder.checkpointed()}: {what}\n"]
    for file in files:
        if file is not None and file.exists() and (text := file.read_text(errors="replace")):
            parts.append(f"--- {file}\n{text}")
    return "\n".join(parts)
