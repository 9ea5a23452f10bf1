"""A task cut to its longest prompts: what a run takes at most is found with these."""

from collections.abc import Sequence
from dataclasses import dataclass

from klsweep.tasks.base import Grade, Item, Task


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
        return longest(self.of.train_items(), self.trained)

    def eval_items(self) -> Sequence[Item]:
        """See `Task.eval_items`."""
        return longest(self.of.eval_items(), self.evaluated)

    def grade(self, item: Item, response: str) -> Grade:
        """See `Task.grade`."""
        return self.of.grade(item, response)


def longest(items: Sequence[Item], count: int) -> list[Item]:
    """The `count` items with the longest prompts, the longest first."""
    return sorted(items, key=lambda item: len(item.prompt), reverse=True)[:count]
