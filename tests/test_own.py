"""The worked example of a plugin, from outside the package and through the real command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from klsweep.record.folder import SweepFolder

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/mylab"
PLUGIN = "plugins=[mylab.rl]"
SMALL = ["experiment=doubling", "sweep_dir=out", "train.updates=2", "wandb.mode=disabled", "seed=0"]


def klsweep(*arguments: str, folder, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "klsweep.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder of a user's with the package in it, after a sweep."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(EXAMPLE / "mylab", folder / "mylab", ignore=shutil.ignore_patterns("__pycache__"))
    done = klsweep("sweep", PLUGIN, *SMALL, "estimator=huber,k2", "placement=loss", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_sweep_with_an_estimator_a_reward_and_a_task_of_ones_own(swept):
    folder, done = swept
    assert "2 cells, 2 runs: 2 done" in done.stdout
    assert "doubling (in)" in done.stdout
    sweep = SweepFolder(folder / "out")
    configs = [yaml.safe_load(sweep.run(row["run_id"]).config.read_text()) for row in sweep.plan()]
    assert [c["estimator"]["_target_"] for c in configs] == ["mylab.rl.estimator.Huber", "klsweep.objective.kl.K2"]
    assert {c["reward"]["_target_"] for c in configs} == {"mylab.rl.reward.InPlace"}
    assert {c["task"]["_target_"] for c in configs} == {"mylab.rl.task.Doubling"}
    for row in sweep.plan():
        run = sweep.run(row["run_id"])
        environment = json.loads(run.environment.read_text())
        assert environment["plugin_hash"] == run.status()["plugin_hash"] is not None


def test_plugin_code_that_changed_is_noticed(swept):
    folder, _ = swept
    file = folder / "mylab/rl/reward.py"
    text = file.read_text()
    again = ["plan", PLUGIN, *SMALL, "estimator=huber,k2", "placement=loss"]
    assert "made by other plugin code" not in klsweep(*again, folder=folder).stdout
    file.write_text(text + "# edited\n")
    assert "2 finished runs were made by other plugin code than this" in klsweep(*again, folder=folder).stdout
    file.write_text(text)


COPY = """
from pathlib import Path
from klsweep.record.folder import SweepFolder
from klsweep.sweep.snapshot import snapshot
print(snapshot(SweepFolder(Path("out")), ["mylab.rl"], allow_dirty=True).resolve())
"""


def test_a_job_runs_the_copy_of_the_plugin(swept, tmp_path):
    """As SLURM's jobs do: the copy first on PYTHONPATH, nothing else of the user's within reach."""
    folder, _ = swept
    sweep = SweepFolder(folder / "out")
    copied = subprocess.run([sys.executable, "-c", COPY], cwd=folder, capture_output=True, text=True, check=True)
    code = Path(copied.stdout.strip())
    assert (code / "mylab/rl/conf/estimator/huber.yaml").is_file()
    assert (code / "mylab/__init__.py").is_file()
    run = next(row["run_id"] for row in sweep.plan() if row["axes"]["estimator"] == "huber")
    arguments = ["run", str(sweep.run(run).path), "--into", "again"]
    stranger = klsweep(*arguments, folder=tmp_path)
    assert stranger.returncode == 2
    assert f"no package 'mylab' in {tmp_path}, on PYTHONPATH or installed" in stranger.stderr
    done = klsweep(*arguments, folder=tmp_path, PYTHONPATH=str(code), PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again/runs" / run
    assert (again / "metrics.jsonl").read_bytes() == sweep.run(run).metrics.read_bytes()
    assert json.loads((again / "env.json").read_text())["git"]["copy"] == code.name
