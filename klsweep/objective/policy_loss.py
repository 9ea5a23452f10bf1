"""The policy-gradient surrogate."""

import torch
from torch import Tensor

from klsweep.objective.importance import Level, importance_weight


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, level: Level) -> Tensor:
    """−min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) with ρ = π_θ/π_old of a token, or of the whole sequence.

    At ρ = 1 the gradient, summed over tokens, is −A ∇log π, the plain policy gradient, at either level. Args:
    `log_ratio` log π_θ − log π_old ``[B, T]``, 0 at masked tokens; `advantages` ``[B, T]`` (level sequence: equal
    within a sequence), without gradient. Returns ``[B, T]`` (token) or ``[B, 1]`` (sequence), in units of reward.
    Source: Schulman et al. 2017, arXiv 1707.06347, with separate bounds as in Yu et al. 2025, arXiv 2503.14476; level
    sequence: TRL's RLOOTrainer.
    """
    ratio = importance_weight(log_ratio, level)
    advantages = advantages[:, : ratio.shape[1]]
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)
