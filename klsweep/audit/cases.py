"""The configurations to audit: cells of a grid, reduced to what the objective's gradient depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from klsweep.config.build import Builder
from klsweep.config.compose import Composer
from klsweep.config.grid import Cell, Exclusion, expand
from klsweep.errors import BadInput
from klsweep.objective.objective import Objective, Undefined, build_objective
from klsweep.objective.regulariser import Betas

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An objective, the betas of its halves relative to the larger one, and what its row says of it."""

    labels: Row
    algorithm: str
    objective: Objective
    betas: Betas
    off_policy: bool


def cases(
    composer: Composer, overrides: Sequence[str], default: str, whole: bool = False
) -> tuple[list[Case], list[Exclusion]]:
    """Every distinct case that the overrides stand for (without any: those of experiment `default`).

    Cells that differ only in what the gradient does not depend on (seed, task, …) are one case. Those that the grid
    excludes or the objective refuses come second, with the reason. `whole`: the algorithm and β matter, too.
    BadInput if none is left.
    """
    expansion = expand(composer, overrides or [f"experiment={default}"])
    builder, found, excluded = Builder(), {}, list(expansion.excluded)
    for cell in expansion.cells:
        spec = builder.run_spec(cell.config)
        try:
            objective = build_objective(
                spec.estimator, spec.placement, spec.clip, spec.algorithm, spec.kl, spec.correction
            )
        except Undefined as reason:
            excluded.append(Exclusion(cell.point, str(reason)))
            continue
        if not objective.has_kl:
            excluded.append(Exclusion(cell.point, "no KL term: nothing to audit"))
            continue
        case = _case(cell, objective, spec.sampling.lag > 0)
        key = (case.labels, case.betas, (objective.algorithm, objective.kl.betas(1, 1)) if whole else None)
        found.setdefault(repr(key), case)
    if not found:
        reasons = "; ".join(sorted({exclusion.reason for exclusion in excluded}))
        raise BadInput(f"nothing to audit: all {expansion.raw} cells are excluded ({reasons})")
    return list(found.values()), excluded


def _case(cell: Cell, objective: Objective, off_policy: bool) -> Case:
    first = objective.kl.betas(1, 1)
    largest = max(
        first.reward if objective.placement.in_reward else 0.0, first.loss if objective.placement.in_loss else 0.0
    )
    betas = Betas(first.reward / largest, first.loss / largest)
    labels = _labels(cell, objective, betas, off_policy)
    return Case(labels, cell.choices["algorithm"], objective, betas, off_policy)


def _labels(cell: Cell, objective: Objective, betas: Betas, off_policy: bool) -> Row:
    """The row's description; what does not apply is null."""
    estimator, placement, clip, kl = objective.estimator, objective.placement, objective.clip, objective.kl
    in_loss, both = placement.in_loss, placement.in_reward and placement.in_loss
    clipped, (low, high) = clip.input_level is not None, clip.bounds
    symmetric = low is not None and high is not None and low == -high
    corrected = objective.correction.level is not None
    weight = kl.weight if in_loss and not kl.is_one_at_first else "none"
    if not in_loss:
        weight = objective.correction.level or "none"
    gradient = "detached" if not in_loss else kl.weight_grad
    return {
        "estimator": type(estimator).__name__.lower(),
        "placement": "reward_and_loss" if both else "loss" if in_loss else "reward",
        "credit": placement.credit,
        "level": placement.level,
        "baseline": _baseline(objective),
        "clip": "fixed" if clipped or clip.output is not None else "none",
        "clip_level": clip.input_level,
        "clip_mode": clip.mode if clipped and in_loss else None,
        "tau": high if symmetric else None,
        "gradient": estimator.gradient if in_loss else None,
        "kl_weight": weight,
        "kl_weight_grad": None if weight == "none" else gradient,
        "sampling": "off_policy" if off_policy else "on_policy",
        "loss_estimator": placement.loss_estimator if both and placement.loss_estimator != "same" else None,
        "beta_reward": betas.reward if both and betas.reward != betas.loss else None,
        "beta_loss": betas.loss if both and betas.reward != betas.loss else None,
        "clip_low": None if symmetric else low,
        "clip_high": None if symmetric else high,
        "clip_output": clip.output,
        "clip_half": clip.half if both and clip.half != "both" else None,
        "clamp_stage": clip.clamp_stage if clip.output is not None and weight != "none" and in_loss else None,
        "clip_gradient": estimator.clip_gradient if in_loss and clipped and estimator.gradient != "same" else None,
        "kl_weight_over": kl.weight_over if in_loss and weight != "none" else None,
        "kl_weight_cap": (kl.weight_cap if in_loss else objective.correction.cap) if weight != "none" else None,
        "correction": cell.choices["correction"] if corrected and placement.in_reward else None,
        "correction_level": objective.correction.level if corrected and both else None,
        "correction_floor": objective.correction.floor if placement.in_reward else None,
        "algorithm": cell.choices["algorithm"] if _baseline(objective) == "inside" else None,
        "group_size": objective.algorithm.group_size if _baseline(objective) == "inside" else None,
        "aggregation": _aggregation(objective),
    }


def _baseline(objective: Objective) -> str | None:
    placement = objective.placement
    if not placement.in_reward:
        return None
    if placement.baseline == "auto":
        return "inside" if placement.credit == "sequence" else "outside"
    return placement.baseline


def _aggregation(objective: Objective) -> str | None:
    """The aggregations of the halves there are, None for plain sums."""
    names = [objective.algorithm.aggregation] if objective.placement.in_reward else []
    names += [objective.kl_aggregation] if objective.placement.in_loss else []
    distinct = sorted(set(names))
    return None if distinct == ["seq-sum"] else "/".join(distinct)
