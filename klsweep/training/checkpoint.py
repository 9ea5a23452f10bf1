"""Checkpoints: everything that determines the future of a run, in safetensors and JSON, written atomically.

Random draws are counter-based and the prompt order is a function of the seed, so the state is: the weights, the
optimiser, the waiting rollouts, and the number of updates done.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klsweep.model.policy import Tokens
from klsweep.rollout.engine import Generation, Rollout

KEPT = 2


def save_checkpoint(
    folder: Path, update: int, network: Any, optimiser: torch.optim.Optimizer, waiting: list[Rollout]
) -> None:
    """Write `folder`/update-NNNNNN and remove all but the last two."""
    folder.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing."))
    os.chmod(temporary, 0o755)
    # tied weights share storage, which safetensors refuses: parameters are listed once, as the optimiser sees them
    save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, temporary / "model.safetensors")
    save_file(_optimiser_tensors(network, optimiser), temporary / "optimiser.safetensors")
    save_file(_rollout_tensors(waiting), temporary / "rollouts.safetensors")
    state = {
        "update": update,
        "rollouts": [{"update": r.update, "version": r.version, "prompts": r.prompts} for r in waiting],
        "sha256": {file.name: _sha256(file) for file in sorted(temporary.glob("*.safetensors"))},
    }
    (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for file in temporary.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    target = folder / f"update-{update:06d}"
    shutil.rmtree(target, ignore_errors=True)
    os.rename(temporary, target)
    for old in _complete(folder)[:-KEPT]:
        shutil.rmtree(old)
    for leftover in folder.glob(".writing.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def load_checkpoint(
    folder: Path, network: Any, optimiser: torch.optim.Optimizer, warn: Any
) -> tuple[int, list[Rollout]]:
    """Restore the newest sound checkpoint in place; (updates done, waiting rollouts), or (0, []) if there is none.

    A broken one is passed over with a warning, `warn(text)`.
    """
    for checkpoint in reversed(_complete(folder)):
        state = _state(checkpoint)
        digests = state.get("sha256", {"state.json": "unreadable"})
        broken = [name for name, digest in digests.items() if not _is_sound(checkpoint / name, digest)]
        if broken:
            warn(f"checkpoint {checkpoint.name} is damaged ({', '.join(broken)}): trying the one before")
            continue
        weights = load_file(checkpoint / "model.safetensors")
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(weights[name])
        _restore_optimiser(network, optimiser, load_file(checkpoint / "optimiser.safetensors"))
        rollouts = load_file(checkpoint / "rollouts.safetensors", device=str(network.device))
        return state["update"], _rollouts(state["rollouts"], rollouts)
    return 0, []


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if (path / "state.json").exists())


def _state(checkpoint: Path) -> dict[str, Any]:
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
