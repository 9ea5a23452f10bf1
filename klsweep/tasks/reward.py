"""Rewards that need no model."""

from klsweep.component import component
from klsweep.tasks.base import Grade, Item


@component
class Verifier:
    """The true reward: `correct` or `incorrect` as the task's verifier says."""

    correct: float
    incorrect: float

    def __call__(self, item: Item, response: str, grade: Grade) -> float:
        return self.correct if grade.correct else self.incorrect
