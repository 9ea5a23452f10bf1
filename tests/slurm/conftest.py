"""The cluster that the SLURM tests share. Without SLURM's programs they are skipped, or fail if it is required."""

import os
import shutil
from pathlib import Path

import pytest

from tests.required import unavailable
from tests.slurm.arena import Arena

NEEDED = ("sbatch", "squeue", "scontrol", "slurmctld", "slurmd", "munged")


@pytest.fixture(scope="session")
def arena(tmp_path_factory):
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        unavailable("slurm", f"no SLURM here ({', '.join(missing)} not found: apt-get install slurm-wlm munge)")
    found = Arena(tmp_path_factory.mktemp("arena"))
    yield found
    found.close()


@pytest.fixture
def here(arena, monkeypatch):
    """The arena, with this process in its folder and its plugin within reach."""
    monkeypatch.chdir(arena.root)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return arena
