"""How much rewards differ between prompts and between rollouts to one: one-way random effects.

r_ij = m + a_i + e_ij, a_i of variance σ²_prompt, e_ij of variance σ²_rollout, all independent. The estimates are
unbiased whatever the distributions; the intervals are exact for normal a and e, and rough for rewards of 0 and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from klsweep.theory.clip_threshold import Interval
from klsweep.theory.inputs import Floats, check_delta, groups_of


@dataclass(frozen=True)
class VarianceComponents:
    """σ²_prompt and σ²_rollout, in squared units of reward.

    `prompt` is the estimate, or 0 where that is negative (`prompt_estimate` is as it came out), `ratio_interval` that
    of σ²_prompt/σ²_rollout, which decides K*. Both intervals are None if a prompt's rollouts never differ.
    """

    prompt: float
    rollout: float
    prompt_estimate: float
    rollout_interval: Interval | None
    ratio_interval: Interval | None


def variance_components(rewards: ArrayLike | Sequence[ArrayLike], delta: float = 0.05) -> VarianceComponents:
    """The ANOVA estimates and 1 − δ intervals, from rewards ``[n, K]`` or n groups of different sizes.

    σ²_rollout = MSW, σ²_prompt = (MSB − MSW)/K₀ with K₀ = (N − Σ K_i²/N)/(n − 1). Intervals: SSW/χ²_{N−n} for
    σ²_rollout; for the ratio Wald's, from F_{n−1,N−n}, which is exact for groups of different sizes, too. Sources:
    Searle, Casella and McCulloch, Variance Components (1992), ch. 3; Wald (1940), Ann. Math. Statist. 11, 96–100.
    ValueError with fewer than two prompts, or if no prompt has two rollouts.
    """
    check_delta(delta)
    groups = groups_of("rewards", rewards)
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    n, total = len(groups), sizes.sum()
    if n < 2 or total == n:
        raise ValueError(
            f"rewards: {n} prompts, {int(total)} rollouts: needs two prompts, and two rollouts to one of them"
        )
    within = float(sum(((group - mean) ** 2).sum() for group, mean in zip(groups, means, strict=True)))
    mean = (sizes * means).sum() / total
    between = float((sizes * (means - mean) ** 2).sum())
    rollout = float(within / (total - n))
    typical = (total - (sizes**2).sum() / total) / (n - 1)
    prompt = float((between / (n - 1) - rollout) / typical)
    freedom = total - n
    spread = ratio = None
    if rollout > 0:
        tails = 1 - delta / 2, delta / 2
        spread = Interval(*(within / float(stats.chi2.ppf(p, freedom)) for p in tails))
        ratio = Interval(*(_wald(sizes, means, rollout, float(stats.f.ppf(p, n - 1, freedom))) for p in tails))
    return VarianceComponents(max(prompt, 0.0), rollout, prompt, spread, ratio)


def _wald(sizes: Floats, means: Floats, rollout: float, quantile: float) -> float:
    """The σ²_prompt/σ²_rollout at which the weighted F statistic, falling in it, is `quantile`; 0 if it is below."""

    def excess(ratio: float) -> float:
        weights = sizes / (1 + sizes * ratio)
        centre = (weights * means).sum() / weights.sum()
        return float((weights * (means - centre) ** 2).sum() / (len(means) - 1) / rollout - quantile)

    if excess(0.0) <= 0:
        return 0.0
    beyond = means.var(ddof=1) / rollout / quantile  # weights are below 1/ratio
    return float(optimize.root_scalar(excess, bracket=(0.0, beyond), xtol=1e-12 * beyond).root)
