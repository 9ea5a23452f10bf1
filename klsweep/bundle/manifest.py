"""`MANIFEST.json`: what a bundle holds, byte by byte, and what its tables and figures were made of and with."""

import hashlib
import importlib.metadata
import json
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from klsweep import __version__
from klsweep.errors import BadInput
from klsweep.provenance import analysis_hash

MANIFEST = "MANIFEST.json"
RECORDS = "records"
MAKERS = ("numpy", "scipy", "matplotlib", "pyarrow", "duckdb", "pillow")  # their versions decide bytes of figures
STRICT = ConfigDict(extra="forbid")


class Problem(NamedTuple):
    """A file of a bundle that is not as the manifest has it."""

    name: str
    what: str


@dataclass(frozen=True, config=STRICT)
class Entry:
    """What a file must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """`sweeps`: their folders; `choice`: the options of the comparison; `outputs`: the command that makes each file.

    `versions`: of what made the outputs. `notes`: what a reader must know of the records, or of what is not there.
    """

    format: Literal[1]
    anonymous: bool
    sweeps: list[str]
    choice: dict[str, Any]
    versions: dict[str, str]
    notes: list[str]
    outputs: dict[str, str]
    files: dict[str, Entry]

    def text(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), indent=1) + "\n"  # pyright: ignore[reportArgumentType]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of all the bundle: what a paper can quote."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def differing_versions(self) -> list[str]:
        """What is otherwise here than where the bundle was made."""
        here = versions()
        names = [*self.versions, *(name for name in here if name not in self.versions)]
        pairs = [(name, self.versions.get(name, "absent"), here.get(name, "absent")) for name in names]
        return [f"{name} {there} there, {own} here" for name, there, own in pairs if there != own]


def versions() -> dict[str, str]:
    """Of what decides the bytes of tables and figures here."""
    return {
        "klsweep": __version__,
        "code of the analysis": analysis_hash(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in MAKERS},
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "machine": platform.machine(),
    }


def manifest_of(root: Path, names: Sequence[str], **facts: Any) -> Manifest:
    """The manifest of these files below `root`."""
    files = {name: Entry(hashlib.sha256(data := (root / name).read_bytes()).hexdigest(), len(data)) for name in names}
    return Manifest(format=1, versions=versions(), files=files, **facts)


def parsed(text: bytes, bundle: Path) -> Manifest:
    """A manifest as it was written. BadInput if it is none, or names a file outside of the bundle."""
    try:
        manifest = TypeAdapter(Manifest).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{bundle}: {MANIFEST} is damaged ({where + ': ' if where else ''}{first['msg']})") from error
    for name in (*manifest.files, *manifest.sweeps):
        check_name(name, bundle)
    return manifest


def check_name(name: str, bundle: Path) -> None:
    """BadInput for a name that could lead out of the folder that a bundle is unpacked in."""
    path = PurePosixPath(name)
    plain = str(path) == name and not path.is_absolute() and ".." not in path.parts and name not in ("", ".")
    if not plain or any(sign in name for sign in "\\\0"):
        raise BadInput(f"{bundle}: {name!r} is no name of a file within a bundle; nothing was unpacked")


def lacking(manifest: Manifest, seen: Mapping[str, Entry]) -> Iterator[Problem]:
    """Files that are missing, changed, or not in the manifest."""
    for name, entry in manifest.files.items():
        if name not in seen:
            yield Problem(name, "is missing")
        elif seen[name] != entry:
            size = "" if seen[name].bytes == entry.bytes else f" ({seen[name].bytes} bytes, not {entry.bytes})"
            yield Problem(name, f"has been changed{size}")
    yield from (Problem(name, "is not in the manifest") for name in seen if name not in manifest.files)
