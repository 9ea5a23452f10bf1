"""From token terms to one number, normalised by *global* counts.

Objective terms are kept per sequence ``[B]`` until here, so that a micro-batch only ever contributes its part of one
global sum: the result does not depend on how a batch is split.
"""

from typing import Literal

from torch import Tensor

Aggregation = Literal["seq-sum", "token-mean", "seq-mean", "fixed"]


def per_sequence_scale(lengths: Tensor, aggregation: Aggregation, max_length: int) -> Tensor:
    """Factor on each sequence's token sum, before division by `global_count`.

    seq-sum and token-mean: 1; seq-mean: 1/T_i (depends on the sampled length, hence on y); fixed: 1/L_max.
    Only seq-sum and fixed keep ∇KL up to a constant: the normaliser of the others depends on what was sampled.
    Args: `lengths` T_i ``[B]``, float; `max_length` L_max. Returns ``[B]``.
    """
    if aggregation == "seq-mean":
        return 1.0 / lengths
    if aggregation == "fixed":
        return lengths.new_full(lengths.shape, 1.0 / max_length)
    return lengths.new_ones(lengths.shape)


def global_count(lengths: Tensor, aggregation: Aggregation) -> Tensor:
    """The normaliser: Σ_i T_i for token-mean, the number of sequences otherwise.

    Args: `lengths` ``[B]`` of the *whole* batch. Returns a scalar tensor.
    """
    return (lengths if aggregation == "token-mean" else lengths.new_ones(lengths.shape)).sum()


def scaled_sum(sums: Tensor, lengths: Tensor, aggregation: Aggregation, max_length: int) -> Tensor:
    """Σ_i s_i scale_i: a batch's or micro-batch's share of the aggregate, to be divided by `global_count`.

    Args: `sums` Σ_t x_it ``[B]``. Returns a scalar tensor. Differentiable in `sums`.
    """
    return (sums * per_sequence_scale(lengths, aggregation, max_length)).sum()
