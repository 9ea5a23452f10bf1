"""Everything in torture.py once, on a real SLURM."""

import os

import pytest

from tests.slurm.torture import GENTLE, ROUGH, full_disk, out_of_memory_cgroup, run_all

pytestmark = pytest.mark.slow
NEED_ROOT = (full_disk, out_of_memory_cgroup)  # to mount a tmpfs, to make a cgroup


@pytest.fixture(scope="module")
def seen(arena):
    return run_all(arena)


@pytest.mark.parametrize("torture", [*GENTLE, *ROUGH], ids=lambda torture: torture.__name__)
def test_no_run_is_lost_and_none_is_run_twice(torture, request):
    if torture in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("needs root")
    text = request.getfixturevalue("seen")[torture.__name__]
    assert not text.startswith("FAILED"), text
