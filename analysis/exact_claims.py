"""What the papers' mathematics says, as data: of gradients, which the audit enumerates, and of bounds and budgets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from klsweep.analysis.decision import Region, Tails, share_tails
from klsweep.theory.bound import ClipInterval, fixed_policy_bound, paper_alpha
from klsweep.theory.budget import Costs, best_rollouts, sampling_rate, whole_rollouts
from klsweep.theory.clip_threshold import symmetric_clip
from klsweep.theory.coverage import coverage_coefficient
from klsweep.theory.example import BETA, DELTA, SIZES, Looseness, looseness, random_instance
from klsweep.theory.pac_bayes import pac_bayes_bound, sgd_covariance, two_level_pac_bayes_bound, union_bound

AuditRow = Mapping[str, Any]  # of `klsweep audit --json`


class Gradient(NamedTuple):
    """A claim on the expected gradient of the audit's rows with `labels`: the verdict that all of them must have."""

    finding: str
    labels: Mapping[str, Any]
    verdict: str


class Number(NamedTuple):
    """A claim on a number, to the digits given."""

    finding: str
    compute: Callable[[], float]
    said: str


class Exact(NamedTuple):
    """A row without chance: what was said, what came out."""

    finding: str
    said: str
    found: str
    agrees: bool


_PLAIN = {"clip": "none", "kl_weight": "none", "sampling": "on_policy", "gradient": "same"}
_REWARD = {**_PLAIN, "placement": "reward", "baseline": "outside", "gradient": None}
_LOSS = {**_PLAIN, "placement": "loss"}
_BOTH = {**_PLAIN, "placement": "reward_and_loss", "baseline": "outside"}
_STALE = {"sampling": "off_policy", "clip": "none"}

GRADIENTS = [
    Gradient("k1 in the reward is unbiased", {**_REWARD, "estimator": "k1", "credit": "sequence"}, "unbiased"),
    Gradient(
        "… also if a token is charged what follows it", {**_REWARD, "estimator": "k1", "credit": "to_go"}, "unbiased"
    ),
    Gradient("k1 in the loss has no gradient", {**_LOSS, "estimator": "k1"}, "zero: β only adds noise"),
    Gradient(
        "k3 in the reward is biased",
        {**_REWARD, "estimator": "k3"},
        "biased: reverse KL minus token-local forward KL",
    ),
    Gradient(
        "k3 in the loss, per token, is the forward KL's",
        {**_LOSS, "estimator": "k3", "level": "token"},
        "biased: token-local forward KL",
    ),
    Gradient(
        "k3 in the loss, of sequences, is the forward KL's",
        {**_LOSS, "estimator": "k3", "level": "sequence"},
        "biased: forward KL of sequences",
    ),
    Gradient(
        "k2 in the loss, of sequences, is unbiased", {**_LOSS, "estimator": "k2", "level": "sequence"}, "unbiased"
    ),
    Gradient("k1 in both places is unbiased", {**_BOTH, "estimator": "k1"}, "unbiased"),
    Gradient("k3 in both places is unbiased", {**_BOTH, "estimator": "k3"}, "unbiased"),
    Gradient(
        "Off policy, k1 in the reward is biased",
        {**_STALE, "estimator": "k1", "placement": "reward", "kl_weight": "none"},
        "biased: the sampler's samples, not weighted",
    ),
    Gradient(
        "… but for a sequence's importance weight",
        {**_STALE, "estimator": "k1", "placement": "reward", "kl_weight": "sequence"},
        "unbiased",
    ),
]


def audited(rows: Sequence[AuditRow]) -> list[Exact]:
    """The claims on gradients against the audit's rows; a claim without a row does not agree."""
    return [_audited(claim, rows) for claim in GRADIENTS]


def _audited(claim: Gradient, rows: Sequence[AuditRow]) -> Exact:
    fitting = [row for row in rows if all(row[key] == value for key, value in claim.labels.items())]
    agrees = bool(fitting) and all(row["verdict"] == claim.verdict for row in fitting)
    found = dict.fromkeys(f"{row['verdict']}; {row['relative_error']:.6f}" for row in fitting)
    return Exact(claim.finding, claim.verdict, " and ".join(found) or "no such row", agrees)


def _percentile(prompts: int, rollouts: int) -> float:
    return 100 * (1 - 2 * paper_alpha(prompts, rollouts, DELTA))


def _whole(ratio: float) -> float:
    costs = Costs(prefill=ratio, decode=1.0)
    return whole_rollouts(best_rollouts(costs), sampling_rate, costs)


def _excess_over_best_threshold() -> float:
    """By how much 2τα + E(|ℓ| − τ)_+ at τ* exceeds its minimum over a fine grid; a batch of 512 × 16 log-ratios."""
    prompts, rollouts = SIZES[1]
    size = np.abs(random_instance(0).log_ratio_sample(prompts, rollouts, np.random.default_rng(1)).ravel())
    alpha = paper_alpha(prompts, rollouts, DELTA)

    def cost(tau: float) -> float:
        return 2 * tau * alpha + float(np.maximum(size - tau, 0).mean())

    best = min(cost(tau) for tau in np.linspace(0, size.max(), 2001))
    return max(0.0, cost(symmetric_clip(size, alpha, prompts).high) - best)


def _sgd(row: int, column: int) -> float:
    covariance = sgd_covariance([[2, 0.5], [0.5, 1]], [[1, 0.2], [0.2, 0.5]], learning_rate=0.1, batch_size=8)
    return float(covariance[row, column])


_DEPLOYED, _TRAIN = (0.9, 0.1), (0.5, 0.5)
_ERROR = float(np.sqrt(np.dot(_TRAIN, np.square([0.1, 0.3]))))


def _reward_shift() -> float:
    coverage = coverage_coefficient(_DEPLOYED, _TRAIN)
    return fixed_policy_bound(0.0, ClipInterval.symmetric(1.0), 0.1, 0.0, coverage, _ERROR).reward_shift


N, K = SIZES[1]
NUMBERS = [
    Number("α at n = 512, K = 16, δ = 0.05", lambda: paper_alpha(N, K, DELTA), "0.081771"),
    Number("τ* is then this percentile of |ℓ|", lambda: _percentile(N, K), "83.6"),
    Number("… and this at n = 5000, K = 5", lambda: _percentile(5000, 5), "93.9"),
    Number("No threshold is better than τ*: excess over the best of a grid", _excess_over_best_threshold, "0.000000"),
    Number("K* where a prompt costs 8 times a rollout", lambda: best_rollouts(Costs(8, 1)), "4.00"),
    Number("K* where it costs 100 times as much", lambda: best_rollouts(Costs(100, 1)), "21.54"),
    Number("… as a whole number", lambda: _whole(100), "22"),
    Number("Reward shift, two responses: C(θ)", lambda: coverage_coefficient(_DEPLOYED, _TRAIN), "1.280625"),
    Number("… C(θ)√L_train", _reward_shift, "0.28636"),
    Number("… of a true |E(r̂ − r*)|", lambda: float(np.dot(_DEPLOYED, [0.1, 0.3])), "0.12"),
    Number("PAC-Bayes, KL(Q‖P) = ln 10", lambda: pac_bayes_bound(float(np.log(10)), N, DELTA), "0.090754"),
    Number("… on two levels", lambda: two_level_pac_bayes_bound(float(np.log(10)), N, K, DELTA), "0.119730"),
    Number("One of 10 policies", lambda: union_bound(10, N, DELTA), "0.076492"),
    Number("SGD's posterior: Σ₁₁", lambda: _sgd(0, 0), "0.00318452"),
    Number("… Σ₁₂", lambda: _sgd(0, 1), "-0.00023810"),
    Number("… Σ₂₂", lambda: _sgd(1, 1), "0.00324405"),
]


def computed() -> list[Exact]:
    """The claims on numbers, each to as many digits as are said."""
    rows = []
    for claim in NUMBERS:
        found = f"{claim.compute():.{len(claim.said.partition('.')[2])}f}"
        rows.append(Exact(claim.finding, claim.said, found, found == claim.said))
    return rows


class Simulated(NamedTuple):
    """In how many of the draws the bound held, by how much it exceeds what it bounds, and what that says."""

    held: int
    draws: int
    ratios: list[float]
    tails: Tails | None


HOLDS = Region(low=1 - DELTA)


def simulated() -> Simulated:
    """The fixed-policy bound, with the paper's α, on a policy whose J* is known; see `klsweep.theory.example`."""
    instance = random_instance(seed=0)
    found = [looseness(instance, n, k, BETA, DELTA, seed=1)["paper"] for n, k in SIZES]
    sizes = [one for one in found if isinstance(one, Looseness)]
    held, draws = sum(one.held for one in sizes), sum(one.draws for one in sizes)
    return Simulated(held, draws, [one.total.ratio for one in sizes], share_tails(held, draws, HOLDS))
