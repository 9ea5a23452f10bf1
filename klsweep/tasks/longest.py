"""A task cut to its longest prompts: what a run takes at most is found with these."""

from collections.abc import Sequence
from dataclasses import dataclass

from klsweep.tasks.base import Grade, Item, OffersOptions, Options, Task


@dataclass(frozen=True)
class Longest:
    """The `trained` longest training prompts of a task, in characters, and the `evaluated` longest held-out ones."""

    of: Task
    trained: int
    evaluated: int

    @property
    def max_response_tokens(self) -> int:
        return self.of.max_response_tokens

    def train_items(self) -> Sequence[Item]:
        """See `Task.train_items`."""
        return _longest(self.of.train_items(), self.trained)

    def eval_items(self) -> Sequence[Item]:
        """See `Task.eval_items`."""
        return _longest(self.of.eval_items(), self.evaluated)

    def grade(self, item: Item, response: str) -> Grade:
        """See `Task.grade`."""
        return self.of.grade(item, response)


@dataclass(frozen=True)
class LongestWithOptions(Longest):
    """The same of a task that offers options."""

    def options(self, item: Item) -> Options:
        """See `OffersOptions.options`."""
        assert isinstance(self.of, OffersOptions)
        return self.of.options(item)


def longest(task: Task, trained: int, evaluated: int) -> Longest:
    """A task cut to so many of its prompts."""
    kind = LongestWithOptions if isinstance(task, OffersOptions) else Longest
    return kind(task, trained, evaluated)


def _longest(items: Sequence[Item], count: int) -> list[Item]:
    return sorted(items, key=lambda item: len(item.prompt), reverse=True)[:count]
