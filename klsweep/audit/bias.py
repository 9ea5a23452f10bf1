"""The bias table: each case's KL term against ∇KL on a tabular policy, exactly or by Monte Carlo."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from klsweep.audit.cases import Case, Row
from klsweep.audit.gradient import Source, kl_moments
from klsweep.audit.reference import kl_gradient, named_gradients
from klsweep.audit.tabular import CHUNK, Batch, Tables, check_enumerable, every_sequence, sampled
from klsweep.audit.verdict import UNDEFINED, compare, verdict
from klsweep.errors import BadInput
from klsweep.objective.clip import NO_CLIP
from klsweep.record.files import finite

SURE = 3
KEPT = 2**17  # sequences whose description is kept for all rows, rather than made anew for each


def bias_table(
    tables: Tables, chosen: Sequence[Case], samples: int | None, seed: int, progress: Callable[[int], None]
) -> list[Row]:
    """A row per case: its labels, then relative_error, cosine, norm_ratio, variance, snr and verdict.

    variance: trace of the covariance of one sample's gradient (samples that share a leave-one-out baseline are
    correlated: on policy G times the variance of their mean is larger by ‖∇KL‖²/(G − 1)); snr: ‖E g‖/√variance.
    With `samples`, by Monte Carlo over that many sequences, and with the standard error of the relative error.
    `progress` is told the rows done.

    BadInput if V^T is too large to enumerate, or no case can be audited on these tables.
    """
    if samples is None:
        check_enumerable(tables.length, tables.vocabulary, "sample them")
    able = [case for case in chosen if tables.sampler is not None or not case.off_policy]
    if not able:
        raise BadInput("sampling=off_policy: the policy file has no sampler table")
    target = kl_gradient(tables)[1]
    named = named_gradients(tables)
    sources = {off: _source(tables, off, samples, seed) for off in {case.off_policy for case in able}}
    rows = []
    for case in able:
        source = sources[case.off_policy]
        moments = kl_moments(tables, case.objective, case.betas, source)
        gradient = moments.mean.view_as(target)
        variance = moments.variance if samples is None else moments.variance * samples / (samples - 1)
        found = compare(gradient, target)
        row = {**case.labels, **vars(found), "variance": variance}
        row["snr"] = gradient.norm().item() / math.sqrt(variance) if variance else None
        if samples is None:
            unclipped = partial(_unclipped, tables, case, source)
            equal = tables.eos is None
            row["verdict"] = verdict(gradient, target, named, case.objective, case.off_policy, unclipped, equal)
        else:
            row |= _monte_carlo(found.relative_error, variance, samples, target.norm().item())
        rows.append({key: finite(value) for key, value in row.items()})
        progress(len(rows))
    return rows


def _unclipped(tables: Tables, case: Case, source: Source) -> Tensor:
    plain = dataclasses.replace(case.objective, clip=NO_CLIP)
    return kl_moments(tables, plain, case.betas, source).mean.view_as(tables.theta)


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


def _draw(tables: Tables, off_policy: bool, samples: int, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, CHUNK):
        batch = sampled(tables, off_policy, min(CHUNK, samples - start), generator)
        share = len(batch.weights) / samples
        yield Batch(**{**vars(batch), "weights": batch.weights * share})


def _monte_carlo(error: float | None, variance: float, samples: int, size: float) -> Row:
    """The noise floor √(variance/n)/‖∇KL‖ of a relative error, and what can be said beside it."""
    if error is None:
        return {"standard_error": None, "verdict": UNDEFINED}
    noise = math.sqrt(variance / samples) / size
    found = "biased, by more than" if error > SURE * noise else "no bias beyond"
    found = f"{found} {SURE} standard errors"
    found = found if variance else "undecided: no variance seen"
    return {"standard_error": noise, "verdict": f"{found} ({samples} samples)"}
