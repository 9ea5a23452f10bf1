"""What is known of token distributions, from hidden states and an output head, a chunk of tokens at a time.

The logits of N tokens are N·V floats: at V = 152,064 and N = 4,096, 2.5 GB for each tensor of that shape, and taking
log-probabilities and their gradient the plain way holds three or more of them. Here logits exist for one chunk only, in
the forward pass and, computed again, in the backward pass.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from klsweep.objective.kl import exact_token_kl

Column = Literal["logprobs", "entropy", "ref_logprobs", "exact_kl", "forward_kl"]
OF_THE_REFERENCE: frozenset[Column] = frozenset({"ref_logprobs", "exact_kl", "forward_kl"})

FLOOR = -1e30  # stands for a log-probability of −∞ in gradients: exp of it is 0, and 0 times it is no NaN


class Head(NamedTuple):
    """An output head, logits = hidden · weightᵀ + bias."""

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]


class States(NamedTuple):
    """Final hidden states of N tokens and the head that turns them into logits."""

    hidden: Tensor  # [N, D]
    head: Head


def token_statistics(
    policy: States,
    ids: Tensor,
    columns: tuple[Column, ...],
    temperature: float,
    chunk: int,
    reference: States | None = None,
    differentiable: tuple[Column, ...] | None = None,
) -> Tensor:
    """Log-probabilities of `ids`, and what else is asked of π = softmax(logits / temperature), in nats.

    `logprobs` log π(id); `entropy` −Σ_v π log π; `ref_logprobs` log π_ref(id), `exact_kl` KL(π ‖ π_ref) and
    `forward_kl` KL(π_ref ‖ π) of the token distributions, for which `reference` is needed. All of them, or those named
    `differentiable`, are so with respect to the policy's hidden states, head weight and bias; the others and the
    reference are constants.

    Logits are computed in the hidden states' dtype (as the model's own forward does), everything after them in float32
    (in float64 for float64). Memory beyond arguments, result and their gradients: a few chunk × V floats.

    Args: `ids` ``[N]``; `chunk` tokens whose logits exist at a time. Returns ``[N, len(columns)]``.
    """
    if reference is None and OF_THE_REFERENCE & set(columns):
        raise ValueError(f"columns {', '.join(columns)} need a reference")
    other = (None, None, None) if reference is None else (reference.hidden, *reference.head)
    gradients = columns if differentiable is None else differentiable
    settings = columns, gradients, temperature, chunk
    return _Statistics.apply(policy.hidden, *policy.head, ids, settings, *other)  # pyright: ignore


class _Statistics(torch.autograd.Function):
    """`token_statistics` with its gradient; ∂/∂logits of each column is in `_logit_gradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        settings: tuple[tuple[Column, ...], tuple[Column, ...], float, int],
        *reference: Tensor | None,
    ) -> Tensor:
        tensors = (hidden, weight, bias, ids, *reference)
        columns, differentiable, temperature, chunk = settings
        result = hidden.new_empty(len(ids), len(columns), dtype=_wide(hidden.dtype))
        for rows, log_p, log_q in _chunks(tensors, temperature, chunk):
            for i, column in enumerate(columns):
                result[rows, i] = _value(column, log_p, log_q, ids[rows])
        if not OF_THE_REFERENCE & set(differentiable):
            tensors = (hidden, weight, bias, ids, None, None, None)
        ctx.save_for_backward(*tensors, result)
        ctx.settings = settings
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (*tensors, result), (upstream,) = ctx.saved_tensors, upstreams
        columns, differentiable, temperature, chunk = ctx.settings
        hidden, weight, bias, ids = tensors[:4]
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(x, dtype=_wide(x.dtype)) if wanted else None  # a sum over chunks in bfloat16 loses digits
            for x, wanted in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows, log_p, log_q in _chunks(tensors, temperature, chunk):
            values, weights = (dict(zip(columns, x[rows].split(1, 1), strict=True)) for x in (result, upstream))
            weights = {column: weights[column] for column in differentiable}
            gradient = _logit_gradient(log_p, log_q, ids[rows], values, weights).div_(temperature).to(hidden.dtype)
            if by_hidden is not None:
                by_hidden[rows] = (gradient @ weight).to(by_hidden.dtype)
            if by_weight is not None:
                _add_product(by_weight, gradient.T, hidden[rows])
            if by_bias is not None:
                by_bias += gradient.sum(0)
        found = zip((by_hidden, by_weight, by_bias), (hidden, weight, bias), strict=True)
        return *(None if sums is None else sums.to(x.dtype) for sums, x in found), *[None] * 5


def _chunks(
    tensors: tuple[Tensor | None, ...] | list[Tensor | None], temperature: float, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Rows and the policy's and the reference's log-probabilities ``[chunk, V]`` of them, one chunk after another."""
    hidden, weight, bias, _, other, other_weight, other_bias = tensors
    assert hidden is not None
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        log_p = _log_softmax(hidden[rows], weight, bias, temperature)
        yield rows, log_p, None if other is None else _log_softmax(other[rows], other_weight, other_bias, temperature)


def _log_softmax(hidden: Tensor, weight: Any, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return torch.log_softmax(logits.to(_wide(logits.dtype)).div_(temperature), -1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of everything that follows the logits."""
    return torch.promote_types(dtype, torch.float32)


def _value(column: Column, log_p: Tensor, log_q: Any, ids: Tensor) -> Tensor:
    """One column of a chunk ``[C]`` from log-probabilities ``[C, V]``."""
    if column in ("logprobs", "ref_logprobs"):
        return (log_p if column == "logprobs" else log_q).gather(1, ids[:, None]).squeeze(1)
    if column == "entropy":
        return -exact_token_kl(log_p, log_p.new_zeros(()))
    return exact_token_kl(log_p, log_q) if column == "exact_kl" else exact_token_kl(log_q, log_p)


def _logit_gradient(
    log_p: Tensor, log_q: Any, ids: Tensor, values: dict[Column, Tensor], weights: dict[Column, Tensor]
) -> Tensor:
    """∂/∂u of Σ_columns weight · value, u = logits / temperature ``[C, V]``; `values` and `weights` are ``[C, 1]``.

    logprobs: 1[v = id] − p; entropy H: −p (log p + H); exact_kl K: p (log p − log q − K); forward_kl: p − q.
    """
    log_p = log_p.clamp_(min=FLOOR)
    factor = torch.zeros_like(log_p[:, :1])  # of p
    if "logprobs" in weights:
        factor = factor - weights["logprobs"]
    if "forward_kl" in weights:
        factor = factor + weights["forward_kl"]
    if "entropy" in weights:
        factor = factor - weights["entropy"] * (log_p + values["entropy"])
    if "exact_kl" in weights:
        factor = factor + weights["exact_kl"] * (log_p - log_q.clamp(min=FLOOR) - values["exact_kl"])
    gradient = log_p.exp_().mul_(factor)
    if "forward_kl" in weights:
        gradient -= weights["forward_kl"] * log_q.exp()
    if "logprobs" in weights:
        gradient.scatter_add_(1, ids[:, None], weights["logprobs"])
    return gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
