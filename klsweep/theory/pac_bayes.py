"""PAC-Bayes: bounds for policies that were chosen by looking at the sample.

Q is a distribution over policies that may depend on the sample, P one that may not. Rewards are in [0, 1] and ℓ is
clipped to [−τ, τ], so a payoff r̂ − βℓ^τ has the range R = 1 + 2βτ. A policy's rollouts come from common noise,
y = G(θ, x, U), so that one sample of (x, U) serves all policies. With probability ≥ 1 − δ, for all Q at once,

    |E_Q[Ĵ − J^τ]| ≤ R √((KL(Q‖P) + log(√n/δ)) / (2(n − 1))),        n ≥ 2.

Behind it: Δ, the error of a mean of n independent values of range R, is sub-Gaussian (Hoeffding), so
E exp(2(n − 1)Δ²/R²) ≤ √n. Reward shift and clipping add as in `bound`. KL in nats, R in units of reward.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from klsweep.theory.inputs import Floats, check_count, check_delta, check_not_negative, check_positive, finite_array


def pac_bayes_bound(kl: float, prompts: int, delta: float, width: float = 1.0) -> float:
    """R √((KL + log(√n/δ)) / (2(n − 1))): the provable form, on the n group means. Units of reward.

    Args: `kl` KL(Q ‖ P), nats; `width` R = 1 + β(τ_lo + τ_hi).
    """
    check_not_negative("kl", kl)
    check_count("prompts", prompts, 2)
    check_delta(delta)
    check_positive("width", width)
    return width * math.sqrt((kl + math.log(math.sqrt(prompts) / delta)) / (2 * (prompts - 1)))


def two_level_pac_bayes_bound(kl: float, prompts: int, rollouts: int, delta: float, width: float = 1.0) -> float:
    """Prompts and rollouts apart, as in the paper: `pac_bayes_bound` at n plus that at nK, each with δ/2. Looser."""
    check_count("rollouts", rollouts)
    levels = (prompts, prompts * rollouts)
    return sum(pac_bayes_bound(kl, count, delta / 2, width) for count in levels)


def union_bound(policies: int, prompts: int, delta: float, width: float = 1.0) -> float:
    """R √(log(2M/δ)/(2n)): Hoeffding for each of M policies fixed beforehand, so it holds for whichever is chosen."""
    check_count("policies", policies)
    check_count("prompts", prompts)
    check_delta(delta)
    check_positive("width", width)
    return width * math.sqrt(math.log(2 * policies / delta) / (2 * prompts))


def gaussian_kl(mean: ArrayLike, covariance: ArrayLike, prior_mean: ArrayLike, prior_covariance: ArrayLike) -> float:
    """KL(N(m, Σ) ‖ N(m₀, Λ)) = ½[tr Λ⁻¹Σ + (m − m₀)ᵀΛ⁻¹(m − m₀) − d + log|Λ|/|Σ|], nats.

    ValueError for shapes that do not fit, and for a covariance that is not symmetric positive definite.
    """
    centre, prior_centre = finite_array("mean", mean), finite_array("prior_mean", prior_mean)
    dimension = len(centre)
    factor = _cholesky("covariance", covariance, dimension)
    prior = _cholesky("prior_covariance", prior_covariance, dimension)
    if len(prior_centre) != dimension:
        raise ValueError(f"prior_mean: {len(prior_centre)} entries, the mean has {dimension}")
    spread = linalg.solve_triangular(prior, factor, lower=True)
    shift = linalg.solve_triangular(prior, centre - prior_centre, lower=True)
    logs = 2 * (np.log(np.diag(prior)).sum() - np.log(np.diag(factor)).sum())
    return 0.5 * float((spread**2).sum() + shift @ shift - dimension + logs)


def sgd_covariance(
    hessian: ArrayLike, gradient_covariance: ArrayLike, learning_rate: float, batch_size: int, discrete: bool = False
) -> Floats:
    """Stationary covariance Σ of constant-step SGD around a minimum, as an Ornstein–Uhlenbeck process.

    AΣ + ΣAᵀ = (η/b)C, or with `discrete` AΣ + ΣAᵀ − ηAΣAᵀ = (η/b)C, exact for θ ← θ − η(Aθ + noise of covariance C/b).
    A is the Hessian of the loss that is minimised, C the covariance of a single example's gradient, b the examples per
    step. Source: Mandt, Hoffman, Blei 2017 (arXiv 1704.04289), sec. 3. Q = N(θ̂, Σ) then goes into `gaussian_kl`.
    ValueError for a C that is not symmetric positive definite, and for an unstable A: an eigenvalue whose real part is
    not positive, or (`discrete`) an eigenvalue of 1 − ηA outside the unit circle.
    """
    check_positive("learning_rate", learning_rate)
    check_count("batch_size", batch_size)
    drift = finite_array("hessian", hessian, (2,))
    if drift.shape[0] != drift.shape[1]:
        raise ValueError(f"hessian: expected a square matrix, got shape {list(drift.shape)}")
    dimension = len(drift)
    _cholesky("gradient_covariance", gradient_covariance, dimension)
    noise = np.asarray(gradient_covariance, dtype=np.float64) * learning_rate / batch_size
    least = float(np.linalg.eigvals(drift).real.min())
    if least <= 0:
        raise ValueError(f"hessian: unstable drift, an eigenvalue has the real part {least:g} (all must be above 0)")
    if not discrete:
        return linalg.solve_continuous_lyapunov(drift, noise)
    step = np.eye(dimension) - learning_rate * drift
    largest = float(np.abs(np.linalg.eigvals(step)).max())
    if largest >= 1:
        raise ValueError(
            f"learning_rate={learning_rate:g}: unstable drift, 1 − ηA has an eigenvalue of size {largest:g} "
            "(all must be below 1)"
        )
    return linalg.solve_discrete_lyapunov(step, learning_rate * noise)


def _cholesky(name: str, matrix: ArrayLike, dimension: int) -> Floats:
    """The lower factor of a symmetric positive definite matrix."""
    found = finite_array(name, matrix, (2,))
    if found.shape != (dimension, dimension):
        raise ValueError(f"{name}: expected shape {[dimension] * 2}, got {list(found.shape)}")
    if not np.allclose(found, found.T, rtol=1e-9, atol=1e-12 * np.abs(found).max()):
        raise ValueError(f"{name}: not symmetric")
    try:
        return linalg.cholesky(found, lower=True)
    except linalg.LinAlgError:
        least = float(linalg.eigvalsh(found).min())
        raise ValueError(f"{name}: not positive definite (least eigenvalue {least:g})") from None
