"""A policy small enough to enumerate: an order-1 table per position, all V^T sequences, in float64.

Instance A of the science notes: V = 3, T = 4; row 0 is the start, row 1 + v follows token v.
"""

import itertools

import torch
from torch import Tensor

from klsweep.objective.kl import exact_token_kl

V, T = 3, 4


def instance_a() -> tuple[Tensor, Tensor]:
    """θ = sin(1 + 3p + v) and reference cos(2p + v), as logits [T, V + 1, V]."""
    p, v = torch.arange(V + 1).double()[:, None], torch.arange(V).double()[None, :]
    theta, ref = torch.sin(1 + 3 * p + v), torch.cos(2 * p + v)
    return theta.expand(T, -1, -1).clone().requires_grad_(), ref.expand(T, -1, -1).clone()


def sequences() -> Tensor:
    """All V^T sequences, [V^T, T]."""
    return torch.tensor(list(itertools.product(range(V), repeat=T)))


def distributions(logits: Tensor, y: Tensor) -> Tensor:
    """log π(· | prefix) at each position, [B, T, V]."""
    rows = torch.cat([torch.zeros(len(y), 1, dtype=torch.long), y[:, :-1] + 1], 1)
    return torch.log_softmax(logits, -1)[torch.arange(T), rows]


def chosen(dist: Tensor, y: Tensor) -> Tensor:
    return dist.gather(2, y[:, :, None]).squeeze(2)


def sequence_kl_gradient(theta: Tensor, ref: Tensor) -> tuple[float, Tensor]:
    """KL(π_θ ‖ π_ref) over sequences and its gradient, by differentiating the enumerated sum itself."""
    y = sequences()
    log_p, log_q = chosen(distributions(theta, y), y).sum(1), chosen(distributions(ref, y), y).sum(1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    return kl.item(), torch.autograd.grad(kl, theta)[0]


def expected_gradient(objective, theta: Tensor, ref: Tensor) -> Tensor:
    """Expected gradient of an objective's KL term (β = 1, task reward 0) on policy, from the production code."""
    y = sequences()
    dist, ref_dist = distributions(theta, y), distributions(ref, y)
    logprobs, ref_logprobs = chosen(dist, y), chosen(ref_dist, y)
    old, mask = logprobs.detach(), torch.ones(len(y), T, dtype=torch.float64)
    exact = exact_token_kl(dist, ref_dist)
    advantages = objective.advantages(torch.zeros(len(y)).double(), old, ref_logprobs, mask, 1.0, exact)
    terms = objective.terms(logprobs, old, ref_logprobs, old, advantages, mask, exact)
    weights = old.sum(1).exp()
    loss = (weights * (terms.policy + terms.kl)).sum()
    return torch.autograd.grad(loss, theta, allow_unused=True)[0]


def relative_error(gradient: Tensor, target: Tensor) -> float:
    return ((gradient - target).norm() / target.norm()).item()
