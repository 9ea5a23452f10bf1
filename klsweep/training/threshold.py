"""The threshold of the KL clip while training: `clip=quantile` sets it from the batches before."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from klsweep.objective.clip import Clip, Half, QuantileClip
from klsweep.objective.objective import Objective
from klsweep.objective.regulariser import Betas
from klsweep.theory.bound import UNIT_REWARDS, ClipInterval, fixed_policy_bound, paper_alpha
from klsweep.theory.clip_threshold import KLSwitchedOff, symmetric_clip
from klsweep.training.metrics import Metrics


class Calibrated(NamedTuple):
    """What a calibrated clip has come to: τ, and |ℓ| of each response of the batches in its window, oldest first."""

    tau: float | None = None
    window: Sequence[Sequence[float]] = ()


class Threshold:
    """τ of the next update; None throughout for a clip that is not calibrated."""

    def __init__(self, clip: Clip, group_size: int, state: Calibrated) -> None:
        self._clip = clip if isinstance(clip, QuantileClip) else None
        self._group_size = group_size
        self.state = state

    @property
    def tau(self) -> float | None:
        """nats per sequence; None before the first."""
        return self.state.tau

    def sees(self, update: int, log_ratios: Tensor) -> str | None:
        """Set τ from the batch of an update and those before; why it is refused, if it is.

        Args: `log_ratios` ℓ of each response ``[B]``. A batch without any, as at the start, where the policy is its
        reference, does not count, nor does one that is not finite, as in an update that ends the run as diverged; nor
        is τ set before the window holds enough prompts for a quantile (2α < 1).
        """
        clip, found = self._clip, log_ratios.double().abs().tolist()
        if clip is None or not any(found) or not log_ratios.isfinite().all():
            return None
        window = [*self.state.window, found][-clip.window :]
        self.state = Calibrated(self.tau, window)
        values = np.concatenate([np.asarray(batch) for batch in window])
        prompts = len(values) // self._group_size
        alpha = paper_alpha(prompts, self._group_size, 1.0 - clip.confidence)
        if update % clip.every or 2.0 * alpha >= 1.0:
            return None
        try:
            new = symmetric_clip(values, alpha, prompts).high
        except KLSwitchedOff as reason:
            if clip.on_zero == "refuse":
                return f"update {update}: clip=quantile: {reason} (clip.on_zero=warn keeps the threshold it has)"
            print(f"warning: update {update}: clip=quantile: {reason}: kept at {self.tau}", file=sys.stderr, flush=True)
            return None
        tau = new if self.tau is None else clip.smoothing * self.tau + (1.0 - clip.smoothing) * new
        self.state = Calibrated(tau, window)
        return None

    def metrics(self, log_ratios: Tensor, rewards: Tensor, objective: Objective, betas: Betas) -> Metrics:
        """τ in use and the terms of the fixed-policy bound (`theory.bound`) on this batch; none if τ is constant.

        `bound/sampling` (1 + 2βτ)α with the paper's α for this batch's n and K, `bound/clipping` β E|ℓ − ℓ^τ|, β
        that of the clipped half. The first is left out where a reward lies outside [0, 1]; there is none of them where
        an ℓ is not finite.
        """
        clip, tau = self._clip, self.tau
        if clip is None or tau is None or not log_ratios.isfinite().all():
            return {}
        interval = ClipInterval.symmetric(tau)
        alpha = paper_alpha(len(rewards) // self._group_size, self._group_size, 1.0 - clip.confidence)
        beta = _clipped_beta(clip, objective, betas)
        bound = fixed_policy_bound(alpha, interval, beta, interval.clipped_mass(log_ratios.double().cpu().numpy()))
        metrics: Metrics = {"clip/tau": tau, "bound/alpha": alpha, "bound/clipping": bound.clipping}
        if ((rewards >= UNIT_REWARDS.low) & (rewards <= UNIT_REWARDS.high)).all():
            metrics["bound/sampling"] = bound.sampling
        return metrics


def _clipped_beta(clip: Clip, objective: Objective, betas: Betas) -> float:
    """β of the halves in which the log-ratio is clipped: the larger, since both together are the gradient of one KL."""
    placement = objective.placement
    halves: tuple[tuple[Half, bool, float], ...] = (
        ("reward", placement.in_reward, betas.reward),
        ("loss", placement.in_loss, betas.loss),
    )
    return max((beta for half, is_there, beta in halves if is_there and clip.half in ("both", half)), default=0.0)
