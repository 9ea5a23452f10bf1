"""Mathematics with a boxed answer: MATH, MATH-500, MATH² and data of that kind."""

import re

from pydantic import PositiveFloat

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.tasks.base import Grade, Item
from klsweep.tasks.data import MAX_RESPONSE, DataTask
from klsweep.tasks.isolate import isolated
from klsweep.tasks.source import Row, Source

MAX_ANSWER = 500  # a longer answer is wrong: the longest gold answer of MATH-500 has 53 characters

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_SPACING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\q?quad(?![a-z])|~|\s+")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_SIGNS = re.compile(r"\\?%|\\?\$|\^\{?\\circ\}?")


def last_boxed(text: str) -> str | None:
    r"""What the last closed ``\boxed{…}`` holds, an outer one before those inside it; None if there is none."""
    opened: list[tuple[bool, int]] = []
    found = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.endswith("{") and token != r"\{":
            opened.append((token != "{", match.end()))
        elif token == "}" and opened:
            boxed, start = opened.pop()
            if boxed:
                found = start, match.start()
    return None if found is None else text[slice(*found)].strip()


def plain(answer: str) -> str:
    """An answer without what says nothing: spacing, kinds of fraction, text marks, and per cent, dollar and degree
    signs, which MATH's own comparison leaves out, too."""
    answer = _SPACING.sub("", _WRAPPED.sub(r"\1", answer))
    return _SIGNS.sub("", answer.replace("dfrac", "frac").replace("tfrac", "frac")).rstrip(".")


def grade_boxed(gold: str, response: str, seconds: float) -> Grade:
    """Right if the last box of the response equals the gold answer, as text or by math-verify within `seconds`."""
    answer = last_boxed(response[-MAX_RESPONSE:])
    if answer is None:
        return Grade(False, None)
    if len(answer) > MAX_ANSWER:
        return Grade(False, answer[:MAX_ANSWER])
    if plain(answer) == plain(gold):
        return Grade(True, answer)
    verdict = isolated("klsweep.tasks.equivalence:equivalent", [gold, answer], seconds)
    return Grade(verdict.value is True, answer, verdict.error)


@component
class Math(DataTask):
    """Problems whose answer is to be put into a box. `seconds` is the most that one comparison may take."""

    seconds: PositiveFloat

    def answer_of(self, row: Row, source: Source) -> str:
        """The column's text, or what its last box holds if it has one: a worked solution."""
        text = str(row[source.answer])
        answer = last_boxed(text) if "\\boxed" in text or "\\fbox" in text else text.strip()
        if not answer:
            raise BadInput(f"answer={source.answer!r}: no answer in {text[-80:]!r} of {source.path}")
        return answer

    def grade(self, item: Item, response: str) -> Grade:
        """See `grade_boxed`."""
        return grade_boxed(item.answer, response, self.seconds)
