"""An estimator of our own."""

import torch
from torch import Tensor

from klsweep.component import component
from klsweep.objective.kl import Estimator


def huber(log_ratio: Tensor) -> Tensor:
    """ℓ²/2 where |ℓ| ≤ 1, |ℓ| − 1/2 beyond: `k2` near the reference, with a gradient that never exceeds 1.

    Biased for KL(π ‖ π_ref), as `k2` is. Shape of the input; nats.
    """
    return torch.nn.functional.huber_loss(log_ratio, torch.zeros_like(log_ratio), reduction="none", delta=1.0)


@component
class Huber(Estimator):
    """Estimator `huber`, see `huber`."""

    def __call__(self, log_ratio: Tensor, exact_kl: Tensor | None = None) -> Tensor:
        return huber(log_ratio)
