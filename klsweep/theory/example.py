"""A policy small enough to enumerate, on which every part of the bound is known: how loose is it?

python -m klsweep.theory.example        # prints the table of docs/theory.md
"""

import math
from dataclasses import dataclass

import numpy as np

from klsweep.theory.bound import ClipInterval, FixedPolicyBound, fixed_policy_bound, hoeffding_alpha, paper_alpha
from klsweep.theory.clip_threshold import KLSwitchedOff, symmetric_clip
from klsweep.theory.coverage import coverage_coefficient
from klsweep.theory.inputs import Floats

DRAWS = 2000


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


def looseness(
    instance: Enumerable, prompts: int, rollouts: int, beta: float, delta: float, seed: int
) -> list[list[str]]:
    """A row per α: each term of the bound over what it bounds.

    The clip is calibrated on a batch of its own. Sampling and total are held against the (1 − δ)-quantile over draws of
    |Ĵ − EĴ| and |Ĵ − J*|, which the bound must exceed; the other two against |E(r̂ − r*)| and β|E(ℓ − ℓ^τ)|.
    """
    rng = np.random.default_rng(seed)
    calibration = instance.log_ratio_sample(prompts, rollouts, rng)
    rows = []
    for name, alpha in (
        ("paper", paper_alpha(prompts, rollouts, delta)),
        ("hoeffding", hoeffding_alpha(prompts, delta)),
    ):
        try:
            clip = symmetric_clip(calibration, alpha, prompts)
        except KLSwitchedOff as off:
            rows.append([name, str(prompts), str(rollouts), f"KL off (needs n = {off.prompts_needed})", *["–"] * 5])
            continue
        payoffs = instance.payoffs(beta, clip)
        proxies = instance.proxies(prompts, rollouts, payoffs, DRAWS, rng)
        target, expected = instance.objective(beta), instance.mean(payoffs)
        shift = abs(instance.mean(instance.predicted - instance.true))
        clipping = abs(instance.mean(instance.payoffs(beta, clip) - instance.predicted + beta * instance.log_ratios))
        bound = instance.bound(alpha, beta, clip)
        held = float((np.abs(proxies - target) <= bound.total).mean())
        pairs = [
            (bound.sampling, float(np.quantile(np.abs(proxies - expected), 1 - delta))),
            (bound.reward_shift, shift),
            (bound.clipping, clipping),
            (bound.total, float(np.quantile(np.abs(proxies - target), 1 - delta))),
        ]
        figures = [f"{value:.4f} / {real:.4f} = {value / real:.1f}" for value, real in pairs]
        rows.append([name, str(prompts), str(rollouts), f"{clip.high:.3f}", *figures, f"{held:.4f}"])
    return rows


def main() -> None:
    """Print the table."""
    from klsweep.terminal import markdown_grid

    header = ["α", "n", "K", "τ*", "sampling", "reward shift", "clipping", "total", "held"]
    instance = random_instance(seed=0)
    rows = [row for n, k in ((64, 4), (512, 16), (5000, 5)) for row in looseness(instance, n, k, 0.1, 0.05, seed=1)]
    print(markdown_grid(header, rows))


if __name__ == "__main__":
    main()
