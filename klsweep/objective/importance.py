"""Importance weights of sampled tokens, and the correction of the policy gradient for a sampler that is not π_old."""

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from klsweep.component import component

Level = Literal["token", "sequence"]


def importance_weight(log_ratio: Tensor, level: Level, cap: float | None = None) -> Tensor:
    """token: w_t = exp(x_t); sequence: w = exp(Σ_t x_t); then min(w, cap), with no gradient where it is capped.

    A sequence weight makes an expectation over the denominator's samples one over the numerator's, exactly; a token
    weight corrects each token but not its prefix. Capped in log space, so that an overflow cannot become NaN.

    Args: `log_ratio` x = log π − log denominator ``[B, T]``, 0 at masked tokens; nats.
    Returns: ``[B, T]`` (token) or ``[B, 1]`` (sequence).
    """
    total = log_ratio if level == "token" else log_ratio.sum(1, keepdim=True)
    return (total if cap is None else total.clamp(max=math.log(cap))).exp()


@component
class Correction:
    """The correction axis: the weight of the policy gradient between sampler μ and trainer π_old.

    A KL charge in the reward is part of the policy gradient, and inherits it.
    """

    level: Level | None
    cap: PositiveFloat | None
    floor: NonNegativeFloat | None

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Detached weights ``[B, T]`` or ``[B, 1]`` of log π_old − log μ ``[B, T]`` (masked)."""
        raise NotImplementedError


@component
class NoCorrection(Correction):
    """Choice `none`: weight 1, as if μ were π_old."""

    def __call__(self, log_ratio: Tensor) -> Tensor:
        return torch.ones_like(log_ratio[:, :1])


@component
class Truncated(Correction):
    """Choice `truncated`: min(w, cap), biased where it binds; without a cap plain importance sampling.

    Source: Yao et al. 2025 (TIS).
    """

    level: Level
    cap: PositiveFloat | None

    def __call__(self, log_ratio: Tensor) -> Tensor:
        return importance_weight(log_ratio.detach(), self.level, self.cap)


@component
class Masked(Correction):
    """Choice `masked`: w where floor ≤ w ≤ cap, else 0: what is too far off is left out, which is biased, too.

    Source: Ling Team 2025, arXiv 2510.18855 (IcePop), at token level; at sequence level known as MIS.
    """

    level: Level
    cap: PositiveFloat
    floor: NonNegativeFloat

    def __post_init__(self) -> None:
        if self.floor > self.cap:
            raise ValueError(f"correction.floor={self.floor} is above correction.cap={self.cap}")

    def __call__(self, log_ratio: Tensor) -> Tensor:
        weight = importance_weight(log_ratio.detach(), self.level)
        return weight.where((weight >= self.floor) & (weight <= self.cap), 0.0)
