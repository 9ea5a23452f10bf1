"""The environment with the libraries, and the batch that they and klsweep are both given."""

import subprocess
from pathlib import Path

import pytest

from tests.parity.batch import Batch, record
from tests.required import unavailable

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-parity/bin/python"


@pytest.fixture(scope="session")
def in_parity():
    """Runs a script of this folder with the libraries' interpreter; its output is shown if it fails."""
    if not PYTHON.exists():
        unavailable("parity", f"no TRL, verl and OpenRLHF here ({PYTHON} not found: make install-parity)")

    def run(script: str, *arguments: object) -> None:
        command = [PYTHON, "-P", Path(__file__).with_name(script), *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]

    return run


@pytest.fixture(scope="session")
def batch(tmp_path_factory) -> Batch:
    return record(tmp_path_factory.mktemp("parity"))
