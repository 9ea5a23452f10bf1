"""A task of our own: prompts to train on, others to evaluate on, and a verifier."""

from collections.abc import Sequence

from pydantic import PositiveInt

from klsweep.component import component
from klsweep.tasks.base import Grade, Item


@component
class Doubling:
    """`7+7=` → `14`, for 0 to 99; every `eval_every`-th number is held out."""

    eval_every: PositiveInt
    max_response_tokens: PositiveInt

    def __post_init__(self) -> None:
        if self.eval_every == 1:
            raise ValueError("eval_every=1 leaves nothing to train on (give 2 or more)")

    def _items(self, held_out: bool) -> Sequence[Item]:
        numbers = [n for n in range(100) if (n % self.eval_every == 0) == held_out]
        return [Item(f"{n}+{n}=", str(2 * n)) for n in numbers]

    def train_items(self) -> Sequence[Item]:
        return self._items(held_out=False)

    def eval_items(self) -> Sequence[Item]:
        return self._items(held_out=True)

    def grade(self, item: Item, response: str) -> Grade:
        """Right if the response is the number, spaces aside. `extracted` is what was read, None for no number."""
        text = response.strip()
        extracted = text if text.isdecimal() else None
        return Grade(correct=extracted == item.answer, extracted=extracted)
