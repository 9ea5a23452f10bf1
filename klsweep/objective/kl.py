"""KL estimators: functions of a log-ratio, and the components that name them.

Throughout, ℓ = log π − log π_ref (`log_ratio`), of a token ``[B, T]`` or of a whole sequence ``[B]``, in nats, for
samples drawn from π. The target is the reverse KL, KL(π ‖ π_ref). Whether a *value* is unbiased says nothing about
its *gradient*: that depends on the placement (reward or loss) and on the level (token or sequence).

Source of the names: J. Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from klsweep.component import component


def k1(log_ratio: Tensor) -> Tensor:
    """k1 = ℓ.

    Value: unbiased, E_π[ℓ] = KL(π ‖ π_ref), of either sign. Gradient as a loss under on-policy samples: zero in
    expectation, since E_π[∇log π] = 0. Shape of the input; nats.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """k2 = ℓ²/2.

    Value: biased (equal to KL to second order in ℓ; not an f-divergence). Gradient as a loss under on-policy
    samples: ℓ·∇log π, exactly ∇KL at sequence level, its token-local part at token level. Shape of the input; nats.
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """k3 = exp(−ℓ) − 1 + ℓ.

    Value: unbiased if supp(π_ref) ⊆ supp(π), never negative. Gradient as a loss under on-policy samples: that of the
    forward KL(π_ref ‖ π) (token-local at token level), not of the reverse one. Computed with expm1, so that small ℓ
    keep their digits. Shape of the input; nats.
    """
    return torch.expm1(-log_ratio) + log_ratio


def absolute(log_ratio: Tensor) -> Tensor:
    """|ℓ|, which libraries offer as "abs".

    Value: biased, E_π|ℓ| ≥ KL. Gradient as a loss under on-policy samples: that of Σ|π − π_ref|, twice the total
    variation (token-local at token level). Shape of the input; nats.
    """
    return log_ratio.abs()


def exact_token_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_v p(v)·(log p(v) − log q(v)), exact at each position given its prefix.

    Value: unbiased for the KL of sequences if p's own policy has sampled the prefixes. Gradient as a loss: token-local,
    what a token does to later prefixes is dropped; exactly ∇KL together with its charge (`reward_and_loss`).
    Args: `log_p`, `log_q` normalised log-probabilities ``[..., V]``; −inf in `log_p` contributes 0.
    Returns: KL(p ‖ q) ``[...]`` in nats. With p = π and q = π_ref this is estimator `full`; with the two swapped,
    the forward KL of the token distributions.
    """
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


@component
class Estimator:
    """The estimator axis. `log_ratio` is any shape; `exact_kl` ``[B, T]`` is read by `full` alone.

    `gradient`: another estimator whose gradient the KL loss takes in place of this one's, of the log-ratio without its
    clip unless `clip_gradient` (see `placement.KLTerm`). `needs_distributions`: the trainer must supply `exact_kl`.
    `fixed_by_prefix`: the value at t does not depend on the token drawn at t, so that charging token t with it has zero
    mean gradient.
    """

    gradient: Literal["same", "k1", "k2", "k3", "abs"]
    clip_gradient: bool

    needs_distributions: ClassVar[bool] = False
    fixed_by_prefix: ClassVar[bool] = False

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        """The estimate, elementwise; see the function of the same name."""
        raise NotImplementedError


@component
class K1(Estimator):
    """Estimator `k1`, see `k1`."""

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        return k1(log_ratio)


@component
class K2(Estimator):
    """Estimator `k2`, see `k2`."""

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        return k2(log_ratio)


@component
class K3(Estimator):
    """Estimator `k3`, see `k3`."""

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        return k3(log_ratio)


@component
class Abs(Estimator):
    """Estimator `abs`, see `absolute`."""

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        return absolute(log_ratio)


@component
class Full(Estimator):
    """Estimator `full`, see `exact_token_kl`. Has no clip and no sequence level: it is no function of ℓ."""

    needs_distributions: ClassVar[bool] = True
    fixed_by_prefix: ClassVar[bool] = True

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        if exact_kl is None:
            raise ValueError("estimator full needs exact_kl, the KL of the token distributions")
        return exact_kl


BY_NAME: dict[str, type[Estimator]] = {"k1": K1, "k2": K2, "k3": K3, "abs": Abs, "full": Full}


def estimator_named(name: str, like: Estimator) -> Estimator:
    """The estimator that a field names, with the other fields of `like`."""
    return BY_NAME[name](gradient=like.gradient, clip_gradient=like.clip_gradient)
