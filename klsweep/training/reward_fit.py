"""Training a reward model on preferences, and what it gets right on prompts that it has not seen."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klsweep.model.reward_model import RewardModel, bradley_terry_loss
from klsweep.model.tokens import Tokens
from klsweep.tasks.reward import LearnedReward
from klsweep.theory.coverage import reward_error
from klsweep.training.preferences import Samples

BINS = 10  # of the calibration error
MAX_GRAD_NORM = 1.0

Report = dict[str, Any]


def fit(
    reward_model: RewardModel,
    tokens: Tokens,
    preferred: Sequence[bool | None],
    settings: LearnedReward,
    check: Callable[[], None],
) -> list[float]:
    """Minimise the Bradley–Terry loss with AdamW (no weight decay); the mean loss of each epoch, nats.

    Args: `tokens` of pairs of adjacent responses; `preferred` whether the first of each is, None for no preference.
    `check` is called before each step, and may raise. ValueError if no pair has a preference.
    """
    both = [(2 * i, 2 * i + 1) for i in range(len(preferred))]
    pairs = [pair if first else pair[::-1] for pair, first in zip(both, preferred, strict=True) if first is not None]
    if not pairs:
        raise ValueError(
            f"reward.labels={settings.labels}: none of {len(preferred)} pairs has a better response, so there is "
            "nothing to learn (reward.prompts, reward.pairs or another reward.behaviour)"
        )
    network, generator = reward_model.network, torch.Generator().manual_seed(settings.seed)
    network.requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.0)
    losses = []
    for _ in range(settings.epochs):
        total = 0.0
        for part in torch.randperm(len(pairs), generator=generator).split(settings.batch_size):
            check()
            winners, losers = zip(*(pairs[i] for i in part.tolist()), strict=True)
            scores = reward_model.scores(tokens.rows(torch.tensor([*winners, *losers])))
            loss = bradley_terry_loss(*scores.chunk(2))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            optimiser.step()
            optimiser.zero_grad()
            total += loss.item() * len(part)
        losses.append(total / len(pairs))
    network.requires_grad_(False)
    return losses


@torch.no_grad()
def report(
    reward_model: RewardModel, held_out: Samples, preferred: Sequence[bool | None], settings: LearnedReward
) -> Report:
    """What the reward model is worth on held-out prompts.

    `accuracy`: share of labelled pairs in which the preferred response has the higher score (equal ones count half);
    `true_accuracy`: the same for pairs with a truly better one; `loss` −mean log σ(Δs), nats; `calibration_error`: mean
    |confidence − accuracy| over ten equal bins of σ(|Δs|), weighted by their pairs. `error` √L_train, with its 95 %
    interval, of r̂ as it is used; `aligned_error` up to an offset per prompt, which preferences leave open.
    """
    tokens = held_out.tokens
    scores = reward_model.rewards(tokens, "raw", settings.batch_size).double()
    apart = (scores[0::2] - scores[1::2]).cpu().numpy()
    truly = (held_out.rewards[0::2] - held_out.rewards[1::2]).cpu().numpy()
    labelled = np.array([first is not None for first in preferred])
    signs = np.array([1.0 if first else -1.0 for first in preferred])
    margins = (apart * signs)[labelled]
    proxies = scores.sigmoid() if settings.output == "sigmoid" else scores
    return {
        "pairs": int(labelled.sum()),
        "accuracy": _share_right(margins),
        "true_accuracy": _share_right((apart * np.sign(truly))[truly != 0]),
        "loss": float(np.logaddexp(0.0, -margins).mean()) if labelled.any() else None,
        "calibration_error": calibration_error(margins) if labelled.any() else None,
        **_errors(proxies, held_out.rewards, 2 * settings.pairs),
    }


def calibration_error(margins: np.ndarray) -> float:
    """Σ_b (n_b/n) |mean confidence − accuracy| over bins of the confidence σ(|Δs|) in [½, 1].

    `margins`: Δs ``[n]`` of preferred and other, above 0 where right. Source: expected calibration error, Naeini et al.
    2015.
    """
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    right = np.where(margins == 0, 0.5, margins > 0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    sums = [np.bincount(bins, weights, BINS) for weights in (confidence, right)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(margins))


def _share_right(margins: np.ndarray) -> float | None:
    return float(np.where(margins == 0, 0.5, margins > 0).mean()) if len(margins) else None


def _errors(proxies: Tensor, rewards: Tensor, each: int) -> Report:
    """√L_train on held-out prompts with `each` responses, as used and aligned; null for a single prompt."""
    predicted, true = (x.double().cpu().numpy().reshape(-1, each) for x in (proxies, rewards))
    if len(true) < 2:
        return {"error": math.sqrt(float(((predicted - true) ** 2).mean())), "error_interval": None}
    used, aligned = reward_error(predicted, true, aligned=False), reward_error(predicted, true)
    return {
        "error": used.error,
        "error_interval": [used.low, used.high],
        "aligned_error": aligned.error,
        "aligned_error_interval": [aligned.low, aligned.high],
    }
