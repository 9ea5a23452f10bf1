"""A gradient compared with ∇KL, in numbers and in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from klsweep.objective.clip import NO_CLIP
from klsweep.objective.objective import Objective

EXACT = 1e-9  # relative; rounding in float64 stays far below
NOTHING = 1e-14  # absolute: what is left of a gradient that is zero


@dataclass(frozen=True)
class Comparison:
    """‖g − ∇KL‖/‖∇KL‖, cos(g, ∇KL) and ‖g‖/‖∇KL‖; None where undefined."""

    relative_error: float | None
    cosine: float | None
    norm_ratio: float | None


def compare(gradient: Tensor, target: Tensor) -> Comparison:
    """Both ``[T, V + 1, V]``. Everything is undefined if the target is zero (the policy is the reference)."""
    size, norm = target.norm().item(), gradient.norm().item()
    if size < NOTHING:
        return Comparison(None, None, None)
    ratio = norm / size
    cosine = None if ratio < EXACT else (gradient * target).sum().item() / (norm * size)
    return Comparison((gradient - target).norm().item() / size, cosine, ratio)


UNDEFINED = "undefined: ∇KL is zero here (the policy is the reference, or saturated)"


def verdict(
    gradient: Tensor,
    target: Tensor,
    named: Mapping[str, Tensor],
    objective: Objective,
    off_policy: bool,
    unclipped: Callable[[], Tensor],
    equal_lengths: bool = True,
) -> str:
    """What the gradient is: `unbiased`, or why not, by comparison with gradients that have a name.

    `unclipped`: the expected gradient of the same configuration without its clip. `equal_lengths`: an aggregation over
    responses of one length shows only a factor, and the verdict says so.
    """
    found = compare(gradient, target)
    if found.relative_error is None or found.norm_ratio is None:
        return UNDEFINED
    if not gradient.isfinite().all():
        return "overflow: not finite"
    if found.relative_error < EXACT:
        return "unbiased"
    bound = objective.clip != NO_CLIP and bool((gradient - unclipped()).norm() > EXACT * gradient.norm())
    kinds = {objective.algorithm.aggregation} if objective.placement.in_reward else set()
    kinds |= {objective.kl_aggregation} if objective.placement.in_loss else set()
    remarks = ["the clip binds nowhere here"] if objective.clip != NO_CLIP and not bound else []
    if equal_lengths and kinds & {"seq-mean", "token-mean"}:
        remarks.append("at equal lengths")
    if bound:
        otherwise = "biased by the clip"
    elif off_policy:
        otherwise = _stale(objective)
    elif "seq-mean" in kinds and not equal_lengths:
        otherwise = "biased: weighs responses by their length"
    else:
        otherwise = "biased: against ∇KL" if (found.cosine or 0.0) < 0 else "biased: not a gradient known by name"
    if found.norm_ratio < EXACT:
        what = "zero: cut off by the clip" if bound else "zero: β only adds noise"
    else:
        what = _name(gradient, {"∇KL": target, **named}) or otherwise
    return what + (f" ({', '.join(remarks)})" if remarks else "")


def _name(gradient: Tensor, named: Mapping[str, Tensor]) -> str | None:
    """The named gradient that this one is, up to a factor; None if it is none of them."""
    for name, other in named.items():
        if other.norm() < NOTHING:
            continue
        factor = (gradient * other).sum().item() / other.square().sum().item()
        if (gradient - factor * other).norm() < EXACT * gradient.norm():
            return f"biased: {name}" if abs(factor - 1) < EXACT else f"biased: {factor:.4g} × {name}"
    return None


def _stale(objective: Objective) -> str:
    """Why samples of another policy give another gradient: by the weights of the halves there are."""
    levels, kl = [], objective.kl
    if objective.placement.in_reward:
        levels.append(objective.correction.level)
    if objective.placement.in_loss:
        levels.append(None if kl.weight == "none" or kl.is_one_at_first else kl.weight)
    if None in levels:
        return "biased: the sampler's samples, not weighted"
    if "token" in levels:
        return "biased: a token weight does not correct its prefix"
    return "biased under the sampler's samples"
