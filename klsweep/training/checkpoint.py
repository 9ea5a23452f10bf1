"""Checkpoints: everything that determines the future of a run, in safetensors and JSON, written atomically.

Random draws are counter-based and the prompt order is a function of the seed, so the state is: the weights, the
optimiser, the waiting rollouts, what an adaptive β has come to, and the number of updates done.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klsweep.model.policy import Tokens
from klsweep.rollout.engine import Generation, Rollout

KEPT = 2
Warn = Callable[[str], None]


class State(NamedTuple):
    """Where a run stands, besides weights and optimiser: updates done, the factor on β, the waiting rollouts."""

    update: int
    beta_scale: float
    waiting: list[Rollout]


def save_checkpoint(folder: Path, state: State, network: Any, optimiser: torch.optim.Optimizer) -> None:
    """Write `folder`/update-NNNNNN and remove all but the last two."""
    folder.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing."))
    os.chmod(temporary, 0o755)
    # tied weights share storage, which safetensors refuses: parameters are listed once, as the optimiser sees them
    save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, temporary / "model.safetensors")
    save_file(_optimiser_tensors(network, optimiser), temporary / "optimiser.safetensors")
    save_file(_rollout_tensors(state.waiting), temporary / "rollouts.safetensors")
    content = {
        "update": state.update,
        "beta_scale": state.beta_scale,
        "rollouts": [{"update": r.update, "version": r.version, "prompts": r.prompts} for r in state.waiting],
        "sha256": {file.name: _sha256(file) for file in sorted(temporary.glob("*.safetensors"))},
    }
    (temporary / "state.json").write_text(json.dumps(content, indent=1) + "\n")
    for file in temporary.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    target = folder / f"update-{state.update:06d}"
    shutil.rmtree(target, ignore_errors=True)
    os.rename(temporary, target)
    for old in _complete(folder)[:-KEPT]:
        shutil.rmtree(old)
    for leftover in folder.glob(".writing.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def load_checkpoint(folder: Path, network: Any, optimiser: torch.optim.Optimizer, warn: Warn) -> State:
    """Restore the newest sound checkpoint in place; the state of a run that has not begun if there is none."""
    checkpoint = newest_sound(folder, warn)
    if checkpoint is None:
        return State(0, 1.0, [])
    load_weights(checkpoint, network)
    _restore_optimiser(network, optimiser, load_file(checkpoint / "optimiser.safetensors"))
    rollouts = load_file(checkpoint / "rollouts.safetensors", device=str(network.device))
    content = _content(checkpoint)
    return State(content["update"], content["beta_scale"], _rollouts(content["rollouts"], rollouts))


def newest_sound(folder: Path, warn: Warn) -> Path | None:
    """The newest checkpoint whose files are what was written; a broken one is passed over with a warning."""
    for checkpoint in reversed(_complete(folder)):
        digests = _content(checkpoint).get("sha256", {"state.json": "unreadable"})
        broken = [name for name, digest in digests.items() if not _is_sound(checkpoint / name, digest)]
        if not broken:
            return checkpoint
        warn(f"checkpoint {checkpoint.name} is damaged ({', '.join(broken)}): trying the one before")
    return None


def load_weights(checkpoint: Path, network: Any) -> None:
    """Copy a checkpoint's weights into a network of the same shape."""
    weights = load_file(checkpoint / "model.safetensors")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if (path / "state.json").exists())


def _content(checkpoint: Path) -> dict[str, Any]:
    """Content of `state.json`, empty if it is damaged."""
    try:
        return json.loads((checkpoint / "state.json").read_text())
    except ValueError:
        return {}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_sound(file: Path, digest: str) -> bool:
    return file.exists() and _sha256(file) == digest


def _optimiser_tensors(network: Any, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state per parameter, as `<parameter>/<entry>`."""
    return {
        f"{name}/{entry}": value.contiguous()
        for name, parameter in network.named_parameters()
        for entry, value in optimiser.state.get(parameter, {}).items()
    }


def _restore_optimiser(network: Any, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        device = "cpu" if entry == "step" else parameters[name].device  # where AdamW keeps them
        optimiser.state[parameters[name]][entry] = value.to(device)


_TENSORS = ("prompt_ids", "prompt_mask", "response_ids", "mask")


def _rollout_tensors(rollouts: list[Rollout]) -> dict[str, Tensor]:
    tensors = {}
    for i, rollout in enumerate(rollouts):
        generation = rollout.generation
        tensors.update({f"{i}/{name}": getattr(generation.tokens, name).contiguous() for name in _TENSORS})
        tensors[f"{i}/sampler_logprobs"] = generation.sampler_logprobs.contiguous()
        tensors[f"{i}/truncated"] = generation.truncated.contiguous()
        tensors[f"{i}/rewards"] = rollout.rewards.contiguous()
    return tensors


def _rollouts(described: list[dict[str, Any]], tensors: dict[str, Tensor]) -> list[Rollout]:
    return [
        Rollout(
            **described[i],
            generation=Generation(
                Tokens(*(tensors[f"{i}/{name}"] for name in _TENSORS)),
                tensors[f"{i}/sampler_logprobs"],
                tensors[f"{i}/truncated"],
            ),
            rewards=tensors[f"{i}/rewards"],
        )
        for i in range(len(described))
    ]
