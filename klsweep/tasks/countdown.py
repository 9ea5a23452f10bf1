"""Countdown: reach a target from three or four numbers by + − × ÷, as in Countdown-Tasks-3to4."""

import json
import re
from fractions import Fraction

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.tasks.base import Grade, Item
from klsweep.tasks.data import MAX_RESPONSE, DataTask
from klsweep.tasks.source import Row, Source

MAX_LENGTH = 200  # characters of an expression
MAX_DEPTH = 20  # nested brackets and signs
MAX_DIGITS = 9
MAX_MAGNITUDE = 10**12  # of numerators and denominators on the way

_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")


class Malformed(ValueError):
    """An expression that is not one, or that is beyond the limits."""


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an arithmetic expression, and the numbers in it in their order.

    Grammar: ``sum = product (± product)*``, ``product = factor (×÷ factor)*``, ``factor = ± factor | ( sum ) | digits``
    with ASCII digits and ``+ - * / ( )`` alone: there is no power. Malformed for anything else, for a division by zero,
    and beyond the limits above.
    """
    if len(expression) > MAX_LENGTH:
        raise Malformed(f"longer than {MAX_LENGTH} characters")
    return _Parser(_tokens(expression)).whole()


def _tokens(expression: str) -> list[str]:
    tokens, position, text = [], 0, expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Malformed(f"unexpected {text[position:].lstrip()[:1]!r}")
        tokens.append(match[1])
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0
        self._numbers: list[int] = []

    def whole(self) -> tuple[Fraction, list[int]]:
        value = self._sum(0)
        if self._tokens[self._at]:
            raise Malformed(f"unexpected {self._tokens[self._at]!r}")
        return value, self._numbers

    def _take(self, *wanted: str) -> str:
        token = self._tokens[self._at]
        if token and token in wanted:
            self._at += 1
            return token
        return ""

    def _sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while operator := self._take("+", "-"):
            other = self._product(depth)
            value = _bounded(value + other if operator == "+" else value - other)
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while operator := self._take("*", "/"):
            other = self._factor(depth)
            if operator == "/" and not other:
                raise Malformed("division by zero")
            value = _bounded(value * other if operator == "*" else value / other)
        return value

    def _factor(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise Malformed(f"more than {MAX_DEPTH} nested brackets and signs")
        if sign := self._take("+", "-"):
            value = self._factor(depth + 1)
            return value if sign == "+" else -value
        if self._take("("):
            value = self._sum(depth + 1)
            if not self._take(")"):
                raise Malformed("a bracket is not closed")
            return value
        token = self._tokens[self._at]
        if not token.isdigit() or len(token) > MAX_DIGITS:
            raise Malformed(f"expected a number of at most {MAX_DIGITS} digits, found {token[:20]!r}")
        self._at += 1
        self._numbers.append(int(token))
        return Fraction(int(token))


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) > MAX_MAGNITUDE:
        raise Malformed(f"beyond {MAX_MAGNITUDE:.0e}")
    return value


@component
class Countdown(DataTask):
    """Rows with a list `nums` and a target (the source's answer column)."""

    def answer_of(self, row: Row, source: Source) -> str:
        """Numbers and target, as JSON."""
        numbers = row.get("nums")
        if not isinstance(numbers, list) or not all(isinstance(n, int) for n in [*numbers, row[source.answer]]):
            raise BadInput(
                f"source path={source.path!r}: expected a list of integers in nums and one in {source.answer}"
            )
        return json.dumps({"numbers": numbers, "target": row[source.answer]})

    def grade(self, item: Item, response: str) -> Grade:
        """Right if the last ``<answer>`` is an expression that uses each number exactly once and equals the target."""
        found = _ANSWER.findall(response[-MAX_RESPONSE:])
        if not found:
            return Grade(False, None)
        expression, asked = found[-1].strip(), json.loads(item.answer)
        try:
            value, numbers = evaluate(expression)
        except Malformed:
            return Grade(False, expression[:MAX_LENGTH])
        return Grade(value == asked["target"] and sorted(numbers) == sorted(asked["numbers"]), expression)
