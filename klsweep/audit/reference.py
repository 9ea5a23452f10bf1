"""Gradients that a KL term may turn out to take, computed from the tables themselves, not from the objective.

A policy of order 1 visits row p at position t with a probability P_t(p) that follows by recursion, so expectations over
all V^T sequences are sums over T·(V + 1)·V entries, and their gradients come from automatic differentiation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from klsweep.audit.tabular import Tables, visits
from klsweep.objective.kl import absolute, k1, k2

Value = Callable[[Tensor], Tensor]


def kl_gradient(tables: Tables) -> tuple[float, Tensor]:
    """KL(π_θ ‖ π_ref) over sequences, in nats, and its gradient with respect to θ's logits ``[T, V + 1, V]``."""
    theta, log_p, log_q = _leaf(tables)
    value = _expected(visits(log_p, tables.eos), log_p, k1(log_p - log_q))
    return value.item(), torch.autograd.grad(value, theta)[0]


def named_gradients(tables: Tables) -> dict[str, Tensor]:
    """The other gradients a configuration is known to take, by name; ``[T, V + 1, V]`` each.

    token-local: the prefix is held fixed, so what a token does to later ones is dropped.
    """
    theta, log_p, log_q = _leaf(tables)
    log_ratio, rows, ref_rows = log_p - log_q, visits(log_p, tables.eos), visits(log_q, tables.eos)
    fixed = rows.detach()
    reverse, local_reverse = (_expected(r, log_p, k1(log_ratio)) for r in (rows, fixed))
    local_forward = _expected(fixed, log_q, -log_ratio)
    squared, local_squared = (_expected(r, log_p, k2(log_ratio)) for r in (rows, fixed))
    absolutes, local_absolutes = (_expected(r, log_p, absolute(log_ratio)) for r in (rows, fixed))
    variation = 0.5 * (fixed[:, :, None] * (log_p.exp() - log_q.exp()).abs()).sum()
    scalars = {
        "token-local reverse KL": local_reverse,
        "token-local forward KL": local_forward,
        "forward KL of sequences": _expected(ref_rows, log_q, -log_ratio),
        "reverse KL minus token-local forward KL": reverse - local_forward,
        "reverse KL minus token-local reverse KL": reverse - local_reverse,
        "gradient of E[Σ k2]": squared,
        "token-local gradient of E[Σ k2]": local_squared,
        "gradient of E[Σ k2] minus token-local reverse KL": squared - local_reverse,
        "gradient of E[Σ abs]": absolutes,
        "token-local gradient of E[Σ abs]": local_absolutes,
        "token-local total variation": variation,
        "gradient of E[Σ abs] minus token-local total variation": absolutes - 2 * variation,
    }
    return {name: torch.autograd.grad(value, theta, retain_graph=True)[0] for name, value in scalars.items()}


def _leaf(tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
    theta = tables.theta.clone().requires_grad_()
    return theta, torch.log_softmax(theta, -1), torch.log_softmax(tables.ref, -1)


def _expected(rows: Tensor, log_probabilities: Tensor, values: Tensor) -> Tensor:
    """Σ_t Σ_p P_t(p) Σ_v π_t(v | p) f_t(p, v)."""
    return (rows[:, :, None] * log_probabilities.exp() * values).sum()
