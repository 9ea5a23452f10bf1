"""The objective: estimator × placement × clip × algorithm composed, and the compositions that are refused."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from klsweep.objective.advantage import Algorithm
from klsweep.objective.clip import Clip
from klsweep.objective.kl import Estimator
from klsweep.objective.placement import KLTerm, NoKL, Placement
from klsweep.objective.policy_loss import clipped_surrogate
from klsweep.objective.reduce import weighted_sum
from klsweep.objective.schedule import KL


class Undefined(ValueError):
    """A combination of choices that has no meaning; its message is the reason shown in plans."""


class Terms(NamedTuple):
    """Per-sequence sums over generated tokens, before aggregation. Both ``[B]`` and differentiable."""

    policy: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Objective:
    """max E[R] − β KL(π_θ ‖ π_ref), as one configuration states it. Raises `Undefined` for a meaningless one.

    All token tensors are ``[B, T]`` with `mask` 1.0 on generated tokens (end of sequence included) and 0.0
    elsewhere. `exact_kl` is needed by estimator `full` alone (`exact_token_kl` of θ, or of old, against ref).
    """

    estimator: Estimator
    placement: Placement
    clip: Clip
    algorithm: Algorithm

    def __post_init__(self) -> None:
        if self.has_kl:
            _refuse_undefined(self.estimator, self.placement, self.clip)

    @property
    def has_kl(self) -> bool:
        """True if a KL term enters anywhere."""
        return self.placement.in_reward or self.placement.in_loss

    @property
    def _kl(self) -> KLTerm:
        return KLTerm(self.estimator, self.clip)

    def advantages(
        self,
        rewards: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        mask: Tensor,
        beta: float,
        exact_kl: Tensor | None = None,
    ) -> Tensor:
        """Advantages ``[B, T]`` of the whole batch, detached; see `Placement.advantages`."""
        log_ratio = (masked(old_logprobs, mask) - masked(ref_logprobs, mask)).detach()
        exact = None if exact_kl is None else masked(exact_kl, mask).detach()
        return self.placement.advantages(rewards, log_ratio, exact, beta, self._kl, self.algorithm)

    def terms(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        exact_kl: Tensor | None = None,
    ) -> Terms:
        """Policy and KL term of each sequence of a micro-batch."""
        # masked first: what stands in padding (−inf, say) must reach neither a value nor a gradient
        logprobs, old_logprobs, ref_logprobs, advantages = (
            masked(values, mask) for values in (logprobs, old_logprobs, ref_logprobs, advantages)
        )
        surrogate = clipped_surrogate(
            logprobs, old_logprobs, advantages, self.algorithm.clip_low, self.algorithm.clip_high
        )
        exact = None if exact_kl is None else masked(exact_kl, mask)
        return Terms(surrogate.sum(1), self.placement.loss_sums(logprobs - ref_logprobs, exact, self._kl))

    def loss(
        self,
        terms: Terms,
        lengths: Tensor,
        beta: float,
        count: Tensor,
        max_length: int,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Σ_i w_i scale_i (policy_i + β kl_i) / count: a micro-batch's share of the loss.

        Args: `lengths` T_i ``[B]``; `count` from `global_count` over the whole minibatch, so that shares add up to
        the loss however it was split; `weights` optional per-sequence weights ``[B]``. Returns a scalar tensor.
        """
        sums = terms.policy + beta * terms.kl
        return weighted_sum(sums, lengths, self.algorithm.aggregation, max_length, weights) / count


def build_objective(estimator: Estimator, placement: Placement, clip: Clip, algorithm: Algorithm, kl: KL) -> Objective:
    """The objective of a configuration; where β is 0 throughout it has no KL term, whatever the other axes say."""
    if kl.is_zero:
        placement = NoKL(credit=None, baseline=None, level=None)
    return Objective(estimator, placement, clip, algorithm)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where the mask is 1, exactly 0 elsewhere, whatever stood there (also NaN or −inf)."""
    return values.masked_fill(mask == 0, 0.0)


def _refuse_undefined(estimator: Estimator, placement: Placement, clip: Clip) -> None:
    exact = estimator.needs_distributions
    per_sequence = clip.level == "sequence"
    if exact and clip.level is not None:
        raise Undefined("estimator=full has no clip: it is no function of the log-ratio (clip=none)")
    if exact and placement.level == "sequence":
        raise Undefined("estimator=full has no sequence level (placement.level=token)")
    if placement.credit == "to_go" and placement.baseline == "inside":
        raise Undefined("placement.baseline=inside needs one charge per sequence (placement.credit=sequence)")
    if per_sequence and placement.credit == "to_go":
        raise Undefined("clip.level=sequence charges once per sequence (placement.credit=sequence)")
    if per_sequence and placement.level == "token":
        raise Undefined("clip.level=sequence clips one log-ratio per sequence (placement.level=sequence)")
