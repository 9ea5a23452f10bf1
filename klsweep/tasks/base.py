"""What every task offers."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable


class Item(NamedTuple):
    """One prompt and what its verifier compares a response with."""

    prompt: str
    answer: str

    @property
    def prompt_hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the prompt: equal prompts are recognised across sweeps."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:12]


class Grade(NamedTuple):
    """What a verifier makes of a response: `extracted` is the answer it found in it, None if there was none.

    `error` says what went wrong in the verifier itself (it raised, or ran out of time): the response counts as
    incorrect, and such grades are counted, never swallowed.
    """

    correct: bool
    extracted: str | None
    error: str | None = None


class Task(Protocol):
    """Prompts to train on, prompts to evaluate on (disjoint from the former), and a verifier."""

    @property
    def max_response_tokens(self) -> int: ...

    def train_items(self) -> Sequence[Item]: ...

    def eval_items(self) -> Sequence[Item]: ...

    def grade(self, item: Item, response: str) -> Grade: ...


class Options(NamedTuple):
    """A question with several answers of which one is `right`: `texts` may each follow `prompt`."""

    prompt: str
    texts: tuple[str, ...]
    right: int


@runtime_checkable
class OffersOptions(Protocol):
    """A task whose evaluation items can also be answered by the likeliest option."""

    def options(self, item: Item) -> Options: ...


class Reward(Protocol):
    """What a response is worth: a finite number."""

    def __call__(self, item: Item, response: str, grade: Grade) -> float: ...


@lru_cache(maxsize=256)
def fingerprint(task: Task) -> str:
    """SHA-256 of every train and evaluation item: the part of a run's identity that says which data it saw."""
    items = [list(task.train_items()), list(task.eval_items())]
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def shared_prompts(task: Task, suite: Task) -> int:
    """How many of a suite's evaluation prompts `task` trains on; anything but 0 would make its accuracy a fiction."""
    return len({item.prompt for item in suite.eval_items()} & {item.prompt for item in task.train_items()})
