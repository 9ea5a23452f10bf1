"""Whether two LaTeX answers mean the same, by math-verify. Imported in the verifier's own process only."""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_TARGETS = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


def equivalent(gold: str, answer: str) -> bool:
    """True if math-verify finds the answer equal to the gold one. Time limits are the caller's."""
    expected, given = (
        parse(f"\\boxed{{{text}}}", _TARGETS, parsing_timeout=0, raise_on_error=True) for text in (gold, answer)
    )
    return verify(expected, given, timeout_seconds=0, raise_on_error=True)
