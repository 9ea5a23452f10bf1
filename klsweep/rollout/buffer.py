"""Staleness: rollouts are consumed `async_level` updates after they were sampled, first in, first out."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from klsweep.component import component
from klsweep.rollout.engine import Rollout


@component
class Sampling:
    """The sampling axis: how many updates pass between sampling a batch and training on it.

    `sync_every`: updates between two hand-overs of weights to the sampler, which then samples as many batches.
    `overlap`: sample in a process of its own while the policy is trained, on GPU number `device` of those there are,
    or where the policy is trained if that is null. It changes when batches are sampled, never from which weights.
    """

    async_level: Annotated[int, Ge(0)] | None
    sync_every: PositiveInt | None
    overlap: bool | None
    device: NonNegativeInt | None

    @property
    def lag(self) -> int:
        """`async_level` L; 0 on policy."""
        return self.async_level or 0

    @property
    def period(self) -> int:
        """`sync_every`; 1 on policy."""
        return self.sync_every or 1

    @property
    def is_stale(self) -> bool:
        """True if some batches are sampled from older weights than those they train."""
        return self.lag > 0 or self.period > 1


@component
class OnPolicy(Sampling):
    """Choice `on_policy`: every batch is sampled from the weights it trains."""


@component
class OffPolicy(Sampling):
    """Choice `off_policy`: a batch was sampled L updates ago (the first L + 1 by the base), or up to `sync_every` − 1
    earlier still. L = 0 with `sync_every` 1 is on-policy."""

    async_level: Annotated[int, Ge(0)]
    sync_every: PositiveInt
    overlap: bool
    device: NonNegativeInt | None

    def __post_init__(self) -> None:
        if self.overlap and self.lag == 0:
            raise ValueError(
                "sampling.overlap=true with sampling.async_level=0: each update waits for a batch from the weights of "
                "the one before; give sampling.async_level=1 or more"
            )


Fetch = Callable[[], Rollout]


class RolloutQueue:
    """The FIFO between sampler and trainer. What it holds is the same whether a batch is sampled when it is begun, in
    turn with the training, or later, beside it.
    """

    def __init__(self, lag: int, updates: int, waiting: Sequence[Rollout] = (), period: int = 1) -> None:
        self.lag, self.updates, self.period = lag, updates, period
        self._last = waiting[-1].update if waiting else 0
        self._begun: deque[Fetch] = deque(_fetch(rollout) for rollout in waiting)

    def next(self, update: int, begin: Callable[[int], Fetch]) -> Rollout:
        """The batch for `update` (1, 2, …). Before, with today's weights, those up to `update` + lag are begun.

        Weights are handed over before every `period`-th update, and batches begun that reach until the next time.
        """
        if (update - 1) % self.period == 0:
            reach = update + self.lag + self.period - 1
            for index in range(max(self._last + 1, update), min(reach, self.updates) + 1):
                self._begun.append(begin(index))
                self._last = index
        return self._begun.popleft()()

    @property
    def waiting(self) -> list[Rollout]:
        """The batches that have been begun and not consumed, once they are sampled."""
        return [fetch() for fetch in self._begun]


def _fetch(rollout: Rollout) -> Fetch:
    return lambda: rollout
