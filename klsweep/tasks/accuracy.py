"""Figures of an evaluation from its item rows, whoever asked the items. No torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = {"greedy": "greedy_correct", "kl": "kl", "entropy": "entropy", "likelihood": "option_correct"}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one item, 1 − C(n−c, k)/C(n, k). Source: Chen et al. 2021, arXiv 2107.03374, eq. 1."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summary(rows: Mapping[str, Sequence[Mapping[str, Any]]], pass_at: Sequence[int]) -> dict[str, float]:
    """`eval/<suite>/…`, means over items: pass@k (k = 1 always), and those of FIGURES that the items have.

    kl and entropy are in nats per response.
    """
    result = {}
    for suite, items in rows.items():
        for k in sorted({1, *pass_at}):
            result[f"eval/{suite}/pass@{k}"] = sum(pass_at_k(r["samples"], r["correct"], k) for r in items) / len(items)
        for metric, key in FIGURES.items():
            if key in items[0]:
                result[f"eval/{suite}/{metric}"] = math.fsum(r[key] for r in items) / len(items)
    return result
