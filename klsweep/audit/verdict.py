"""A gradient compared with ∇KL, in numbers and in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

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


def verdict(
    gradient: Tensor, target: Tensor, named: Mapping[str, Tensor], objective: Objective, off_policy: bool
) -> str:
    """What the gradient is: `unbiased`, or why not, by comparison with gradients that have a name."""
    found = compare(gradient, target)
    if found.relative_error is None or found.norm_ratio is None:
        return "undefined: the policy is the reference, ∇KL is zero"
    if not gradient.isfinite().all():
        return "overflow: not finite"
    if found.relative_error < EXACT:
        return "unbiased"
    if found.norm_ratio < EXACT:
        return "zero: β only adds noise"
    for name, other in {"∇KL": target, **named}.items():
        if other.norm() < NOTHING:
            continue
        factor = (gradient * other).sum().item() / other.square().sum().item()
        if (gradient - factor * other).norm() < EXACT * gradient.norm():
            return f"biased: {name}" if abs(factor - 1) < EXACT else f"biased: {factor:.4g} × {name}"
    if objective.clip.bounds != (None, None) or objective.clip.output is not None:
        return "biased by the clip"
    if off_policy:
        return _stale(objective)
    return "biased: against ∇KL" if (found.cosine or 0.0) < 0 else "biased: no gradient with a name"


def _stale(objective: Objective) -> str:
    levels = {objective.kl.weight} if objective.placement.in_loss else {objective.correction.level or "none"}
    if "none" in levels:
        return "biased: the sampler's samples, not weighted"
    if "token" in levels:
        return "biased: a token weight does not correct its prefix"
    return "biased under the sampler's samples"
