"""Five character-level tasks small enough for two cores: add, subtract, reverse, max, sort.

Every item is drawn from a seeded generator without repetition; the first `eval_prompts` distinct prompts are the
evaluation set and the next `train_prompts` the training set, so the two are disjoint by construction. A response is
correct when it equals the answer exactly.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from klsweep.component import component
from klsweep.tasks.base import Grade, Item

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _add(rng: np.random.Generator) -> Item:
    a, b = rng.integers(0, 100, 2)
    return Item(f"{a}+{b}=", str(a + b))


def _subtract(rng: np.random.Generator) -> Item:
    a, b = sorted(rng.integers(0, 100, 2), reverse=True)
    return Item(f"{a}-{b}=", str(a - b))


def _letters(rng: np.random.Generator) -> str:
    return "".join(LETTERS[i] for i in rng.integers(0, 26, rng.integers(3, 6)))


def _reverse(rng: np.random.Generator) -> Item:
    word = _letters(rng)
    return Item(f"rev {word}=", word[::-1])


def _sort(rng: np.random.Generator) -> Item:
    word = _letters(rng)
    return Item(f"sort {word}=", "".join(sorted(word)))


def _max(rng: np.random.Generator) -> Item:
    numbers = rng.integers(0, 100, 3)
    return Item("max " + " ".join(map(str, numbers)) + "=", str(max(numbers)))


OPERATIONS: dict[str, Callable[[np.random.Generator], Item]] = {
    "add": _add,
    "subtract": _subtract,
    "reverse": _reverse,
    "max": _max,
    "sort": _sort,
}


@lru_cache(maxsize=32)
def _distinct_items(operation: str, seed: int, count: int) -> tuple[Item, ...]:
    """The first `count` distinct items of a seeded stream. ValueError if the operation has fewer prompts."""
    rng = np.random.default_rng([seed, list(OPERATIONS).index(operation)])
    items: dict[str, Item] = {}
    for _ in range(20 * count + 1000):
        item = OPERATIONS[operation](rng)
        items.setdefault(item.prompt, item)
        if len(items) == count:
            return tuple(items.values())
    raise ValueError(
        f"train_prompts + eval_prompts = {count}, but {operation!r} has only {len(items)} distinct prompts"
    )


@component
class Arithmetic:
    """One of the five operations, with its own data seed and set sizes."""

    operation: Literal["add", "subtract", "reverse", "max", "sort"]
    train_prompts: PositiveInt
    eval_prompts: PositiveInt
    seed: NonNegativeInt
    max_response_tokens: PositiveInt

    def __post_init__(self) -> None:
        self._items()

    def _items(self) -> tuple[Item, ...]:
        return _distinct_items(self.operation, self.seed, self.eval_prompts + self.train_prompts)

    def train_items(self) -> Sequence[Item]:
        """The prompts that training draws from."""
        return self._items()[self.eval_prompts :]

    def eval_items(self) -> Sequence[Item]:
        """The held-out prompts."""
        return self._items()[: self.eval_prompts]

    def grade(self, item: Item, response: str) -> Grade:
        """Correct if the whole response equals the answer exactly."""
        return Grade(response == item.answer, response)
