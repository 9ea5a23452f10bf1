"""The reward-shift term: the reward model's error, and how far the policy has left the data it was trained on.

E_{D_θ}|r̂ − r*| ≤ C(θ) √L_train, by Cauchy and Schwarz, with C(θ) = √(1 + χ²(D_θ ‖ D_train)) = √(E_{D_train} w²),
w = dD_θ/dD_train, and L_train = E_{D_train}(r̂ − r*)².
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from klsweep.theory.inputs import Floats, check_delta, finite_array, groups_of

TAIL_LIMIT = 0.5  # a generalised Pareto tail of index k has a second moment only below
FEWEST_CARRIERS = 10  # samples: with fewer, E w² is uncertain by more than about 1/√10, a third
FEWEST_IN_TAIL = 10


def coverage_coefficient(deployed: ArrayLike, train: ArrayLike) -> float:
    """C = √(Σ_i p_i²/q_i), exact, of two distributions over the same finite set.

    ValueError where the deployed one has mass and the other has none: C is infinite, and the bound says nothing.
    """
    p, q = finite_array("deployed", deployed), finite_array("train", train)
    for name, found in (("deployed", p), ("train", q)):
        if (found < 0).any() or abs(found.sum() - 1) > 1e-9:
            raise ValueError(f"{name}: not a distribution (sum {found.sum():g}, least {found.min():g})")
    if len(p) != len(q):
        raise ValueError(f"deployed and train: {len(p)} and {len(q)} probabilities")
    if lost := p[q == 0].sum():
        raise ValueError(f"deployed: mass {lost:g} where train has none: C is infinite")
    held = q > 0
    return max(1.0, math.sqrt(float((p[held] ** 2 / q[held]).sum())))  # below 1 by rounding only


@dataclass(frozen=True)
class Coverage:
    """C as importance weights tell it, and whether to believe it.

    `effective_samples` ESS = (Σw)²/Σw²; `carriers` (Σw²)²/Σw⁴, how many samples carry Σw² (N if all weigh alike);
    `tail_index` k of the largest weights (None if they do not differ, or are too few).
    """

    coefficient: float
    samples: int
    effective_samples: float
    carriers: float
    tail_index: float | None
    warnings: tuple[str, ...]


def coverage_from_weights(log_weights: ArrayLike) -> Coverage:
    """C = √(N/ESS) from log w_i = log D_θ − log D_train (up to a constant) at N samples of D_train, self-normalised.

    The estimate is at most √N, whatever the truth, so it comes with the tail index k of a generalised Pareto law fitted
    (scipy, maximum likelihood) to the min(N/5, 3√N) largest weights, as PSIS does (Vehtari et al., arXiv 1507.02646):
    from k ≥ 0.5 on E w² does not exist as far as the sample tells. Warns then, and if few samples carry the sum.
    """
    logs = finite_array("log_weights", log_weights)
    weights = np.exp(logs - logs.max())
    squares = float((weights**2).sum())
    effective = min(float(weights.sum() ** 2) / squares, float(len(logs)))  # above N by rounding only
    carriers = squares**2 / float((weights**4).sum())
    tail = tail_index(weights)
    warnings = []
    if tail is not None and tail >= TAIL_LIMIT:
        warnings.append(f"tail index k = {tail:.2f} ≥ {TAIL_LIMIT}: E w² seems not to exist, C means nothing")
    if carriers < FEWEST_CARRIERS:
        warnings.append(f"{carriers:.1f} of {len(logs)} samples carry E w²: C may be far too small")
    if tail is None and weights.min() < weights.max():
        warnings.append(f"{len(logs)} samples are too few, or too much alike, to tell the tail of the weights")
    return Coverage(math.sqrt(len(logs) / effective), len(logs), effective, carriers, tail, tuple(warnings))


def tail_index(weights: ArrayLike) -> float | None:
    """k of a generalised Pareto law fitted to what the min(N/5, 3√N) largest weights exceed the next one by.

    None with fewer than ten different ones.
    """
    ordered = np.sort(finite_array("weights", weights))
    size = min(len(ordered) // 5, math.ceil(3 * math.sqrt(len(ordered))))
    if size < FEWEST_IN_TAIL:
        return None
    above = ordered[-size:] - ordered[-size - 1]
    above = above[above > 0]
    if len(np.unique(above)) < FEWEST_IN_TAIL:
        return None
    from scipy import stats  # half a second to import, which no other run needs

    return float(stats.genpareto.fit(above / above.mean(), floc=0)[0])  # k does not depend on the scale


@dataclass(frozen=True)
class RewardError:
    """√L_train with its interval, units of reward; `squared` is L_train."""

    error: float
    low: float
    high: float
    squared: float
    prompts: int


def reward_error(
    predicted: ArrayLike | Sequence[ArrayLike],
    true: ArrayLike | Sequence[ArrayLike],
    aligned: bool = True,
    delta: float = 0.05,
) -> RewardError:
    """√L_train = √(E(r̂ − r*)²) on held-out samples of D_train, ``[n, K]`` or n groups of different sizes.

    Bradley–Terry fixes r̂ up to an offset b(x) per prompt. `aligned` takes it out: L = E_x Var(r̂ − r* | x), each
    prompt's variance with ddof 1, so that L is unbiased (prompts with a single response are refused). The bound then is
    on r̂ − b. Without it L = E(r̂ − r*)². The interval is Student's t over prompts, which are the independent units; its
    lower end is cut at 0. Use samples the reward model was not trained on: its training error is too small.
    """
    check_delta(delta)
    guesses, truths = groups_of("predicted", predicted), groups_of("true", true)
    if [len(group) for group in guesses] != [len(group) for group in truths]:
        raise ValueError("predicted and true: differ in their prompts, or in the responses to one")
    least, prompts = min(map(len, truths)), len(truths)
    if prompts < 2 or (aligned and least < 2):
        need = "two responses to each" if aligned else "one response to each"
        raise ValueError(f"true: {prompts} prompts, {least} responses to one: needs two prompts, and {need}")
    apart = [guess - truth for guess, truth in zip(guesses, truths, strict=True)]
    errors: Floats = np.array([group.var(ddof=1) if aligned else (group**2).mean() for group in apart])
    squared = float(errors.mean())
    low, high = squared, squared
    if errors.min() < errors.max():
        from scipy import stats

        low, high = stats.ttest_1samp(errors, 0).confidence_interval(1 - delta)
    ends = [math.sqrt(max(float(end), 0.0)) for end in (low, high)]
    return RewardError(math.sqrt(squared), ends[0], ends[1], squared, prompts)
