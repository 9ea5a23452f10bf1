"""What a cluster lets us submit now, and what becomes of the rest."""

import os
import shutil
from collections import Counter

import pytest

from klsweep.cli import main
from klsweep.sweep import cluster
from tests.slurm.arena import GRID, HELD, RUNS, Arena, Trial, shell


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script before the program of that name."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    return put


def sweep(trial: Trial) -> int:
    return main(["sweep", *trial.overrides, HELD, "--config-dir", "conf"])


def accounting(program, associations: str, qos: str) -> None:
    """What sacctmgr prints where there is accounting, which the cluster of the tests has not."""
    program("sacctmgr", f'case "$*" in *assoc*) printf "{associations}";; *qos*) printf "{qos}";; esac')


def test_submissions_are_cut_to_what_accounting_allows(here: Arena, program, capsys):
    trial = Trial(here, "allowed", *GRID, pace=0.0)
    mine = len(shell("squeue", "-h", "-r", "--me").splitlines())
    accounting(program, f"{mine + 5}|\n|lab\n", "normal|\nlab|4\nsmall|3\n")
    rooms = {qos: cluster.limits({(None, qos)}).submittable for qos in (None, "small", "normal")}
    assert rooms == {None: 4, "small": 3, "normal": 5}  # the default QOS is lab; normal has no limit of its own
    accounting(program, "|\n", "normal|3\n")
    assert sweep(trial) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "submitted 3 runs in 3 tasks as job" in out
    assert "1 runs are beyond what the cluster lets us submit now: the same command submits the rest" in out
    accounting(program, f"{mine + 3}|\n", "normal|\n")
    assert sweep(trial) == 0
    assert "takes no more jobs of ours now: 1 runs are left" in " ".join(capsys.readouterr().out.split())
    assert main(["cancel", trial.directory]) == 0


def test_what_sbatch_took_before_it_refused_is_said(here: Arena, program, tmp_path, capsys):
    trial = Trial(here, "refused", *GRID, pace=0.0)
    refusal = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    once = f'if [ -e {tmp_path}/once ]; then echo "{refusal}" >&2; exit 1; fi; touch {tmp_path}/once'
    program("sbatch", f'{once}; exec {shutil.which("sbatch")} "$@"')
    assert sweep(trial) == 2
    err = capsys.readouterr().err
    assert "Job violates accounting/QOS policy (3 of 4 runs were submitted before that, as " in err
    assert err.count("\n") == 1
    assert Counter(run["cause"] for run in trial.status()["runs"]) == {None: 3, "not submitted": 1}
    (tmp_path / "sbatch").unlink()
    assert sweep(trial) == 0
    assert f"{RUNS - 1} running or queued elsewhere, 1 to run" in " ".join(capsys.readouterr().out.split())
    assert main(["cancel", trial.directory]) == 0
