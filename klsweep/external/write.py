"""External runs as folders of a sweep, each whole at once, after all of them are known to be right."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import yaml

from klsweep import __version__
from klsweep.errors import BadInput
from klsweep.external.labels import KEYS
from klsweep.external.mapping import Mapping
from klsweep.external.runs import ExternalRun
from klsweep.record.files import Row, read_json, rows_text, write_json, write_text
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.record.origin import EXTERNAL, import_file, is_external


@dataclass(frozen=True)
class Imported:
    """Ids of the runs that were new, replaced or there already, and of those of the folder that others declared."""

    new: list[str]
    replaced: list[str]
    unchanged: list[str]
    others: list[str]


def write_runs(
    sweep: SweepFolder, runs: Sequence[ExternalRun], mapping: Mapping, file: Path, replace: bool
) -> Imported:
    """Write what is not there yet, and what has changed if it is to `replace` what is there.

    BadInput, and nothing written, for a folder of klsweep's own runs, and for a change that is not to replace.
    """
    there = {row["run_id"]: row for row in sweep.plan()}
    if any(not is_external(row) for row in there.values()):
        raise BadInput(f"--into={sweep.path}: holds runs of klsweep's own (give another folder)")
    found = {run.row["run_id"]: _content_hash(run, mapping) for run in runs}
    known = {run_id: _recorded_hash(sweep.run(run_id)) for run_id in found}
    changed = [run_id for run_id, was in known.items() if was not in (None, found[run_id])]
    if changed and not replace:
        raise BadInput(
            f"{sweep.run(changed[0]).path}: was imported with another content ({len(changed)} of {len(runs)} runs): "
            "--replace takes the new one"
        )
    new = [run_id for run_id, was in known.items() if was is None]
    for run in runs:
        run_id = run.row["run_id"]
        if run_id in (*new, *changed):
            _write(sweep.run(run_id), run, mapping, file, found[run_id])
    sweep.extend_plan(run.row for run in runs)
    unchanged = [run_id for run_id in found if run_id not in (*new, *changed)]
    return Imported(new, changed, unchanged, [run_id for run_id in there if run_id not in found])


def _recorded_hash(folder: RunFolder) -> str | None:
    return (read_json(import_file(folder.path)) or {}).get("content")


def _content_hash(run: ExternalRun, mapping: Mapping) -> str:
    """Of all that a run's folder holds, whichever files it came from."""
    parts = [yaml.safe_dump(_config(run, mapping)), rows_text([run.row]), rows_text(run.metrics)]
    parts += [f"{suite}\n{rows_text(rows)}" for suite, rows in sorted(run.items.items())]
    return sha256("\n".join(parts).encode()).hexdigest()


def _config(run: ExternalRun, mapping: Mapping) -> Row:
    """What is declared, and nothing else."""
    labels = {key: run.labels[key] for key in (*KEYS, *mapping.fields) if key in run.labels}
    declared = {"kl_definition": run.row["kl_definition"], "evaluation": mapping.evaluation}
    roles = {"suites": run.row["suites"], "metrics": mapping.metrics}
    return {"origin": EXTERNAL, "study": mapping.name, **labels, **{k: v for k, v in (declared | roles).items() if v}}


def _write(folder: RunFolder, run: ExternalRun, mapping: Mapping, file: Path, content: str) -> None:
    """The folder of a run under a name of its own, then in its place."""
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = RunFolder(Path(tempfile.mkdtemp(dir=folder.path.parent, prefix=f".{folder.run_id}.")))
    try:
        _fill(temporary, run, mapping, file, content)
        os.chmod(temporary.path, 0o755)
        if folder.path.exists():
            shutil.rmtree(folder.path)
        os.rename(temporary.path, folder.path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary.path)


def _fill(folder: RunFolder, run: ExternalRun, mapping: Mapping, file: Path, content: str) -> None:
    write_text(folder.config, yaml.safe_dump(_config(run, mapping), sort_keys=False, allow_unicode=True))
    write_text(folder.metrics, rows_text(run.metrics))
    if run.items:
        folder.evaluations.mkdir()
    for suite, rows in run.items.items():
        write_text(folder.evaluations / f"{suite}.jsonl", rows_text(rows))
    text = file.read_text()
    write_json(
        import_file(folder.path),
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "klsweep": __version__,
            "content": content,
            "sources": run.sources,
            "mapping": {"file": file.name, "sha256": sha256(text.encode()).hexdigest(), "text": text},
        },
    )
    folder.attempt(1).mkdir(parents=True)  # of no process of ours: nobody is its owner
    write_json(folder.attempt(1) / "claim.json", {"eval_id": run.row["eval_id"], "source_hash": content[:12]})
    folder.attempts.end(1, {"state": run.labels["state"], "cause": run.labels.get("cause"), "traceback": None})
    folder.write_status(folder.recorded())
