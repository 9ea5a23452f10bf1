"""A policy small enough to enumerate, on which every part of the bound is known: how loose is it?

python -m klsweep.theory.example        # prints the table of docs/theory.md
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from klsweep.theory.bound import AlphaName, ClipInterval, FixedPolicyBound, alpha_of, fixed_policy_bound
from klsweep.theory.clip_threshold import KLSwitchedOff, symmetric_clip
from klsweep.theory.coverage import coverage_coefficient
from klsweep.theory.inputs import Floats

DRAWS = 2000
SIZES = ((64, 4), (512, 16), (5000, 5))  # n, K
BETA, DELTA = 0.1, 0.05


@dataclass(frozen=True)
class Enumerable:
    """X prompts and Y responses. `prompts` ``[X]``; distributions over responses and rewards in [0, 1] ``[X, Y]``."""

    prompts: Floats
    policy: Floats
    reference: Floats
    behaviour: Floats  # what sampled the reward model's data
    true: Floats
    predicted: Floats

    @property
    def log_ratios(self) -> Floats:
        """ℓ = log π − log π_ref."""
        return np.log(self.policy) - np.log(self.reference)

    @property
    def joint(self) -> Floats:
        """Probability of each prompt with each response."""
        return self.prompts[:, None] * self.policy

    def mean(self, values: Floats) -> float:
        """E_{D_θ}."""
        return float((self.joint * values).sum())

    def objective(self, beta: float) -> float:
        """J* = E[r* − βℓ], exact."""
        return self.mean(self.true - beta * self.log_ratios)

    def payoffs(self, beta: float, clip: ClipInterval) -> Floats:
        """r̂ − βℓ^τ."""
        return self.predicted - beta * np.clip(self.log_ratios, -clip.low, clip.high)

    def bound(self, alpha: float, beta: float, clip: ClipInterval) -> FixedPolicyBound:
        """The bound with exact C, L_train and E|ℓ − ℓ^τ|."""
        train = self.prompts[:, None] * self.behaviour
        coverage = coverage_coefficient(self.joint.ravel(), train.ravel())
        error = math.sqrt(float((train * (self.predicted - self.true) ** 2).sum()))
        mass = self.mean(np.abs(self.log_ratios - np.clip(self.log_ratios, -clip.low, clip.high)))
        return fixed_policy_bound(alpha, clip, beta, mass, coverage, error)

    def proxies(self, prompts: int, rollouts: int, payoffs: Floats, draws: int, rng: np.random.Generator) -> Floats:
        """Ĵ of `draws` independent samples of n prompts with K rollouts each, ``[draws]``.

        Ĵ needs to know only how often each response to each prompt came: multinomial counts of multinomial counts.
        """
        asked = rng.multinomial(prompts, self.prompts, size=draws)
        total = np.zeros(draws)
        for x, share in enumerate(self.policy):
            total += rng.multinomial(rollouts * asked[:, x], share) @ payoffs[x]
        return total / (prompts * rollouts)

    def log_ratio_sample(self, prompts: int, rollouts: int, rng: np.random.Generator) -> Floats:
        """ℓ of a batch, ``[n, K]``."""
        asked = rng.choice(len(self.prompts), size=prompts, p=self.prompts)
        return np.array([rng.choice(self.log_ratios[x], size=rollouts, p=self.policy[x]) for x in asked])


def random_instance(seed: int, prompts: int = 8, responses: int = 32) -> Enumerable:
    """A policy that moved from its reference towards what a reward model likes, which is right up to some noise."""
    rng = np.random.default_rng(seed)
    shape = prompts, responses
    true = rng.random(shape)
    predicted = np.clip(true + 0.1 * rng.normal(size=shape), 0, 1)
    reference = _softmax(rng.normal(size=shape))
    policy = _softmax(np.log(reference) + 2 * predicted)
    behaviour = _softmax(np.log(reference) + predicted)
    return Enumerable(rng.dirichlet(np.full(prompts, 5.0)), policy, reference, behaviour, true, predicted)


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


class Term(NamedTuple):
    """A term of the bound, and what it bounds."""

    bound: float
    real: float

    @property
    def ratio(self) -> float:
        return self.bound / self.real


@dataclass(frozen=True)
class Looseness:
    """The bound on one instance with one α: each term beside what it bounds, and in how many draws it held."""

    threshold: float
    sampling: Term
    reward_shift: Term
    clipping: Term
    total: Term
    held: int
    draws: int


def looseness(
    instance: Enumerable, prompts: int, rollouts: int, beta: float, delta: float, seed: int
) -> dict[AlphaName, Looseness | KLSwitchedOff]:
    """For each α, the terms of the bound over what they bound, for batches of n prompts with K rollouts.

    The clip is calibrated on a batch of its own. Sampling and total are held against the (1 − δ)-quantile over draws of
    |Ĵ − EĴ| and |Ĵ − J*|, which the bound must exceed; the other two against |E(r̂ − r*)| and β|E(ℓ − ℓ^τ)|. An α whose
    threshold would be 0 has the reason instead.
    """
    rng = np.random.default_rng(seed)
    calibration = instance.log_ratio_sample(prompts, rollouts, rng)
    found: dict[AlphaName, Looseness | KLSwitchedOff] = {}
    for name in get_args(AlphaName):
        alpha = alpha_of(name, prompts, rollouts, delta)
        try:
            clip = symmetric_clip(calibration, alpha, prompts)
        except KLSwitchedOff as off:
            found[name] = off
            continue
        payoffs = instance.payoffs(beta, clip)
        proxies = instance.proxies(prompts, rollouts, payoffs, DRAWS, rng)
        found[name] = _against(instance, instance.bound(alpha, beta, clip), clip, payoffs, proxies, beta, delta)
    return found


def _against(
    instance: Enumerable,
    bound: FixedPolicyBound,
    clip: ClipInterval,
    payoffs: Floats,
    proxies: Floats,
    beta: float,
    delta: float,
) -> Looseness:
    target, expected = instance.objective(beta), instance.mean(payoffs)
    shift = abs(instance.mean(instance.predicted - instance.true))
    clipping = abs(instance.mean(payoffs - instance.predicted + beta * instance.log_ratios))
    return Looseness(
        clip.high,
        Term(bound.sampling, float(np.quantile(np.abs(proxies - expected), 1 - delta))),
        Term(bound.reward_shift, shift),
        Term(bound.clipping, clipping),
        Term(bound.total, float(np.quantile(np.abs(proxies - target), 1 - delta))),
        int((np.abs(proxies - target) <= bound.total).sum()),
        len(proxies),
    )


def table_rows(instance: Enumerable, prompts: int, rollouts: int) -> list[list[str]]:
    """Rows of the table, one per α."""
    rows = []
    for name, found in looseness(instance, prompts, rollouts, BETA, DELTA, seed=1).items():
        head = [name, str(prompts), str(rollouts)]
        if isinstance(found, KLSwitchedOff):
            rows.append([*head, f"KL off (needs n = {found.prompts_needed})", *["–"] * 5])
            continue
        terms = (found.sampling, found.reward_shift, found.clipping, found.total)
        figures = [f"{term.bound:.4f} / {term.real:.4f} = {term.ratio:.1f}" for term in terms]
        rows.append([*head, f"{found.threshold:.3f}", *figures, f"{found.held / found.draws:.4f}"])
    return rows


def main() -> None:
    """Print the table."""
    from klsweep.terminal import markdown_grid

    header = ["α", "n", "K", "τ*", "sampling", "reward shift", "clipping", "total", "held"]
    instance = random_instance(seed=0)
    rows = [row for n, k in SIZES for row in table_rows(instance, n, k)]
    print(markdown_grid(header, rows))


if __name__ == "__main__":
    main()
