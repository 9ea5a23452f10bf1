"""Checkpoints: everything that determines the future of a run, in safetensors and JSON, written atomically.

Random draws are counter-based and the prompt order is a function of the seed, so the state is: the weights, the
optimiser, the waiting rollouts, what an adaptive β has come to, and the number of updates done. How far the logs reach
follows from it: a resumed run drops the rows of later updates.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from klsweep.model.policy import Policy
from klsweep.model.tokens import Tokens
from klsweep.record.files import make_readable, read_json, write_json
from klsweep.record.folder import Attempt, RunFolder
from klsweep.rollout.engine import Generation, Rollout
from klsweep.tasks.base import Grade
from klsweep.training.shards import Digests, flush, sha256, write
from klsweep.training.threshold import Calibrated

KEPT = 2


class State(NamedTuple):
    """Where a run stands, besides weights and optimiser: updates done, the factor on β, the waiting rollouts, and what
    the threshold of its KL clip has come to."""

    update: int
    beta_scale: float
    waiting: list[Rollout]
    calibrated: Calibrated = Calibrated()


def save_checkpoint(attempt: Attempt, state: State, save: Callable[[Path], Digests]) -> None:
    """Write checkpoints/update-NNNNNN and remove all but the last two, and the rollouts that they hold.

    `save` writes weights and optimiser into a folder, brings them to the disk and says what it wrote.
    """
    content = {
        "update": state.update,
        "attempt": attempt.number,
        "beta_scale": state.beta_scale,
        "calibrated": state.calibrated._asdict(),
        "rollouts": [_described(rollout) for rollout in state.waiting],
    }
    folder = attempt.folder.checkpoints

    def fill(target: Path) -> Digests:
        return save(target) | write(target, "rollouts.safetensors", _rollout_tensors(state.waiting))

    _write(attempt, folder / f"update-{state.update:06d}", fill, content)
    kept = _complete(folder)[-KEPT:]
    for old in set(_complete(folder)) - set(kept):
        _remove(old)
    oldest = _content(kept[0])
    held = max([oldest.get("update", 0), *(rollout["update"] for rollout in oldest.get("rollouts", []))])
    for path in folder.glob("rollout-*"):
        if _number(path) <= held:
            _remove(path)


def save_rollout(attempt: Attempt, rollout: Rollout) -> None:
    """Write checkpoints/rollout-NNNNNN, so that a resumed run need not sample it again."""
    target = attempt.folder.checkpoints / f"rollout-{rollout.update:06d}"
    tensors = _rollout_tensors([rollout])
    content = {"rollouts": [_described(rollout)]}
    _write(attempt, target, lambda folder: write(folder, "rollouts.safetensors", tensors), content)


def load_rollouts(folder: RunFolder, device: Any) -> dict[int, Rollout]:
    """The sound rollouts that are kept beside the checkpoints, by update."""
    found: dict[int, Rollout] = {}
    for path in sorted(folder.checkpoints.glob("rollout-*")):
        if not _broken(path):
            tensors = load_file(path / "rollouts.safetensors", device=str(device))
            (rollout,) = _rollouts(_content(path)["rollouts"], tensors)
            found[rollout.update] = rollout
    return found


def load_checkpoint(attempt: Attempt, load: Callable[[Path, bool], None], device: Any) -> State:
    """Restore the newest sound checkpoint; the state of a run that has not begun if there is none.

    `load` restores the weights from a folder and, if told so, the optimiser; waiting rollouts come on `device`. What an
    earlier process wrote after its run had been taken over goes, and where this attempt begins is noted.
    """
    checkpoint = newest_sound(attempt.folder, before=attempt.number)
    state = State(0, 1.0, [])
    if checkpoint is not None:
        content = _content(checkpoint)
        waiting = []
        goes_on = "rollouts.safetensors" in content["sha256"]  # not after the last update
        load(checkpoint, goes_on)
        if goes_on:
            rollouts = load_file(checkpoint / "rollouts.safetensors", device=str(device))
            waiting = _rollouts(content["rollouts"], rollouts)
        state = State(content["update"], content["beta_scale"], waiting, Calibrated(**content.get("calibrated", {})))
    attempt.note(resumed_from=state.update)
    for path in attempt.folder.checkpoints.glob("update-*"):
        if _number(path) > state.update:
            _remove(path)
    for folder in (attempt.folder.checkpoints, attempt.folder.path / "models"):
        for path in folder.glob(".*"):  # being written or removed when a process was killed
            shutil.rmtree(path, ignore_errors=True)
    return state


def newest_sound(folder: RunFolder, before: int | None = None) -> Path | None:
    """The newest checkpoint whose files are what was written; a broken one is passed over with a warning.

    One that a process wrote after a later attempt (before number `before`) had begun from an earlier update does not
    count: the record goes on from where that attempt began.
    """
    for checkpoint in reversed(_complete(folder.checkpoints)):
        broken, content = _broken(checkpoint), _content(checkpoint)
        if broken:
            print(
                f"warning: checkpoint {checkpoint.name} is damaged ({', '.join(broken)}): trying the one before",
                file=sys.stderr,
                flush=True,
            )
        elif folder.stands(content["attempt"], content["update"], before):
            return checkpoint
    return None


def keep_weights_only(attempt: Attempt) -> None:
    """After the last update: its checkpoint without the optimiser and the rollouts, and none before it."""
    attempt.check()
    *earlier, last = _complete(attempt.folder.checkpoints)
    content = _content(last)
    weights = {name: digest for name, digest in content["sha256"].items() if name.startswith("model")}
    _write_state(last, {**content, "rollouts": [], "sha256": weights})
    for path in (*earlier, *attempt.folder.checkpoints.glob("rollout-*")):
        _remove(path)
    for path in last.glob("*.safetensors"):
        if path.name not in weights:
            path.unlink()


def save_milestone(attempt: Attempt, update: int, write_model: Callable[[Path], None]) -> None:
    """Write models/update-NNNNNN: weights and tokenizer in the Hugging Face format. It stays."""
    attempt.check()
    models = attempt.folder.path / "models"
    models.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=models, prefix=".writing."))
    write_model(temporary)
    attempt.check()
    _replace(temporary, models / f"update-{update:06d}")


def write_model(folder: Path, policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Write these weights, generation config and tokenizer with its chat template into a folder, in HF format.

    `weights` are whole, an adapter added to those that it adapts.
    """
    network = policy.network.get_base_model() if hasattr(policy.network, "peft_config") else policy.network
    network.save_pretrained(folder, state_dict=dict(weights))
    policy.tokenizer.save_pretrained(folder)


def write_adapter(folder: Path, policy: Policy) -> None:
    """Write the adapter alone, in peft's format."""
    policy.network.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the base
    policy.tokenizer.save_pretrained(folder)


def _write(attempt: Attempt, target: Path, fill: Callable[[Path], Digests], content: dict[str, Any]) -> None:
    """Have a folder filled under a temporary name, write down what is in it, and rename it."""
    attempt.check()
    target.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".writing."))
    digests = fill(temporary)
    _write_state(temporary, {**content, "sha256": digests})
    attempt.flush_logs()
    attempt.check()  # writing may have taken long
    _replace(temporary, target)
    attempt.check()  # before older ones are removed


def _replace(temporary: Path, target: Path) -> None:
    """Rename a folder to its name once everything in it has reached the disk."""
    make_readable(temporary)
    for path in (*temporary.iterdir(), temporary):
        flush(path)
    if target.exists():
        _remove(target)
    os.rename(temporary, target)
    flush(target.parent)


def _remove(folder: Path) -> None:
    """Delete a folder that is whole until its name is gone: half a checkpoint must not be taken for one."""
    gone = folder.with_name(f".removing.{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)  # of a process that was killed
    with contextlib.suppress(FileNotFoundError):  # removed by a process that has lost its run
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)  # a network file system keeps files that are still open


def kept(folder: RunFolder, update: int) -> Path:
    """The checkpoint that a run has kept of `update`. FileNotFoundError if it is not there, or damaged."""
    checkpoint = newest_sound(folder)
    if checkpoint is None or _number(checkpoint) != update:
        raise FileNotFoundError(f"{folder.checkpoints}: no sound checkpoint of update {update} is left")
    return checkpoint


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if (path / "state.json").exists())


def _content(checkpoint: Path) -> dict[str, Any]:
    """Content of `state.json`, empty if it is damaged."""
    try:
        return read_json(checkpoint / "state.json") or {}
    except ValueError:
        return {}


def _write_state(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / "state.json", {**content, "own_sha256": _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in content.items() if k != "own_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _broken(folder: Path) -> list[str]:
    """Names of the files that are not what was written."""
    content = _content(folder)
    if content.get("own_sha256") != _digest(content):
        return ["state.json"]
    return [name for name, digest in content["sha256"].items() if not _is_sound(folder / name, digest)]


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _is_sound(file: Path, digest: str) -> bool:
    return file.exists() and sha256(file) == digest


_FIELDS = ("update", "version", "prompts", "grades")
_TENSORS = tuple(field.name for field in dataclasses.fields(Tokens))


def _rollout_tensors(rollouts: list[Rollout]) -> dict[str, Tensor]:
    tensors = {}
    for i, rollout in enumerate(rollouts):
        generation = rollout.generation
        tensors.update({f"{i}/{name}": getattr(generation.tokens, name).contiguous() for name in _TENSORS})
        tensors[f"{i}/sampler_logprobs"] = generation.sampler_logprobs.contiguous()
        tensors[f"{i}/truncated"] = generation.truncated.contiguous()
        tensors[f"{i}/rewards"] = rollout.rewards.contiguous()
        tensors[f"{i}/true_rewards"] = rollout.true_rewards.clone()  # it may be `rewards` itself
    return tensors


def _described(rollout: Rollout) -> dict[str, Any]:
    return {name: getattr(rollout, name) for name in _FIELDS}


def _rollouts(described: list[dict[str, Any]], tensors: dict[str, Tensor]) -> list[Rollout]:
    """Rollouts of their own memory: a loaded tensor is a view of a file that may be removed."""
    return [
        Rollout(
            **{**described[i], "grades": [Grade(*grade) for grade in described[i]["grades"]]},
            generation=Generation(
                Tokens(*(tensors[f"{i}/{name}"].clone() for name in _TENSORS)),
                tensors[f"{i}/sampler_logprobs"].clone(),
                tensors[f"{i}/truncated"].clone(),
            ),
            rewards=tensors[f"{i}/rewards"].clone(),
            true_rewards=tensors.get(f"{i}/true_rewards", tensors[f"{i}/rewards"]).clone(),  # not in older checkpoints
        )
        for i in range(len(described))
    ]
