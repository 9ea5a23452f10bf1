"""Staleness: rollouts are consumed `async_level` updates after they were sampled, first in, first out."""

from collections import deque
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge

from klsweep.component import component
from klsweep.rollout.engine import Rollout


@component
class Sampling:
    """The sampling axis: how many updates pass between sampling a batch and training on it."""

    async_level: Annotated[int, Ge(0)] | None

    @property
    def lag(self) -> int:
        """`async_level` L; 0 on policy."""
        return self.async_level or 0


@component
class OnPolicy(Sampling):
    """Choice `on_policy`: every batch is sampled from the weights it trains."""


@component
class OffPolicy(Sampling):
    """Choice `off_policy`: a batch was sampled L updates ago (the first L + 1 by the base). L = 0 is on-policy."""

    async_level: Annotated[int, Ge(0)]


class RolloutQueue:
    """The FIFO between sampler and trainer, run in turn: deterministic, and equal to a sampler that runs ahead."""

    def __init__(self, lag: int, updates: int, waiting: list[Rollout] | None = None) -> None:
        self.lag, self.updates = lag, updates
        self.waiting: deque[Rollout] = deque(waiting or [])

    def next(self, update: int, sample: Callable[[int], Rollout]) -> Rollout:
        """The batch for `update` (1, 2, …), after sampling up to the one for update + lag with today's weights."""
        first = self.waiting[-1].update + 1 if self.waiting else update
        for index in range(first, min(update + self.lag, self.updates) + 1):
            self.waiting.append(sample(index))
        return self.waiting.popleft()
