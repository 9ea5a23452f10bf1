"""How to spend a budget: prompts, rollouts per prompt, and preference data for the reward model.

n prompts with K rollouts each cost n(c_prefill + K c_decode), in any one unit (seconds, tokens, money). What is
minimised is a criterion of (n, K): `sampling_rate`, which the paper's α is proportional to, `prompts_rate`, which the
other α is, or `variance_of_mean`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from klsweep.theory.inputs import Floats, check_not_negative, check_positive
from klsweep.theory.variance import VarianceComponents

Number = TypeVar("Number", float, Floats)
Criterion = Callable[[Floats, Floats], Floats]  # of n and K, falling in both
MOST = 10**7  # values of n or K looked at one by one: budgets of up to its square in rollouts
SLACK = 1e-12  # relative: 3 × 0.1 is within a budget of 0.3


@dataclass(frozen=True)
class Costs:
    """Cost of reading a prompt once, and of one rollout to it, in one unit."""

    prefill: float
    decode: float

    def __post_init__(self) -> None:
        check_not_negative("cost_prefill", self.prefill)
        check_positive("cost_decode", self.decode)

    def of_prompt(self, rollouts: Number) -> Number:
        """A prompt with its rollouts."""
        return self.prefill + rollouts * self.decode

    def prompts_within(self, budget: float, rollouts: Floats) -> Floats:
        """The most whole prompts that a budget pays for."""
        return budget * (1 + SLACK) // self.of_prompt(rollouts)


EQUAL_COSTS = Costs(prefill=0.0, decode=1.0)  # only rollouts are counted


def sampling_rate(prompts: Floats, rollouts: Floats) -> Floats:
    """(1 + 1/√K)/√n, the paper's α without its constant √(log(4/δ)/2)."""
    return (1 + 1 / np.sqrt(rollouts)) / np.sqrt(prompts)


def prompts_rate(prompts: Floats, rollouts: Floats) -> Floats:
    """1/√n, `hoeffding_alpha` without its constant: it falls with n only, so K* = 1."""
    return 1 / np.sqrt(prompts)


def variance_of_mean(components: VarianceComponents) -> Criterion:
    """Var[(1/nK) Σ r] = (σ²_prompt + σ²_rollout/K)/n, exact for independent prompts and, given them, rollouts."""
    return lambda prompts, rollouts: (components.prompt + components.rollout / rollouts) / prompts


def best_rollouts(costs: Costs) -> float:
    """K* = max{1, (c_prefill/c_decode)^(2/3)}, the real K that minimises `sampling_rate` at n = budget/cost.

    1 for equal costs. Closed form: the derivative of log(1 + K^(−1/2)) + ½ log(c_prefill + K c_decode) vanishes where
    K^(3/2) = c_prefill/c_decode, and changes its sign there only.
    """
    return max(1.0, (costs.prefill / costs.decode) ** (2 / 3))


def best_rollouts_by_variance(costs: Costs, components: VarianceComponents) -> float:
    """K* = max{1, √(c_prefill/c_decode · σ²_rollout/σ²_prompt)}, the real minimiser of `variance_of_mean`.

    Infinite if prompts do not differ (σ²_prompt = 0) while reading one costs something: then spend on few prompts.
    """
    if components.rollout == 0 or costs.prefill == 0:
        return 1.0
    if components.prompt == 0:
        return math.inf
    return max(1.0, math.sqrt(costs.prefill / costs.decode * components.rollout / components.prompt))


def whole_rollouts(optimum: float, criterion: Criterion, costs: Costs) -> int:
    """The better of floor and ceiling of a real K*, with n = budget/cost left real: right for large budgets.

    Valid for criteria that fall to a single minimum and rise again along that curve, as both here do.
    """
    if not math.isfinite(optimum):
        raise ValueError("K* is infinite: prompts do not differ, and no whole number is best without a budget")
    near = np.array([math.floor(optimum), math.ceil(optimum)], dtype=np.float64)
    return int(near[np.argmin(criterion(1 / costs.of_prompt(near), near))])


class Allocation(NamedTuple):
    """Whole numbers within a budget, the criterion's value there, and what they cost."""

    prompts: int
    rollouts: int
    value: float
    spent: float


def best_allocation(criterion: Criterion, costs: Costs, budget: float) -> Allocation:
    """The exact minimum over whole n, K ≥ 1 with n(c_prefill + K c_decode) ≤ budget; of equals the cheapest.

    The criterion falls in n and in K. With root = √(budget/c_decode), n·K ≤ root², so the best pair has K ≤ root and
    the most prompts that leaves, or n ≤ root and the most rollouts: those are all looked at. ValueError if the budget
    does not pay for one rollout, or pays for more than 10^14.
    """
    check_positive("budget", budget)
    if budget * (1 + SLACK) < costs.of_prompt(1):
        raise ValueError(f"budget={budget:g}: less than one prompt with one rollout costs, {costs.of_prompt(1):g}")
    root = math.ceil(math.sqrt(budget / costs.decode))
    if root > MOST:
        raise ValueError(
            f"budget={budget:g}: pays for more than {MOST**2:.0e} rollouts, too many to find the best n, K"
        )
    few = np.arange(1, root + 1, dtype=np.float64)
    most = np.floor((budget * (1 + SLACK) / few - costs.prefill) / costs.decode)
    prompts = np.concatenate([few, costs.prompts_within(budget, few)])
    rollouts = np.concatenate([most, few])
    kept = (prompts >= 1) & (rollouts >= 1)
    prompts, rollouts = prompts[kept], rollouts[kept]
    values, spent = criterion(prompts, rollouts), prompts * costs.of_prompt(rollouts)
    best = np.lexsort((spent, values))[0]
    return Allocation(int(prompts[best]), int(rollouts[best]), float(values[best]), float(spent[best]))


class Split(NamedTuple):
    """A budget over evaluation and preference data; terms in units of reward.

    `least` is the value of the best real-valued split: no whole numbers can have a smaller total.
    """

    prompts: int
    rollouts: int
    preferences: int
    sampling: float
    reward_shift: float
    spent: float
    least: float

    @property
    def total(self) -> float:
        return self.sampling + self.reward_shift


def best_split(costs: Costs, preference: float, budget: float, sampling_scale: float, shift_scale: float) -> Split:
    """Split a budget n(c_prefill + K c_decode) + m·c_preference between rollouts and m preference pairs.

    Minimises sampling_scale·(1 + 1/√K)/√n + shift_scale/√m. With S spent on rollouts and M = budget − S on preferences
    this is A/√S + D/√M, minimal at S/M = (A/D)^(2/3), A = sampling_scale·(1 + 1/√K*)√(c_prefill + K* c_decode),
    D = shift_scale·√c_preference. In whole numbers: m rounded down or up, n and K exact for what is left, what then
    remains goes into m; near the optimum, not proved to be it (compare `total` with `least`).

    The rate √L_train = κ/√m of the reward model's error is an assumption of ours, the parametric one for a model class
    that contains the true reward; the paper leaves it open. From one measured error: κ = √L·√m.
    Args: `preference` c_preference; `sampling_scale` (1 + 2βτ)√(log(4/δ)/2), of rewards of width 1; `shift_scale` C·κ.
    """
    for name, value in (("cost_preference", preference), ("sampling_scale", sampling_scale)):
        check_positive(name, value)
    check_positive("shift_scale", shift_scale)
    check_positive("budget", budget)
    if budget * (1 + SLACK) < costs.of_prompt(1) + preference:
        raise ValueError(
            f"budget={budget:g}: less than one rollout and one preference cost, {costs.of_prompt(1) + preference:g}"
        )
    rollouts = best_rollouts(costs)
    sampling = sampling_scale * (1 + 1 / math.sqrt(rollouts)) * math.sqrt(costs.of_prompt(rollouts))
    shift = shift_scale * math.sqrt(preference)
    spend = budget / (1 + (sampling / shift) ** (2 / 3))  # on preferences
    least = sampling / math.sqrt(budget - spend) + shift / math.sqrt(spend)
    most = math.floor((budget * (1 + SLACK) - costs.of_prompt(1)) / preference)
    tried = {min(max(1, count), most) for count in (math.floor(spend / preference), math.ceil(spend / preference))}
    found = []
    for count in sorted(tried):
        allocation = best_allocation(sampling_rate, costs, budget - count * preference)
        pairs = max(count, math.floor((budget * (1 + SLACK) - allocation.spent) / preference))
        terms = sampling_scale * allocation.value, shift_scale / math.sqrt(pairs)
        spent = allocation.spent + pairs * preference
        found.append(Split(allocation.prompts, allocation.rollouts, pairs, *terms, spent, least))
    return min(found, key=lambda split: split.total)
