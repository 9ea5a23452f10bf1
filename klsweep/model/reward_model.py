"""Reward models: the base's own layers with a scalar head in place of the output head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from klsweep.model.policy import device_of
from klsweep.model.source import Model
from klsweep.model.tokens import Tokens, micro_batches

Output = Literal["sigmoid", "raw"]


@dataclass(frozen=True)
class RewardModel:
    """s(x, y): the score of a prompt with a response, read off the hidden state of its last token.

    `network` is one of transformers' sequence classification models with one label; float32.
    """

    network: Any

    def scores(self, tokens: Tokens) -> Tensor:
        """s of each sequence ``[B]``, differentiable."""
        ids, _ = tokens.aligned()
        last = tokens.widths - 1
        hidden = self.network.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return self.network.score(hidden[torch.arange(len(ids), device=ids.device), last]).squeeze(1)

    @torch.no_grad()
    def rewards(self, tokens: Tokens, output: Output, batch_size: int) -> Tensor:
        """r̂ of each sequence ``[B]``: σ(s), or s itself; `batch_size` of them at a time."""
        found = torch.empty(len(tokens.mask), device=tokens.mask.device)
        for part in micro_batches(tokens, torch.arange(len(found)), batch_size):
            found[part] = self.scores(tokens.rows(part))
        return found.sigmoid() if output == "sigmoid" else found

    def save(self, folder: Path) -> None:
        """Write it in Hugging Face format, for AutoModelForSequenceClassification."""
        self.network.save_pretrained(folder)


def new_reward_model(model: Model) -> RewardModel:
    """A reward model to train: the base's layers, and a head of zeros, so that every score is 0."""
    reward_model = _load(model.location, model, model.revision)
    torch.nn.init.zeros_(reward_model.network.score.weight)
    return reward_model


def load_reward_model(folder: Path, model: Model) -> RewardModel:
    """One that was saved, for responses of `model`, frozen."""
    reward_model = _load(str(folder), model, None)
    reward_model.network.requires_grad_(False)
    return reward_model


def _load(location: str, model: Model, revision: str | None) -> RewardModel:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the head of a base is new, and it says so at length
    try:
        network: Any = AutoModelForSequenceClassification.from_pretrained(
            location,
            revision=revision,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation=model.attention,
            use_safetensors=True,
        )
    finally:
        logging.set_verbosity(level)
    return RewardModel(network.to(device_of(model)).eval())


def bradley_terry_loss(preferred: Tensor, other: Tensor) -> Tensor:
    """−mean log σ(s_preferred − s_other) of pairs of scores ``[B]``, nats (Bradley and Terry 1952)."""
    return -torch.nn.functional.logsigmoid(preferred - other).mean()
