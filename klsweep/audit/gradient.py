"""The gradient of the production loss, sample by sample, and its expectation."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from klsweep.audit.tabular import Batch, Tables
from klsweep.component import component
from klsweep.objective.advantage import Algorithm, Reinforce
from klsweep.objective.objective import Objective
from klsweep.objective.regulariser import Betas

Source = Callable[[], Iterable[Batch]]


class Coefficients(NamedTuple):
    """∂loss/∂log π(y_t) and ∂loss/∂exact_kl_t, ``[B, T]``: through these alone a loss depends on the policy."""

    logprobs: Tensor
    exact_kl: Tensor


def coefficients(
    objective: Objective,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    sampler_logprobs: Tensor,
    exact_kl: Tensor,
    mask: Tensor,
    advantages: Tensor,
    beta: float,
    mean_length: float,
    max_length: int,
) -> Coefficients:
    """Differentiate Σ_i (policy_i + β kl_i) at the first optimiser step on a batch, where π_old is π_θ.

    Divided by the normaliser per sequence of a large batch (`mean_length` for token-mean), so that the mean over
    sequences is the gradient of the loss. Args: ``[B, T]``, without gradient; `beta` that of the KL loss; `max_length`
    L_max.
    """
    leaf, exact_leaf = (values.detach().clone().requires_grad_() for values in (logprobs, exact_kl))
    terms = objective.terms(leaf, logprobs, ref_logprobs, sampler_logprobs, advantages, mask, exact_leaf)
    lengths = mask.sum(1)
    counts = objective.counts(lengths.new_full((1,), mean_length))
    share = objective.aggregate(terms, lengths, counts, max_length)
    loss = share.policy + beta * share.kl
    return Coefficients(*torch.autograd.grad(loss, (leaf, exact_leaf), allow_unused=True, materialize_grads=True))


@dataclass
class Moments:
    """Expected gradient of one sample and its expected squared norm, summed up over batches."""

    mean: Tensor  # [T·(V + 1), V]
    square: float = 0.0

    @classmethod
    def zero(cls, tables: Tables) -> "Moments":
        """Of no batch yet."""
        rows = tables.length * (tables.vocabulary + 1)
        return cls(torch.zeros(rows, tables.vocabulary, dtype=torch.float64))

    def add(self, batch: Batch, found: Coefficients, share: float = 1.0) -> None:
        """Add a batch; each sequence counts with its weight times `share`."""
        gradient = per_sample(batch, found)
        weighted = gradient * (share * batch.weights)[:, None, None]
        self.mean.index_add_(0, batch.cells.flatten(), weighted.flatten(0, 1))
        self.square += (weighted * gradient).sum().item()  # a sequence visits one row per position: no cross terms

    @property
    def variance(self) -> float:
        """Trace of the covariance of one sample's gradient."""
        return max(0.0, self.square - self.mean.square().sum().item())


def per_sample(batch: Batch, found: Coefficients) -> Tensor:
    """Gradient of each sequence with respect to the one row it visits at each position, ``[B, T, V]``."""
    return found.logprobs[:, :, None] * batch.score + found.exact_kl[:, :, None] * batch.exact_score


def batch_coefficients(objective: Objective, batch: Batch, advantages: Tensor, beta: float) -> Coefficients:
    """`coefficients` of a tabular batch."""
    tensors = (batch.logprobs, batch.ref_logprobs, batch.sampler_logprobs, batch.exact_kl, batch.mask, advantages)
    return coefficients(objective, *tensors, beta, batch.mean_length, batch.mask.shape[1])


def charges(objective: Objective, batch: Batch, beta: float) -> Tensor:
    """Advantages ``[B, T]`` where the task reward is zero: the KL in the reward, times −β."""
    zero = torch.zeros_like(batch.weights)
    return objective.advantages(zero, batch.logprobs, batch.ref_logprobs, batch.mask, beta, batch.exact_kl)


def kl_moments(tables: Tables, objective: Objective, betas: Betas, source: Source) -> Moments:
    """Moments of the KL term's gradient, the task reward being zero, over the batches of `source` (weights sum to 1).

    A charge inside a group's baseline is compared with the other samples of its group. Where the algorithm is linear in
    those, two groups in which all others have the scalar E ± σ/√(G − 1) have the first two moments of all groups.
    """
    alone = without_group(objective)
    if not compares(objective):
        return _moments(tables, [alone], betas, source)
    mean = square = 0.0
    for batch in source():
        scalars = charges(alone, batch, betas.reward)[:, 0]
        mean += (batch.weights * scalars).sum().item()
        square += (batch.weights * scalars.square()).sum().item()
    spread = (max(0.0, square - mean**2) / (objective.algorithm.group_size - 1)) ** 0.5
    return _moments(tables, [_among_peers(objective, mean + sign * spread) for sign in (-1, 1)], betas, source)


def compares(objective: Objective) -> bool:
    """True if KL charges are compared within a group of samples."""
    return objective.placement.inside and not isinstance(objective.algorithm, Reinforce)


def without_group(objective: Objective) -> Objective:
    """The objective with no baseline, whose advantages need no groups."""
    bounds = _bounds(objective.algorithm)
    return dataclasses.replace(objective, algorithm=Reinforce(group_size=1, std_epsilon=None, **bounds))


@component
class AmongPeers(Algorithm):
    """An algorithm as one sample sees it, when its group's other members all have the scalar `peer`."""

    algorithm: Algorithm
    peer: float

    def advantage(self, rewards: Tensor) -> Tensor:
        groups = rewards.new_full((len(rewards), self.algorithm.group_size), self.peer)
        groups[:, 0] = rewards
        return self.algorithm.advantage(groups.flatten()).view(groups.shape)[:, 0]


def _among_peers(objective: Objective, peer: float) -> Objective:
    bounds = _bounds(objective.algorithm)
    one = AmongPeers(group_size=1, std_epsilon=None, **bounds, algorithm=objective.algorithm, peer=peer)
    return dataclasses.replace(objective, algorithm=one)


def _bounds(algorithm: Algorithm) -> dict:
    return {name: getattr(algorithm, name) for name in ("clip_low", "clip_high", "ratio_level", "aggregation")}


def _moments(tables: Tables, objectives: Sequence[Objective], betas: Betas, source: Source) -> Moments:
    """Averaged over the objectives, each sequence under each."""
    moments = Moments.zero(tables)
    for batch in source():
        for objective in objectives:
            found = batch_coefficients(objective, batch, charges(objective, batch, betas.reward), betas.loss)
            moments.add(batch, found, 1.0 / len(objectives))
    return moments
