"""Collecting the batch of an update: which prompts, their responses, and what those are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.errors import BadInput
from klsweep.model.policy import Policy
from klsweep.model.reward_model import RewardModel
from klsweep.model.tokens import Tokens
from klsweep.rollout.engine import Responder, Rollout
from klsweep.rollout.random import Stream, prompt_order, uniforms
from klsweep.tasks.base import Item
from klsweep.tasks.grading import graded, rewarded
from klsweep.tasks.reward import LearnedReward


class Draws(NamedTuple):
    """Which uniforms responses are sampled with, see `uniforms`."""

    seed: int
    stream: Stream
    counter: int


@dataclass(frozen=True)
class Collector:
    """Samples batches of a run. A batch depends on the run, its number and the weights alone."""

    spec: RunSpec
    policy: Policy
    sampler: Responder
    reward_model: RewardModel | None = None  # of `reward=reward_model`; without it, rewards are the true ones

    def collect(self, index: int, version: int) -> Rollout:
        """The batch of update `index`, sampled and graded; `version`: updates that the sampler's weights have seen."""
        settings, seed = self.spec.train, self.spec.root.seed
        prompts = prompt_order(seed, index, settings.prompts_per_update, len(self.spec.task.train_items()))
        return self.answers(index, version, prompts, self.spec.algorithm.group_size, Draws(seed, Stream.ROLLOUT, index))

    def probe(self, update: int) -> Rollout:
        """The first training prompts, answered by the weights after `update` with the same draws each time."""
        count = min(self.spec.train.probe_prompts, len(self.spec.task.train_items()))
        draws = Draws(self.spec.root.seed, Stream.PROBE, 0)
        return self.answers(update, update, list(range(count)), self.spec.algorithm.group_size, draws)

    def answers(self, update: int, version: int, prompts: list[int], group_size: int, draws: Draws) -> Rollout:
        """A group of graded responses to each of these training prompts."""
        spec = self.spec
        items = spec.task.train_items()
        asked = [items[prompt] for prompt in prompts]
        places, length = range(len(prompts)), spec.task.max_response_tokens
        generation = self.sampler.generate(
            self.policy.encode([item.prompt for item in asked]),
            group_size,
            uniforms(draws.seed, draws.stream, draws.counter, places, group_size, length),
            spec.rollout.temperature,
            spec.rollout.top_p,
        )
        responses = self.policy.decode(generation.tokens.response_ids)
        answered = list(zip(repeated(asked, group_size), responses, strict=True))
        grades = [graded(spec.task, item, text) for item, text in answered]
        worth = [rewarded(spec.reward, *pair, grade) for pair, grade in zip(answered, grades, strict=True)]
        true_rewards = torch.tensor(worth, device=generation.tokens.mask.device)
        return Rollout(
            update=update,
            version=version,
            prompts=prompts,
            generation=generation,
            rewards=self._seen(generation.tokens, true_rewards),
            true_rewards=true_rewards,
            grades=grades,
        )

    def _seen(self, tokens: Tokens, true_rewards: Tensor) -> Tensor:
        """What training sees of them."""
        if self.reward_model is None:
            return true_rewards
        settings = self.spec.reward
        assert isinstance(settings, LearnedReward)
        found = self.reward_model.rewards(tokens, settings.output, self.spec.train.micro_batch_size)
        if not found.isfinite().all():
            raise FloatingPointError("the reward model's scores are not finite")
        return found


def repeated(items: Sequence[Item], samples: int) -> list[Item]:
    """Each item once for each of its samples, a prompt's samples adjacent."""
    return [item for item in items for _ in range(samples)]


def longest_sequence(spec: RunSpec, policy: Policy) -> int:
    """Tokens of the longest prompt and its longest response together, in training and evaluation.

    BadInput if the policy has no positions for that many.
    """
    parts = [("task", spec.task, spec.task.train_items())]
    parts += [(f"eval.suites.{name}", suite, suite.eval_items()) for name, suite in spec.eval.suites.items()]
    longest = 0
    for name, task, items in parts:
        prompt = max(map(len, policy.encode([item.prompt for item in items])))
        length = prompt + task.max_response_tokens
        if policy.longest is not None and length > policy.longest:
            raise BadInput(
                f"{name}: its longest prompt has {prompt} tokens, with max_response_tokens={task.max_response_tokens} "
                f"that makes {length}, but model.path={spec.model.path!r} has positions for {policy.longest}"
            )
        longest = max(longest, length)
    return longest
