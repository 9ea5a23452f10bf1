"""Log-probabilities the plain way, from whole logits of left-padded prompts: what production code is compared with."""

from typing import Any

import torch
from torch import Tensor

from klsweep.model.tokens import Tokens


def response_distributions(network: Any, tokens: Tokens, temperature: float) -> Tensor:
    """log π(· | prefix) at every response position ``[B, T, V]``."""
    attention = torch.cat([tokens.prompt_mask, tokens.mask.to(tokens.prompt_mask.dtype)], 1)
    logits = network(
        input_ids=torch.cat([tokens.prompt_ids, tokens.response_ids], 1),
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).logits[:, tokens.prompt_ids.shape[1] - 1 : -1]
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def chosen(distributions: Tensor, response_ids: Tensor) -> Tensor:
    """Log-probabilities of the given tokens: ``[B, T, V]``, ``[B, T]`` → ``[B, T]``."""
    return distributions.gather(2, response_ids[:, :, None]).squeeze(2)
