"""A reward of our own."""

from typing import Annotated

from annotated_types import Ge, Lt

from klsweep.component import component
from klsweep.tasks.base import Grade, Item


@component
class InPlace:
    """1 for a right answer; `share` of the characters that stand in their place for another."""

    share: Annotated[float, Ge(0), Lt(1)]

    def __call__(self, item: Item, response: str, grade: Grade) -> float:
        if grade.correct:
            return 1.0
        in_place = sum(a == b for a, b in zip(item.answer, response, strict=False))
        return self.share * in_place / max(len(item.answer), len(response), 1)
