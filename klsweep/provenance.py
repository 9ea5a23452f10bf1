"""Where a result came from: versions, hardware, git state, and a hash of the code that decides it. No torch."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SCIENCE_CODE = ("theory", "objective", "training", "rollout", "model", "tasks")
ANALYSIS_CODE = ("analysis", "record", "theory")
SOURCE_RECORD = "source.json"  # in a code snapshot: the git state of what was copied
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "hydra-core", "omegaconf", "pydantic", "wandb")


@lru_cache(maxsize=1)
def science_hash() -> str:
    """Hash of the Python files of the packages that decide a result. Equal hashes: the same computation."""
    return _hash(f for part in SCIENCE_CODE for f in (PACKAGE / part).rglob("*.py"))


@lru_cache(maxsize=1)
def analysis_hash() -> str:
    """Hash of the code that makes tables, figures and pages of records."""
    pages = (f for f in (PACKAGE / "analysis" / "page").iterdir() if f.is_file())
    modules = (f for part in ANALYSIS_CODE for f in (PACKAGE / part).rglob("*.py"))
    return _hash([*modules, *pages, PACKAGE / "cells.py", PACKAGE / "terminal.py"])


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Content of `env.json`."""
    return {
        "science_hash": science_hash(),
        "git": git_state(),
        "python": sys.version.split()[0],
        "packages": {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "host": platform.node(),
    }


def git_state() -> dict[str, str] | None:
    """Commit, uncommitted difference and new files of the checkout klsweep runs from, or was copied from for a job.

    None if it is neither.
    """
    if (record := PACKAGE.parent / SOURCE_RECORD).exists():
        state = json.loads(record.read_text())
        return state and {"commit": state["commit"], "copy": PACKAGE.parent.name, "diff": f"see {record}"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != PACKAGE.parent:
            return None
        new = git("ls-files", "--others", "--exclude-standard", "klsweep", "conf", "analysis")
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": git("diff", "HEAD"), "untracked": new}
    except (OSError, subprocess.CalledProcessError):
        return None
