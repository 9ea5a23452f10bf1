"""Tensor files: each rank writes its part of every tensor; any number of ranks can read them."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from klsweep.model.adapter import saved_weights
from klsweep.model.masters import Masters
from klsweep.model.parallel import Ranks, local, rows_of

Digests = dict[str, str]


def file_name(stem: str, ranks: Ranks) -> str:
    """`model.safetensors`, or of several ranks `model-00000-of-00002.safetensors`."""
    return f"{stem}.safetensors" if ranks.size == 1 else f"{stem}-{ranks.rank:05d}-of-{ranks.size:05d}.safetensors"


def write(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> Digests:
    """Write one file and bring it to the disk; its name and digest."""
    file = folder / name
    save_file({key: local(tensor.detach()).contiguous() for key, tensor in tensors.items()}, file)
    flush(file)
    return {name: sha256(file)}


class TensorFiles:
    """The tensors of `folder`/`stem`*.safetensors, whichever number of ranks has written them.

    A tensor is cut along its first dimension, its parts in the order of the files; one without dimensions is whole in
    each of them.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        files = [folder / f"{stem}.safetensors"] if (folder / f"{stem}.safetensors").exists() else []
        self._files = [safe_open(file, "pt") for file in files or sorted(folder.glob(f"{stem}-*-of-*.safetensors"))]
        if not self._files:
            raise FileNotFoundError(f"{folder} holds no {stem}*.safetensors")

    def names(self) -> list[str]:
        return list(self._files[0].keys())

    def read(self, name: str, like: Tensor) -> Tensor:
        """The part of a tensor that this rank holds of `like`, a whole tensor or a DTensor, on the CPU."""
        parts = [file.get_slice(name) for file in self._files]
        if not parts[0].get_shape():
            return self._files[0].get_tensor(name).clone()  # not a view of the file
        first, last = rows_of(like)
        found, start = [], 0
        for part in parts:
            length = part.get_shape()[0]
            low, high = max(first - start, 0), min(last - start, length)
            if low < high:
                found.append(part[low:high])
            start += length
        return torch.cat(found) if found else like.new_empty((0, *like.shape[1:]), device="cpu")


def sha256(file: Path) -> str:
    """Digest of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state(folder: Path, weights: Masters, optimiser: torch.optim.Optimizer, ranks: Ranks) -> Digests:
    """Write this rank's part of the weights and of Adam's state, `<parameter>/<entry>`; the files' digests."""
    # tied weights share storage, which safetensors refuses: parameters are listed once, as the optimiser sees them
    moments = {
        f"{name}/{entry}": value
        for name, parameter in weights.named.items()
        for entry, value in optimiser.state.get(parameter, {}).items()
    }
    return write(folder, file_name("model", ranks), weights.named) | write(
        folder, file_name("optimiser", ranks), moments
    )


def load_weights(folder: Path, weights: Masters) -> None:
    """Copy a checkpoint's weights into others of the same shapes, whole or spread over any number of ranks."""
    weights.load(TensorFiles(folder, "model").read)


def load_model_folder(folder: Path, weights: Masters) -> None:
    """Copy the weights of a model in HF format, or of an adapter in peft's, into others of the same names and shapes.

    ValueError if it has others.
    """
    theirs, ours = saved_weights(folder), weights.named
    other = [name for name in ours if name not in theirs or theirs[name].shape != ours[name].shape]
    if other or len(theirs) != len(ours):
        raise ValueError(f"{folder}: its weights do not fit the base's network ({(other or sorted(theirs))[0]})")
    weights.load(lambda name, like: theirs[name][slice(*rows_of(like))])


@torch.no_grad()
def load_optimiser(folder: Path, weights: Masters, optimiser: torch.optim.Optimizer) -> None:
    """Restore Adam's state likewise."""
    files = TensorFiles(folder, "optimiser")
    for key in files.names():
        name, _, entry = key.rpartition("/")
        parameter = weights.named[name]
        value = files.read(key, parameter)
        if entry != "step":  # which AdamW keeps on the CPU
            state = torch.empty_like(parameter)
            local(state).copy_(value)
            value = state
        optimiser.state[parameter][entry] = value
