"""The `kl` node: the strength β of the regulariser over a run, and the importance weight of the KL loss."""

import math
from typing import Literal, NamedTuple

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from klsweep.component import component
from klsweep.objective.clip import Half
from klsweep.objective.importance import importance_weight
from klsweep.objective.reduce import Aggregation

MOST_ADAPTED = 0.2


class Betas(NamedTuple):
    """β of the KL in the reward and of the KL loss."""

    reward: float
    loss: float


@component
class KL:
    """β per *sequence*, the weight w of the KL loss (see `weights`), and the KL loss's aggregation.

    `loss_coef` and `final_loss_coef` hold for the KL loss in place of `coef` and `final_coef`; `aggregation` in place
    of the policy loss's. null: the same.
    """

    coef: NonNegativeFloat
    schedule: Literal["constant", "linear", "cosine", "adaptive"]
    final_coef: NonNegativeFloat
    loss_coef: NonNegativeFloat | None
    final_loss_coef: NonNegativeFloat | None
    target: PositiveFloat | None
    horizon: PositiveFloat | None
    weight: Literal["none", "token", "sequence"]
    weight_over: Literal["old", "sampler", "current"]
    weight_grad: Literal["detached", "differentiable"]
    weight_cap: PositiveFloat | None
    aggregation: Aggregation | None

    def __post_init__(self) -> None:
        if self.schedule == "adaptive" and None in (self.target, self.horizon):
            raise ValueError("kl.schedule=adaptive needs kl.target (nats per sequence) and kl.horizon (sequences)")

    @property
    def is_one_at_first(self) -> bool:
        """True if the weight is 1 at a batch's first optimiser step, where π_θ is π_old, in value and gradient."""
        uncapped = self.weight_cap is None or self.weight_cap >= 1.0
        return self.weight_over == "old" and self.weight_grad == "detached" and uncapped

    def coefficients(self, half: Half) -> tuple[float, float]:
        """First and last β of a half; the last one is the first unless the schedule goes anywhere."""
        first, last = self.coef, self.final_coef
        if half == "loss":
            first = first if self.loss_coef is None else self.loss_coef
            last = last if self.final_loss_coef is None else self.final_loss_coef
        return first, last if self.schedule in ("linear", "cosine") else first

    def betas(self, update: int, updates: int, scale: float = 1.0) -> Betas:
        """β at update 1..updates: from a to b of `coefficients` with s = (update − 1)/(updates − 1), times `scale`.

        linear: a + (b − a)s; cosine: b + (a − b)(1 + cos πs)/2. `scale`: what an adaptive β has come to, see `adapted`.
        """
        progress = 0.0 if updates == 1 else (update - 1) / (updates - 1)
        if self.schedule == "cosine":
            progress = (1.0 - math.cos(math.pi * progress)) / 2.0
        (a, b), (c, d) = self.coefficients("reward"), self.coefficients("loss")
        return Betas(scale * (a + (b - a) * progress), scale * (c + (d - c) * progress))

    def adapted(self, scale: float, kl: float, sequences: int) -> float:
        """The factor on β for the next update: scale·(1 + clip(KL/target − 1, ±0.2)·sequences/horizon) if adaptive.

        Args: `kl` batch mean of the unclipped Σ_t k1, nats per sequence (off policy it may be negative, and lowers β);
        `sequences` in that batch. Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
        """
        if self.target is None or self.horizon is None or self.schedule != "adaptive":
            return scale
        error = min(max(kl / self.target - 1.0, -MOST_ADAPTED), MOST_ADAPTED)
        return scale * (1.0 + error * sequences / self.horizon)

    def check_horizon(self, sequences: int) -> None:
        """ValueError if a batch of that many sequences could turn an adaptive β negative."""
        if self.schedule == "adaptive" and self.horizon is not None and self.horizon <= MOST_ADAPTED * sequences:
            raise ValueError(
                f"kl.horizon={self.horizon:g} lets one update of {sequences} sequences turn β negative "
                f"(give more than {MOST_ADAPTED * sequences:g})"
            )

    def weights(self, logprobs: Tensor, old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor | None:
        """Importance weight of the KL loss over its denominator ``[B, T]`` or ``[B, 1]``, None for none.

        `weight_over`: old, π_old; sampler, μ; current, sg(π_θ), which is 1 in value and counts by its gradient only.
        Under samples of the denominator, uncapped: with a sequence weight the values are those of π_θ's own samples,
        and so is the gradient of k2 at sequence level if it is detached (∇KL), those of k1 and k3 (∇KL, too) if it is
        differentiable. A token weight corrects no prefix, a cap binds some: biased.
        Args: all ``[B, T]``, masked. Differentiable in `logprobs` unless `weight_grad` is detached.
        """
        if self.weight == "none":
            return None
        denominators = {"old": old_logprobs, "sampler": sampler_logprobs, "current": logprobs}
        log_ratio = logprobs - denominators[self.weight_over].detach()
        if self.weight_grad == "detached":
            log_ratio = log_ratio.detach()
        return importance_weight(log_ratio, self.weight, self.weight_cap)
