"""Calling a verifier and a reward: what they raise names the prompt and the response that made them."""

import json
import math
from numbers import Real

from klsweep.tasks.base import Grade, Item, Reward, Task

EXCERPT = 200  # characters of a prompt or response in an error


class GradingError(Exception):
    """The code of a task's verifier, or of a reward, failed: the run cannot go on as if it had not."""


def graded(task: Task, item: Item, response: str) -> Grade:
    """What the task's verifier makes of a response. GradingError if its code raises."""
    try:
        return task.grade(item, response)
    except Exception as error:  # whatever a user's code raises
        raise GradingError(_failure(f"the verifier of {_name(task)} raised", item, response, error)) from error


def rewarded(reward: Reward, item: Item, response: str, grade: Grade) -> float:
    """The reward of a graded response. GradingError if its code raises, or returns no finite number."""
    try:
        value = reward(item, response, grade)
    except Exception as error:  # whatever a user's code raises
        raise GradingError(_failure(f"reward {_name(reward)} raised", item, response, error)) from error
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise GradingError(_failure(f"reward {_name(reward)} returned {value!r}, no finite number", item, response, None))


def _name(component: object) -> str:
    return type(component).__name__


def _failure(what: str, item: Item, response: str, error: Exception | None) -> str:
    """One line; texts stand in double quotes, so that equal failures on other texts are told to be equal."""
    asked, answered = (json.dumps(text[:EXCERPT], ensure_ascii=False) for text in (item.prompt, response))
    reason = f": {type(error).__name__}: {error}" if error is not None else ""
    return f"{what} on the prompt {asked} and the response {answered}{reason}"
