"""The `hf` engine: batched sampling from a transformers model, in this process, with a key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt, Le
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from klsweep.component import component
from klsweep.model.parallel import is_spread
from klsweep.model.policy import Policy, load_policy
from klsweep.model.source import Model
from klsweep.model.tokens import Tokens, left_padded
from klsweep.model.weights import named_weights
from klsweep.rollout.engine import Generation, joined


@component
class HF:
    """The `rollout=hf` node. `batch_size`: most sequences decoded at once, though never less than one
    prompt's samples (memory only; results do not change). `ignore_stop`: responses end at the length limit alone."""

    temperature: PositiveFloat
    top_p: Annotated[float, Gt(0), Le(1)]
    batch_size: PositiveInt
    ignore_stop: bool

    def check(self, model: Model, here: bool) -> None:
        """Nothing: wherever the policy can be trained, it can be sampled from."""

    def bind(self, policy: Policy, longest: int) -> "HFSampler":
        """A sampler that shares the trainer's weights, or has a whole copy on each rank if they are spread over ranks.

        Decoding then needs no other rank, whose responses may be longer.
        """
        stops = () if self.ignore_stop else policy.stop_ids
        trained = policy if is_spread(policy.network) else None
        network = load_policy(policy.model).network if trained else policy.network
        return HFSampler(network, policy.tokenizer.pad_token_id, stops, self.batch_size, trained)


@dataclass(frozen=True)
class HFSampler:
    """See `Sampler`. Prompts are run once each and their cache is repeated for their samples."""

    network: Any
    pad_id: int
    stop_ids: tuple[int, ...]
    batch_size: int
    trained: Policy | None = None  # whose weights `network` copies, if it does not share them

    @property
    def repeats_itself(self) -> bool:
        """See `Sampler.repeats_itself`."""
        return self.network.device.type == "cpu"

    @torch.no_grad()
    def take_weights(self) -> None:
        """Copy the weights unless they are shared."""
        if self.trained is not None:
            own = self.network.state_dict()
            for name, weight in named_weights(self.trained):
                own[name].copy_(weight)

    def rest(self) -> None:
        """Nothing to do: only a `generate` takes memory."""

    def generate(
        self, prompts: Sequence[Sequence[int]], samples: int, uniforms: np.ndarray, temperature: float, top_p: float
    ) -> Generation:
        """See `Sampler.generate`."""
        ids, mask = (x.to(self.network.device) for x in left_padded(prompts, self.pad_id))
        draws = torch.from_numpy(uniforms).to(self.network.device)
        per_call = max(1, self.batch_size // samples)
        parts = [
            self._decode(
                ids[i : i + per_call],
                mask[i : i + per_call],
                samples,
                draws[i * samples : (i + per_call) * samples],
                temperature,
                top_p,
            )
            for i in range(0, len(ids), per_call)
        ]
        return joined(parts, self.pad_id)

    @torch.no_grad()
    def _decode(
        self, ids: Tensor, mask: Tensor, samples: int, draws: Tensor, temperature: float, top_p: float
    ) -> Generation:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.network(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
        cache = out.past_key_values
        cache.batch_repeat_interleave(samples)
        logits = out.logits[:, -1].repeat_interleave(samples, 0)
        prompt_ids, prompt_mask = ids.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
        attention, position = prompt_mask, positions[:, -1:].repeat_interleave(samples, 0)
        alive = torch.ones(len(prompt_ids), dtype=torch.bool, device=ids.device)
        stops = torch.tensor(self.stop_ids, dtype=torch.int64, device=ids.device)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(draws.shape[1]):
            token, logprob = draw_tokens(logits, draws[:, step], temperature, top_p)
            token = token.where(alive, self.pad_id)
            columns.append((token, logprob.where(alive, 0.0), alive))
            alive = alive & ~torch.isin(token, stops)
            if not alive.any() or step == draws.shape[1] - 1:
                break
            attention = torch.cat([attention, columns[-1][2][:, None].to(attention.dtype)], 1)
            position = position + 1
            logits = self.network(
                input_ids=token[:, None],
                attention_mask=attention,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        response_ids, logprobs, generated = (torch.stack(column, 1) for column in zip(*columns, strict=True))
        if not logprobs.isfinite().all():
            raise FloatingPointError("the policy's probabilities are not finite")
        tokens = Tokens(prompt_ids, prompt_mask, response_ids, generated.float())
        return Generation(tokens, logprobs, alive)


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-probability under the distribution it was drawn from.

    Args: `logits` ``[B, V]``; `uniforms` ``[B]`` in [0, 1). temperature 0 takes the argmax (log-probability 0).
    top_p < 1 keeps the smallest set of likeliest tokens whose probability reaches top_p, renormalised.
    Returns: ids ``[B]``, log-probabilities ``[B]``.
    """
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits), dtype=torch.float32)
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, order = logprobs.sort(-1, descending=True)
        probabilities = ordered.exp()
        outside = (probabilities.cumsum(-1) - probabilities) >= top_p
        logprobs = logprobs.masked_fill(outside.scatter(1, order, outside), -torch.inf)
        logprobs = torch.log_softmax(logprobs, -1)
    cdf = logprobs.double().exp().cumsum(-1)
    token = torch.searchsorted(cdf, (uniforms * cdf[:, -1])[:, None], right=True).squeeze(1)
    token = token.clamp(max=logits.shape[1] - 1)  # past the end only if the probabilities are NaN; `_decode` says so
    return token, logprobs.gather(1, token[:, None]).squeeze(1)
