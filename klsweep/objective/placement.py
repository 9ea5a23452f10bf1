"""Where the KL estimate goes: nowhere, into the reward, into the loss, or both.

Into the reward: a detached charge, subtracted from the reward; the policy gradient differentiates through the samples
(E[k ∇log π]). Into the loss: added and differentiated directly (E[∇k]). Both: the product rule, ∇E[k], full β on each.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from klsweep.component import component
from klsweep.objective.advantage import Algorithm
from klsweep.objective.clip import Clip
from klsweep.objective.importance import Level
from klsweep.objective.kl import BY_NAME, Estimator

Credit = Literal["sequence", "to_go", "token"]
Baseline = Literal["auto", "inside", "outside"]


@dataclass(frozen=True)
class KLTerm:
    """An estimator with its clips, applied to masked log-ratios.

    Order: mask → (sum) → input clip → estimator → weight → output clamp. With another estimator's gradient it is
    sg(v) + wg − sg(wg): v the named estimator with its clips, g the other one, never output-clamped, and w the weight.
    """

    estimator: Estimator
    clip: Clip

    def tokens(self, ref_log_ratio: Tensor, exact_kl: Tensor | None, weight: Tensor | None = None) -> Tensor:
        """k(clip(ℓ_t)) ``[B, T]``; `ref_log_ratio` is 0 at masked tokens, and so is the result."""
        return self._value(self.clip(ref_log_ratio, "token"), ref_log_ratio, exact_kl, weight)

    def sequence(self, ref_log_ratio: Tensor, weight: Tensor | None = None) -> Tensor:
        """k(clip(Σ_t ℓ_t)) ``[B]``: one value per sequence. A token-level clip acts before the sum.

        `weight` is a sequence's, ``[B, 1]``.
        """
        clipped = self.clip(self.clip(ref_log_ratio, "token").sum(1), "sequence")
        return self._value(clipped, ref_log_ratio.sum(1), None, None if weight is None else weight.squeeze(1))

    def _value(self, clipped: Tensor, ref_log_ratio: Tensor, exact_kl: Tensor | None, weight: Tensor | None) -> Tensor:
        value = self.estimator(clipped, exact_kl)
        if self.estimator.gradient == "same":
            return self.clip.clamp(value, weight)
        other = BY_NAME[self.estimator.gradient](gradient="same", clip_gradient=False)
        surrogate = other(clipped if self.estimator.clip_gradient else ref_log_ratio)
        surrogate = surrogate if weight is None else surrogate * weight
        return self.clip.clamp(value).detach() + (surrogate - surrogate.detach())


def to_go(values: Tensor, skip_current: bool) -> Tensor:
    """Σ_{s≥t} v_s, or Σ_{s>t} v_s if `skip_current`. ``[B, T]`` → ``[B, T]``."""
    sums = values.flip(1).cumsum(1).flip(1)
    return sums - values if skip_current else sums


@component
class Placement:
    """The placement axis. `in_reward` and `in_loss` say where the KL term enters; the fields say how.

    `loss_estimator`: the estimator of the KL loss where it is not that of the reward.
    """

    credit: Credit | None
    baseline: Baseline | None
    level: Level | None
    loss_estimator: Literal["same", "k1", "k2", "k3", "abs", "full"] | None

    in_reward: ClassVar[bool] = False
    in_loss: ClassVar[bool] = False

    @property
    def inside(self) -> bool:
        """True if the charge is part of the scalar whose group baseline is subtracted."""
        return self.in_reward and self.credit == "sequence" and self.baseline != "outside"

    def advantages(
        self,
        rewards: Tensor,
        ref_log_ratio: Tensor,
        exact_kl: Tensor | None,
        beta: float,
        kl: KLTerm,
        algorithm: Algorithm,
    ) -> Tensor:
        """Advantages per token, with the KL charge if it belongs into the reward.

        inside (credit sequence): A_i = advantage(R_j − βK_j)_i. outside: A_it = advantage(R)_i − β·charge_it, where
        the charge is K_i (credit sequence), Σ_{s≥t} k_is (to_go; `full`: Σ_{s>t}) or k_it (token), never divided by a
        group's std. K_i is Σ_t k(ℓ_it), or k(clip(ℓ_i)) once per sequence under a sequence-level clip.

        Args: `rewards` ``[B]``; `ref_log_ratio` old − ref ``[B, T]``, masked, detached; `beta` in reward per nat.
        Returns: ``[B, T]``.
        """
        if not self.in_reward:
            return algorithm.advantage(rewards)[:, None].expand_as(ref_log_ratio)
        if self.credit != "sequence":
            charges = kl.tokens(ref_log_ratio, exact_kl)
            if self.credit == "to_go":
                charges = to_go(charges, kl.estimator.fixed_by_prefix)
            return algorithm.advantage(rewards)[:, None] - beta * charges
        per_sequence = kl.clip.input_level == "sequence"
        total = kl.sequence(ref_log_ratio) if per_sequence else kl.tokens(ref_log_ratio, exact_kl).sum(1)
        if self.inside:
            advantages = algorithm.advantage(rewards - beta * total)
        else:
            advantages = algorithm.advantage(rewards) - beta * total
        return advantages[:, None].expand_as(ref_log_ratio)

    def loss_sums(
        self, ref_log_ratio: Tensor, exact_kl: Tensor | None, kl: KLTerm, weight: Tensor | None = None
    ) -> Tensor:
        """The KL loss of each sequence before β: Σ_t k(ℓ_t) (level token), k(Σ_t ℓ_t) (level sequence), or 0.

        Args: `ref_log_ratio` θ − ref ``[B, T]``, masked, differentiable; `weight` as in `KL.weights`.
        Returns ``[B]`` in nats.
        """
        if not self.in_loss:
            return torch.zeros_like(ref_log_ratio[:, 0])
        if self.level == "token":
            return kl.tokens(ref_log_ratio, exact_kl, weight).sum(1)
        return kl.sequence(ref_log_ratio, weight)


@component
class NoKL(Placement):
    """Choice `none`: no KL term anywhere."""


@component
class InReward(Placement):
    """Choice `reward`: a detached charge, fixed across minibatches."""

    credit: Credit
    baseline: Baseline

    in_reward: ClassVar[bool] = True


@component
class InLoss(Placement):
    """Choice `loss`: added to the policy loss and differentiated."""

    level: Level

    in_loss: ClassVar[bool] = True


@component
class InRewardAndLoss(Placement):
    """Choice `reward_and_loss`: both, with the full β on each."""

    credit: Credit
    baseline: Baseline
    level: Level
    loss_estimator: Literal["same", "k1", "k2", "k3", "abs", "full"]

    in_reward: ClassVar[bool] = True
    in_loss: ClassVar[bool] = True
