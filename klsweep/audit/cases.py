"""The configurations to audit: cells of a grid, reduced to what the objective's gradient depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from klsweep.audit.gradient import compares
from klsweep.config.build import Builder
from klsweep.config.compose import Composer
from klsweep.config.grid import Cell, Exclusion, expand
from klsweep.config.identity import canonical, inert_keys
from klsweep.errors import BadInput
from klsweep.objective.clip import QuantileClip
from klsweep.objective.objective import Objective, Undefined, build_objective
from klsweep.objective.regulariser import Betas

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An objective, β of its halves relative to the larger one (see `strengths`), and what its row says of it."""

    labels: Row
    algorithm: str
    objective: Objective
    betas: Betas
    off_policy: bool


class Cases(NamedTuple):
    """What to audit, and what to say beside it: what was excluded and why, which overrides have no effect."""

    chosen: list[Case]
    notes: list[str]


def cases(composer: Composer, overrides: Sequence[str], default: str, whole: bool = False) -> Cases:
    """Every distinct case that the overrides stand for (without any: those of experiment `default`).

    Cells that differ only in what the gradient does not depend on (seed, task, …) are one case. `whole`: the algorithm
    and β matter, too, and a group's std is allowed; the KL term alone, divided by it, is noise of unit scale.
    BadInput if no case is left.
    """
    expansion = expand(composer, overrides or [f"experiment={default}"])
    builder, found, excluded, kept = Builder(), {}, list(expansion.excluded), []
    for cell in expansion.cells:
        spec = builder.run_spec(cell.config)
        try:
            objective = build_objective(*spec.objective_parts)
        except Undefined as reason:
            excluded.append(Exclusion(cell.point, str(reason)))
            continue
        reason = _not_audited(objective, whole)
        if reason is not None:
            excluded.append(Exclusion(cell.point, reason))
            continue
        case = _case(cell, objective, spec.sampling.is_stale)
        key = (case.labels, (objective.algorithm, strengths(objective)) if whole else None)
        found.setdefault(repr(key), case)
        kept.append((spec, canonical(spec.simplified(objective))))
    reasons = [exclusion.reason for exclusion in excluded]
    if not found:
        words = "; ".join(sorted(set(reasons)))
        raise BadInput(f"nothing to audit: all cells ({expansion.raw}) are excluded ({words})")
    notes = [f"excluded {reasons.count(reason)}: {reason}" for reason in dict.fromkeys(reasons)]
    inert = [f"{key} has no effect on any of these" for key in inert_keys(expansion.given, kept)]
    return Cases(list(found.values()), [*notes, *inert])


def _not_audited(objective: Objective, whole: bool) -> str | None:
    if not objective.has_kl:
        return "no KL term: nothing to audit"
    if isinstance(objective.clip, QuantileClip):
        return "clip=quantile has no threshold before training (audit clip=fixed clip.level=sequence clip.tau=…)"
    if compares(objective) and not objective.algorithm.linear and not whole:
        return (
            "placement.baseline=inside with a group's std: the KL term alone is only noise of unit scale "
            "(klsweep audit --whole, or placement.baseline=outside)"
        )
    return None


def _case(cell: Cell, objective: Objective, off_policy: bool) -> Case:
    strength = strengths(objective)
    largest = max(strength)
    betas = Betas(strength.reward / largest, strength.loss / largest)
    labels = _labels(cell, objective, strength, off_policy)
    return Case(labels, cell.choices["algorithm"], objective, betas, off_policy)


def strengths(objective: Objective) -> Betas:
    """β of the halves there are (0 for one that is not), at the first update at which it is not 0."""
    first, last = zip(objective.kl.coefficients("reward"), objective.kl.coefficients("loss"), strict=True)
    there = (objective.placement.in_reward, objective.placement.in_loss)
    started = [beta * half for beta, half in zip(first, there, strict=True)]
    return Betas(*(started if any(started) else (beta * half for beta, half in zip(last, there, strict=True))))


def _labels(cell: Cell, objective: Objective, strength: Betas, off_policy: bool) -> Row:
    """The row's description; what does not apply is null."""
    estimator, placement, clip, kl = objective.estimator, objective.placement, objective.clip, objective.kl
    in_loss, both = placement.in_loss, placement.in_reward and placement.in_loss
    clipped, (low, high) = clip.input_level is not None, clip.bounds
    symmetric = low is not None and high is not None and low == -high
    corrected = objective.correction.level is not None
    baseline = "inside" if placement.inside else "outside"
    weight = kl.weight if in_loss and not kl.is_one_at_first else "none"
    if not in_loss:
        weight = objective.correction.level or "none"
    gradient = "detached" if not in_loss else kl.weight_grad
    return {
        "estimator": type(estimator).__name__.lower(),
        "placement": "reward_and_loss" if both else "loss" if in_loss else "reward",
        "credit": placement.credit,
        "level": placement.level,
        "baseline": baseline if placement.in_reward else None,
        "clip": "fixed" if clipped or clip.output is not None else "none",
        "clip_level": clip.input_level,
        "clip_mode": clip.mode if clipped and in_loss else None,
        "tau": high if symmetric else None,
        "gradient": estimator.gradient if in_loss else None,
        "kl_weight": weight,
        "kl_weight_grad": None if weight == "none" else gradient,
        "sampling": "off_policy" if off_policy else "on_policy",
        "loss_estimator": placement.loss_estimator if both and placement.loss_estimator != "same" else None,
        "beta_reward": strength.reward if both and strength.reward != strength.loss else None,
        "beta_loss": strength.loss if both and strength.reward != strength.loss else None,
        "clip_low": None if symmetric else low,
        "clip_high": None if symmetric else high,
        "clip_output": clip.output,
        "clip_half": clip.half if both and clip.half != "both" else None,
        "clamp_stage": clip.clamp_stage if clip.output is not None and weight != "none" and in_loss else None,
        "clip_gradient": estimator.clip_gradient if in_loss and clipped and estimator.gradient != "same" else None,
        "kl_weight_over": kl.weight_over if in_loss and weight != "none" else None,
        "kl_weight_cap": kl.weight_cap if in_loss and weight != "none" else None,
        "correction": cell.choices["correction"] if corrected and placement.in_reward else None,
        "correction_level": objective.correction.level if placement.in_reward else None,
        "correction_cap": objective.correction.cap if placement.in_reward else None,
        "correction_floor": objective.correction.floor if placement.in_reward else None,
        "algorithm": cell.choices["algorithm"] if placement.inside else None,
        "group_size": objective.algorithm.group_size if placement.inside else None,
        "aggregation": _aggregation(objective),
        "preset": cell.choices.get("preset"),
    }


def _aggregation(objective: Objective) -> str | None:
    """The aggregation, reward/loss where they differ; None for plain sums."""
    names = [objective.algorithm.aggregation] if objective.placement.in_reward else []
    names += [objective.kl_aggregation] if objective.placement.in_loss else []
    distinct = list(dict.fromkeys(names))
    return None if distinct == ["seq-sum"] else "/".join(distinct)
