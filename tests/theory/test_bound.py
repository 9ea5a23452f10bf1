"""The fixed-policy bound: SCIENCE's numbers, units, refusals, and whether it holds where J* is known."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from klsweep.theory.bound import (
    ClipInterval,
    RewardRange,
    alpha_of,
    fixed_policy_bound,
    hoeffding_alpha,
    paper_alpha,
)
from klsweep.theory.example import Enumerable, Looseness, looseness, main, random_instance, table_rows

DRAWS = 2000


def test_alphas_are_those_worked_out_by_hand():
    assert paper_alpha(512, 16, 0.05) == pytest.approx(0.081771, abs=5e-7)
    assert 1 - 2 * paper_alpha(512, 16, 0.05) == pytest.approx(0.836, abs=5e-4)
    assert 1 - 2 * paper_alpha(5000, 5, 0.05) == pytest.approx(0.939, abs=5e-4)
    assert hoeffding_alpha(200, 0.1) == pytest.approx(math.sqrt(math.log(20) / 400))
    assert alpha_of("hoeffding", 200, 3, 0.1) == hoeffding_alpha(200, 0.1)
    assert alpha_of("paper", 200, 3, 0.1) == paper_alpha(200, 3, 0.1)


def test_terms_by_hand():
    found = fixed_policy_bound(0.1, ClipInterval(1.0, 3.0), 0.5, clipped_mass=0.2, coverage=2.0, reward_error=0.05)
    assert found.sampling == pytest.approx((1 + 0.5 * 4) * 0.1)
    assert found.reward_shift == pytest.approx(0.1)
    assert found.clipping == pytest.approx(0.1)
    assert found.total == pytest.approx(0.5)
    assert ClipInterval(1.0, 3.0).clipped_mass([[-2.0, 2.0], [5.0, -0.5]]) == pytest.approx((1 + 2) / 4)


def test_other_rewards_are_rescaled_and_come_back_in_their_own_units():
    rewards, clip = RewardRange(-2.0, 3.0), ClipInterval.symmetric(1.5)
    own = fixed_policy_bound(0.1, clip, 0.4, 0.3, 1.5, 0.6, rewards)
    unit = fixed_policy_bound(0.1, clip, 0.4 / 5, 0.3, 1.5, 0.6 / 5)  # r' = (r + 2)/5, β' = β/5
    for term in ("sampling", "reward_shift", "clipping", "total"):
        assert getattr(own, term) == pytest.approx(5 * getattr(unit, term))
    assert own.sampling == pytest.approx((5 + 2 * 0.4 * 1.5) * 0.1)
    assert rewards.to_unit([-2.0, 3.0, 0.5]).tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paper_alpha(0, 4, 0.05), "prompts=0: expected a whole number, at least 1"),
        (lambda: paper_alpha(4, 0, 0.05), "rollouts=0: expected a whole number, at least 1"),
        (lambda: paper_alpha(4, 2.5, 0.05), "rollouts=2.5: expected a whole number"),  # pyright: ignore
        (lambda: hoeffding_alpha(4, 1.0), "delta=1.0: expected a number between 0 and 1"),
        (lambda: hoeffding_alpha(4, math.nan), "delta=nan: expected a number between 0 and 1"),
        (lambda: alpha_of("tight", 4, 4, 0.1), "alpha='tight': choose from paper, hoeffding"),  # pyright: ignore
        (lambda: RewardRange().to_unit([0.0, 1.5]), r"rewards: 1 of 2 lie outside \[0, 1\]"),
        (lambda: RewardRange(1.0, 1.0), r"reward range \[1.0, 1.0\]: expected two finite numbers, the lower first"),
        (lambda: ClipInterval.symmetric(-1.0), "tau=-1.0: expected a finite number, at least 0"),
        (lambda: ClipInterval(1.0, math.inf), "tau_high=inf: expected a finite number"),
        (lambda: ClipInterval.symmetric(1.0).clipped_mass([]), "log_ratios: empty"),
        (lambda: ClipInterval.symmetric(1.0).clipped_mass([0.0, math.nan]), "log_ratios: 1 of 2 values are not finite"),
        (lambda: fixed_policy_bound(0.1, ClipInterval(1, 1), -0.1, 0.0), "beta=-0.1: expected a finite number"),
        (lambda: fixed_policy_bound(0.1, ClipInterval(1, 1), 0.1, 0.0, 0.9), "coverage=0.9: expected .* at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def noisy_instance() -> Enumerable:
    """Rewards that the prompt decides, and no reward shift: the sampling term has nothing to hide behind."""
    prompts = np.array([0.5, 0.5])
    policy = np.array([[0.5, 0.5], [0.3, 0.7]])
    reference = np.array([[0.4, 0.6], [0.5, 0.5]])
    true = np.array([[0.0, 0.0], [1.0, 1.0]])
    return Enumerable(prompts, policy, reference, policy, true, true)


SETTINGS = [  # n, K, τ, β, δ
    (8, 1, 0.3, 0.2, 0.05),
    (64, 4, 0.25, 0.2, 0.05),
    (64, 4, 1.0, 0.1, 0.2),
    (512, 16, 0.4, 0.3, 0.01),
    (300, 1, 0.5, 0.05, 0.1),
]


def held(instance: Enumerable, setting: tuple, alpha: float) -> int:
    """In how many draws the bound with this α held."""
    n, k, tau, beta, _ = setting
    clip = ClipInterval.symmetric(tau)
    proxies = instance.proxies(n, k, instance.payoffs(beta, clip), DRAWS, np.random.default_rng([n, k]))
    total = instance.bound(alpha, beta, clip).total
    return int((np.abs(proxies - instance.objective(beta)) <= total).sum())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["paper", "hoeffding"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_bound_holds_where_the_objective_is_known(setting, name, seed):
    instance = noisy_instance() if seed is None else random_instance(seed)
    n, k, delta = setting[0], setting[1], setting[4]
    assert held(instance, setting, alpha_of(name, n, k, delta)) >= (1 - delta) * DRAWS


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["paper", "hoeffding"])
def test_the_same_simulation_rejects_a_wrong_bound(setting, name):
    n, k, delta = setting[0], setting[1], setting[4]
    found = held(noisy_instance(), setting, alpha_of(name, n, k, delta) / 4)
    assert binomtest(found, DRAWS, 1 - delta, alternative="less").pvalue < 1e-6


def test_samples_of_the_example_have_its_moments():
    """Ĵ from counts of counts: mean E[r̂ − βℓ^τ], variance (Var_x E[·|x] + E Var[·|x]/K)/n, by plain loops here."""
    instance, beta, clip = random_instance(3), 0.4, ClipInterval.symmetric(0.5)
    payoffs = instance.payoffs(beta, clip)
    mean = between = within = 0.0
    conditional = []
    for x, p in enumerate(instance.prompts):
        inner = sum(instance.policy[x, y] * payoffs[x, y] for y in range(32))
        conditional.append(inner)
        mean += p * inner
        within += p * sum(instance.policy[x, y] * (payoffs[x, y] - inner) ** 2 for y in range(32))
    between = sum(p * (c - mean) ** 2 for p, c in zip(instance.prompts, conditional, strict=True))
    proxies = instance.proxies(20, 3, payoffs, 40_000, np.random.default_rng(0))
    variance = (between + within / 3) / 20
    assert instance.mean(payoffs) == pytest.approx(mean)
    assert proxies.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert proxies.var() == pytest.approx(variance, rel=0.03)
    sample = instance.log_ratio_sample(4000, 4, np.random.default_rng(0))
    assert sample.mean() == pytest.approx(instance.mean(instance.log_ratios), abs=0.02)


def test_gap_is_at_most_its_three_exact_parts():
    """Each exact part of E Ĵ − J* lies below its term, and nearly reaches it on a hand-made instance."""
    instance, clip, beta = random_instance(5), ClipInterval.symmetric(0.3), 0.7
    bound = instance.bound(0.0, beta, clip)
    shift = instance.mean(instance.predicted - instance.true)
    clipped = np.clip(instance.log_ratios, -0.3, 0.3)
    clipping = beta * instance.mean(instance.log_ratios - clipped)
    gap = instance.mean(instance.payoffs(beta, clip)) - instance.objective(beta)
    assert gap == pytest.approx(shift + clipping)
    assert abs(shift) <= bound.reward_shift
    assert abs(clipping) <= bound.clipping
    one = np.array([1.0])
    hand = Enumerable(
        one,
        np.array([[0.9, 0.1]]),
        np.array([[0.9, 0.1]]),
        np.array([[0.5, 0.5]]),
        np.zeros((1, 2)),
        np.array([[0.1, 0.3]]),
    )
    assert hand.bound(0.0, 1.0, clip).reward_shift == pytest.approx(0.286357, abs=1e-6)
    assert hand.mean(np.abs(hand.predicted - hand.true)) == pytest.approx(0.12)


def test_looseness_table_holds_what_it_says():
    found = looseness(random_instance(0), 512, 16, 0.1, 0.05, seed=1)
    assert list(found) == ["paper", "hoeffding"]
    for one in found.values():
        assert isinstance(one, Looseness)
        for term in (one.sampling, one.reward_shift, one.clipping, one.total):
            assert term.bound >= term.real
            assert term.ratio >= 1.0
        assert one.held >= 0.95 * one.draws
    assert table_rows(random_instance(0), 8, 2)[0][3].startswith("KL off (needs n = ")


def test_the_page_shows_what_the_example_prints(capsys):
    main()
    page = Path(__file__).resolve().parents[2] / "docs" / "theory.md"
    assert capsys.readouterr().out in page.read_text()
