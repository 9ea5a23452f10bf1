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
from klsweep.objective.clip import Clip, Level
from klsweep.objective.kl import Estimator

Credit = Literal["sequence", "to_go"]
Baseline = Literal["auto", "inside", "outside"]


@dataclass(frozen=True)
class KLTerm:
    """An estimator with its clip, applied to masked token log-ratios: mask → (sum) → clip → estimator."""

    estimator: Estimator
    clip: Clip

    def tokens(self, log_ratio: Tensor, exact_kl: Tensor | None) -> Tensor:
        """k(clip(ℓ_t)) ``[B, T]``; `log_ratio` is 0 at masked tokens, and so is the result."""
        return self.estimator(self.clip(log_ratio, "token"), exact_kl)

    def sequence(self, log_ratio: Tensor) -> Tensor:
        """k(clip(Σ_t ℓ_t)) ``[B]``: one value per sequence. A token-level clip acts before the sum."""
        return self.estimator(self.clip(self.clip(log_ratio, "token").sum(1), "sequence"))


def to_go(values: Tensor, skip_current: bool) -> Tensor:
    """Σ_{s≥t} v_s, or Σ_{s>t} v_s if `skip_current`. ``[B, T]`` → ``[B, T]``."""
    sums = values.flip(1).cumsum(1).flip(1)
    return sums - values if skip_current else sums


@component
class Placement:
    """The placement axis. `in_reward` and `in_loss` say where the KL term enters; the fields say how."""

    credit: Credit | None
    baseline: Baseline | None
    level: Level | None

    in_reward: ClassVar[bool] = False
    in_loss: ClassVar[bool] = False

    def advantages(
        self,
        rewards: Tensor,
        log_ratio: Tensor,
        exact_kl: Tensor | None,
        beta: float,
        kl: KLTerm,
        algorithm: Algorithm,
    ) -> Tensor:
        """Advantages per token, with the KL charge if it belongs into the reward.

        inside (credit sequence): A_i = advantage(R_j − βK_j)_i. outside: A_it = advantage(R)_i − β·charge_it, where
        the charge is K_i (credit sequence) or Σ_{s≥t} k_is (credit to_go; `full`: Σ_{s>t}), never divided by a
        group's std. K_i is Σ_t k(ℓ_it), or k(clip(ℓ_i)) once per sequence under a sequence-level clip.

        Args: `rewards` ``[B]``; `log_ratio` old − ref ``[B, T]``, masked, detached; `beta` in reward per nat.
        Returns: ``[B, T]``.
        """
        if not self.in_reward:
            return algorithm.advantage(rewards)[:, None].expand_as(log_ratio)
        if self.credit == "to_go":
            charges = to_go(kl.tokens(log_ratio, exact_kl), kl.estimator.fixed_by_prefix)
            return algorithm.advantage(rewards)[:, None] - beta * charges
        per_sequence = kl.clip.level == "sequence"
        total = kl.sequence(log_ratio) if per_sequence else kl.tokens(log_ratio, exact_kl).sum(1)
        if self.baseline == "outside":
            advantages = algorithm.advantage(rewards) - beta * total
        else:
            advantages = algorithm.advantage(rewards - beta * total)
        return advantages[:, None].expand_as(log_ratio)

    def loss_sums(self, log_ratio: Tensor, exact_kl: Tensor | None, kl: KLTerm) -> Tensor:
        """The KL loss of each sequence before β: Σ_t k(ℓ_t) (level token), k(Σ_t ℓ_t) (level sequence), or 0.

        Args: `log_ratio` θ − ref ``[B, T]``, masked, differentiable. Returns ``[B]`` in nats.
        """
        if not self.in_loss:
            return torch.zeros_like(log_ratio[:, 0])
        return kl.tokens(log_ratio, exact_kl).sum(1) if self.level == "token" else kl.sequence(log_ratio)


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

    in_reward: ClassVar[bool] = True
    in_loss: ClassVar[bool] = True
