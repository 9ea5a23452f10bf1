"""The code that a submission's jobs run: a copy in the sweep folder, so that editing the repository while they queue
changes nothing.
"""

import hashlib
import importlib.util
import json
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from klsweep.errors import BadInput
from klsweep.provenance import PACKAGE, SOURCE_RECORD, git_state
from klsweep.record.claims import shared_artifact
from klsweep.record.folder import SweepFolder


def snapshot(sweep: SweepFolder, plugins: Sequence[str], allow_dirty: bool) -> Path:
    """`<sweep>/code/<hash>`: klsweep and the plugin packages outside site-packages, and the git state they had.

    The hash is of the copied files. BadInput if the checkout has uncommitted changes and they are not allowed.
    """
    git = git_state()
    if git is not None and git["diff"] + git["untracked"] and not allow_dirty:
        raise BadInput("launcher.dirty=refuse: the git tree has uncommitted changes (commit them, or dirty=record)")
    files = dict(_files(["klsweep", *plugins]))
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\n".encode() + file.read_bytes())

    def copy(folder: Path) -> None:
        for name, file in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        (folder / SOURCE_RECORD).write_text(json.dumps(git, indent=1) + "\n")

    return shared_artifact(sweep.code / digest.hexdigest()[:12], copy)


def _files(packages: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name in the snapshot, file) of every file of these packages that is not installed."""
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise BadInput(f"plugins: no package {package!r}")
        origin = PACKAGE / "__init__.py" if package == "klsweep" else Path(spec.origin).resolve()
        if package != "klsweep" and any(origin.is_relative_to(folder) for folder in installed):
            continue
        root = origin.parent.parent if origin.name == "__init__.py" else origin.parent
        found = _walk(origin.parent) if origin.name == "__init__.py" else [origin]
        yield from ((str(file.relative_to(root)), file) for file in found)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, through links too: conf/ and analysis/ are such in a checkout."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield from _walk(path)
        elif path.is_file():
            yield path
