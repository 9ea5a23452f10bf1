"""The objective: estimator × placement × clip × algorithm composed, and the compositions that are refused."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from klsweep.objective.advantage import Algorithm
from klsweep.objective.clip import Clip
from klsweep.objective.importance import Correction
from klsweep.objective.kl import Estimator, estimator_named
from klsweep.objective.placement import InLoss, InReward, KLTerm, NoKL, Placement
from klsweep.objective.policy_loss import clipped_surrogate
from klsweep.objective.reduce import Aggregation, global_count, scaled_sum
from klsweep.objective.regulariser import KL


class Undefined(ValueError):
    """A combination of choices that has no meaning or no effect; its message is the reason shown in plans."""


class Terms(NamedTuple):
    """Policy and KL part of the loss: per sequence ``[B]`` from `terms`, scalars from `aggregate`. Differentiable."""

    policy: Tensor
    kl: Tensor


class Counts(NamedTuple):
    """Normalisers of the two parts, scalars; see `global_count`."""

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
    kl: KL
    correction: Correction

    def __post_init__(self) -> None:
        if self.algorithm.ratio_level == "sequence":
            _refuse_undefined_ratio(self.algorithm, self.placement, self.correction)
        if self.placement.in_reward:
            _refuse_undefined_reward(self.placement, self.reward_term)
        if self.placement.in_loss:
            _refuse_undefined_loss(self.placement, self.loss_term, self.kl)
        elif self.placement.in_reward and self.kl.weight != "none":
            raise Undefined(
                f"kl.weight={self.kl.weight} weighs the KL loss: a KL in the reward inherits the policy gradient's "
                "weight (correction=…), and a second one would count double"
            )

    @property
    def has_kl(self) -> bool:
        """True if a KL term enters anywhere."""
        return self.placement.in_reward or self.placement.in_loss

    def at(self, tau: float | None) -> "Objective":
        """The objective of one update; see `Clip.at`."""
        clip = self.clip.at(tau)
        return self if clip is self.clip else dataclasses.replace(self, clip=clip)

    @cached_property
    def reward_term(self) -> KLTerm:
        """Estimator and clip of the charge in the reward, which has no gradient for another estimator to give."""
        estimator = dataclasses.replace(self.estimator, gradient="same", clip_gradient=False)
        return KLTerm(estimator, self.clip.within("reward"))

    @cached_property
    def loss_term(self) -> KLTerm:
        """Estimator and clip of the KL loss."""
        return KLTerm(_loss_estimator(self.estimator, self.placement), self.clip.within("loss"))

    @property
    def loss_needs_distributions(self) -> bool:
        """True if `terms` must be given `exact_kl`."""
        return self.placement.in_loss and self.loss_term.estimator.needs_distributions

    @property
    def kl_aggregation(self) -> Aggregation:
        """How the KL loss is aggregated: as the policy loss unless `kl.aggregation` says otherwise."""
        return self.kl.aggregation or self.algorithm.aggregation

    def advantages(
        self,
        rewards: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        mask: Tensor,
        beta: float,
        exact_kl: Tensor | None = None,
    ) -> Tensor:
        """Advantages ``[B, T]`` of the whole batch, detached, with the reward's `beta`; see `Placement.advantages`."""
        ref_log_ratio = (masked(old_logprobs, mask) - masked(ref_logprobs, mask)).detach()
        exact = None if exact_kl is None else masked(exact_kl, mask).detach()
        return self.placement.advantages(rewards, ref_log_ratio, exact, beta, self.reward_term, self.algorithm)

    def terms(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        sampler_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        exact_kl: Tensor | None = None,
    ) -> Terms:
        """Policy and KL term of each sequence of a micro-batch.

        ValueError for a KL loss of `logprobs` without gradient, which would regularise nothing.
        """
        if self.placement.in_loss and not logprobs.requires_grad:
            raise ValueError("the KL loss needs logprobs with a gradient: under no_grad it does nothing")
        # masked first: what stands in padding (−inf, say) must reach neither a value nor a gradient
        logprobs, old_logprobs, ref_logprobs, sampler_logprobs, advantages = (
            masked(values, mask) for values in (logprobs, old_logprobs, ref_logprobs, sampler_logprobs, advantages)
        )
        surrogate = clipped_surrogate(
            logprobs - old_logprobs,
            advantages,
            self.algorithm.clip_low,
            self.algorithm.clip_high,
            self.algorithm.ratio_level,
        )
        surrogate = surrogate * self.correction(old_logprobs - sampler_logprobs)
        exact = None if exact_kl is None else masked(exact_kl, mask)
        weight = self.kl.weights(logprobs, old_logprobs, sampler_logprobs)
        kl = self.placement.loss_sums(logprobs - ref_logprobs, exact, self.loss_term, weight)
        return Terms(surrogate.sum(1), kl)

    def counts(self, lengths: Tensor) -> Counts:
        """Normalisers over a whole minibatch; see `global_count`."""
        return Counts(global_count(lengths, self.algorithm.aggregation), global_count(lengths, self.kl_aggregation))

    def aggregate(self, terms: Terms, lengths: Tensor, counts: Counts, max_length: int) -> Terms:
        """Σ_i scale_i x_i / count of both parts: a micro-batch's share, so that shares add up however they are split.

        The loss is policy + β·kl. Args: `lengths` T_i ``[B]``; `counts` of the whole minibatch. Returns scalars.
        """
        return Terms(
            scaled_sum(terms.policy, lengths, self.algorithm.aggregation, max_length) / counts.policy,
            scaled_sum(terms.kl, lengths, self.kl_aggregation, max_length) / counts.kl,
        )


def simplified(estimator: Estimator, placement: Placement, clip: Clip, kl: KL) -> tuple[Estimator, Placement, Clip, KL]:
    """The plainest configuration that takes the same gradient.

    A half whose β is 0 throughout is not there; nor is a clip of a half that is not.
    """
    in_reward = placement.in_reward and any(kl.coefficients("reward"))
    in_loss = placement.in_loss and any(kl.coefficients("loss"))
    if in_reward and in_loss:
        return estimator, placement, clip, kl
    if not in_reward and not in_loss:
        return estimator, NoKL(credit=None, baseline=None, level=None, loss_estimator=None), clip, kl
    if in_reward:
        if placement.in_loss:
            fields = {"credit": placement.credit, "baseline": placement.baseline}
            placement = InReward(**fields, level=None, loss_estimator=None)  # pyright: ignore[reportArgumentType]
            kl = dataclasses.replace(kl, weight="none")
        return (
            estimator,
            placement,
            clip.within("reward"),
            dataclasses.replace(kl, loss_coef=None, final_loss_coef=None),
        )
    estimator = _loss_estimator(estimator, placement)
    if placement.in_reward:
        placement = InLoss(credit=None, baseline=None, level=placement.level, loss_estimator=None)  # pyright: ignore
    first, last = kl.coefficients("loss")
    kl = dataclasses.replace(kl, coef=first, final_coef=last, loss_coef=None, final_loss_coef=None)
    return estimator, placement, clip.within("loss"), kl


def build_objective(
    estimator: Estimator, placement: Placement, clip: Clip, algorithm: Algorithm, kl: KL, correction: Correction
) -> Objective:
    """The objective of a configuration, simplified. Raises `Undefined`."""
    estimator, placement, clip, kl = simplified(estimator, placement, clip, kl)
    return Objective(estimator, placement, clip, algorithm, kl, correction)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where the mask is 1, exactly 0 elsewhere, whatever stood there (also NaN or −inf)."""
    return values.masked_fill(mask == 0, 0.0)


def _loss_estimator(estimator: Estimator, placement: Placement) -> Estimator:
    name = placement.loss_estimator
    return estimator if name in (None, "same") else estimator_named(name, estimator)


def _refuse_undefined_ratio(algorithm: Algorithm, placement: Placement, correction: Correction) -> None:
    """A ratio of sequences has one term per sequence: nothing about it may differ from token to token."""
    per_sequence = "algorithm.ratio_level=sequence has one term per sequence"
    if algorithm.aggregation not in ("seq-sum", "fixed"):
        raise Undefined(f"{per_sequence}, and no tokens to average (algorithm.aggregation=seq-sum or fixed)")
    if placement.in_reward and placement.credit != "sequence":
        raise Undefined(f"{per_sequence}, and one advantage (placement.credit=sequence)")
    if correction.level == "token":
        raise Undefined(f"{per_sequence}, and one weight (correction.level=sequence)")


def _refuse_undefined_reward(placement: Placement, term: KLTerm) -> None:
    per_sequence = term.clip.input_level == "sequence"
    _refuse_clipped_distributions(term)
    if term.estimator.fixed_by_prefix and placement.credit == "token":
        raise Undefined(
            "estimator=full with placement.credit=token has no gradient: what is charged does not depend on the token"
        )
    if placement.credit != "sequence" and placement.baseline == "inside":
        raise Undefined("placement.baseline=inside needs one charge per sequence (placement.credit=sequence)")
    if per_sequence and placement.credit != "sequence":
        raise Undefined("clip.level=sequence charges once per sequence (placement.credit=sequence)")


def _refuse_undefined_loss(placement: Placement, term: KLTerm, kl: KL) -> None:
    _refuse_clipped_distributions(term)
    if term.estimator.needs_distributions and placement.level == "sequence":
        raise Undefined("estimator=full has no sequence level (placement.level=token)")
    if term.clip.input_level == "sequence" and placement.level == "token":
        raise Undefined("clip.level=sequence clips one log-ratio per sequence (placement.level=sequence)")
    if kl.weight == "token" and placement.level == "sequence":
        raise Undefined("kl.weight=token needs a KL value per token (placement.level=token)")
    if kl.weight != "none" and kl.weight_over == "current" and kl.weight_grad == "detached":
        raise Undefined("kl.weight_over=current with kl.weight_grad=detached is the weight 1 (kl.weight=none)")


def _refuse_clipped_distributions(term: KLTerm) -> None:
    if term.estimator.needs_distributions and (term.clip.input_level is not None or term.clip.output is not None):
        raise Undefined("estimator=full has no clip: it is no function of the log-ratio (clip=none)")
