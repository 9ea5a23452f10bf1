"""Holding what was made again against what a bundle has."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.bundle.manifest import Manifest

SHOWN = 60  # characters of a line that differs


class Output(NamedTuple):
    """A table or figure, and where it first differs from the one in the bundle; None if it is the same."""

    file: str
    difference: str | None


def held_against(root: Path, manifest: Manifest, rebuilt: Path, made: Collection[str]) -> Iterator[Output]:
    """Each output of the bundle in `root` against the file `made` again in `rebuilt`, byte for byte."""
    for file in manifest.outputs:
        if file not in made:
            yield Output(file, "is not made any more")
            continue
        old, new = (root / file).read_bytes(), (rebuilt / file).read_bytes()
        yield Output(file, None if old == new else first_difference(old, new))
    yield from (Output(file, "is not in the bundle") for file in made if file not in manifest.outputs)


def first_difference(old: bytes, new: bytes) -> str:
    """Where two contents part: the line of texts, with what is there, else the byte."""
    try:
        texts = old.decode().split("\n"), new.decode().split("\n")
    except UnicodeDecodeError:
        return f"byte {_parting(old, new)} of {len(old)}"
    number = _parting(*texts)
    lines = [text[number] if number < len(text) else "" for text in texts]
    start = max(0, _parting(*lines) - SHOWN // 3)
    shown = [repr(("…" if start else "") + line[start : start + SHOWN]) for line in lines]
    return f"line {number + 1}: {shown[0]} in the bundle, {shown[1]} now"


def _parting(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first place at which two sequences differ, or one has ended."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
