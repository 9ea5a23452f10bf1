"""The policy-gradient surrogate."""

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """−min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) with ρ = π_θ/π_old, per token.

    At ρ = 1 the gradient is −A ∇log π, the plain policy gradient. Args: all ``[B, T]``; `old_logprobs` and
    `advantages` carry no gradient. Returns ``[B, T]``, in units of reward. Source: Schulman et al. 2017,
    arXiv 1707.06347, with separate bounds as in Yu et al. 2025, arXiv 2503.14476.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)
