"""The whole objective: how strong the regulariser really is beside the task reward, once groups have been normalised.

An algorithm divides or shrinks rewards and KL charges by different factors. The expected gradient of the loss, over all
groups of G sequences, is compared with −∇E[R] and β∇KL: how much of each is in it, and what is neither.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klsweep.audit.cases import Case, Row, strengths
from klsweep.audit.gradient import Moments, batch_coefficients, charges, without_group
from klsweep.audit.reference import kl_gradient
from klsweep.audit.tabular import Batch, Tables, every_sequence, live
from klsweep.audit.verdict import EXACT, NOTHING
from klsweep.errors import BadInput
from klsweep.objective.objective import Objective

MOST_SEQUENCES, MOST_GROUPS = 4096, 2_000_000
CHUNK = 50_000


def whole_table(tables: Tables, chosen: Sequence[Case], progress: Callable[[int], None]) -> list[Row]:
    """A row per on-policy case.

    The expected gradient g of the loss is fitted as a·(−∇E[R]) + b·β∇KL: `reward_scale` a, `kl_scale` b,
    `effective_beta` βb/a, `residual` ‖g − fit‖/‖g‖, and the `cosine` of g and −∇E[R] + β∇KL. R is 1 if at least half of
    the tokens are 0, else 0; `equal_groups` is the probability that all rewards of a group are equal.
    BadInput if there are too many groups to enumerate.
    """
    rows = []
    for case in chosen:
        if case.off_policy:
            raise BadInput("sampling=off_policy: the whole objective is audited on policy")
        rows.append(_row(tables, case))
        progress(len(rows))
    return rows


def beta_in_effect(tables: Tables, case: Case) -> float | None:
    """The factor that group statistics put on the KL term, whatever its own gradient, relative to the task reward.

    None if the term has no gradient of its own.
    """
    parts = _Parts.of(tables, case)
    reward_scale, kl_scale, _ = _fit(parts.gradient, parts.reward, parts.own)
    return _quotient(kl_scale, reward_scale)


def _row(tables: Tables, case: Case) -> Row:
    parts = _Parts.of(tables, case)
    reward_scale, kl_scale, residual = _fit(parts.gradient, parts.reward, parts.target)
    wanted = parts.reward + parts.target
    norms = (parts.gradient.norm() * wanted.norm()).item()
    beta = max(strengths(case.objective))
    effect = _quotient(kl_scale, reward_scale)
    return {
        **case.labels,
        "algorithm": case.algorithm,
        "group_size": case.objective.algorithm.group_size,
        "beta": beta,
        "reward_scale": reward_scale,
        "kl_scale": kl_scale,
        "effective_beta": None if effect is None else beta * effect,
        "residual": residual,
        "cosine": (parts.gradient * wanted).sum().item() / norms if norms > NOTHING else None,
        "equal_groups": parts.equal,
    }


def _quotient(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator


@dataclass(frozen=True)
class _Parts:
    """Expected gradients ``[T·(V + 1), V]``: of the loss, of −E[R], of the KL term alone without groups, β∇KL."""

    gradient: Tensor
    reward: Tensor
    own: Tensor
    target: Tensor
    equal: float

    @classmethod
    def of(cls, tables: Tables, case: Case) -> "_Parts":
        objective, betas = case.objective, strengths(case.objective)
        _check_enumerable(tables, objective.algorithm.group_size)
        (batch,) = every_sequence(tables, off_policy=False)  # few sequences make many groups: one chunk
        rewards = task_rewards(tables)
        advantages, equal = _expected_advantages(objective, batch, rewards, betas.reward)
        plain = without_group(objective)
        return cls(
            gradient=_gradient(tables, batch, objective, advantages, betas.loss),
            reward=_gradient(tables, batch, plain, rewards[:, None].expand_as(batch.logprobs), 0.0),
            own=_gradient(tables, batch, plain, charges(plain, batch, betas.reward), betas.loss),
            target=max(betas) * kl_gradient(tables)[1].flatten(0, 1),
            equal=equal,
        )


def _fit(gradient: Tensor, reward: Tensor, kl: Tensor) -> tuple[float | None, float | None, float | None]:
    """Least squares of a·reward + b·kl: a, b, and the share of the gradient's norm that is in neither.

    None for the scale of one that is zero here, and all None if the gradient is.
    """
    scale = gradient.norm()
    if scale < NOTHING:
        return None, None, None
    present = [bool(part.norm() > EXACT * scale) for part in (reward, kl)]
    basis = torch.stack([part.flatten() for part, there in zip((reward, kl), present, strict=True) if there], 1)
    fit = torch.linalg.lstsq(basis, gradient.flatten()[:, None]).solution.squeeze(1)
    residual = (gradient.flatten() - basis @ fit).norm() / scale
    scales = iter(fit.tolist())
    reward_scale, kl_scale = (next(scales) if there else None for there in present)
    return reward_scale, kl_scale, residual.item()


def task_rewards(tables: Tables) -> Tensor:
    """1 for each response of which at least half is token 0, else 0; ``[V^T]``."""
    tokens = torch.cartesian_prod(*[torch.arange(tables.vocabulary)] * tables.length).view(-1, tables.length)
    mask = live(tokens, tables.eos)
    return (2 * ((tokens == 0) * mask).sum(1) >= mask.sum(1)).double()


def _check_enumerable(tables: Tables, group_size: int) -> None:
    sequences = tables.vocabulary**tables.length
    if sequences > MOST_SEQUENCES or math.comb(sequences + group_size - 1, group_size) > MOST_GROUPS:
        raise BadInput(
            f"algorithm.group_size={group_size} with V^T = {tables.vocabulary}^{tables.length} sequences makes "
            f"more than {MOST_GROUPS} groups: give a smaller group, or a shorter policy (--length)"
        )


def _expected_advantages(objective: Objective, batch: Batch, rewards: Tensor, beta: float) -> tuple[Tensor, float]:
    """E[advantage of a sequence | it is in the group] ``[V^T, T]``, and the probability that all rewards are equal.

    Over all multisets of G sequences, each with its multinomial probability.
    """
    group_size = objective.algorithm.group_size
    log_probability = batch.logprobs.sum(1)
    total, equal = torch.zeros_like(batch.logprobs), 0.0
    multisets = itertools.combinations_with_replacement(range(len(rewards)), group_size)
    while chunk := list(itertools.islice(multisets, CHUNK)):
        members = torch.tensor(chunk)
        repeated = (members[:, :, None] == members[:, None, :]).tril().sum(2)  # 1, 2, … within runs of equals
        orders = math.lgamma(group_size + 1) - repeated.double().log().sum(1)
        probability = (orders + log_probability[members].sum(1)).exp()
        flat = members.flatten()
        advantages = objective.advantages(
            rewards[flat],
            batch.logprobs[flat],
            batch.ref_logprobs[flat],
            batch.mask[flat],
            beta,
            batch.exact_kl[flat],
        )
        share = probability.repeat_interleave(group_size) / group_size
        total.index_add_(0, flat, share[:, None] * advantages)
        same = rewards[members].max(1).values == rewards[members].min(1).values
        equal += probability[same].sum().item()
    return total / batch.weights[:, None], equal


def _gradient(tables: Tables, batch: Batch, objective: Objective, advantages: Tensor, beta: float) -> Tensor:
    moments = Moments.zero(tables)
    moments.add(batch, batch_coefficients(objective, batch, advantages, beta))
    return moments.mean
