"""The synthetic study: bias and variance of Monte-Carlo gradients against the length of the response.

After "A Comedy of Estimators" (arXiv 2512.21852): a binary autoregressive policy of order 1, several rounds of samples
for each length; every configuration sees the same samples.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from klsweep.audit.bias import exact_source
from klsweep.audit.cases import Case, Row
from klsweep.audit.gradient import batch_coefficients, charges, compares, kl_moments, per_sample, without_group
from klsweep.audit.reference import kl_gradient
from klsweep.audit.show import named
from klsweep.audit.tabular import Batch, Tables, instance, sampled
from klsweep.errors import BadInput

LENGTHS = range(5, 21)
ROUNDS, SAMPLES = 200, 1000
AT_ONCE = 25  # rounds


def synthetic_study(
    chosen: Sequence[Case],
    lengths: Sequence[int],
    rounds: int,
    samples: int,
    seed: int,
    longest_exact: int,
    progress: Callable[[int], None],
) -> list[Row]:
    """A row per configuration and length.

    bias: ‖mean over rounds − ∇KL‖/‖∇KL‖, and bias_noise, what it would be on average without any bias; variance: trace
    of the covariance of a round's gradient, over ‖∇KL‖². exact_bias and exact_variance are by enumeration, up to
    `longest_exact`; distance is that of the mean from the enumerated one in standard errors (about 1 if they agree).
    BadInput for cases off policy or with a baseline inside the group.
    """
    for case in chosen:
        if case.off_policy:
            raise BadInput("sampling=off_policy: the study samples from the policy itself (sampling=on_policy)")
        if compares(case.objective):
            raise BadInput("placement.baseline=inside: the study has no groups (placement.baseline=outside)")
    rows = []
    for length in lengths:
        tables = instance(length, vocabulary=2)
        target = kl_gradient(tables)[1].flatten(0, 1)
        size = target.norm().item()
        exact = exact_source(tables, off_policy=False) if length <= longest_exact else None
        found = _rounds(tables, chosen, rounds, samples, torch.Generator().manual_seed(seed))
        for case, gradients in zip(chosen, found, strict=True):
            mean = gradients.mean(0)
            variance = (gradients - mean).square().sum().item() / (rounds - 1)
            row = {
                "length": length,
                "configuration": named(case.labels),
                "bias": (mean - target).norm().item() / size,
                "bias_noise": math.sqrt(variance / rounds) / size,
                "variance": variance / size**2,
                "exact_bias": None,
                "exact_variance": None,
                "distance": None,
            }
            if exact is not None:
                moments = kl_moments(tables, case.objective, case.betas, exact)
                row["exact_bias"] = (moments.mean - target).norm().item() / size
                row["exact_variance"] = moments.variance / samples / size**2
                error = math.sqrt(moments.variance / (samples * rounds))
                row["distance"] = (mean - moments.mean).norm().item() / error
            rows.append(row)
        progress(len(rows))
    return rows


def _rounds(
    tables: Tables, chosen: Sequence[Case], rounds: int, samples: int, generator: torch.Generator
) -> list[Tensor]:
    """Per case the mean gradient of each round, ``[rounds, T·(V + 1), V]``."""
    cells = tables.length * (tables.vocabulary + 1)
    found = [torch.zeros(rounds * cells, tables.vocabulary, dtype=torch.float64) for _ in chosen]
    for start in range(0, rounds, AT_ONCE):
        count = min(AT_ONCE, rounds - start)
        batch = sampled(tables, False, count * samples, generator)
        offset = (start + torch.arange(count)).repeat_interleave(samples)[:, None] * cells
        index = (batch.cells + offset).flatten()
        for case, total in zip(chosen, found, strict=True):
            gradient = _gradient(case, batch) / samples
            total.index_add_(0, index, gradient.flatten(0, 1))
    return [total.view(rounds, cells, tables.vocabulary) for total in found]


def _gradient(case: Case, batch: Batch) -> Tensor:
    objective = without_group(case.objective)
    return per_sample(
        batch, batch_coefficients(objective, batch, charges(objective, batch, case.betas.reward), case.betas.loss)
    )
