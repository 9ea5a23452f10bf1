"""What a rollout engine offers: responses sampled from a policy, with the log-probabilities they were sampled at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from klsweep.model.policy import Policy, Tokens
from klsweep.model.source import Model
from klsweep.tasks.base import Grade


@dataclass(frozen=True)
class Generation:
    """Sampled sequences. `sampler_logprobs` are of the distribution really sampled: after temperature and top-p."""

    tokens: Tokens
    sampler_logprobs: Tensor  # [B, T], 0 where mask is 0
    truncated: Tensor  # [B] bool: no end of sequence within the allowed length


class Sampler(Protocol):
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

    def generate(
        self, prompts: Sequence[Sequence[int]], samples: int, uniforms: np.ndarray, temperature: float, top_p: float
    ) -> Generation:
        """`samples` responses to each prompt (token ids), a prompt's samples adjacent; temperature 0 is greedy.

        A response ends with the first of the policy's stop ids.

        `uniforms` ``[prompts × samples, max new tokens]``: one draw per token (inverse CDF); its width is the
        length limit. FloatingPointError if the policy's probabilities are not finite.
        """
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
    rewards: Tensor  # [B]
    grades: list[Grade]  # [B]

    def to(self, device: Any) -> "Rollout":
        """The same with its tensors on a device."""
        tokens = Tokens(**{name: tensor.to(device) for name, tensor in vars(self.generation.tokens).items()})
        generation = Generation(
            tokens, self.generation.sampler_logprobs.to(device), self.generation.truncated.to(device)
        )
        return replace(self, generation=generation, rewards=self.rewards.to(device))
