"""The options of the KL term and of the importance weights: each changes a number worked out by hand."""

import math

import pytest
import torch

from klsweep.objective.importance import importance_weight
from klsweep.objective.kl import K1, K2, K3, Full
from klsweep.objective.objective import Undefined, build_objective
from tests.conftest import algorithm, composed, corrected, estimating, fixed_clip, no_clip, placed, regularised

LN = math.log


def kl_loss(objective, log_ratio, over_old=0.0, over_sampler=0.0, exact=None):
    """KL loss of one sequence and its gradient with respect to log π_t, given log π/π_ref, π/π_old and π/μ."""
    ell = torch.tensor([log_ratio], dtype=torch.float64)
    logprobs = torch.zeros_like(ell).requires_grad_()
    old, sampler = (-torch.as_tensor(x, dtype=torch.float64).expand_as(ell) for x in (over_old, over_sampler))
    terms = objective.terms(logprobs, old, -ell, sampler, torch.zeros_like(ell), torch.ones_like(ell), exact)
    return terms.kl.item(), torch.autograd.grad(terms.kl.sum(), logprobs)[0][0].tolist()


def charges(objective, log_ratio):
    ell = torch.tensor([log_ratio])
    zeros, ones = torch.zeros_like(ell), torch.ones_like(ell)
    return (-objective.advantages(torch.zeros(1), ell, zeros, ones, 1.0))[0].tolist()


def test_credit_token_charges_each_token_with_its_own_value():
    assert charges(composed(K2, placed("reward", credit="token")), [1.0, 2.0, 4.0]) == [0.5, 2.0, 8.0]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"tau": 1.0}, [-1.0, 0.5, 1.0]),
        ({"tau": 1.0, "low": -2.0}, [-2.0, 0.5, 1.0]),
        ({"tau": None, "low": -0.25, "high": 2.5}, [-0.25, 0.5, 2.5]),
        ({"tau": None, "high": 0.25}, [-3.0, 0.25, 0.25]),
        ({"tau": None, "low": 0.0, "high": 2.0}, [0.0, 0.5, 2.0]),
    ],
)
def test_bounds_of_the_log_ratio(bounds, expected):
    assert charges(composed(K1, placed("reward", credit="token"), fixed_clip(**bounds)), [-3.0, 0.5, 3.0]) == expected


def test_the_output_is_clamped_and_has_no_gradient_there():
    """k2(4) = 8 → 5; k2(1) = 0.5 stays."""
    objective = composed(K2, placed("loss"), fixed_clip(None, output=5.0))
    assert kl_loss(objective, [4.0, 1.0]) == (5.5, [0.0, 1.0])
    assert charges(composed(K2, placed("reward", credit="token"), fixed_clip(None, output=5.0)), [4.0, 1.0]) == [5, 0.5]


def test_the_clamp_stage_decides_whether_the_weight_is_clamped_too():
    """k3(−3) = e³ − 4 = 16.085537 with ρ = 1.25: clamped at 10 after the weight, or at 10 and then weighted."""
    kl = regularised(weight="token", weight_grad="differentiable")
    results = {
        stage: kl_loss(
            composed(K3, placed("loss"), fixed_clip(None, output=10.0, clamp_stage=stage), kl=kl), [-3.0], LN(1.25)
        )
        for stage in ("after_weight", "before_weight")
    }
    assert results["after_weight"] == (10.0, [0.0])
    assert results["before_weight"] == (pytest.approx(12.5), [pytest.approx(12.5)])


@pytest.mark.parametrize(
    ("estimator", "clip", "value", "gradient"),
    [
        (estimating(K3), no_clip(), math.exp(-1.5) + 0.5, 1 - math.exp(-1.5)),
        (estimating(K3, "k2"), no_clip(), math.exp(-1.5) + 0.5, 1.5),
        (estimating(K1, "k3"), no_clip(), 1.5, 1 - math.exp(-1.5)),
        (estimating(K3, "k2"), fixed_clip(1.0), math.exp(-1), 1.5),
        (estimating(K3, "k2", clip_gradient=True), fixed_clip(1.0), math.exp(-1), 0.0),
        (estimating(K3, "k2", clip_gradient=True), fixed_clip(1.0, mode="straight_through"), math.exp(-1), 1.0),
        (estimating(K2, "k1"), fixed_clip(None, output=1.0), 1.0, 1.0),
    ],
)
def test_the_gradient_of_another_estimator(estimator, clip, value, gradient):
    """At ℓ = 1.5, where k3 = e^(−1.5) + 0.5; clipped at 1 it is e^(−1)."""
    assert kl_loss(composed(estimator, placed("loss"), clip), [1.5]) == (
        pytest.approx(value),
        [pytest.approx(gradient)],
    )


def test_another_gradient_at_sequence_level_is_that_of_the_sum():
    objective = composed(estimating(K1, "k2"), placed("loss", level="sequence"))
    assert kl_loss(objective, [1.0, 2.0]) == (3.0, [3.0, 3.0])


@pytest.mark.parametrize(
    ("fields", "value", "gradient"),
    [
        ({"weight": "none"}, 2.5, [1, 2]),
        ({"weight": "token"}, 7, [2, 6]),
        ({"weight": "token", "weight_over": "sampler"}, 12, [4, 10]),
        ({"weight": "token", "weight_grad": "differentiable"}, 7, [3, 12]),
        ({"weight": "token", "weight_cap": 2.5}, 6, [2, 5]),
        ({"weight": "token", "weight_cap": 2.5, "weight_grad": "differentiable"}, 6, [3, 5]),
        ({"weight": "token", "weight_over": "current", "weight_grad": "differentiable"}, 2.5, [1.5, 4]),
        ({"weight": "sequence"}, 15, [6, 12]),
        ({"weight": "sequence", "weight_over": "sampler"}, 50, [20, 40]),
        ({"weight": "sequence", "weight_grad": "differentiable"}, 15, [21, 27]),
        ({"weight": "sequence", "weight_grad": "differentiable", "weight_cap": 4.0}, 10, [4, 8]),
    ],
)
def test_weights_of_the_kl_loss(fields, value, gradient):
    """k2 of ℓ = (1, 2) is (½, 2); π/π_old = (2, 3), π/μ = (4, 5). Differentiable: w·k is added to w·ℓ."""
    objective = composed(K2, placed("loss"), kl=regularised(**fields))
    ratios = ([LN(2), LN(3)], [LN(4), LN(5)])
    assert kl_loss(objective, [1.0, 2.0], *ratios) == (pytest.approx(value), pytest.approx(gradient))


def test_a_weight_at_sequence_level():
    """k2(3) = 4.5, weight 6: 27; gradient 6·3 each."""
    objective = composed(K2, placed("loss", level="sequence"), kl=regularised(weight="sequence"))
    assert kl_loss(objective, [1.0, 2.0], [LN(2), LN(3)]) == (pytest.approx(27), pytest.approx([18, 18]))


def test_with_another_gradient_the_weight_is_on_the_gradient_alone():
    objective = composed(estimating(K1, "k2"), placed("loss"), kl=regularised(weight="token"))
    assert kl_loss(objective, [1.5], LN(2)) == (pytest.approx(1.5), [pytest.approx(3.0)])


def test_a_weight_beyond_floating_point_is_capped_without_nan():
    log_ratio = torch.tensor([[800.0]], requires_grad=True)
    weight = importance_weight(log_ratio, "token", 10.0)
    assert weight.item() == pytest.approx(10.0)
    assert torch.autograd.grad(weight, log_ratio)[0].item() == 0.0


def test_two_estimators_two_coefficients():
    """k1 in the reward, k3 in the loss, as oat has it; the clip in the loss alone."""
    objective = composed(K1, placed("reward_and_loss", loss_estimator="k3"), fixed_clip(1.0, half="loss"))
    assert charges(objective, [1.5]) == [1.5]
    assert kl_loss(objective, [1.5])[0] == pytest.approx(math.exp(-1))
    assert charges(composed(K1, placed("reward_and_loss"), fixed_clip(1.0, half="reward")), [1.5]) == [1.0]
    assert regularised(0.2, loss_coef=0.6).betas(1, 3) == (0.2, 0.6)
    moving = regularised(0.2, loss_coef=0.6, schedule="linear", final_coef=0.4, final_loss_coef=0.0)
    assert moving.betas(2, 3) == pytest.approx((0.3, 0.3))


def test_a_half_without_strength_is_not_there():
    parts = (estimating(K1), placed("reward_and_loss", loss_estimator="k3"), fixed_clip(1.0, half="loss"), algorithm())
    loss = build_objective(*parts, regularised(0.0, loss_coef=0.1), corrected())
    assert (type(loss.estimator), type(loss.placement).__name__, loss.kl.coef) == (K3, "InLoss", 0.1)
    assert loss.clip.bounds == (-1.0, 1.0)
    reward = build_objective(*parts, regularised(0.1, loss_coef=0.0), corrected())
    assert (type(reward.estimator), type(reward.placement).__name__, reward.kl.coef) == (K1, "InReward", 0.1)
    assert reward.clip == no_clip()


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (corrected(), [-1, -1, -1]),
        (corrected("truncated", cap=None), [-4, -0.25, -1.5]),
        (corrected("truncated", cap=2.0), [-2, -0.25, -1.5]),
        (corrected("masked", cap=2.0, floor=0.0), [0, -0.25, -1.5]),
        (corrected("masked", cap=4.5, floor=0.5), [-4, 0, -1.5]),
        (corrected("truncated", "sequence", cap=None), [-1.5, -1.5, -1.5]),
        (corrected("truncated", "sequence", cap=1.2), [-1.2, -1.2, -1.2]),
        (corrected("masked", "sequence", cap=1.2, floor=0.0), [0, 0, 0]),
    ],
)
def test_corrections_between_sampler_and_trainer(correction, expected):
    """π_old/μ = (4, ¼, 1.5), product 1.5; advantage 1 on one token at a time."""
    sampler = -torch.tensor([[LN(4), LN(0.25), LN(1.5)]])
    zeros = torch.zeros(1, 3)
    objective = composed(K1, placed("none"), correction=correction)
    policies = [
        objective.terms(zeros, zeros, zeros, sampler, torch.eye(3)[[t]], torch.ones(1, 3)).policy.item()
        for t in range(3)
    ]
    assert policies == pytest.approx(expected)


def test_adaptive_beta_of_the_worked_example():
    """β .1, KL 9, target 6, 256 sequences, horizon 10⁴: the error 0.5 is clipped to 0.2 → 0.100512."""
    kl = regularised(0.1, schedule="adaptive", target=6.0, horizon=1e4)
    assert kl.betas(2, 9, kl.adapted(1.0, 9.0, 256)).reward == pytest.approx(0.100512, abs=1e-9)
    assert kl.adapted(1.0, 6.6, 256) == pytest.approx(1 + 0.1 * 0.0256)
    assert kl.adapted(2.0, -50.0, 256) == pytest.approx(2 * (1 - 0.2 * 0.0256))
    assert regularised(0.1).adapted(1.0, 9.0, 256) == 1.0
    with pytest.raises(ValueError, match="negative"):
        regularised(0.1, schedule="adaptive", target=6.0, horizon=51.0).check_horizon(256)


def test_a_kl_loss_without_gradient_is_refused():
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="under no_grad it does nothing"):
        composed(K2, placed("loss")).terms(zeros, zeros, zeros, zeros, zeros, torch.ones(1, 1))


@pytest.mark.parametrize(
    ("estimator", "placement", "clip", "kl", "reason"),
    [
        (Full, placed("reward", credit="token"), no_clip(), {}, "has no gradient"),
        (Full, placed("loss"), fixed_clip(None, output=1.0), {}, "has no clip"),
        (K1, placed("reward_and_loss", loss_estimator="full"), fixed_clip(1.0), {}, "has no clip"),
        (K1, placed("reward", credit="token", baseline="inside"), no_clip(), {}, "one charge per sequence"),
        (K1, placed("reward", credit="token"), fixed_clip(1.0, "sequence"), {}, "charges once per sequence"),
        (K1, placed("reward"), no_clip(), {"weight": "token"}, "would count double"),
        (K1, placed("loss", level="sequence"), no_clip(), {"weight": "token"}, "needs a KL value per token"),
        (K1, placed("loss"), no_clip(), {"weight": "token", "weight_over": "current"}, "is the weight 1"),
    ],
)
def test_what_is_a_no_op_counts_double_or_is_undefined_is_refused(estimator, placement, clip, kl, reason):
    with pytest.raises(Undefined, match=reason):
        composed(estimator, placement, clip, kl=regularised(**kl))
