"""What several test files share: components without Hydra, and a sweep run once."""

import pytest
import torch

from klsweep.objective.advantage import GRPO, RLOO, Algorithm, DrGRPO, Reinforce
from klsweep.objective.clip import NO_CLIP, UNUSED, Clip, FixedClip
from klsweep.objective.importance import Correction, Masked, NoCorrection, Truncated
from klsweep.objective.kl import Estimator
from klsweep.objective.objective import Objective
from klsweep.objective.placement import InLoss, InReward, InRewardAndLoss, NoKL, Placement
from klsweep.objective.regulariser import KL

torch.set_num_threads(1)  # the shipped policy is too small for more


FIRST = ("test_torture.py", "test_slurm.py", "test_sweep.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def algorithm(
    kind: type[Algorithm] = Reinforce,
    group_size: int = 4,
    aggregation: str = "seq-sum",
    clip=(0.2, 0.2),
    ratio_level: str = "token",
):
    fields = {"group_size": group_size, "clip_low": clip[0], "clip_high": clip[1], "aggregation": aggregation}
    return kind(**fields, ratio_level=ratio_level, std_epsilon=1e-6)  # pyright: ignore


def no_clip() -> Clip:
    return NO_CLIP


def fixed_clip(tau: float | None, level: str = "token", mode: str = "hard", **fields) -> Clip:
    rest = {"low": None, "high": None, "output": None, "clamp_stage": "after_weight", "half": "both", **fields}
    return FixedClip(**{**UNUSED, "tau": tau, "level": level, "mode": mode, **rest})  # pyright: ignore


def placed(
    where: str, credit: str = "sequence", baseline: str = "auto", level: str = "token", loss_estimator: str = "same"
) -> Placement:
    """A placement by name, with the fields it uses."""
    if where == "none":
        return NoKL(credit=None, baseline=None, level=None, loss_estimator=None)
    if where == "reward":
        return InReward(credit=credit, baseline=baseline, level=None, loss_estimator=None)  # pyright: ignore
    if where == "loss":
        return InLoss(credit=None, baseline=None, level=level, loss_estimator=None)  # pyright: ignore
    fields = {"credit": credit, "baseline": baseline, "level": level, "loss_estimator": loss_estimator}
    return InRewardAndLoss(**fields)  # pyright: ignore


def estimating(kind: type[Estimator], gradient: str = "same", clip_gradient: bool = False) -> Estimator:
    return kind(gradient=gradient, clip_gradient=clip_gradient)  # pyright: ignore


def regularised(coef: float = 1.0, **fields) -> KL:
    rest = {"schedule": "constant", "final_coef": 0.0, "loss_coef": None, "final_loss_coef": None}
    rest |= {"target": None, "horizon": None, "weight": "none", "weight_over": "old", "weight_grad": "detached"}
    rest |= {"weight_cap": None, "aggregation": None}
    return KL(coef=coef, **{**rest, **fields})


def corrected(kind: str = "none", level: str = "token", cap: float | None = 2.0, floor: float = 0.0) -> Correction:
    if kind == "none":
        return NoCorrection(level=None, cap=None, floor=None)
    if kind == "truncated":
        return Truncated(level=level, cap=cap, floor=None)  # pyright: ignore
    return Masked(level=level, cap=cap, floor=floor)  # pyright: ignore


def composed(
    estimator: type[Estimator] | Estimator,
    placement: Placement,
    clip: Clip = NO_CLIP,
    of: Algorithm | None = None,
    kl: KL | None = None,
    correction: Correction | None = None,
) -> Objective:
    """An objective with everything plain that is not given; an estimator class is one without further settings."""
    estimator = estimating(estimator) if isinstance(estimator, type) else estimator
    return Objective(estimator, placement, clip, of or algorithm(), kl or regularised(), correction or corrected())


ALGORITHMS = {"reinforce": Reinforce, "rloo": RLOO, "grpo": GRPO, "dr_grpo": DrGRPO}


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def hub_files(tmp_path_factory):
    """What the `hub` fixture offers, to be left as it is."""
    from tests.hub import fill, use

    home = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        fill(home)
    return home


@pytest.fixture
def hub(hub_files, monkeypatch):
    """A Hugging Face cache in which everything lies that the shipped configurations name, small and invented."""
    from klsweep.model import source as model
    from klsweep.tasks import base, choice, data
    from tests.hub import use

    use(hub_files, monkeypatch)
    yield hub_files
    for cached in (model._hub_commit, model._tokenizer_template, base.fingerprint, base.shared_prompts):
        cached.cache_clear()
    for cached in (data._split, choice._rows):
        cached.cache_clear()


def planned(*overrides: str, single: bool = False, outline: bool = False):
    """The plan of a command line; small and silent unless told otherwise."""
    from klsweep.config.compose import composer
    from klsweep.sweep.plan import make_plan

    with composer() as session:
        return make_plan(session, ["wandb.mode=disabled", *overrides], single, outline)


SUITES = ("add", "subtract", "reverse", "max", "sort")
FEW_PROMPTS = ("train.prompts_per_update=4", "algorithm.group_size=4", "task.train_prompts=64")
# of a short run, evaluating as many prompts as are shipped takes most
LIGHT = ("task.eval_prompts=8", *(f"eval.suites.{suite}.eval_prompts=8" for suite in SUITES))
SMALL = (*FEW_PROMPTS, *LIGHT)


def small_spec(*overrides: str):
    """One validated run of the shipped model, small enough to train in a test."""
    return planned(*SMALL, *overrides, single=True).runs[0].spec


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Commands cache what they read of records here, not at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLSWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
