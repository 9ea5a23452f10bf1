"""klsweep's own training loop, paced from outside: `python -m benchmarks.contestants.ours WORK`, see `updates.Work`."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.contestants.turns import Turns
from klsweep.config.build import RunSpec
from klsweep.config.compose import composer
from klsweep.record.files import read_rows
from klsweep.record.folder import Attempt, RunFolder
from klsweep.sweep.plan import make_plan
from klsweep.tracking import Tracker
from klsweep.training.loop import train


def composed(overrides: Sequence[str]) -> RunSpec:
    """The run that these overrides describe."""
    with composer() as session:
        return make_plan(session, ["wandb.mode=disabled", "launcher.threads=1", *overrides], single=True).runs[0].spec


def spec_of(work: dict) -> RunSpec:
    """The run that `work` describes; hardly any evaluation, and a learning rate that leaves the policy as it is."""
    return composed(
        [
            "preset=trl_grpo",
            f"model.path={work['model']}",
            f"train.prompts_per_update={work['prompts']}",
            f"algorithm.group_size={work['group']}",
            f"task.max_response_tokens={work['tokens']}",
            "train.updates=100000",
            "train.lr=1e-9",
            "train.base_check=off",
            "eval.samples_per_prompt=1",
            "eval.pass_at=[1]",
            *(f"eval.suites.{suite}.eval_prompts=2" for suite in ("add", "subtract", "reverse", "max", "sort")),
        ]
    )


def claimed(folder: Path) -> Attempt:
    """An attempt at a run in a new folder."""
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    attempt = run.claim()
    assert attempt is not None
    return attempt


def main(work: dict, folder: Path) -> None:
    torch.set_num_threads(1)
    turns, attempt = Turns(), claimed(folder)
    outcome = train(
        spec_of(work),
        attempt,
        folder / "artifacts",
        Tracker(None),
        lambda: None if turns.wait() else "over",
        lambda *_: None,
    )
    if outcome.state != "over":
        raise RuntimeError(f"training ended by itself: {outcome}")
    turns.answer(timing=list(read_rows(attempt.folder.timing)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(json.loads(sys.argv[1]), Path(name))
