"""Multiple choice, in the schema of MMLU: graded by the letter a response ends in, and by the likelihood of options."""

import re
from functools import lru_cache
from itertools import islice
from typing import Literal

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.tasks.base import Grade, Item, Options
from klsweep.tasks.data import MAX_RESPONSE, DataTask
from klsweep.tasks.math import last_boxed, plain
from klsweep.tasks.source import Row, Source
from klsweep.tasks.template import render

LETTERS = "ABCDEFGHIJ"

# A capital letter, for "the answer is a good question"; marks of Markdown and a colon may stand before it.
_SAID = re.compile(r"\b(?i:answer\s*(?:is|:))[\s:*(]*([A-J])\b(?!['’])")


@component
class Choice(DataTask):
    """Rows with a question, a list `choices`, and the index of the right one (the source's answer column).

    `likelihood_template` is the prompt after which options are scored, `scored`: their letters or their texts.
    """

    likelihood_template: str
    scored: Literal["letter", "text"]

    def answer_of(self, row: Row, source: Source) -> str:
        """The letter of the right choice."""
        choices, right = row.get("choices"), row[source.answer]
        if not isinstance(choices, list) or not isinstance(right, int) or not 0 <= right < len(choices) <= len(LETTERS):
            raise BadInput(
                f"source path={source.path!r}: expected a list of at most {len(LETTERS)} choices and in "
                f"{source.answer} the index of one, found {choices!r} and {right!r}"
            )
        return LETTERS[right]

    def grade(self, item: Item, response: str) -> Grade:
        """Right if the letter in the last box is, or without a box the last one said to be the answer."""
        text = response[-MAX_RESPONSE:]
        boxed = last_boxed(text)
        if boxed is not None:
            letter = plain(boxed).strip("(). ").upper()[:1] if len(boxed) < 100 else ""
            rest = plain(boxed).strip("()").upper()[1:2]
            found = letter if letter and letter in LETTERS and not rest.isalpha() else None
        else:
            said = _SAID.findall(text)
            found = said[-1] if said else None
        return Grade(found == item.answer, found)

    def options(self, item: Item) -> Options:
        """What the likelihood is asked of: the prompt, and each option as it would go on."""
        row = _rows(self)[item]
        choices = row["choices"]
        texts = LETTERS[: len(choices)] if self.scored == "letter" else [str(choice).strip() for choice in choices]
        return Options(render(self.likelihood_template, row), tuple(texts), LETTERS.index(item.answer))


@lru_cache(maxsize=64)
def _rows(task: Choice) -> dict[Item, Row]:
    """The row of each evaluation item. BadInput if two with different choices look the same."""
    rows: dict[Item, Row] = {}
    for item, row in islice(task.items_of(task.evaluated), task.eval_prompts):
        if rows.setdefault(item, row)["choices"] != row["choices"]:
            raise BadInput(f"template: {item.prompt[:60]!r} is asked with different choices, which it does not show")
    return rows
