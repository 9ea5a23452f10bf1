"""`klsweep doctor` on a real SLURM."""

import json

import pytest

from tests.slurm.arena import Trial

pytestmark = pytest.mark.slow


def test_the_doctor_finds_this_cluster_well(arena):
    out = arena.klsweep("doctor", *Trial(arena, "doctor", pace=0.0).overrides, "--json")
    checks = {check["name"]: check for check in json.loads(out[out.index("[") : out.rindex("]") + 1])}
    assert all(check["passed"] for check in checks.values()), checks
    assert {"limits", "code (a)", "torch (b)", "claims", "ends", "signal", "grace", "requeue"} <= set(checks)
    assert "on n1 and n2" in checks["claims"]["found"] or "on n2 and n1" in checks["claims"]["found"]


def test_the_doctor_does_not_wait_for_a_job_that_is_over(arena):
    trial = Trial(arena, "undoctored", pace=0.0)
    out = arena.klsweep("doctor", *trial.overrides, "launcher.python=/no/such/python", code=1)
    assert "FAIL start: job" in out
    assert "/no/such/python: No such file or directory" in " ".join(out.split())
