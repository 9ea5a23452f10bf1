"""How long commands take from process start to end."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.frame import KLSWEEP, Row, command, seconds
from klsweep.record.folder import RunFolder, SweepFolder

PLAN = [
    "estimator=k1,k2,k3,full,abs",
    "placement=none,reward,loss,reward_and_loss",
    "clip=none,fixed",
    "sampling=on_policy,off_policy",
    "algorithm=rloo,grpo,dr_grpo",
    "task=add,sort",
    "kl.coef=0.1,0.2,0.3",
]


def rows(folder: Path) -> Iterator[Row]:
    """Commands, from process start to end."""
    planned = json.loads(
        subprocess.run([KLSWEEP, "plan", *PLAN, "--json"], cwd=folder, capture_output=True, check=True).stdout
    )
    cells = f"{planned['raw']:,} raw cells, {len(planned['runs'])} distinct"
    yield _timed(f"`klsweep plan`, {cells} (aim: under 20 s per 1,000)", folder, 3, "plan", *PLAN)
    command(folder, "train", "train.updates=50", "sweep_dir=one", "wandb.mode=disabled")()
    one = SweepFolder(folder / "one")
    row = one.plan()[0]
    replicate(one.run(row["run_id"]), row, SweepFolder(folder / "hundred"), 100)
    for name in ("status", "compare"):
        yield _timed(f"`klsweep {name}`, 100 runs × 50 updates (aim: under 0.7 s)", folder, 7, name, "hundred")
    yield _timed("`klsweep audit`, V = 2, T = 14, 51 rows (aim: under 60 s)", folder, 3, "audit")
    yield _timed("`klsweep audit --presets`, 66 rows", folder, 3, "audit", "--presets")


def _timed(what: str, folder: Path, repeats: int, *arguments: str) -> Row:
    low, median = seconds(command(folder, *arguments), repeats)
    return Row(what, f"{low:.2f} s min, {median:.2f} s median")


def replicate(source: RunFolder, row: dict, sweep: SweepFolder, count: int) -> None:
    """A sweep of `count` runs whose records are copies of a real one."""
    copies = []
    for i in range(count):
        copies.append({**row, "run_id": f"r1-{i:012d}", "cell_id": f"c1-{i // 5:012d}", "seed": i % 5})
        shutil.copytree(source.path, sweep.run(copies[-1]["run_id"]).path)
    sweep.extend_plan(copies)
