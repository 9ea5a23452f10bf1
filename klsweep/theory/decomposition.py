"""From log-ratios of a policy to a threshold and the bound's three terms, and how those change with τ, n and K."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from klsweep.theory.bound import (
    UNIT_REWARDS,
    AlphaName,
    ClipInterval,
    FixedPolicyBound,
    RewardRange,
    alpha_of,
    fixed_policy_bound,
)
from klsweep.theory.budget import (
    Costs,
    best_allocation,
    best_rollouts,
    best_rollouts_by_variance,
    prompts_rate,
    sampling_rate,
    variance_of_mean,
)
from klsweep.theory.clip_threshold import (
    ClipIntervals,
    KLSwitchedOff,
    bootstrap_clip,
    calibrated_clip,
    split_prompts,
)
from klsweep.theory.inputs import Floats, finite_array
from klsweep.theory.variance import VarianceComponents


@dataclass(frozen=True)
class Setting:
    """What is asked: n, K and δ of the evaluation, and whatever of the bound does not come from log-ratios."""

    prompts: int
    rollouts: int
    delta: float
    beta: float
    alpha_name: AlphaName = "paper"
    asymmetric: bool = False
    coverage: float = 1.0
    reward_error: float = 0.0
    rewards: RewardRange = UNIT_REWARDS

    @property
    def alpha(self) -> float:
        return alpha_of(self.alpha_name, self.prompts, self.rollouts, self.delta)

    @property
    def quantile(self) -> float:
        """Level of the quantile that the threshold is: 1 − 2α of |ℓ|, or 1 − α of either sign."""
        return 1 - self.alpha if self.asymmetric else 1 - 2 * self.alpha

    def clip(self, log_ratios: ArrayLike) -> ClipInterval:
        """The threshold that minimises the bound on these log-ratios. Raises KLSwitchedOff."""
        return calibrated_clip(log_ratios, self.alpha, self.prompts, self.asymmetric)

    def bound(self, clip: ClipInterval, log_ratios: ArrayLike) -> FixedPolicyBound:
        """The terms at a threshold, E|ℓ − ℓ^τ| being the mean over these log-ratios."""
        mass = clip.clipped_mass(log_ratios)
        return fixed_policy_bound(self.alpha, clip, self.beta, mass, self.coverage, self.reward_error, self.rewards)


@dataclass(frozen=True)
class Decomposition:
    """τ* with its bootstrap interval, the terms at it, and the share of log-ratios that it clips.

    `label` says what was calibrated and evaluated on, and so how far the theorem covers the figures.
    """

    setting: Setting
    clip: ClipInterval
    interval: ClipIntervals
    bound: FixedPolicyBound
    clipped_share: float
    label: str


def decompose(
    setting: Setting,
    log_ratios: ArrayLike,
    split: bool,
    seed: int,
    resamples: int = 1000,
    progress: Callable[[int], None] = lambda done: None,
) -> Decomposition:
    """Calibrate τ* and evaluate the terms, on the same log-ratios or (`split`) on two seeded halves of them.

    The clipping term is the sample's mean of |ℓ − ℓ^τ|, an estimate outside of the confidence 1 − δ. The interval of τ*
    is a bootstrap at the same confidence. Raises KLSwitchedOff.
    """
    found = finite_array("log_ratios", log_ratios, (1, 2))
    calibration = evaluation = found
    label = f"heuristic: τ* and E|ℓ − ℓ^τ| are from the same log-ratios, {_counted(found)}"
    if split:
        calibration, evaluation = split_prompts(found, seed)
        label = f"split: τ* is from {_counted(calibration)}, E|ℓ − ℓ^τ| from the other {_counted(evaluation)}"
    clip = setting.clip(calibration)
    interval = bootstrap_clip(
        calibration, setting.alpha, setting.asymmetric, seed, resamples, 1 - setting.delta, progress
    )
    beyond = float(((evaluation < -clip.low) | (evaluation > clip.high)).mean())
    return Decomposition(setting, clip, interval, setting.bound(clip, evaluation), beyond, label)


def _counted(log_ratios: Floats) -> str:
    return f"{log_ratios.size} of {len(log_ratios)} prompts" if log_ratios.ndim == 2 else str(log_ratios.size)


class Point(NamedTuple):
    """The terms at one value of what is varied; None where KL would be switched off."""

    at: float
    bound: FixedPolicyBound | None


def against_tau(setting: Setting, log_ratios: Floats, side: str, clip: ClipInterval, points: int = 200) -> list[Point]:
    """The terms at thresholds from 0 to the largest |ℓ|. `side`: both, low or high; the other stays as in `clip`."""
    largest = float(np.abs(log_ratios).max())
    found = []
    for tau in np.linspace(0.0, largest, points):
        at = replace(clip, **{name: float(tau) for name in ("low", "high") if side in (name, "both")})
        found.append(Point(float(tau), setting.bound(at, log_ratios)))
    return found


def against_prompts(setting: Setting, log_ratios: Floats, counts: Sequence[int]) -> list[Point]:
    """The terms for other n, each at its own τ*."""
    return [Point(n, _at_its_best(replace(setting, prompts=n), log_ratios)) for n in counts]


def against_rollouts(
    setting: Setting, log_ratios: Floats, costs: Costs, budget: float, counts: Sequence[int]
) -> list[Point]:
    """The terms for other K with as many whole prompts as the budget pays for then, each at its own τ*."""
    found = []
    for rollouts in counts:
        prompts = int(costs.prompts_within(budget, np.array(float(rollouts))))
        if prompts >= 1:
            at = replace(setting, prompts=prompts, rollouts=rollouts)
            found.append(Point(rollouts, _at_its_best(at, log_ratios)))
    return found


def _at_its_best(setting: Setting, log_ratios: Floats) -> FixedPolicyBound | None:
    try:
        return setting.bound(setting.clip(log_ratios), log_ratios)
    except KLSwitchedOff:
        return None


class Spending(NamedTuple):
    """The K that is best by one criterion: real, for a large budget; and whole n and K within the one given.

    `value` is α at them, or the standard error of Ĵ's reward part (criterion `variance`).
    """

    criterion: str
    best_rollouts: float
    prompts: int
    rollouts: int
    value: float


def spending(
    setting: Setting, costs: Costs, budget: float | None, components: VarianceComponents | None
) -> list[Spending]:
    """K* by the bound's α, and by the variance if its components are known. The budget of None is what n and K cost."""
    budget = setting.prompts * costs.of_prompt(setting.rollouts) if budget is None else budget
    real, criterion = (best_rollouts(costs), sampling_rate) if setting.alpha_name == "paper" else (1.0, prompts_rate)
    best = best_allocation(criterion, costs, budget)
    alpha = alpha_of(setting.alpha_name, best.prompts, best.rollouts, setting.delta)
    found = [Spending(setting.alpha_name, real, best.prompts, best.rollouts, alpha)]
    if components is not None:
        best = best_allocation(variance_of_mean(components), costs, budget)
        real = best_rollouts_by_variance(costs, components)
        found.append(Spending("variance", real, best.prompts, best.rollouts, math.sqrt(best.value)))
    return found
