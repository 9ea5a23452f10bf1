"""The audit of a real policy: Monte-Carlo gradients on a transformer against an unbiased target of low variance.

The target is the exact token KL in the reward (to go) and in the loss, which the tabular audit shows to be unbiased:
what is left to chance in it is the prefixes alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from klsweep.audit.cases import Case, Row
from klsweep.audit.gradient import Coefficients, coefficients, compares, without_group
from klsweep.errors import BadInput
from klsweep.model.logprobs import Column
from klsweep.model.policy import Policy, Reference, score, statistics
from klsweep.model.tokens import Tokens
from klsweep.objective.advantage import Reinforce
from klsweep.objective.clip import NO_CLIP
from klsweep.objective.importance import NoCorrection
from klsweep.objective.kl import Full
from klsweep.objective.objective import Objective, masked
from klsweep.objective.placement import InRewardAndLoss
from klsweep.objective.regulariser import KL, Betas

BYTES = 4
MOST_BYTES = 8 * 2**30
LEVEL = 0.95


@dataclass(frozen=True)
class Subject:
    """The policy under audit, its reference, and batches of its own samples at `temperature`."""

    policy: Policy
    reference: Reference
    temperature: float
    max_length: int
    batches: Sequence[Tokens]


@dataclass(frozen=True)
class Interval:
    """An estimate and its jackknife interval over batches, None where a ratio is not defined in it."""

    value: float | None
    low: float | None
    high: float | None


def transformer_table(
    subject: Subject, cases: Sequence[Case], progress: Callable[[int], None]
) -> tuple[Interval, list[Row]]:
    """KL(π ‖ π_ref) of the samples in nats per sequence, and a row per case.

    Each batch b gives a gradient g_b of the case and t_b of the target. Products of *different* batches are unbiased:
    `projection` ⟨g, t⟩/⟨t, t⟩, `norm_ratio` √(⟨g, g⟩/⟨t, t⟩), `cosine` their quotient, and `relative_error`
    √(⟨g − t, g − t⟩/⟨t, t⟩), with the same batch's noise left out of all of them. Intervals: 95 %, jackknife over
    batches.
    The cases are those that `check_cases` lets pass.
    """
    count = len(subject.batches)
    scored = [_Scored.of(subject, tokens) for tokens in subject.batches]
    target = _gradients(subject, scored, _target(), Betas(1.0, 1.0))
    target_products = (target @ target.T).double()
    kls = torch.stack([masked(batch.exact_kl, batch.tokens.mask).sum(1).mean() for batch in scored]).double()
    rows = []
    for case in cases:
        # of a linear algorithm's group, on policy, only the factor on a sample's own charge is left in expectation
        betas = case.betas._replace(reward=case.betas.reward * _own_share(case.objective))
        found = _gradients(subject, scored, without_group(case.objective), betas)
        own, mixed = (found @ found.T).double(), (found @ target.T).double()
        row = {**case.labels, **_comparison(own, mixed, target_products)}
        rows.append({**row, "verdict": "the target itself"} if torch.equal(found, target) else row)
        progress(len(rows))
    return _jackknife(lambda kept: kls[kept].mean().item(), count), rows


def check_cases(cases: Sequence[Case], batches: int) -> None:
    """BadInput for cases off policy, or too few batches for an interval."""
    if any(case.off_policy for case in cases):
        raise BadInput("sampling=off_policy: a real policy is audited on its own samples (sampling=on_policy)")
    if batches < 3:
        raise BadInput(f"--batches={batches}: an interval needs at least 3")


def check_memory(network: Any, batches: int) -> None:
    """BadInput if the gradients of all batches do not fit into memory."""
    size = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if 2 * batches * size * BYTES > MOST_BYTES:
        raise BadInput(
            f"--batches={batches}: 2 × {batches} gradients of {size} parameters need more than "
            f"{MOST_BYTES // 2**30} GiB"
        )


def _own_share(objective: Objective) -> float:
    """∂A_i/∂R_i of a group compared inside, 1 otherwise."""
    if not compares(objective):
        return 1.0
    return objective.algorithm.advantage(torch.eye(objective.algorithm.group_size)[0])[0].item()


@dataclass(frozen=True)
class _Scored:
    """A batch with what does not depend on the case. All ``[B, T]``."""

    tokens: Tokens
    logprobs: Tensor
    ref_logprobs: Tensor
    exact_kl: Tensor

    @classmethod
    def of(cls, subject: Subject, tokens: Tokens) -> "_Scored":
        scores = score(subject.policy, subject.reference, tokens, subject.temperature, len(tokens.mask))
        return cls(tokens, scores.old_logprobs, scores.ref_logprobs, scores.exact_kl)


def _target() -> Objective:
    estimator = Full(gradient="same", clip_gradient=False)
    placement = InRewardAndLoss(credit="to_go", baseline="outside", level="token", loss_estimator="same")
    algorithm = Reinforce(
        group_size=1, clip_low=1.0, clip_high=1.0, ratio_level="token", aggregation="seq-sum", std_epsilon=None
    )
    kl = KL(
        coef=1.0,
        schedule="constant",
        final_coef=0.0,
        loss_coef=None,
        final_loss_coef=None,
        target=None,
        horizon=None,
        weight="none",
        weight_over="old",
        weight_grad="detached",
        weight_cap=None,
        aggregation=None,
    )
    return Objective(estimator, placement, NO_CLIP, algorithm, kl, NoCorrection(level=None, cap=None, floor=None))


def _gradients(subject: Subject, scored: Sequence[_Scored], objective: Objective, betas: Betas) -> Tensor:
    """The mean gradient of each batch with respect to all weights, ``[batches, parameters]``."""
    parameters = [parameter for parameter in subject.policy.network.parameters() if parameter.requires_grad]
    rows = []
    for batch in scored:
        zero = torch.zeros(len(batch.logprobs), device=batch.logprobs.device)
        mask = batch.tokens.mask
        advantages = objective.advantages(zero, batch.logprobs, batch.ref_logprobs, mask, betas.reward, batch.exact_kl)
        tensors = (batch.logprobs, batch.ref_logprobs, batch.logprobs, batch.exact_kl, mask, advantages)
        mean_length = mask.sum(1).mean().item()
        found = coefficients(objective, *tensors, betas.loss, mean_length, subject.max_length)
        gradient = torch.autograd.grad(_surrogate(subject, batch, found), parameters)
        rows.append(torch.cat([part.flatten() for part in gradient]) / len(zero))
    return torch.stack(rows)


def _surrogate(subject: Subject, batch: _Scored, found: Coefficients) -> Tensor:
    """A scalar with the loss's gradient: Σ c_t log π(y_t) + Σ d_t exact_kl_t."""
    both = bool(found.exact_kl.any())
    columns: tuple[Column, ...] = ("logprobs", "exact_kl") if both else ("logprobs",)
    reference = subject.reference(batch.tokens) if both else None
    values = statistics(subject.policy, batch.tokens, subject.temperature, columns, reference)
    total = (found.logprobs * values["logprobs"]).sum()
    return total + (found.exact_kl * values["exact_kl"]).sum() if both else total


def _comparison(own: Tensor, mixed: Tensor, target: Tensor) -> Row:
    """The row's figures from the inner products of batches, ``[M, M]`` each."""
    count = len(own)

    def products(kept: Tensor) -> tuple[float, float, float]:
        return _across(own, kept), _across(mixed, kept), _across(target, kept)

    def projection(kept: Tensor) -> float:
        _, gt, tt = products(kept)
        return _quotient(gt, tt)

    def norm_ratio(kept: Tensor) -> float:
        gg, _, tt = products(kept)
        return _quotient(gg, tt)

    def cosine(kept: Tensor) -> float:
        gg, gt, tt = products(kept)
        return _quotient(gt, math.sqrt(gg * tt)) if gg > 0 else math.nan

    def error(kept: Tensor) -> float:
        gg, gt, tt = products(kept)
        return _quotient(gg - 2 * gt + tt, tt)

    squares = {"relative_error": _jackknife(error, count), "norm_ratio": _jackknife(norm_ratio, count)}
    intervals = {"cosine": _jackknife(cosine, count), "projection": _jackknife(projection, count)}
    intervals["cosine"] = _within(intervals["cosine"], -1.0, 1.0)
    intervals |= {name: _root(interval) for name, interval in squares.items()}
    row: Row = {}
    for name, interval in intervals.items():
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {**row, "verdict": _verdict(squares["relative_error"], intervals["projection"])}


def _quotient(value: float, by: float) -> float:
    """NaN over 0: between equal models there is no gradient to compare with."""
    return value / by if by else math.nan


def _across(products: Tensor, kept: Tensor) -> float:
    """Mean product of two different batches among those kept."""
    part = products[kept][:, kept]
    return ((part.sum() - part.diagonal().sum()) / (len(kept) * (len(kept) - 1))).item()


def _jackknife(statistic: Callable[[Tensor], float], count: int) -> Interval:
    """The statistic of all batches, and estimate ± t·s over the delete-one values."""
    everything = torch.arange(count)
    value = statistic(everything)
    without = [statistic(torch.cat([everything[:i], everything[i + 1 :]])) for i in range(count)]
    if not all(map(math.isfinite, [value, *without])):
        return Interval(value if math.isfinite(value) else None, None, None)
    mean = sum(without) / count
    error = math.sqrt((count - 1) / count * sum((x - mean) ** 2 for x in without))
    half = float(student.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Interval(value, value - half, value + half)


def _root(interval: Interval) -> Interval:
    """Of a square, whose unbiased estimate may be negative."""
    return _mapped(interval, lambda value: math.sqrt(max(0.0, value)))


def _within(interval: Interval, least: float, most: float) -> Interval:
    """Cut to where the quantity can lie; without an interval there is no value to trust either."""
    cut = _mapped(interval, lambda value: min(max(value, least), most))
    return cut if cut.low is not None else Interval(None, None, None)


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    ends = (interval.value, interval.low, interval.high)
    return Interval(*(None if end is None else function(end) for end in ends))


def _verdict(squared_error: Interval, projection: Interval) -> str:
    if squared_error.low is None or projection.low is None or projection.high is None:
        return "undecided"
    if squared_error.low > 0:
        return "biased: no part along ∇KL seen" if projection.low <= 0 <= projection.high else "biased"
    if projection.low <= 0:
        return "undecided: too noisy"
    return "no bias seen"
