"""What a rollout engine offers: responses sampled from a policy, with the log-probabilities they were sampled at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from klsweep.model.parallel import moved
from klsweep.model.policy import Policy
from klsweep.model.source import Model
from klsweep.model.tokens import Tokens
from klsweep.tasks.base import Grade


@dataclass(frozen=True)
class Generation:
    """Sampled sequences. `sampler_logprobs` are of the distribution really sampled: after temperature and top-p."""

    tokens: Tokens
    sampler_logprobs: Tensor  # [B, T], 0 where mask is 0
    truncated: Tensor  # [B] bool: no end of sequence within the allowed length


class Responder(Protocol):
    """What responds to prompts."""

    def generate(
        self, prompts: Sequence[Sequence[int]], samples: int, uniforms: np.ndarray, temperature: float, top_p: float
    ) -> Generation:
        """`samples` responses to each prompt (token ids), a prompt's samples adjacent; temperature 0 is greedy.

        A response ends with the first of the policy's stop ids.

        `uniforms` ``[prompts × samples, max new tokens]``: one draw per token (inverse CDF); its width is the
        length limit. FloatingPointError if the policy's probabilities are not finite.
        """
        ...


class Sampler(Responder, Protocol):
    """An engine bound to a policy, from whose weights `generate` samples."""

    @property
    def repeats_itself(self) -> bool:
        """True if equal weights and draws give equal bits; else rollouts are kept, so that none is sampled twice."""
        ...

    def take_weights(self) -> None:
        """Sample from the policy's weights as they are at the next `generate`; to be called after they have changed."""
        ...

    def rest(self) -> None:
        """Give memory back while the policy is trained; the next `generate` takes it again."""
        ...


class Engine(Protocol):
    """The `rollout` node: says how to sample, and binds itself to a loaded policy.

    `longest`: tokens of the longest prompt and its longest response together.
    """

    temperature: float
    top_p: float

    def check(self, model: Model, here: bool) -> None:
        """BadInput if a run could not sample from this model with it; `here`: on this machine, with its devices."""
        ...

    def bind(self, policy: Policy, longest: int) -> Sampler: ...


@dataclass(frozen=True)
class Rollout:
    """The batch of one update: generations, the prompts they answer, and the weights they came from."""

    update: int
    version: int  # updates done when it was sampled
    prompts: list[int]  # index of each prompt in the task's training set, [N]
    generation: Generation  # B = N × group_size, a group adjacent
    rewards: Tensor  # [B], as training sees them
    true_rewards: Tensor  # [B]; the same unless a reward model stands between
    grades: list[Grade]  # [B]

    def to(self, device: Any) -> "Rollout":
        """The same with its tensors on a device."""
        return moved(self, device)


def joined(parts: Sequence[Generation], pad_id: int) -> Generation:
    """One generation of several, with prompts padded on the left and responses on the right to the longest."""
    before = max(part.tokens.prompt_ids.shape[1] for part in parts)
    after = max(part.tokens.response_ids.shape[1] for part in parts)

    def left(x: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(x, (before - x.shape[1], 0), value=value)

    def right(x: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(x, (0, after - x.shape[1]), value=value)

    return Generation(
        tokens=Tokens(
            torch.cat([left(part.tokens.prompt_ids, pad_id) for part in parts]),
            torch.cat([left(part.tokens.prompt_mask, 0) for part in parts]),
            torch.cat([right(part.tokens.response_ids, pad_id) for part in parts]),
            torch.cat([right(part.tokens.mask, 0.0) for part in parts]),
        ),
        sampler_logprobs=torch.cat([right(part.sampler_logprobs, 0.0) for part in parts]),
        truncated=torch.cat([part.truncated for part in parts]),
    )
