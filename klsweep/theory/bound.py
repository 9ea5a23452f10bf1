"""The fixed-policy bound: how far the proxy objective of a batch may be from the true one.

Ĵ = (1/nK) Σ [r̂ − β ℓ^τ] is what n prompts with K rollouts each show of a policy: a reward model r̂, the sequence
log-ratio ℓ = log π − log π_ref clipped to [−τ_lo, τ_hi]. J* = E[r* − β ℓ] is what was meant. With probability ≥ 1 − δ

    |Ĵ − J*| ≤ (1 + β(τ_lo + τ_hi)) α  +  C √L_train  +  β E|ℓ − ℓ^τ|
               sampling                   reward shift    clipping

for rewards in [0, 1], and a policy, τ, β and r̂ that do not depend on the evaluation sample. Everything but α
(a number), τ and ℓ (nats) is in units of reward. Source: "Generalisation of RLHF under Reward Shift and Clipped KL
Regularisation" (arXiv 2602.21765); where this differs from the paper, it says so.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from klsweep.theory.inputs import Floats, check_count, check_delta, check_not_negative, finite_array

AlphaName = Literal["paper", "hoeffding"]


def paper_alpha(prompts: int, rollouts: int, delta: float) -> float:
    """α = √(log(4/δ)/(2n)) + √(log(4/δ)/(2nK)), the paper's: one Hoeffding step over prompts, one over rollouts.

    Assumes n independent prompts and, given a prompt, K independent rollouts of a range of 1. A number without unit.
    """
    check_count("prompts", prompts)
    check_count("rollouts", rollouts)
    check_delta(delta)
    return (1 + 1 / math.sqrt(rollouts)) * math.sqrt(math.log(4 / delta) / (2 * prompts))


def hoeffding_alpha(prompts: int, delta: float) -> float:
    """α = √(log(2/δ)/(2n)): Hoeffding on the n group means alone, which are independent and of the same range.

    Never above the paper's, and free of K: it holds for any dependence among a prompt's rollouts.
    """
    check_count("prompts", prompts)
    check_delta(delta)
    return math.sqrt(math.log(2 / delta) / (2 * prompts))


def alpha_of(name: AlphaName, prompts: int, rollouts: int, delta: float) -> float:
    """The named α."""
    if name not in get_args(AlphaName):
        raise ValueError(f"alpha={name!r}: choose from {', '.join(get_args(AlphaName))}")
    if name == "paper":
        return paper_alpha(prompts, rollouts, delta)
    check_count("rollouts", rollouts)
    return hoeffding_alpha(prompts, delta)


@dataclass(frozen=True)
class ClipInterval:
    """ℓ^τ = clip(ℓ, −low, high) of sequence log-ratios. Both bounds are at least 0; nats."""

    low: float
    high: float

    def __post_init__(self) -> None:
        check_not_negative("tau_low", self.low)
        check_not_negative("tau_high", self.high)

    @classmethod
    def symmetric(cls, tau: float) -> "ClipInterval":
        """[−τ, τ]."""
        check_not_negative("tau", tau)
        return cls(tau, tau)

    def clipped_mass(self, log_ratios: ArrayLike) -> float:
        """Mean of |ℓ − ℓ^τ| over samples ``[N]`` or ``[n, K]``: an estimate of E|ℓ − ℓ^τ|, nats."""
        found = finite_array("log_ratios", log_ratios, (1, 2))
        return float(np.abs(found - np.clip(found, -self.low, self.high)).mean())


@dataclass(frozen=True)
class RewardRange:
    """The interval [low, high] that every reward lies in, and the way to [0, 1] and back.

    r' = (r − low)/width and β' = β/width make J' = (J − low)/width, so a gap in J is width times that in J'.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"reward range [{self.low}, {self.high}]: expected two finite numbers, the lower first")

    @property
    def width(self) -> float:
        return self.high - self.low

    def to_unit(self, rewards: ArrayLike, name: str = "rewards") -> Floats:
        """Rewards rescaled to [0, 1]. ValueError for one outside the range: nothing is cut or stretched silently."""
        found = finite_array(name, rewards, (1, 2))
        outside = (found < self.low) | (found > self.high)
        if outside.any():
            raise ValueError(
                f"{name}: {int(outside.sum())} of {found.size} lie outside [{self.low:g}, {self.high:g}] "
                f"(they span [{found.min():g}, {found.max():g}]): give the range with reward_low and reward_high"
            )
        return (found - self.low) / self.width


UNIT_REWARDS = RewardRange()


@dataclass(frozen=True)
class FixedPolicyBound:
    """The three terms of the bound, in units of reward."""

    sampling: float
    reward_shift: float
    clipping: float

    @property
    def total(self) -> float:
        return self.sampling + self.reward_shift + self.clipping


def fixed_policy_bound(
    alpha: float,
    clip: ClipInterval,
    beta: float,
    clipped_mass: float,
    coverage: float = 1.0,
    reward_error: float = 0.0,
    rewards: RewardRange = UNIT_REWARDS,
) -> FixedPolicyBound:
    """The terms (1 + β(τ_lo + τ_hi))α, C·√L_train and β E|ℓ − ℓ^τ| of |Ĵ − J*|; the theorem is at the top.

    Args: `alpha` a confidence radius for a range of 1 (`paper_alpha`, `hoeffding_alpha`); `clipped_mass` E|ℓ − ℓ^τ|,
    nats; `coverage` C(θ) = √(1 + χ²(D_θ ‖ D_train)) ≥ 1; `reward_error` √L_train, units of reward; `rewards` the range
    of r̂ and r*. Rewards in another range than [0, 1] are rescaled, β with them, and the terms come back in the rewards'
    own units: the sampling term is then (high − low + β(τ_lo + τ_hi))α, the others as above.
    """
    check_not_negative("alpha", alpha)
    check_not_negative("beta", beta)
    check_not_negative("clipped_mass", clipped_mass)
    check_not_negative("reward_error", reward_error)
    if not (math.isfinite(coverage) and coverage >= 1):
        raise ValueError(f"coverage={coverage}: expected a finite number, at least 1 (C = √(1 + χ²))")
    unit_beta, unit_error = beta / rewards.width, reward_error / rewards.width
    return FixedPolicyBound(
        sampling=rewards.width * (1 + unit_beta * (clip.low + clip.high)) * alpha,
        reward_shift=rewards.width * coverage * unit_error,
        clipping=rewards.width * unit_beta * clipped_mass,
    )
