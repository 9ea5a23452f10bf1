"""A run on two nodes of a real SLURM trains as it does in one process, is cancelled, and comes back."""

import pytest
import torch
from safetensors.torch import load_file

from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from tests.slurm.arena import CELL, Trial, rows_of, shell, wait_until

pytestmark = pytest.mark.slow

GENTLE = ["train.lr=3.0e-5", "train.updates=20", "kl.coef=0.05", "seed=0", "sampling=off_policy"]


def weights(folder: RunFolder) -> torch.Tensor:
    files = [load_file(file) for file in sorted(folder.checkpoints.glob("update-000020/model*.safetensors"))]
    return torch.cat([file[name].flatten() for name in sorted(files[0]) for file in files])


def test_a_run_on_two_nodes_is_that_of_one_process(arena):
    arena.klsweep("sweep", *CELL, *GENTLE, "launcher.threads=1", "sweep_dir=gentle")
    trial = Trial(arena, "nodes", *GENTLE, "parallel=fsdp2", "parallel.processes=1", "launcher.nodes=2", pace=2.0)
    trial.submit()
    wait_until(lambda: rows_of(trial.run) > 4, "some updates")
    assert "NumNodes=2" in shell("scontrol", "show", "job", trial.job())
    arena.klsweep("cancel", trial.directory)
    assert trial.settle()["counts"] == {"cancelled": 1}
    wait_until(lambda: shell("squeue", "-h", "--name", trial.sweep.name) == "", "an empty queue")
    trial.pace(0.0)
    arena.klsweep("retry", trial.directory, "--only", "cancelled")
    trial.finish()
    two, one = trial.run, SweepFolder(arena.root / "gentle").run(trial.run.run_id)
    assert (two.attempts.end_of(1) or {})["cause"] == "klsweep cancel: checkpointed"
    assert two.attempts.claim(2)["resumed_from"] > 2
    assert read_json(two.environment)["ranks"] == 2
    assert {read_json(two.attempt(n) / "ranks.json")["nodes"] for n in (1, 2)} == {2}
    for row, other in zip(read_rows(two.metrics), read_rows(one.metrics), strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert ((weights(two) - weights(one)).norm() / weights(one).norm()).item() < 1e-5
    assert not list(two.path.glob("attempts/*/rank-*.json"))  # no rank had anything to complain of
