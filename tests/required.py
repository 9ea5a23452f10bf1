"""Tests of what has to be installed beside klsweep are skipped without it, or fail if it is required.

`KLSWEEP_REQUIRE` names what must be there, separated by commas: `slurm`, `chromium`, `parity`, ….
"""

import os

import pytest


def unavailable(part: str, reason: str) -> None:
    """Skip the test that asked for `part`, saying why; fail it if `KLSWEEP_REQUIRE` names the part."""
    if part in os.environ.get("KLSWEEP_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)
