"""Clipping the log-ratio before the estimator sees it: ℓ ← clip(ℓ, −τ, τ), at token or at sequence level."""

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from klsweep.component import component

Level = Literal["token", "sequence"]


def hard_clip(log_ratio: Tensor, tau: float) -> Tensor:
    """clip(ℓ, −τ, τ): the gradient is 0 where |ℓ| > τ. Any shape; nats."""
    return log_ratio.clamp(-tau, tau)


def straight_through_clip(log_ratio: Tensor, tau: float) -> Tensor:
    """ℓ + sg(clip(ℓ, −τ, τ) − ℓ): the clipped value with the gradient of ℓ. Any shape; nats."""
    return log_ratio.clamp(-tau, tau).detach() + (log_ratio - log_ratio.detach())  # + 0.0: the value is exact


@component
class Clip:
    """The clip axis. Called once with token log-ratios ``[B, T]`` and once with their sums ``[B]``; acts on one."""

    tau: PositiveFloat | None
    level: Level | None
    mode: Literal["hard", "straight_through"] | None

    def __call__(self, log_ratio: Tensor, level: Level) -> Tensor:
        """The clipped log-ratio if `level` is the level this clip acts on, else the input."""
        raise NotImplementedError


@component
class NoClip(Clip):
    """Choice `none`: ℓ passes unchanged."""

    def __call__(self, log_ratio: Tensor, level: Level) -> Tensor:
        return log_ratio


@component
class FixedClip(Clip):
    """Choice `fixed`: a constant τ in nats. τ ≥ max|ℓ| changes nothing; below it, value and gradient are biased."""

    tau: PositiveFloat
    level: Level
    mode: Literal["hard", "straight_through"]

    def __call__(self, log_ratio: Tensor, level: Level) -> Tensor:
        if level != self.level:
            return log_ratio
        clip = hard_clip if self.mode == "hard" else straight_through_clip
        return clip(log_ratio, self.tau)
