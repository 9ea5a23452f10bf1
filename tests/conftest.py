"""What several test files share: components without Hydra, and a sweep run once."""

import pytest
import torch

from klsweep.objective.advantage import GRPO, RLOO, Algorithm, DrGRPO, Reinforce
from klsweep.objective.clip import Clip, FixedClip, NoClip
from klsweep.objective.placement import InLoss, InReward, InRewardAndLoss, NoKL, Placement

torch.set_num_threads(1)  # the shipped policy is too small for more


def algorithm(kind: type[Algorithm] = Reinforce, group_size: int = 4, aggregation: str = "seq-sum", clip=(0.2, 0.2)):
    return kind(group_size=group_size, clip_low=clip[0], clip_high=clip[1], aggregation=aggregation)  # pyright: ignore


def no_clip() -> Clip:
    return NoClip(tau=None, level=None, mode=None)


def fixed_clip(tau: float, level: str = "token", mode: str = "hard") -> Clip:
    return FixedClip(tau=tau, level=level, mode=mode)  # pyright: ignore


def placed(where: str, credit: str = "sequence", baseline: str = "auto", level: str = "token") -> Placement:
    """A placement by name, with the fields it uses."""
    if where == "none":
        return NoKL(credit=None, baseline=None, level=None)
    if where == "reward":
        return InReward(credit=credit, baseline=baseline, level=None)  # pyright: ignore
    if where == "loss":
        return InLoss(credit=None, baseline=None, level=level)  # pyright: ignore
    return InRewardAndLoss(credit=credit, baseline=baseline, level=level)  # pyright: ignore


ALGORITHMS = {"reinforce": Reinforce, "rloo": RLOO, "grpo": GRPO, "dr_grpo": DrGRPO}


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*overrides: str, single: bool = False):
    """The plan of a command line; small and silent unless told otherwise."""
    from klsweep.config.compose import composer
    from klsweep.sweep.plan import make_plan

    with composer() as session:
        return make_plan(session, ["wandb.mode=disabled", *overrides], single)


SMALL = ("train.prompts_per_update=4", "algorithm.group_size=4", "task.train_prompts=64")


def small_spec(*overrides: str):
    """One validated run of the shipped model, small enough to train in a test."""
    return planned(*SMALL, *overrides, single=True).runs[0].spec
