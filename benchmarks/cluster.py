"""Submitting, showing and cancelling a thousand runs on a SLURM of one machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.frame import Row, Unavailable, command, seconds

LOCAL_CLUSTER = Path(__file__).parents[1] / "slurm/local-cluster"
HELD = ["launcher=slurm", "launcher.profile=local", "launcher.sbatch={begin: now+5hour}"]


def rows(folder: Path) -> Iterator[Row]:
    """1,000 runs on a SLURM started for it on this machine."""
    if shutil.which("sbatch") is None:
        raise Unavailable("no SLURM here (sbatch not found)")
    state = ["--state", str(folder / "slurm")]
    subprocess.run([sys.executable, str(LOCAL_CLUSTER), *state, "start"], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm/slurm.conf")
    try:
        submitting, _ = seconds(command(folder, "sweep", "seed=range(0,1000)", *HELD, "sweep_dir=thousand"), 1)
        yield Row("planned and submitted (aim: under 30 s)", f"{submitting:.1f} s")
        showing, _ = seconds(command(folder, "status", "thousand"), 3)
        yield Row("`klsweep status` of them", f"{showing:.2f} s")
        cancelling, _ = seconds(command(folder, "cancel", "thousand"), 1)
        yield Row("`klsweep cancel` of all", f"{cancelling:.1f} s")
    finally:
        subprocess.run([sys.executable, str(LOCAL_CLUSTER), *state, "stop"], check=True, stdout=subprocess.DEVNULL)
