"""Preferences between responses of behaviour policies, labelled by the true reward: what a reward model learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klsweep.model.tokens import Tokens
from klsweep.rollout.engine import joined
from klsweep.rollout.random import Stream, draws
from klsweep.tasks.reward import LearnedReward
from klsweep.training.collect import Draws
from klsweep.training.trainer import Trainer

MOST_LOGIT = 700.0  # exp of more overflows; σ of its negative is below any uniform but 0


@dataclass(frozen=True)
class Samples:
    """Responses of D_train, the mixture of the behaviour policies; a prompt's are adjacent, two by two compared."""

    tokens: Tokens  # B = N × 2·pairs
    rewards: Tensor  # [B] r*, what each is truly worth
    log_behaviour: Tensor  # [B] log D_train(y | x) = log (1/J) Σ_j π_j(y | x), nats

    def rows(self, index: Tensor) -> "Samples":
        """The same for a subset of the responses."""
        return Samples(self.tokens.rows(index), self.rewards[index], self.log_behaviour[index])

    def save(self, file: Path) -> None:
        """Write them down."""
        tensors = {field.name: getattr(self.tokens, field.name) for field in fields(Tokens)}
        tensors |= {"rewards": self.rewards, "log_behaviour": self.log_behaviour}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file)

    @classmethod
    def load(cls, file: Path, device: str) -> "Samples":
        """What `save` wrote."""
        tensors = load_file(file, device=device)
        tokens = Tokens(*(tensors[field.name] for field in fields(Tokens)))
        return cls(tokens, tensors["rewards"], tensors["log_behaviour"])


def chosen_prompts(settings: LearnedReward, pool: int) -> list[int]:
    """Which training prompts are asked, in an order of `settings.seed`; the last ones are held out."""
    order = np.argsort(draws(settings.seed, Stream.PREFERENCES, pool), kind="stable")
    return [int(place) for place in order[: settings.prompts]]


def sample_responses(
    trainer: Trainer, settings: LearnedReward, prompts: Sequence[int], models: dict[int, Path | None]
) -> Samples:
    """Ask each prompt the behaviour whose turn it is, and score each response under all of them.

    `models`: the weights of each distinct behaviour; None for the base's, with which `trainer` begins, and which come
    first.
    """
    behaviour, each = settings.behaviour, 2 * settings.pairs
    asked = {update: [i for i in range(len(prompts)) if behaviour[i % len(behaviour)] == update] for update in models}
    rollouts, order = [], []
    for update, model in models.items():
        if model is not None:
            trainer.load_model(model)
        if asked[update]:  # there may be fewer prompts than behaviours
            places = [prompts[i] for i in asked[update]]
            rollouts.append(trainer.answers(places, each, Draws(settings.seed, Stream.PREFERENCES, update)))
            order += asked[update]
    whole = joined([rollout.generation for rollout in rollouts], trainer.policy.tokenizer.pad_token_id)
    back = torch.tensor(order).argsort().repeat_interleave(each) * each + torch.arange(each).repeat(len(order))
    tokens = whole.tokens.rows(back)
    rewards = torch.cat([rollout.true_rewards for rollout in rollouts])[back]
    return Samples(tokens, rewards, _log_mixture(trainer, settings, models, tokens))


def _log_mixture(trainer: Trainer, settings: LearnedReward, models: dict[int, Path | None], tokens: Tokens) -> Tensor:
    """log Σ_j (share of j) π_j(y | x) of each response; the base is the reference."""
    found = []
    for update, model in models.items():
        if model is not None:
            trainer.load_model(model)
        scores = trainer.score(tokens)
        logprobs = scores.ref_logprobs if model is None else scores.old_logprobs
        share = settings.behaviour.count(update) / len(settings.behaviour)
        found.append(math.log(share) + logprobs.double().sum(1))
    return torch.stack(found).logsumexp(0)


def preferred_first(settings: LearnedReward, rewards: Sequence[float]) -> list[bool | None]:
    """Of each pair of adjacent responses, whether the first is preferred; None if nothing can be said (a tie)."""
    found: list[bool | None] = []
    uniforms = draws(settings.seed, Stream.LABELS, len(rewards) // 2)
    for pair, uniform in enumerate(uniforms):
        apart = rewards[2 * pair] - rewards[2 * pair + 1]
        if settings.labels == "noiseless":
            found.append(None if apart == 0 else apart > 0)
        else:
            against = min(-apart / settings.temperature, MOST_LOGIT)
            found.append(bool(uniform < 1.0 / (1.0 + math.exp(against))))
    return found
