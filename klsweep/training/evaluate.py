"""Evaluation: every suite sampled and greedy, one row per item."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from klsweep.model.policy import Policy, Scores, Tokens
from klsweep.objective.objective import masked
from klsweep.rollout.engine import Sampler
from klsweep.rollout.random import Stream, uniforms
from klsweep.tasks.base import Task
from klsweep.training.settings import Eval

ItemRow = dict[str, Any]


def evaluate(
    sampler: Sampler, policy: Policy, settings: Eval, score: Callable[[Tokens], Scores]
) -> dict[str, list[ItemRow]]:
    """Rows of every suite: how many of n samples were right, whether the greedy response was, and the KL.

    `kl` is Σ_t KL(π ‖ π_ref) of the token distributions, averaged over an item's n samples: an unbiased estimate of
    the sequence KL in nats, since the samples are fresh (training batches are stale off-policy). `score` gives the
    distributions at `eval.temperature`. Draws depend on `eval.seed`, item and sample alone, so two policies are
    compared on common random numbers.
    """
    return {name: _suite(sampler, policy, settings, suite, score) for name, suite in settings.suites.items()}


def _suite(
    sampler: Sampler, policy: Policy, settings: Eval, suite: Task, score: Callable[[Tokens], Scores]
) -> list[ItemRow]:
    items = suite.eval_items()
    prompts, n = policy.encode([item.prompt for item in items]), settings.samples_per_prompt
    draws = uniforms(settings.seed, Stream.EVALUATION, 0, range(len(items)), n, suite.max_response_tokens)
    sampled = sampler.generate(prompts, n, draws, settings.temperature, settings.top_p).tokens
    greedy = sampler.generate(prompts, 1, draws[::n], 0.0, 1.0).tokens
    scores = score(sampled)
    kl = masked(scores.exact_kl, sampled.mask).double().sum(1).view(-1, n).mean(1).tolist()
    entropy = masked(scores.entropy, sampled.mask).double().sum(1).view(-1, n).mean(1).tolist()
    texts, greedy_texts = policy.decode(sampled.response_ids), policy.decode(greedy.response_ids)
    rows = []
    for i, item in enumerate(items):
        grades = [suite.grade(item, text) for text in texts[i * n : (i + 1) * n]]
        greedy_grade = suite.grade(item, greedy_texts[i])
        rows.append(
            {
                "item": i,
                "prompt_hash": item.prompt_hash,
                "samples": n,
                "correct": sum(grade.correct for grade in grades),
                "greedy_correct": greedy_grade.correct,
                "greedy_response": greedy_texts[i],
                "verifier_errors": sum(grade.error is not None for grade in (*grades, greedy_grade)),
                "kl": kl[i],
                "entropy": entropy[i],
            }
        )
    return rows


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one item, 1 − C(n−c, k)/C(n, k). Source: Chen et al. 2021, arXiv 2107.03374, eq. 1."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summary(rows: Mapping[str, Sequence[ItemRow]], pass_at: Sequence[int]) -> dict[str, float]:
    """`eval/<suite>/…`: pass@k (k = 1 always), greedy, kl and entropy, as means over a suite's items."""
    result = {}
    for suite, items in rows.items():
        for k in sorted({1, *pass_at}):
            result[f"eval/{suite}/pass@{k}"] = sum(pass_at_k(r["samples"], r["correct"], k) for r in items) / len(items)
        for metric, key in (("greedy", "greedy_correct"), ("kl", "kl"), ("entropy", "entropy")):
            result[f"eval/{suite}/{metric}"] = math.fsum(r[key] for r in items) / len(items)
    return result
