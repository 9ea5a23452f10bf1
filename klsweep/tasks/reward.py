"""Rewards that need no model."""

from klsweep.component import component
from klsweep.tasks.base import Item, Task


@component
class Verifier:
    """The true reward: `correct` or `incorrect` as the task's verifier says."""

    correct: float
    incorrect: float

    def __call__(self, task: Task, item: Item, response: str) -> float:
        return self.correct if task.is_correct(item, response) else self.incorrect
