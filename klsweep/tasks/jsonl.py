"""Your own data: any rows, any prompt template, and a verifier of your choice."""

import re
from typing import Any

from pydantic import PositiveFloat

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.tasks.base import Grade, Item
from klsweep.tasks.data import MAX_RESPONSE, DataTask
from klsweep.tasks.isolate import isolated
from klsweep.tasks.math import grade_boxed

KINDS = ("exact", "math", "regex")


@component
class Jsonl(DataTask):
    r"""Rows with a gold answer in the source's answer column. `verifier` says when a response is right:

    - ``exact``: it equals the answer, white space around either aside.
    - ``math``: its last ``\boxed{…}`` equals the answer as text or by math-verify.
    - ``regex``: the last match of `pattern` in it equals the answer; a group, if there is one, is what is compared.
    - ``package.module:function``: ``function(prompt, answer, response)`` returns True, or True and what it extracted.
      The package is klsweep or one in `plugins`.

    All but ``exact`` run in a process of their own for at most `seconds`.
    """

    verifier: str
    pattern: str | None
    seconds: PositiveFloat

    def __post_init__(self) -> None:
        if self.verifier not in KINDS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.verifier):
            raise BadInput(
                f"verifier={self.verifier!r}: choose from {', '.join(KINDS)}, or name package.module:function"
            )
        if (self.verifier == "regex") != (self.pattern is not None):
            raise BadInput(f"pattern={self.pattern!r}: verifier=regex needs one, the others none")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise BadInput(f"pattern={self.pattern!r}: {error}") from error
        super().__post_init__()

    @property
    def foreign_code(self) -> str | None:
        """The function that `verifier` names, if it names one: `plugins` must allow its package."""
        return None if self.verifier in KINDS else self.verifier

    def grade(self, item: Item, response: str) -> Grade:
        """See the class."""
        text = response[-MAX_RESPONSE:]
        if self.verifier == "exact":
            return Grade(text.strip() == item.answer.strip(), text.strip())
        if self.verifier == "math":
            return grade_boxed(item.answer, text, self.seconds)
        if self.verifier == "regex":
            verdict = isolated("klsweep.tasks.jsonl:last_match", [self.pattern, text], self.seconds)
            found = verdict.value
            return Grade(found is not None and found.strip() == item.answer.strip(), found, verdict.error)
        verdict = isolated(self.verifier, [item.prompt, item.answer, text], self.seconds)
        return _graded(verdict.value, verdict.error)


def last_match(pattern: str, text: str) -> str | None:
    """The last match of a pattern, its first group if it has one."""
    found = list(re.finditer(pattern, text))
    return found[-1][min(1, found[-1].re.groups)] if found else None


def _graded(value: Any, error: str | None) -> Grade:
    """The grade that a function's return value stands for; anything but True or False is its error."""
    correct, extracted = value if isinstance(value, list) and len(value) == 2 else (value, None)
    if error is None and not isinstance(correct, bool):
        error = f"the verifier returned {value!r}, not True or False (alone or with the extracted answer)"
    return Grade(correct is True, None if extracted is None else str(extracted), error)
