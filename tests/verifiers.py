"""Verifiers as a user might write them."""


def half(prompt: str, answer: str, response: str) -> tuple[bool, float]:
    """Right if the response is twice the answer; what was extracted is the half."""
    value = float(response) / 2
    return value == float(answer), int(value)


def plain(prompt: str, answer: str, response: str) -> bool:
    return (prompt, answer, response) == ("q1", "1", "1")


def number(prompt: str, answer: str, response: str) -> float:
    return 0.5
