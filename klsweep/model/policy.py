"""Transformers policies: loading them, and the log-probabilities of given tokens."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from klsweep.model.source import Model
from klsweep.objective.kl import exact_token_kl


@dataclass(frozen=True)
class Tokens:
    """Prompts (left-padded to P) and responses (right-padded to T) of B sequences."""

    prompt_ids: Tensor  # [B, P] int64
    prompt_mask: Tensor  # [B, P] int64, 1 on real tokens
    response_ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] float, 1 on generated tokens, end of sequence included

    def rows(self, index: Tensor | slice) -> "Tokens":
        """The same for a subset of the sequences."""
        return Tokens(self.prompt_ids[index], self.prompt_mask[index], self.response_ids[index], self.mask[index])

    @property
    def lengths(self) -> Tensor:
        """Generated tokens per sequence ``[B]``."""
        return self.mask.sum(1)


@dataclass(frozen=True)
class Scores:
    """What the trainer knows of sampled tokens before an update; all ``[B, T]``, nats, without gradient."""

    old_logprobs: Tensor
    ref_logprobs: Tensor
    exact_kl: Tensor  # KL(π_old ‖ π_ref) of the token distributions
    forward_kl: Tensor  # KL(π_ref ‖ π_old) of the token distributions, at prefixes sampled from π
    entropy: Tensor


@dataclass(frozen=True)
class Policy:
    """A loaded network, and what turns text into its tokens and back."""

    model: Model
    network: Any
    tokenizer: Any

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a response: the tokenizer's end of sequence, and what the generation config lists."""
        listed = self.network.generation_config.eos_token_id
        listed = listed if isinstance(listed, list) else [listed]
        return tuple(sorted({self.tokenizer.eos_token_id, *listed} - {None}))

    @property
    def longest(self) -> int | None:
        """Most tokens of prompt and response together that the network has positions for, None if it does not say."""
        return getattr(self.network.config, "max_position_embeddings", None)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt, as the policy is asked it."""
        return self.tokenizer(list(prompts))["input_ids"]

    def decode(self, response_ids: Tensor) -> list[str]:
        """The text of each response, without special tokens."""
        return self.tokenizer.batch_decode(response_ids, skip_special_tokens=True)

    def trainable_copy(self) -> "Policy":
        """The same policy with weights of its own that can be trained."""
        return replace(self, network=copy.deepcopy(self.network).requires_grad_(True))


def load_base(model: Model) -> Policy:
    """The frozen base, loaded once in a process that trains several runs from it."""
    return _load_base(model, model.content())


@lru_cache(maxsize=1)
def _load_base(model: Model, content: str) -> Policy:
    policy = load_policy(model)
    policy.network.requires_grad_(False)
    return policy


def load_policy(model: Model) -> Policy:
    """A policy ready to run, in evaluation mode: no dropout, sampler and trainer see the same function."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model.location, revision=model.revision, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network: Any = AutoModelForCausalLM.from_pretrained(
        model.location,
        revision=model.revision,
        dtype=getattr(torch, model.dtype),
        attn_implementation=model.attention,
        use_safetensors=True,
    )
    return Policy(model, network.to(device_of(model)).eval(), tokenizer)


def device_of(model: Model) -> str:
    """Where the model runs: its `device`, or for `auto` the GPU if there is one."""
    if model.device != "auto":
        return model.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def response_distributions(network: Any, tokens: Tokens, temperature: float) -> Tensor:
    """log π(· | prefix) at the sampling temperature, at every response position.

    Returns ``[B, T, V]`` float32 log-probabilities, differentiable in the network's weights.
    """
    length = tokens.response_ids.shape[1]
    attention = torch.cat([tokens.prompt_mask, tokens.mask.to(tokens.prompt_mask.dtype)], 1)
    logits = network(
        input_ids=torch.cat([tokens.prompt_ids, tokens.response_ids], 1),
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits[:, :-1]
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def chosen(distributions: Tensor, response_ids: Tensor) -> Tensor:
    """Log-probabilities of the given tokens: ``[B, T, V]``, ``[B, T]`` → ``[B, T]``."""
    return distributions.gather(2, response_ids[:, :, None]).squeeze(2)


@torch.no_grad()
def score(network: Any, reference: Any, tokens: Tokens, temperature: float, batch_size: int) -> Scores:
    """Old and reference log-probabilities and what the logs need of both distributions, `batch_size` rows at a time."""
    parts = []
    for rows in torch.arange(len(tokens.response_ids)).split(batch_size):
        part = tokens.rows(rows)
        old = response_distributions(network, part, temperature)
        ref = response_distributions(reference, part, temperature)
        parts.append(
            (
                chosen(old, part.response_ids),
                chosen(ref, part.response_ids),
                exact_token_kl(old, ref),
                exact_token_kl(ref, old),
                -(old.exp() * old).sum(-1),
            )
        )
    return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
