"""Estimators, clips, advantages, surrogate, aggregation and schedule against numbers worked out by hand."""

import math

import pytest
import torch

from klsweep.objective.advantage import GRPO
from klsweep.objective.clip import hard_clip, straight_through_clip
from klsweep.objective.kl import K1, K2, K3, Abs, Full, exact_token_kl
from klsweep.objective.objective import Terms, Undefined, build_objective, masked
from klsweep.objective.placement import to_go
from klsweep.objective.policy_loss import clipped_surrogate
from klsweep.objective.reduce import global_count, per_sequence_scale, scaled_sum
from tests.conftest import (
    ALGORITHMS,
    algorithm,
    composed,
    corrected,
    estimating,
    fixed_clip,
    no_clip,
    placed,
    regularised,
)


def _value_and_gradient(function, x: float) -> tuple[float, float]:
    log_ratio = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = function(log_ratio)
    return value.item(), torch.autograd.grad(value, log_ratio)[0].item()


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        (K1, -0.5, 1.0),
        (K2, 0.125, -0.5),
        (K3, math.exp(0.5) - 1.5, 1 - math.exp(0.5)),
        (Abs, 0.5, -1.0),
    ],
)
def test_estimators_at_minus_one_half(estimator, value, gradient):
    assert _value_and_gradient(estimating(estimator), -0.5) == pytest.approx((value, gradient))


def test_k3_keeps_its_digits_near_zero():
    assert _value_and_gradient(estimating(K3), 1e-6)[0] == pytest.approx(5e-13, rel=1e-4)


def test_full_is_the_sum_over_the_vocabulary():
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert exact_token_kl(p, q).item() == pytest.approx(math.log(2))
    assert estimating(Full)(torch.zeros(1), torch.tensor([3.0])).item() == 3.0
    with pytest.raises(ValueError, match="exact_kl"):
        estimating(Full)(torch.zeros(1))


def test_clipped_k3_and_k2_at_one_and_a_half():
    """ℓ = 1.5, τ = 1: hard has no gradient, straight-through keeps that of the clipped value."""
    assert _value_and_gradient(lambda x: estimating(K3)(hard_clip(x, -1.0, 1.0)), 1.5) == pytest.approx(
        (0.367879, 0.0), abs=1e-6
    )
    through = _value_and_gradient(lambda x: estimating(K3)(straight_through_clip(x, -1.0, 1.0)), 1.5)
    assert through == pytest.approx((0.367879, 0.632121), abs=1e-6)
    assert _value_and_gradient(lambda x: estimating(K2)(straight_through_clip(x, -1.0, 1.0)), 1.5) == pytest.approx(
        (0.5, 1.0)
    )


def test_a_straight_through_clip_has_exactly_the_value_of_a_hard_one():
    log_ratio = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(straight_through_clip(log_ratio, -0.7, 0.7), hard_clip(log_ratio, -0.7, 0.7))


def test_beta_zero_is_no_kl_whatever_the_other_axes_say():
    parts = (estimating(Full), placed("loss"), fixed_clip(1.0), algorithm())
    assert not build_objective(*parts, regularised(0.0), corrected()).has_kl
    with pytest.raises(Undefined):
        build_objective(*parts, regularised(0.1), corrected())


def test_a_clip_acts_at_its_own_level_only():
    token, sequence = fixed_clip(1.0, "token"), fixed_clip(1.0, "sequence")
    x = torch.tensor([-3.0, 0.5, 2.0])
    assert token(x, "token").tolist() == [-1.0, 0.5, 1.0]
    assert token(x, "sequence").tolist() == x.tolist()
    assert sequence(x, "sequence").tolist() == [-1.0, 0.5, 1.0]
    assert no_clip()(x, "token") is x


REWARDS, SUMS, BETA = torch.tensor([1.0, 0, 0, 0]).double(), torch.tensor([0.2, 0.4, 0.6, 0.8]).double(), 0.1


@pytest.mark.parametrize(
    ("name", "baseline", "expected"),
    [
        ("grpo", "inside", (1.499258, -0.461310, -0.499753, -0.538195)),
        ("grpo", "outside", (1.479997, -0.539999, -0.559999, -0.579999)),
        ("rloo", "inside", (1.04, -0.32, -0.346667, -0.373333)),
        ("rloo", "outside", (0.98, -0.373333, -0.393333, -0.413333)),
        ("dr_grpo", "inside", (0.78, -0.24, -0.26, -0.28)),
        ("reinforce", "inside", (0.98, -0.04, -0.06, -0.08)),
    ],
)
def test_kl_in_reward_through_each_advantage(name, baseline, expected):
    """One token per sequence, k1: the log-ratios are the charges Σk = (.2, .4, .6, .8)."""
    objective = composed(K1, placed("reward", baseline=baseline), no_clip(), algorithm(ALGORITHMS[name]))
    ones = torch.ones(4, 1).double()
    advantages = objective.advantages(REWARDS, SUMS[:, None], 0 * ones, ones, BETA)
    assert advantages.squeeze(1).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_group_size_decides_who_is_compared_with_whom():
    rewards = torch.tensor([1.0, 0.0, 3.0, 1.0])
    assert algorithm(ALGORITHMS["rloo"], 2).advantage(rewards).tolist() == [1.0, -1.0, 2.0, -2.0]
    assert algorithm(ALGORITHMS["dr_grpo"], 4).advantage(rewards).tolist() == [-0.25, -1.25, 1.75, -0.25]


def test_credit_to_go_charges_a_token_with_what_follows():
    values = torch.tensor([[1.0, 2.0, 4.0]])
    assert to_go(values, skip_current=False).tolist() == [[7.0, 6.0, 4.0]]
    assert to_go(values, skip_current=True).tolist() == [[6.0, 4.0, 0.0]]
    mask, zeros = torch.ones(1, 3), torch.zeros(1, 3)
    reward = torch.tensor([10.0])
    for credit, expected in (("to_go", [3.0, 4.0, 6.0]), ("sequence", [3.0, 3.0, 3.0])):
        objective = composed(K1, placed("reward", credit=credit), no_clip(), algorithm(group_size=1))
        assert objective.advantages(reward, values, zeros, mask, 1.0).tolist() == [expected]
    full = composed(Full, placed("reward", credit="to_go"), no_clip(), algorithm(group_size=1))
    assert full.advantages(reward, values, zeros, mask, 1.0, values).tolist() == [[4.0, 6.0, 10.0]]


def test_a_sequence_clip_in_reward_charges_once_per_sequence():
    """Token log-ratios (1, 2), τ = 2: k2(clip(3)) = 2, not k2(1) + k2(2) = 2.5."""
    log_ratio, zeros, mask = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), torch.ones(1, 2)
    charges = {}
    for name, clip in (("sequence", fixed_clip(2.0, "sequence")), ("token", fixed_clip(2.0)), ("none", no_clip())):
        objective = composed(K2, placed("reward"), clip, algorithm(group_size=1))
        charges[name] = -objective.advantages(torch.zeros(1), log_ratio, zeros, mask, 1.0)[0, 0].item()
    assert charges == {"sequence": 2.0, "token": 2.5, "none": 2.5}


def kl_loss(objective, log_ratio, mask) -> float:
    """The KL loss of one sequence whose sampler, old and current policy are the same."""
    zeros = torch.zeros_like(log_ratio)
    logprobs = log_ratio.clone().requires_grad_()
    return objective.terms(logprobs, log_ratio, zeros, log_ratio, zeros, mask).kl.item()


def test_loss_level_token_and_sequence():
    """k2 of token log-ratios (1, 2): ½ + 2 per token, ½·9 of the sum; a token clip at 1 acts before the sum."""
    log_ratio, mask = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)

    def kl_term(level: str, clip) -> float:
        objective = composed(K2, placed("loss", level=level), clip, algorithm(group_size=1))
        return kl_loss(objective, log_ratio, mask)

    assert kl_term("token", no_clip()) == 2.5
    assert kl_term("sequence", no_clip()) == 4.5
    assert kl_term("token", fixed_clip(1.0)) == 1.0
    assert kl_term("sequence", fixed_clip(1.0)) == 2.0
    assert kl_term("sequence", fixed_clip(1.0, "sequence")) == 0.5


def test_where_each_placement_puts_its_term():
    log_ratio, zeros, mask = torch.tensor([[0.5]]), torch.zeros(1, 1), torch.ones(1, 1)
    seen = {}
    for where in ("none", "reward", "loss", "reward_and_loss"):
        objective = composed(K1, placed(where), no_clip(), algorithm(group_size=1))
        advantage = objective.advantages(torch.ones(1), log_ratio, zeros, mask, 1.0).item()
        seen[where] = (advantage, kl_loss(objective, log_ratio, mask))
    assert seen == {"none": (1.0, 0.0), "reward": (0.5, 0.0), "loss": (1.0, 0.5), "reward_and_loss": (0.5, 0.5)}


def test_a_charge_in_the_reward_carries_no_gradient():
    logprobs = torch.tensor([[0.5]], requires_grad=True)
    objective = composed(K3, placed("reward"), no_clip(), algorithm(group_size=1))
    advantages = objective.advantages(torch.ones(1), logprobs, torch.zeros(1, 1), torch.ones(1, 1), 1.0)
    assert not advantages.requires_grad


@pytest.mark.parametrize("where", ["reward", "reward_and_loss"])
def test_a_charge_knows_nothing_of_another_estimators_gradient(where):
    """exp(100) is infinite in float32: k3 at −100 would make the charge of k1 there inf − inf."""
    objective = composed(estimating(K1, gradient="k3"), placed(where), no_clip(), algorithm(group_size=1))
    log_ratio, zeros = torch.tensor([[-100.0]]), torch.zeros(1, 1)
    assert objective.advantages(torch.ones(1), log_ratio, zeros, torch.ones(1, 1), 0.1).item() == 11.0


def test_masked_tokens_contribute_exactly_nothing():
    assert masked(torch.tensor([1.0, torch.nan, -torch.inf]), torch.tensor([1.0, 0, 0])).tolist() == [1.0, 0.0, 0.0]
    logprobs = torch.tensor([[0.5, -torch.inf]], requires_grad=True)
    objective = composed(K3, placed("loss"), no_clip(), algorithm(group_size=1))
    old, mask = logprobs.detach(), torch.tensor([[1.0, 0]])
    terms = objective.terms(logprobs, old, torch.zeros(1, 2), old, torch.ones(1, 2), mask)
    assert terms.kl.item() == pytest.approx(math.exp(-0.5) - 0.5)
    assert terms.policy.item() == -1.0
    (terms.policy + terms.kl).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-1.0 + 1 - math.exp(-0.5), 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.5, 1.0, -1.2), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.7), (1.1, 2.0, -2.2)],
)
def test_ratio_clipping_with_bounds_of_its_own(ratio, advantage, loss):
    """ε_low = 0.3, ε_high = 0.2: the ratio is clipped to [0.7, 1.2] where that lowers the gain."""
    log_ratio = torch.tensor([[math.log(ratio)]]).double()
    result = clipped_surrogate(log_ratio, torch.full((1, 1), advantage).double(), 0.3, 0.2, "token")
    assert result.item() == pytest.approx(loss)


def test_a_ratio_of_sequences_is_clipped_once():
    """Token ratios (1.5, 0.75) and (1.25, masked): the sequence ratios are 1.125, within the clip, and 1.25, beyond it.

    −1.125·2 with gradient −2.25 on both tokens, and −1.2·1 without. Per token it would be −1.2·2 − 0.75·2 with
    gradient (0, −1.5).
    """
    of = algorithm(group_size=1, clip=(0.3, 0.2), ratio_level="sequence")
    objective = composed(K1, placed("none"), no_clip(), of)
    logprobs = torch.tensor([[1.5, 0.75], [1.25, 7.0]]).double().log().requires_grad_()
    zeros, mask = torch.zeros(2, 2).double(), torch.tensor([[1.0, 1.0], [1.0, 0.0]]).double()
    advantages = torch.tensor([[2.0, 2.0], [1.0, 1.0]]).double()
    terms = objective.terms(logprobs, zeros, zeros, zeros, advantages, mask)
    assert terms.policy.tolist() == pytest.approx([-2.25, -1.2])
    terms.policy.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([-2.25, -2.25, 0.0, 0.0])


@pytest.mark.parametrize(
    ("where", "aggregation", "level", "reason"),
    [
        ("none", "token-mean", None, "algorithm.aggregation=seq-sum"),
        ("to_go", "seq-sum", None, "placement.credit=sequence"),
        ("none", "seq-sum", "token", "correction.level=sequence"),
    ],
)
def test_what_differs_from_token_to_token_has_no_ratio_of_sequences(where, aggregation, level, reason):
    placement = placed("reward", credit="to_go") if where == "to_go" else placed(where)
    correction = corrected("truncated", level) if level else corrected()
    of = algorithm(aggregation=aggregation, ratio_level="sequence")
    with pytest.raises(Undefined, match=f"one term per sequence.*{reason}"):
        composed(K1, placement, no_clip(), of, correction=correction)


def test_the_groups_standard_deviation_gets_the_algorithms_epsilon():
    """R = (1, 0): mean 0.5, std 0.707107; with ε = 0.1 the advantages are ±0.5/0.807107."""
    of = GRPO(group_size=2, clip_low=0.2, clip_high=0.2, ratio_level="token", aggregation="seq-sum", std_epsilon=0.1)
    assert of.advantage(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([0.619497, -0.619497], abs=1e-6)


def test_the_objective_clips_with_the_algorithms_own_bounds():
    """Ratios 1.5 and 0.5 clipped to [0.7, 1.1]: −min(1.5, 1.1) and −min(−0.5, −0.7)."""
    objective = composed(K1, placed("none"), no_clip(), algorithm(group_size=1, clip=(0.3, 0.1)))
    logprobs, zeros = torch.tensor([[1.5], [0.5]]).log(), torch.zeros(2, 1)
    terms = objective.terms(logprobs, zeros, zeros, zeros, torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1))
    assert terms.policy.tolist() == pytest.approx([-1.1, 0.7])


def test_aggregations_of_the_worked_example():
    """k = (.6, .3), (.5, .1, .1, .1), L_max 8."""
    sums, lengths = torch.tensor([0.9, 0.8]).double(), torch.tensor([2.0, 4.0]).double()
    expected = {"seq-sum": 0.85, "token-mean": 0.283333, "seq-mean": 0.325, "fixed": 0.10625}
    for aggregation, value in expected.items():
        count = global_count(lengths, aggregation)  # pyright: ignore
        total = scaled_sum(sums, lengths, aggregation, 8)  # pyright: ignore
        assert (total / count).item() == pytest.approx(value, abs=1e-6)
    assert per_sequence_scale(lengths, "fixed", 8).tolist() == [0.125, 0.125]


def test_policy_and_kl_are_aggregated_apart():
    """Policy (1, 2) as seq-sum: 1.5. KL (3, 5) of lengths (1, 4) as seq-mean: (3 + 1.25)/2; as token-mean: 8/5."""
    terms, lengths = Terms(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])), torch.tensor([1.0, 4.0])
    for aggregation, expected in ((None, 4.0), ("seq-mean", 2.125), ("token-mean", 1.6), ("fixed", 0.5)):
        objective = composed(K1, placed("loss"), kl=regularised(aggregation=aggregation))
        loss = objective.aggregate(terms, lengths, objective.counts(lengths), 8)
        assert (loss.policy.item(), loss.kl.item()) == pytest.approx((1.5, expected))


@pytest.mark.parametrize("aggregation", ["seq-sum", "token-mean", "seq-mean", "fixed"])
@pytest.mark.parametrize("where", ["none", "reward", "loss", "reward_and_loss"])
@pytest.mark.parametrize("estimator", [K1, K2, K3, Abs, Full])
def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches(aggregation, where, estimator):
    generator = torch.Generator().manual_seed(0)
    shape = (8, 5)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    theta = normal(*shape).requires_grad_()
    old, ref, exact_base = theta.detach() + 0.1 * normal(*shape), normal(*shape), normal(*shape).abs()
    mask = (torch.arange(5)[None, :] < torch.tensor([1, 2, 3, 4, 5, 5, 2, 1])[:, None]).double()
    rewards = normal(8)
    objective = composed(estimator, placed(where), no_clip(), algorithm(ALGORITHMS["rloo"], 4, aggregation))
    results = []
    for size in (8, 3, 1):
        exact = exact_base * theta.exp()
        advantages = objective.advantages(rewards, old, ref, mask, 0.3, exact)
        counts = objective.counts(mask.sum(1))
        loss = torch.zeros(()).double()
        for rows in torch.arange(8).split(size):
            tensors = (theta, old, ref, old, advantages, mask, exact)
            terms = objective.terms(*(tensor[rows] for tensor in tensors))
            share = objective.aggregate(terms, mask[rows].sum(1), counts, 5)
            loss = loss + share.policy + 0.3 * share.kl
        results.append((loss.item(), torch.autograd.grad(loss, theta)[0]))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-12)
        assert torch.allclose(gradient, results[0][1], atol=1e-12)
    assert results[0][1].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [("constant", [0.4, 0.4, 0.4]), ("linear", [0.4, 0.25, 0.1]), ("cosine", [0.4, 0.25, 0.1])],
)
def test_beta_over_three_updates(schedule, betas):
    kl = regularised(0.4, schedule=schedule, final_coef=0.1)
    assert [kl.betas(update, 3).reward for update in (1, 2, 3)] == pytest.approx(betas)
    assert [kl.betas(update, 3).loss for update in (1, 2, 3)] == pytest.approx(betas)


def test_a_cosine_is_not_a_line():
    line, cosine = (regularised(1.0, schedule=s) for s in ("linear", "cosine"))
    assert line.betas(2, 5).loss == pytest.approx(0.75)
    assert cosine.betas(2, 5).loss == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert line.coefficients("reward") == (1.0, 0.0)
    assert regularised(0.0, final_coef=0.5).coefficients("reward") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("estimator", "placement", "clip", "reason"),
    [
        (Full, placed("loss"), fixed_clip(1.0), "has no clip"),
        (Full, placed("loss", level="sequence"), no_clip(), "no sequence level"),
        (K1, placed("reward", credit="to_go", baseline="inside"), no_clip(), "baseline=inside"),
        (K1, placed("reward", credit="to_go"), fixed_clip(1.0, "sequence"), "charges once per sequence"),
        (K1, placed("loss"), fixed_clip(1.0, "sequence"), "placement.level=sequence"),
    ],
)
def test_meaningless_combinations_are_refused_with_the_reason(estimator, placement, clip, reason):
    with pytest.raises(Undefined, match=reason):
        composed(estimator, placement, clip)
