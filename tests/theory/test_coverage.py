"""C(θ) and the reward model's error: enumeration, known tails, known errors."""

import math

import numpy as np
import pytest

from klsweep.theory.coverage import coverage_coefficient, coverage_from_weights, reward_error, tail_index


def test_hand_case():
    assert coverage_coefficient((0.9, 0.1), (0.5, 0.5)) == pytest.approx(1.280625, abs=5e-7)
    assert coverage_coefficient((0.3, 0.7, 0.0), (0.3, 0.7, 0.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("deployed", "train", "words"),
    [
        ((0.5, 0.5), (1.0, 0.0), "deployed: mass 0.5 where train has none: C is infinite"),
        ((0.5, 0.4), (0.5, 0.5), "deployed: not a distribution"),
        ((0.5, 0.5), (1.5, -0.5), "train: not a distribution"),
        ((1.0,), (0.5, 0.5), "deployed and train: 1 and 2 probabilities"),
        ((), (), "deployed: empty"),
    ],
)
def test_what_is_no_distribution_is_refused(deployed, train, words):
    with pytest.raises(ValueError, match=words):
        coverage_coefficient(deployed, train)


def test_weights_tell_the_exact_coefficient():
    rng = np.random.default_rng(0)
    train, deployed = rng.dirichlet(np.full(20, 3.0)), rng.dirichlet(np.full(20, 3.0))
    drawn = rng.choice(20, size=200_000, p=train)
    found = coverage_from_weights(np.log(deployed / train)[drawn] + 700.0)  # only known up to a constant
    assert found.coefficient == pytest.approx(coverage_coefficient(deployed, train), rel=0.01)
    assert found.coefficient == pytest.approx(math.sqrt(found.samples / found.effective_samples))


def test_effective_samples_and_carriers_by_hand():
    found = coverage_from_weights(np.log([1.0, 1.0, 2.0]))
    assert found.effective_samples == pytest.approx(16 / 6)
    assert found.carriers == pytest.approx(36 / 18)
    assert found.coefficient == pytest.approx(math.sqrt(18 / 16))
    assert any("2.0 of 3 samples carry E w²" in text for text in found.warnings)
    assert any("too few, or too much alike, to tell the tail" in text for text in found.warnings)
    alike = coverage_from_weights(np.zeros(500))
    assert (alike.coefficient, alike.carriers, alike.tail_index, alike.warnings) == (1.0, 500.0, None, ())


@pytest.mark.parametrize(("index", "warned"), [(0.2, False), (0.35, False), (0.7, True), (1.0, True)])
def test_tail_index_of_known_tails(index, warned):
    """Pareto weights u^(−k) have the tail index k, whatever their scale."""
    weights = np.random.default_rng(7).random(50_000) ** -index
    found = coverage_from_weights(np.log(weights))
    assert found.tail_index == pytest.approx(index, abs=0.08)
    assert any("E w² seems not to exist" in text for text in found.warnings) == warned
    assert tail_index(weights * 1e-200) == pytest.approx(found.tail_index, abs=1e-3)


def test_log_normal_weights_that_a_few_samples_carry_are_warned_of():
    """σ = 4: E w² = e^16 · (E w)², far above the N = 1,000 that the estimate can reach."""
    found = coverage_from_weights(4 * np.random.default_rng(0).normal(size=1000))
    assert found.coefficient <= math.sqrt(1000)
    assert len(found.warnings) == 2
    with pytest.raises(ValueError, match="log_weights: 1 of 2 values are not finite"):
        coverage_from_weights([0.0, -math.inf])


def test_reward_error_by_hand():
    """Differences (0.1, 0.3) and (0.5, 0.1): variances with ddof 1 are 0.02 and 0.08."""
    predicted, true = np.array([[1.1, 0.3], [0.5, 0.1]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    aligned, raw = reward_error(predicted, true), reward_error(predicted, true, aligned=False)
    assert aligned.squared == pytest.approx(0.05)
    assert aligned.error == pytest.approx(math.sqrt(0.05))
    assert raw.squared == pytest.approx((0.01 + 0.09 + 0.25 + 0.01) / 4)
    half = 12.706204736 * 0.03  # t of one degree of freedom, standard error |0.08 − 0.02|/2
    assert aligned.low == 0.0
    assert aligned.high == pytest.approx(math.sqrt(0.05 + half))


def test_alignment_takes_out_offsets_and_nothing_else():
    """Offsets per prompt of any size, noise of standard deviation 0.3: √L = 0.3, and its interval covers."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        true = rng.random((60, 3))
        found = reward_error(true + 10 * rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(60, 3)), true)
        covered += found.low <= 0.3 <= found.high
    assert 0.9 <= covered / 300 <= 0.98
    exact = reward_error(true + rng.normal(size=(60, 1)) * 0, true)
    assert (exact.error, exact.low, exact.high) == (0.0, 0.0, 0.0)


def test_reward_error_refuses_what_it_cannot_tell():
    with pytest.raises(ValueError, match="true: 2 prompts, 1 responses to one: needs two prompts, and two responses"):
        reward_error([[1.0], [2.0, 3.0]], [[1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="predicted and true: differ in their prompts, or in the responses to one"):
        reward_error([[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="predicted: empty"):
        reward_error([], [])
