"""PAC-Bayes: SCIENCE's numbers, the moment inequality behind it, coverage after a choice, and SGD's covariance."""

import math

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal

from klsweep.theory.pac_bayes import (
    gaussian_kl,
    pac_bayes_bound,
    sgd_covariance,
    two_level_pac_bayes_bound,
    union_bound,
)

HESSIAN, NOISE = [[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.2], [0.2, 0.5]]


def test_hand_cases():
    assert pac_bayes_bound(math.log(10), 512, 0.05) == pytest.approx(0.090754, abs=5e-7)
    assert two_level_pac_bayes_bound(math.log(10), 512, 16, 0.05) == pytest.approx(0.119730, abs=5e-7)
    assert union_bound(10, 512, 0.05) == pytest.approx(0.076492, abs=5e-7)
    assert pac_bayes_bound(math.log(10), 512, 0.05, width=3.0) == pytest.approx(3 * 0.090754, abs=2e-6)
    assert union_bound(10, 512, 0.05, width=3.0) == pytest.approx(3 * 0.076492, abs=2e-6)


@pytest.mark.parametrize("n", [2, 3, 10, 57, 400])
def test_moment_inequality_exactly_on_binomials(n):
    """E exp(2(n − 1)Δ²) ≤ √n for means of n coin tosses, by summing over all counts."""
    counts = np.arange(n + 1)
    for p in (1e-3, 0.02, 0.1, 0.3, 0.5, 0.77, 0.99):
        error = counts / n - p
        moment = math.fsum(np.exp(binom.logpmf(counts, n, p) + 2 * (n - 1) * error**2))
        assert moment <= math.sqrt(n)
    steeper = math.fsum(np.exp(binom.logpmf(counts, n, 0.5) + 2.5 * (n - 1) * (counts / n - 0.5) ** 2))
    assert steeper > math.sqrt(n)  # the exponent has no room


@pytest.mark.parametrize("law", ["uniform", "three", "skewed", "group_means"])
@pytest.mark.parametrize("n", [2, 20, 150])
def test_moment_inequality_on_other_laws(law, n):
    """The same for sums of n values on a grid of [0, 1], by convolving their law n times; Δ²/R² has R = 1."""
    grid = np.zeros(25)
    if law == "uniform":
        grid[:] = 1 / 25
    elif law == "three":
        grid[[0, 12, 24]] = 0.45, 0.1, 0.45
    elif law == "skewed":
        grid[:] = np.exp(-np.arange(25) / 2)
        grid /= grid.sum()
    else:  # means of K = 24 tosses of a coin that is itself 0.1 or 0.9, by prompt
        grid[:] = 0.5 * binom.pmf(np.arange(25), 24, 0.1) + 0.5 * binom.pmf(np.arange(25), 24, 0.9)
    law_of_sum = np.array([1.0])
    for _ in range(n):
        law_of_sum = np.convolve(law_of_sum, grid)
    error = np.arange(len(law_of_sum)) / 24 / n - float(np.arange(25) @ grid) / 24
    moment = math.fsum(law_of_sum * np.exp(2 * (n - 1) * error**2))
    assert 1.0 <= moment <= math.sqrt(n)


def test_bounds_hold_for_the_policy_that_looks_best():
    """Of 50 equal coins the luckiest is chosen: each bound holds in ≥ 1 − δ of 2,000 draws, half of it does not."""
    n, delta = 100, 0.05
    means = np.random.default_rng(0).binomial(n, 0.5, size=(2000, 50)) / n
    gap = np.abs(means.max(1) - 0.5)
    for bound in (pac_bayes_bound(math.log(50), n, delta), union_bound(50, n, delta)):
        assert (gap <= bound).mean() >= 1 - delta
        assert (gap <= bound / 2).mean() < 0.5


def test_gaussian_kl_against_monte_carlo_and_by_hand():
    assert gaussian_kl([1.0], [[4.0]], [0.0], [[1.0]]) == pytest.approx(0.5 * (4 + 1 - 1 - math.log(4)))
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 3, 3))
    first, second = (root @ root.T + np.eye(3) for root in roots)
    mean, prior = rng.normal(size=(2, 3))
    draws = rng.multivariate_normal(mean, first, size=200_000)
    ratios = multivariate_normal(mean, first).logpdf(draws) - multivariate_normal(prior, second).logpdf(draws)
    assert gaussian_kl(mean, first, prior, second) == pytest.approx(ratios.mean(), abs=4 * ratios.std() / 447)
    assert gaussian_kl(mean, first, mean, first) == pytest.approx(0.0, abs=1e-12)


def test_sgd_covariance_hand_case_and_equations():
    eta, b = 0.1, 8
    drift, noise = np.array(HESSIAN), np.array(NOISE)
    found = sgd_covariance(HESSIAN, NOISE, eta, b)
    assert found == pytest.approx(np.array([[0.00318452, -0.00023810], [-0.00023810, 0.00324405]]), abs=5e-9)
    assert drift @ found + found @ drift.T == pytest.approx(eta / b * noise)
    found = sgd_covariance(HESSIAN, NOISE, eta, b, discrete=True)
    assert drift @ found + found @ drift.T - eta * drift @ found @ drift.T == pytest.approx(eta / b * noise)
    turned = np.array([[1.0, 2.0], [-2.0, 1.0]])  # a drift that is not symmetric: A and Aᵀ in their places
    found = sgd_covariance(turned, NOISE, eta, b)
    assert turned @ found + found @ turned.T == pytest.approx(eta / b * noise)


def test_discrete_covariance_is_that_of_sgd():
    """θ ← θ − η(Aθ + e), e of covariance C/b: many chains, run until they are stationary."""
    rng, eta, b = np.random.default_rng(0), 0.3, 4
    drift, chains = np.array(HESSIAN), np.zeros((40_000, 2))
    root = np.linalg.cholesky(np.array(NOISE) / b)
    for _ in range(120):
        chains = chains - eta * (chains @ drift.T + rng.normal(size=chains.shape) @ root.T)
    exact = sgd_covariance(HESSIAN, NOISE, eta, b, discrete=True)
    assert np.cov(chains.T) == pytest.approx(exact, abs=0.02 * exact.max())
    assert np.abs(sgd_covariance(HESSIAN, NOISE, eta, b) - exact).max() > 0.1 * exact.max()  # the limit of small steps


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pac_bayes_bound(1.0, 1, 0.05), "prompts=1: expected a whole number, at least 2"),
        (lambda: pac_bayes_bound(-1.0, 10, 0.05), "kl=-1.0: expected a finite number, at least 0"),
        (lambda: pac_bayes_bound(math.inf, 10, 0.05), "kl=inf: expected a finite number"),
        (lambda: two_level_pac_bayes_bound(1.0, 10, 0, 0.05), "rollouts=0: expected a whole number"),
        (lambda: union_bound(0, 10, 0.05), "policies=0: expected a whole number"),
        (lambda: union_bound(1, 10, 0.0), "delta=0.0: expected a number between 0 and 1"),
        (
            lambda: gaussian_kl([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], [0.0, 0.0], np.eye(2)),
            r"^covariance: not positive definite \(least eigenvalue -1\)",
        ),
        (lambda: gaussian_kl([0.0], [[1.0]], [0.0], [[0.0]]), "prior_covariance: not positive definite"),
        (lambda: gaussian_kl([0.0], np.eye(2), [0.0], [[1.0]]), r"covariance: expected shape \[1, 1\], got \[2, 2\]"),
        (lambda: gaussian_kl([0.0], [[1.0]], [0.0, 0.0], [[1.0]]), "prior_mean: 2 entries, the mean has 1"),
        (lambda: sgd_covariance(HESSIAN, [[1.0, 0.0], [0.5, 1.0]], 0.1, 8), "gradient_covariance: not symmetric"),
        (lambda: sgd_covariance(HESSIAN, [[1.0, 2.0], [2.0, 1.0]], 0.1, 8), "gradient_covariance: not positive def"),
        (lambda: sgd_covariance([[1.0, 0.0], [0.0, -0.5]], NOISE, 0.1, 8), "hessian: unstable drift.* real part -0.5"),
        (lambda: sgd_covariance(HESSIAN, NOISE, 1.0, 8, True), "learning_rate=1: unstable drift, .* size 1.2"),
        (lambda: sgd_covariance([[1.0, 2.0]], NOISE, 0.1, 8), r"hessian: expected a square matrix, got shape \[1, 2\]"),
        (lambda: sgd_covariance([[math.nan]], [[1.0]], 0.1, 8), "hessian: 1 of 1 values are not finite"),
        (lambda: sgd_covariance(HESSIAN, NOISE, 0.0, 8), "learning_rate=0.0: expected a finite number above 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
