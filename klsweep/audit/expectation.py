"""What can be said of a configuration before it runs: which gradient its KL term takes in expectation.

Established on a small policy, see `klsweep.audit.bias`; said only where it carries over: on policy without truncated
sampling, for one optimiser step per batch, an aggregation whose normaliser does not depend on the responses, and the
estimators defined here. One of a plugin may be another function where the small policy's log-ratios do not reach.
"""

import dataclasses
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from klsweep.audit.bias import exact_source
from klsweep.audit.gradient import compares, kl_moments
from klsweep.audit.reference import kl_gradient, named_gradients
from klsweep.audit.tabular import instance
from klsweep.audit.verdict import EXACT, verdict
from klsweep.objective.clip import NO_CLIP, Clip
from klsweep.objective.objective import Objective
from klsweep.objective.regulariser import Betas

TABLES = instance(length=4, vocabulary=3)
UNIT = Betas(1.0, 1.0)


class Claim(NamedTuple):
    """The verdict on a KL term and its expected gradient, for β = 1."""

    verdict: str
    gradient: Tensor

    def equals(self, other: "Claim") -> bool:
        """True if the two gradients are the same up to rounding."""
        return bool((self.gradient - other.gradient).norm() < EXACT * max(self.gradient.norm(), other.gradient.norm()))


def claim(objective: Objective) -> Claim | None:
    """The claim on an objective's KL term on policy, None where the audit of the tables does not carry over."""
    lengths = objective.placement.in_reward and objective.algorithm.aggregation not in ("seq-sum", "fixed")
    lengths = lengths or (objective.placement.in_loss and objective.kl_aggregation not in ("seq-sum", "fixed"))
    nonlinear = compares(objective) and not objective.algorithm.linear
    foreign = not type(objective.estimator).__module__.startswith("klsweep.")
    if not objective.has_kl or lengths or nonlinear or foreign or _uneven(objective):
        return None
    # whatever changes neither halves nor their proportion is set to one value, so that few cells need an audit
    algorithm = dataclasses.replace(objective.algorithm, aggregation="seq-sum")
    kl = dataclasses.replace(objective.kl, coef=1.0, final_coef=0.0, schedule="constant", aggregation=None)
    kl = dataclasses.replace(kl, loss_coef=None, final_loss_coef=None)
    return _claim(dataclasses.replace(objective, algorithm=algorithm, kl=kl))


def _uneven(objective: Objective) -> bool:
    """True if the two halves have not the same strength throughout."""
    if not (objective.placement.in_reward and objective.placement.in_loss):
        return False
    kl = objective.kl
    strengths = kl.coefficients("reward") != kl.coefficients("loss")
    return strengths or objective.kl_aggregation != objective.algorithm.aggregation


@lru_cache(maxsize=1024)
def _claim(objective: Objective) -> Claim | None:
    target, named = _references()

    def expected(clip: Clip) -> Tensor:
        one = dataclasses.replace(objective, clip=clip)
        return kl_moments(TABLES, one, UNIT, exact_source(TABLES, off_policy=False)).mean.view_as(target)

    gradient = expected(objective.clip)
    if objective.clip != NO_CLIP and bool((gradient - expected(NO_CLIP)).norm() < EXACT * gradient.norm()):
        return None  # no log-ratio of these tables reaches the clip: they tell nothing about it
    return Claim(verdict(gradient, target, named, objective, False, lambda: expected(NO_CLIP)), gradient)


@lru_cache(maxsize=1)
def _references() -> tuple[Tensor, dict[str, Tensor]]:
    return kl_gradient(TABLES)[1], named_gradients(TABLES)
