"""Evaluation: every suite sampled and greedy, one row per item."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from klsweep.model.parallel import moved
from klsweep.model.policy import Policy, Scores
from klsweep.model.tokens import Tokens
from klsweep.objective.objective import masked
from klsweep.rollout.engine import Responder
from klsweep.rollout.random import Stream, uniforms
from klsweep.tasks.base import Item, OffersOptions, Task
from klsweep.tasks.grading import graded
from klsweep.training.settings import Eval

ItemRow = dict[str, Any]
EXAMPLES = 3  # of what a verifier could not grade


def evaluate(
    sampler: Responder, policy: Policy, settings: Eval, score: Callable[[Tokens], Scores]
) -> dict[str, list[ItemRow]]:
    """Rows of every suite: how many of n samples were right, whether the greedy response was, and the KL.

    `kl` is Σ_t KL(π ‖ π_ref) of the token distributions, averaged over an item's n samples: with `eval.top_p` 1 an
    unbiased estimate of the sequence KL in nats, since the samples are fresh (training batches are stale off-policy).
    `entropy` is the same of their entropies, nats per response (a training batch's is per token). `score` gives the
    distributions at `eval.temperature`. Draws depend on `eval.seed`, item and sample alone, so two policies are
    compared on common random numbers.
    """
    return {name: _suite(sampler, policy, settings, suite, score) for name, suite in settings.suites.items()}


def _suite(
    sampler: Responder, policy: Policy, settings: Eval, suite: Task, score: Callable[[Tokens], Scores]
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
    likelihoods = _likelihoods(policy, suite, items, score) if isinstance(suite, OffersOptions) else [{}] * len(items)
    how = {"temperature": settings.temperature, "top_p": settings.top_p, "template": policy.model.template_id()}
    rows = []
    for i, item in enumerate(items):
        grades = [graded(suite, item, text) for text in texts[i * n : (i + 1) * n]]
        greedy_grade = graded(suite, item, greedy_texts[i])
        rows.append(
            {
                "item": i,
                "prompt_hash": item.prompt_hash,
                "samples": n,
                **how,
                "correct": sum(grade.correct for grade in grades),
                "greedy_correct": greedy_grade.correct,
                "greedy_response": greedy_texts[i],
                "verifier_errors": sum(grade.error is not None for grade in (*grades, greedy_grade)),
                "verifier_error": next((grade.error for grade in (*grades, greedy_grade) if grade.error), None),
                "kl": kl[i],
                "entropy": entropy[i],
                **likelihoods[i],
            }
        )
    return rows


def _likelihoods(
    policy: Policy, suite: OffersOptions, items: Sequence[Item], score: Callable[[Tokens], Scores]
) -> list[ItemRow]:
    """What the likeliest option of each item is.

    `option_logprobs`: log π(option | prompt) at `eval.temperature`, summed over tokens, nats.
    """
    asked = [suite.options(item) for item in items]
    counts = [len(options.texts) for options in asked]
    encoded = policy.encode([options.prompt for options in asked])
    prompts = [prompt for prompt, count in zip(encoded, counts, strict=True) for _ in range(count)]
    answers = policy.encode_answers([text for options in asked for text in options.texts])
    tokens = moved(Tokens.of(prompts, answers, policy.tokenizer.pad_token_id), policy.network.device)
    logprobs = masked(score(tokens).old_logprobs, tokens.mask).double().sum(1)
    rows = []
    for options, found in zip(asked, logprobs.split(counts), strict=True):
        likeliest = int(found.argmax())
        correct = likeliest == options.right
        rows.append({"option": likeliest, "option_correct": correct, "option_logprobs": found.tolist()})
    return rows


def ungraded(update: int, rows: Mapping[str, Sequence[ItemRow]]) -> list[ItemRow]:
    """What an evaluation adds to `rollouts/errors.jsonl`: for each suite, how many responses its verifier failed on."""
    found = []
    for suite, items in rows.items():
        failing = [row for row in items if row["verifier_errors"]]
        examples = [{"item": row["item"], "error": row["verifier_error"]} for row in failing[:EXAMPLES]]
        errors = sum(row["verifier_errors"] for row in failing)
        found += [{"update": update, "where": suite, "errors": errors, "examples": examples}] if failing else []
    return found
