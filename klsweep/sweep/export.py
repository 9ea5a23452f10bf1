"""Exporting a run's weights: a folder that transformers loads, checked against the network that was trained."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from klsweep.config.build import Builder
from klsweep.errors import BadInput
from klsweep.record.files import Row, make_readable, write_json, write_text
from klsweep.record.folder import RunFolder
from klsweep.sweep.card import Exported, model_card
from klsweep.sweep.evaluations import RECORD, available

if TYPE_CHECKING:
    from klsweep.training.export import Verdict

NOT_SOUND = "NOT_WHAT_WAS_TRAINED.txt"


def export(run: RunFolder, update: int | None, target: Path, overwrite: bool) -> "Verdict":
    """Write the weights that a run has kept after `update`, by default its last, to `target` in HF format.

    The folder comes into being whole: weights, generation config, tokenizer with its chat template, `README.md` (the
    model card) and `klsweep.json`. If what is read from it is not what was trained, it holds a file that says so.
    BadInput if there are no such weights, or the target exists and is not an export that may be overwritten.
    """
    rows = [row for row in run.sweep.plan() if row["run_id"] == run.run_id]
    if not rows or "evaluates" in rows[0]:
        raise BadInput(f"{run.path}: no run of a training sweep (one is <sweep>/runs/<run id>)")
    chosen = _update(run, rows[0], update)
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        verdict = _write(run, rows[0], chosen, temporary)
        make_readable(temporary)
        if target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return verdict


def _update(run: RunFolder, row: Row, update: int | None) -> int:
    """The update whose weights are meant. BadInput if they are not there."""
    there = sorted(available(run))
    state = run.status()["state"]
    kept = f"there are weights of update {', '.join(map(str, there))}" if there else "there are no weights at all"
    if update is None and (state != "done" or row["updates"] not in there):
        raise BadInput(f"{run.path}: is {state} and has no weights of its last update: give --update ({kept})")
    if update is not None and update not in there:
        raise BadInput(f"--update={update}: {run.path} has not kept them ({kept})")
    return row["updates"] if update is None else update


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise BadInput(f"{target}: exists already (give another folder, or --overwrite)")
    if not (target / RECORD).exists() or target.is_symlink():
        raise BadInput(f"{target}: --overwrite replaces exported folders only, and this is none (no {RECORD} in it)")


def _write(run: RunFolder, row: Row, update: int, folder: Path) -> "Verdict":
    from klsweep.training.export import export_weights

    config = yaml.load(run.config.read_text(), Loader=yaml.CSafeLoader)
    spec = Builder().run_spec(config)
    if not spec.model.is_cached():
        raise BadInput(f"model.path={spec.model.path!r}: the base is not in this machine's cache (klsweep fetch)")
    verdict = export_weights(spec, run, update, available(run)[update], folder)
    check = (
        f"Read again, the log-probabilities of {verdict.tokens} tokens of {verdict.sequences} recorded responses "
        f"differ from the trained network's by at most {verdict.largest:g} nats (allowed: {verdict.allowed:g})."
    )
    write_text(folder / "README.md", model_card(Exported(run, config, row, update, check)))
    verified = {**verdict._asdict(), "passed": verdict.passed}
    write_json(folder / RECORD, {"row": row, "update": update, "config": config, "verified": verified})
    if not verdict.passed:
        write_text(folder / NOT_SOUND, f"{check}\n")
    return verdict
