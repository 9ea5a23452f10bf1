"""What is logged of an update. Every figure is a plain float computed from the whole batch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from klsweep.model.parallel import ALONE, Ranks
from klsweep.model.policy import Scores
from klsweep.objective.advantage import Algorithm
from klsweep.objective.importance import Correction, importance_weight
from klsweep.objective.kl import k1, k2, k3
from klsweep.objective.objective import Objective, masked
from klsweep.objective.reduce import Aggregation, per_sequence_scale
from klsweep.objective.regulariser import Betas
from klsweep.rollout.engine import Rollout

Metrics = dict[str, float | int]


def kl_metrics(scores: Scores, mask: Tensor) -> Metrics:
    """KL(π_old ‖ π_ref) on the batch as each estimator values it, per token and per sequence (Σ_t), nats.

    The tokens are the sampler's: off policy these are values under stale samples, and no estimate of π_old's KL (k1 can
    even be negative in the mean); `eval/<suite>/kl` is, from fresh samples.

    `kl/forward_*` is the exact KL(π_ref ‖ π_old) of the token distributions at prefixes that π sampled, which is not
    the forward KL of sequences (that would need samples of the reference).
    """
    ref_log_ratio = ref_log_ratios(scores, mask)
    values = {
        "k1": k1(ref_log_ratio),
        "k2": k2(ref_log_ratio),
        "k3": k3(ref_log_ratio),
        "full": masked(scores.exact_kl, mask),
        "forward": masked(scores.forward_kl, mask),
    }
    metrics: Metrics = {}
    for name, value in values.items():
        metrics[f"kl/{name}_token"] = _token_mean(value, mask)
        metrics[f"kl/{name}_sequence"] = value.double().sum(1).mean().item()
    metrics["entropy"] = _token_mean(scores.entropy, mask)
    return metrics


def ref_log_ratios(scores: Scores, mask: Tensor) -> Tensor:
    """ℓ_t = log π_old − log π_ref of each token ``[B, T]``, 0 at masked ones; nats."""
    return masked(scores.old_logprobs - scores.ref_logprobs, mask)


def sequence_log_ratios(scores: Scores, mask: Tensor) -> Tensor:
    """ℓ = Σ_t ℓ_t of each response ``[B]``, nats."""
    return ref_log_ratios(scores, mask).sum(1)


def clip_metrics(scores: Scores, mask: Tensor, objective: Objective) -> Metrics:
    """Share of log-ratios beyond the KL clip and E|ℓ − ℓ^τ|, at the level the clip acts on; none without a clip."""
    level = objective.clip.input_level
    if level is None or not objective.has_kl:
        return {}
    if level == "sequence":
        log_ratios = sequence_log_ratios(scores, mask)
        moved = (log_ratios - objective.clip(log_ratios, level)).abs()
        return {"clip/fraction": (moved > 0).double().mean().item(), "clip/distance": moved.double().mean().item()}
    ref_log_ratio = ref_log_ratios(scores, mask)
    moved = (ref_log_ratio - objective.clip(ref_log_ratio, level)).abs()
    return {"clip/fraction": _token_mean((moved > 0).float(), mask), "clip/distance": _token_mean(moved, mask)}


def reward_metrics(rollout: Rollout, group_size: int) -> Metrics:
    """Mean and spread of rewards, the share of groups whose rewards are all equal (no signal in them), the share of
    responses that the verifier accepts, and how many it could not grade.
    """
    rewards = rollout.rewards
    groups = rewards.double().view(-1, group_size)
    return {
        "reward/mean": groups.mean().item(),
        "reward/std": rewards.double().std(correction=0).item(),
        "reward/zero_variance_groups": (groups.max(1).values == groups.min(1).values).double().mean().item(),
        "reward/correct": sum(grade.correct for grade in rollout.grades) / len(rollout.grades),
        "reward/verifier_errors": sum(grade.error is not None for grade in rollout.grades),
    }


def staleness_metrics(rollout: Rollout, scores: Scores, update: int, objective: Objective) -> Metrics:
    """How far the sampler was from the policy that trains on its tokens, and what the correction made of it.

    Sequence weights w_i = exp(Σ_t log π_old − log μ); `sampler/ess` is (Σw)²/(BΣw²), 1 when μ is π_old.
    `correction/*`: mean weight per token, and the share of tokens whose weight was truncated or masked.
    `sampler/mismatch_*`: of batches sampled from π_old's own weights, where only the engine's numbers (and top-p) are
    between μ and π_old: mean and largest |log π_old − log μ| of a token, and KL(μ ‖ π_old) per token as k3 values it.
    """
    tokens = rollout.generation.tokens
    log_weights = masked(scores.old_logprobs - rollout.generation.sampler_logprobs, tokens.mask).double()
    weights = torch.softmax(log_weights.sum(1), 0)
    own = rollout.version == update - 1
    return {
        **_correction_metrics(log_weights, tokens.mask, objective.correction),
        **(_mismatch_metrics(log_weights, tokens.mask) if own else {}),
        "sampler/lag": update - 1 - rollout.version,
        "sampler/log_ratio_abs_token": _token_mean(log_weights.abs(), tokens.mask),
        "sampler/ess": (1.0 / (len(weights) * weights.square().sum())).item(),
    }


def _mismatch_metrics(log_weights: Tensor, mask: Tensor) -> Metrics:
    return {
        "sampler/mismatch_abs_token": _token_mean(log_weights.abs(), mask),
        "sampler/mismatch_max_token": log_weights.abs().max().item(),
        "sampler/mismatch_kl_token": _token_mean(k3(-log_weights), mask),
    }


def _correction_metrics(log_weights: Tensor, mask: Tensor, correction: Correction) -> Metrics:
    if correction.level is None:
        return {}
    applied = correction(log_weights).expand_as(mask)
    changed = applied != importance_weight(log_weights, correction.level).expand_as(mask)
    return {
        "correction/weight": _token_mean(applied, mask),
        "correction/changed_fraction": _token_mean(changed.double(), mask),
    }


def length_metrics(rollout: Rollout) -> Metrics:
    """Generated tokens per response, and the share that ran into the length limit."""
    lengths = rollout.generation.tokens.lengths.double()
    return {
        "length/mean": lengths.mean().item(),
        "length/max": lengths.max().item(),
        "length/truncated": rollout.generation.truncated.double().mean().item(),
    }


def strength_metrics(betas: Betas, lengths: Tensor, objective: Objective, max_length: int) -> Metrics:
    """β of each half, and what the aggregation makes of it: β times the mean factor on a sequence's KL.

    Relative to seq-sum, where the factor is 1.
    """
    metrics: Metrics = {}
    if objective.placement.in_reward:
        scale = _mean_scale(lengths, objective.algorithm.aggregation, max_length)
        metrics |= {"beta/reward": betas.reward, "beta/reward_effective_per_sequence": betas.reward * scale}
    if objective.placement.in_loss:
        scale = _mean_scale(lengths, objective.kl_aggregation, max_length)
        metrics |= {"beta/loss": betas.loss, "beta/loss_effective_per_sequence": betas.loss * scale}
    return metrics


def _mean_scale(lengths: Tensor, aggregation: Aggregation, max_length: int) -> float:
    scale = per_sequence_scale(lengths, aggregation, max_length).double().mean().item()
    return scale / lengths.double().mean().item() if aggregation == "token-mean" else scale


class RatioStatistics:
    """PPO ratio ρ = π_θ/π_old over all tokens (or sequences, see `ratio_level`) of an update's optimiser steps."""

    def __init__(self) -> None:
        self._sum = self._clipped = self._count = 0.0
        self._max = 0.0

    def add(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, algorithm: Algorithm) -> None:
        """Count one micro-batch."""
        log_ratio = masked((logprobs - old_logprobs).detach(), mask)
        ratio = importance_weight(log_ratio, algorithm.ratio_level).double()
        counted = mask[:, : ratio.shape[1]]  # a sequence counts once, by its first token
        ratio = masked(ratio, counted)
        outside = (ratio < 1 - algorithm.clip_low) | (ratio > 1 + algorithm.clip_high)
        self._sum += ratio.sum().item()
        self._clipped += masked(outside.double(), counted).sum().item()
        self._count += counted.double().sum().item()
        self._max = max(self._max, ratio.max().item())

    def metrics(self, ranks: Ranks = ALONE) -> Metrics:
        """Mean, maximum, and share outside [1 − clip_low, 1 + clip_high], over all ranks."""
        sums = torch.tensor([self._sum, self._clipped, self._count], dtype=torch.float64)
        total, clipped, count = ranks.sum(sums).tolist()
        return {
            "ratio/mean": total / count,
            "ratio/max": ranks.max(torch.tensor(self._max, dtype=torch.float64)).item(),
            "ratio/outside_fraction": clipped / count,
        }


def divergence(metrics: Metrics, max_kl: float | None, min_reward: float | None) -> str | None:
    """Why an update counts as diverged, None if it does not."""
    checks: list[tuple[str, Callable[[float], bool], str]] = [
        ("loss", lambda v: not math.isfinite(v), "is not finite"),
        ("grad_norm", lambda v: not math.isfinite(v), "is not finite"),
        ("weights_finite", lambda v: v == 0, "(an optimiser step made weights that are not finite)"),
        ("kl/full_sequence", lambda v: max_kl is not None and not v <= max_kl, f"is beyond train.max_kl={max_kl}"),
        ("reward/mean", lambda v: min_reward is not None and v < min_reward, f"is below train.min_reward={min_reward}"),
    ]
    for name, is_bad, reason in checks:
        if is_bad(metrics[name]):
            return f"{name} = {metrics[name]:.6g} {reason}"
    return None


def _token_mean(values: Tensor, mask: Tensor) -> float:
    return (masked(values, mask).double().sum() / mask.double().sum()).item()
