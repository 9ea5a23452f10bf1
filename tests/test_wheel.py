"""What pip installs: one import name with its data, which runs from any folder, also one with a conf/ of its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.install import build_wheel
from klsweep.record.folder import SweepFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SMALL = "train.updates=1 eval.samples_per_prompt=1 eval.pass_at=[1] launcher.parallel=1 wandb.mode=disabled seed=0"


def run(*words: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("build"))


def test_a_wheel_claims_one_name_and_carries_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"klsweep"}
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    shipped |= {str(path.relative_to(ROOT)) for kind in ("*.py", "page/*.*") for path in (ROOT / "analysis").glob(kind)}
    shipped |= {str(path.relative_to(ROOT)) for path in (ROOT / "slurm").iterdir()}
    assert {f"klsweep/{name}" for name in shipped} <= set(names)
    assert "klsweep/model/tiny/model.safetensors" in names
    assert wheel.stat().st_size < 3_000_000


def test_the_installed_command_runs_in_a_folder_with_a_conf_and_an_analysis_of_its_own(wheel, tmp_path):
    site, user = tmp_path / "site", tmp_path / "user"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet"]
    run(*pip, "--target", str(site), str(wheel), folder=tmp_path)
    for name, text in (("analysis/__init__.py", "raise SystemExit(7)\n"), ("conf/config.yaml", "not: ours\n")):
        (user / name).parent.mkdir(parents=True)
        (user / name).write_text(text)
    where = [sys.executable, "-P", "-c", "import klsweep, klsweep.analysis as a; print(klsweep.__file__, a.__file__)"]
    found = run(*where, folder=user, PYTHONPATH=str(site)).split()
    assert [Path(file).parent for file in found] == [site / "klsweep", site / "klsweep/analysis"]
    command = str(site / "bin/klsweep")
    grid = ["experiment=quickstart", "estimator=k1", "placement=reward", "clip=none", "sampling=on_policy"]
    run(command, "sweep", *grid, *SMALL.split(), folder=user, PYTHONPATH=str(site))
    assert len(SweepFolder(user / "sweeps/quickstart").plan()) == 1
    table = run(command, "compare", "sweeps/quickstart", "--markdown", folder=user, PYTHONPATH=str(site))
    assert "1 cells, 1 runs: 1 done" in table
    run(command, "compare", "sweeps/quickstart", "--html", "page.html", folder=user, PYTHONPATH=str(site))
    assert (user / "page.html").stat().st_size > 10_000
