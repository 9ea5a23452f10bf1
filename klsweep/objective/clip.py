"""Clips of the KL term: of the log-ratio before the estimator sees it, and of the estimator's output."""

import dataclasses
import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import NonNegativeFloat, NonPositiveFloat, PositiveFloat, PositiveInt
from torch import Tensor

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.objective.importance import Level
from klsweep.theory.bound import paper_alpha

Half = Literal["reward", "loss"]


def hard_clip(log_ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    """clip(ℓ, low, high): the gradient is 0 outside the bounds (None: no bound). Any shape; nats.

    Where a bound binds, the estimate's value and gradient are both biased.
    """
    return log_ratio.clamp(low, high)


def straight_through_clip(log_ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    """ℓ + sg(clip(ℓ, low, high) − ℓ): the clipped value with the gradient of ℓ. Any shape; nats.

    An estimator's gradient is then k'(ℓ^τ)·∇log π: limited where a bound binds, not cut off; as biased in value.
    """
    return log_ratio.clamp(low, high).detach() + (log_ratio - log_ratio.detach())  # + 0.0: the value is exact


@component
class Clip:
    """The clip axis: ℓ ← clip(ℓ, low, high) at `level`, and k ← clip(k, −output, output), always hard.

    `half` says which half of `reward_and_loss` is clipped.
    """

    tau: PositiveFloat | None
    low: NonPositiveFloat | None
    high: NonNegativeFloat | None
    level: Level | None
    mode: Literal["hard", "straight_through"] | None
    output: PositiveFloat | None
    clamp_stage: Literal["after_weight", "before_weight"] | None
    half: Literal["both", "reward", "loss"] | None
    confidence: Annotated[float, Gt(0), Lt(1)] | None
    window: PositiveInt | None
    every: PositiveInt | None
    smoothing: Annotated[float, Ge(0), Lt(1)] | None
    on_zero: Literal["refuse", "warn"] | None

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """(low, high) of the log-ratio, None where it is not bounded."""
        return None, None

    def at(self, tau: float | None) -> "Clip":
        """The clip of one update; `tau` is the threshold of a clip that is calibrated while training, which is no clip
        as long as that is None."""
        return self

    @property
    def input_level(self) -> Level | None:
        """The level at which log-ratios are clipped, None if they are not."""
        return None

    def check(self, prompts: int, rollouts: int) -> None:
        """BadInput for a clip that batches of so many prompts and responses to each can never calibrate."""

    def __call__(self, log_ratio: Tensor, level: Level) -> Tensor:
        """The clipped log-ratio if `level` is the level this clip acts on, else the input.

        Called once with token log-ratios ``[B, T]`` and once with their sums ``[B]``.
        """
        return log_ratio

    def clamp(self, value: Tensor, weight: Tensor | None = None) -> Tensor:
        """w·k, with the output clamp before or after the weight. `weight` broadcasts to `value`."""
        return value if weight is None else value * weight

    def within(self, half: Half) -> "Clip":
        """The clip as it acts in one half of the objective."""
        return self if self.half in (None, "both", half) else NO_CLIP


@component
class NoClip(Clip):
    """Choice `none`: ℓ and k pass unchanged."""


UNUSED = dict.fromkeys(field.name for field in dataclasses.fields(Clip))  # pyright: ignore[reportArgumentType]
NO_CLIP = NoClip(**UNUSED)


@component
class FixedClip(Clip):
    """Choice `fixed`: constant bounds in nats, −τ and τ unless `low` or `high` replace them.

    Bounds that no |ℓ| reaches change nothing; within reach, value and gradient are biased.
    """

    tau: PositiveFloat | None
    low: NonPositiveFloat | None
    high: NonNegativeFloat | None
    level: Level
    mode: Literal["hard", "straight_through"]
    output: PositiveFloat | None
    clamp_stage: Literal["after_weight", "before_weight"]
    half: Literal["both", "reward", "loss"]

    def __post_init__(self) -> None:
        if self.bounds == (None, None) and self.output is None:
            raise ValueError("clip=fixed needs a bound (clip.tau, clip.low, clip.high or clip.output)")
        if self.low == 0 and self.high == 0:
            raise ValueError("clip.low=0 with clip.high=0 removes the KL term (placement=none says so)")

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        symmetric = None if self.tau is None else -self.tau
        return symmetric if self.low is None else self.low, self.tau if self.high is None else self.high

    @property
    def input_level(self) -> Level | None:
        return None if self.bounds == (None, None) else self.level

    def __call__(self, log_ratio: Tensor, level: Level) -> Tensor:
        if level != self.input_level:
            return log_ratio
        clip = hard_clip if self.mode == "hard" else straight_through_clip
        return clip(log_ratio, *self.bounds)

    def clamp(self, value: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.output is not None and self.clamp_stage == "before_weight":
            value = value.clamp(-self.output, self.output)
        weighted = value if weight is None else value * weight
        if self.output is not None and self.clamp_stage == "after_weight":
            weighted = weighted.clamp(-self.output, self.output)
        return weighted


@component
class QuantileClip(Clip):
    """Choice `quantile`: ±τ for the log-ratio of a sequence, τ calibrated on the batches before (arXiv 2602.21765).

    τ is the (1 − 2α)-quantile of |ℓ| over the last `window` batches, with the α of the fixed-policy bound at
    `confidence` for that many prompts (`theory.bound.paper_alpha`). It is set again every `every` updates, smoothed:
    τ ← smoothing·τ + (1 − smoothing)·τ_new. Where 2α ≥ P(|ℓ| > 0) it would be 0, no KL at all: such a run ends as
    failed (`on_zero` refuse), or keeps the τ it has (warn). Until the first τ nothing is clipped.
    """

    level: Literal["sequence"]
    mode: Literal["hard", "straight_through"]
    half: Literal["both", "reward", "loss"]
    confidence: Annotated[float, Gt(0), Lt(1)]
    window: PositiveInt
    every: PositiveInt
    smoothing: Annotated[float, Ge(0), Lt(1)]
    on_zero: Literal["refuse", "warn"]

    @property
    def input_level(self) -> Level:
        return self.level

    def check(self, prompts: int, rollouts: int) -> None:
        one = 2.0 * paper_alpha(1, rollouts, 1.0 - self.confidence)  # 2α of one prompt; it falls as 1/√n
        needed = math.floor(one**2) + 1
        if self.window * prompts < needed:
            raise BadInput(
                f"clip.window={self.window} with train.prompts_per_update={prompts}: 2α is "
                f"{one / math.sqrt(self.window * prompts):.3g}, so that no quantile of |ℓ| is left "
                f"(clip=quantile at clip.confidence={self.confidence} takes {needed} prompts)"
            )

    def at(self, tau: float | None) -> Clip:
        if tau is None:
            return NO_CLIP
        fixed = {"tau": tau, "level": self.level, "mode": self.mode, "half": self.half, "clamp_stage": "after_weight"}
        return FixedClip(**{**UNUSED, **fixed})  # pyright: ignore[reportArgumentType]
