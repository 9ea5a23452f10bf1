"""The code that a submission's jobs run: a copy in the sweep folder, so that editing the repository while they queue
changes nothing.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from klsweep.config.plugins import code_files, is_installed, walk
from klsweep.errors import BadInput
from klsweep.provenance import PACKAGE, SOURCE_RECORD, git_state
from klsweep.record.claims import shared_artifact
from klsweep.record.folder import SweepFolder


def snapshot(sweep: SweepFolder, plugins: Sequence[str], allow_dirty: bool) -> Path:
    """`<sweep>/code/<hash>`: klsweep and the plugin packages outside site-packages, and the git state they had.

    The hash is of the copied files, conf/ folders included. BadInput if a plugin cannot be imported, or the checkout
    has uncommitted changes and they are not allowed.
    """
    git = git_state()
    if git is not None and git["diff"] + git["untracked"] and not allow_dirty:
        raise BadInput("launcher.dirty=refuse: the git tree has uncommitted changes (commit them, or dirty=record)")
    files = dict(_files(plugins))
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\n".encode() + file.read_bytes())

    def copy(folder: Path) -> None:
        for name, file in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        (folder / SOURCE_RECORD).write_text(json.dumps(git, indent=1) + "\n")

    return shared_artifact(sweep.code / digest.hexdigest()[:12], copy)


def _files(plugins: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name in the snapshot, file) of klsweep, and of each plugin's top-level package unless it is installed."""
    yield from ((f"klsweep/{file.relative_to(PACKAGE)}", file) for file in walk(PACKAGE))
    for plugin in plugins:
        yield from ((name, file) for name, file in code_files(plugin).items() if not is_installed(file))
