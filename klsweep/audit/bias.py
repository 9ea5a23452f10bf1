"""The bias table: each case's KL term against ∇KL on a tabular policy, exactly or by Monte Carlo."""

import math
from collections.abc import Callable, Sequence

import torch

from klsweep.audit.cases import Case, Row
from klsweep.audit.gradient import Source, compares, kl_moments
from klsweep.audit.reference import kl_gradient, named_gradients
from klsweep.audit.tabular import CHUNK, Batch, Tables, check_enumerable, every_sequence, sampled
from klsweep.audit.verdict import compare, verdict
from klsweep.errors import BadInput

KEPT = 2**17  # sequences whose description is kept for all rows, rather than made anew for each


def bias_table(
    tables: Tables, chosen: Sequence[Case], samples: int | None, seed: int, progress: Callable[[int], None]
) -> list[Row]:
    """A row per case: its labels, then relative_error, cosine, norm_ratio, variance, snr and verdict.

    variance: trace of the covariance of one sample's gradient; snr: ‖E g‖/√variance. With `samples`, by Monte Carlo
    over that many sequences, and with the standard error of the relative error. `progress` is told the rows done.

    BadInput if V^T is too large to enumerate, or no case can be audited on these tables.
    """
    if samples is None:
        check_enumerable(tables)
    able = [case for case in chosen if tables.sampler is not None or not case.off_policy]
    if not able:
        raise BadInput("sampling=off_policy: the policy file has no sampler table")
    refuse_group_std(able)
    target = kl_gradient(tables)[1]
    named = named_gradients(tables)
    sources = {off: _source(tables, off, samples, seed) for off in {case.off_policy for case in able}}
    rows = []
    for case in able:
        moments = kl_moments(tables, case.objective, case.betas, sources[case.off_policy])
        gradient = moments.mean.view_as(target)
        found = compare(gradient, target)
        row = {**case.labels, **vars(found), "variance": moments.variance}
        row["snr"] = gradient.norm().item() / math.sqrt(moments.variance) if moments.variance else None
        if samples is None:
            row["verdict"] = verdict(gradient, target, named, case.objective, case.off_policy)
        else:
            row |= _monte_carlo(found.relative_error, moments.variance, samples, target.norm().item())
        rows.append({key: _finite(value) for key, value in row.items()})
        progress(len(rows))
    return rows


def refuse_group_std(chosen: Sequence[Case]) -> None:
    """BadInput for charges that are divided by a group's std: alone they have no scale."""
    for case in chosen:
        if compares(case.objective) and not case.objective.algorithm.linear:
            raise BadInput(
                "placement.baseline=inside with a group's std: the KL term alone is only noise of unit scale "
                "(klsweep audit --whole audits it beside the task reward; or placement.baseline=outside)"
            )


def _source(tables: Tables, off_policy: bool, samples: int | None, seed: int) -> Source:
    if samples is not None:
        return lambda: _draw(tables, off_policy, samples, seed)
    return exact_source(tables, off_policy)


def exact_source(tables: Tables, off_policy: bool) -> Source:
    """Every sequence with its probability; few are described once and kept."""
    if tables.vocabulary**tables.length > KEPT:
        return lambda: every_sequence(tables, off_policy)
    kept = list(every_sequence(tables, off_policy))
    return lambda: kept


def _draw(tables: Tables, off_policy: bool, samples: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, CHUNK):
        batch = sampled(tables, off_policy, min(CHUNK, samples - start), generator)
        share = len(batch.weights) / samples
        yield Batch(**{**vars(batch), "weights": batch.weights * share})


def _monte_carlo(error: float | None, variance: float, samples: int, size: float) -> Row:
    """The noise floor √(variance/n)/‖∇KL‖ of a relative error, and what can be said beside it."""
    if error is None:
        return {"standard_error": None, "verdict": "undefined: the policy is the reference, ∇KL is zero"}
    noise = math.sqrt(variance / samples) / size
    found = "biased" if error > 3 * noise else "no bias seen beyond the noise"
    return {"standard_error": noise, "verdict": f"{found} ({samples} samples)"}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
