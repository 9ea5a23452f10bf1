"""Which gradient each configuration takes, by enumeration of instance A; figures from an independent computation."""

import pytest
import torch

from klsweep.objective.kl import K1, K2, K3, Abs, Full
from klsweep.objective.objective import Terms
from tests.conftest import algorithm, composed, fixed_clip, no_clip, placed
from tests.objective.tabular import (
    T,
    chosen,
    distributions,
    expected_gradient,
    instance_a,
    relative_error,
    sequence_kl_gradient,
    sequences,
)

CLIPPED_REWARD = {0.5: 0.670041, 1.0: 0.378019, 2.0: 0.070440}
HARD_LOSS = {0.5: 1.006, 1.0: 0.920605, 2.0: 0.331599}

CASES = [
    (K1, placed("reward"), None, 0.0),
    (K1, placed("reward", credit="to_go"), None, 0.0),
    (K1, placed("reward", baseline="outside"), None, 0.0),
    (K1, placed("loss"), None, 1.0),
    (K1, placed("loss", level="sequence"), None, 1.0),
    (K2, placed("loss"), None, 0.212748),
    (Full, placed("loss"), None, 0.212748),
    (K2, placed("loss", level="sequence"), None, 0.0),
    (K3, placed("loss"), None, 0.244666),
    (K3, placed("loss", level="sequence"), None, 0.250976),
    (K3, placed("reward"), None, 0.927081),
    (K3, placed("reward", credit="to_go"), None, 0.927081),
    (K2, placed("reward"), None, 0.849384),
    (K1, placed("reward_and_loss"), None, 0.0),
    (K3, placed("reward_and_loss"), None, 0.0),
    (Full, placed("reward_and_loss"), None, 0.0),
    (Full, placed("reward_and_loss", credit="to_go"), None, 0.0),
    (K2, placed("reward_and_loss"), None, 0.241548),
    (Abs, placed("reward_and_loss"), None, 1.557620),
    *((K1, placed("reward"), fixed_clip(tau, "sequence"), error) for tau, error in CLIPPED_REWARD.items()),
    *(
        (K2, placed("loss", level="sequence"), fixed_clip(tau, "sequence", "straight_through"), error)
        for tau, error in CLIPPED_REWARD.items()
    ),
    *((K2, placed("loss", level="sequence"), fixed_clip(tau, "sequence"), error) for tau, error in HARD_LOSS.items()),
]


def test_the_target_itself():
    kl, gradient = sequence_kl_gradient(*instance_a())
    assert kl == pytest.approx(0.518092, abs=5e-7)
    assert gradient.norm().item() == pytest.approx(0.392448, abs=5e-7)


@pytest.mark.parametrize(("estimator", "placement", "clip", "error"), CASES)
def test_relative_error_of_the_expected_gradient(estimator, placement, clip, error):
    theta, ref = instance_a()
    objective = composed(estimator, placement, clip or no_clip(), algorithm())
    gradient = expected_gradient(objective, theta, ref)
    digits = 5e-4 if error == 1.006 else 1e-6
    assert relative_error(gradient, sequence_kl_gradient(theta, ref)[1]) == pytest.approx(error, abs=digits)


def test_k1_in_loss_has_gradient_zero_unless_the_normaliser_depends_on_the_response():
    """With a mask that ends a response at its first token 0, seq-mean weights it by 1/T_i: the gradient is not zero."""
    theta, ref = instance_a()
    y = sequences()
    mask = torch.cat([torch.ones(len(y), 1), (y[:, :-1] != 0).cumprod(1).float()], 1).double()
    sizes = {}
    for aggregation in ("seq-sum", "fixed", "seq-mean"):
        objective = composed(K1, placed("loss"), no_clip(), algorithm(aggregation=aggregation))
        logprobs = chosen(distributions(theta, y), y)
        old, ref_logprobs = logprobs.detach(), chosen(distributions(ref, y), y)
        terms = objective.terms(logprobs, old, ref_logprobs, old, torch.zeros_like(old), mask)
        weights = old.sum(1).exp()
        counts = objective.counts((weights * mask.sum(1)).sum()[None])
        loss = objective.aggregate(Terms(terms.policy * weights, terms.kl * weights), mask.sum(1), counts, T).kl
        sizes[aggregation] = torch.autograd.grad(loss, theta)[0].norm().item()
    assert sizes["seq-sum"] < 1e-15
    assert sizes["fixed"] < 1e-15
    assert sizes["seq-mean"] > 1e-2
