"""Sampling: the probabilities really sampled, counter-based draws, and the staleness queue."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from klsweep.model.policy import load_policy, score, states, statistics
from klsweep.model.source import SHIPPED
from klsweep.rollout.buffer import OffPolicy, OnPolicy, RolloutQueue
from klsweep.rollout.engine import Rollout
from klsweep.rollout.hf import HF, draw_tokens
from klsweep.rollout.random import Stream, prompt_order, uniforms
from tests.conftest import small_spec
from tests.plain import response_distributions

PROMPTS = ["12+7=", "rev abcde=", "max 3 14 15="]


@pytest.fixture(scope="module")
def policy():
    return load_policy(small_spec().model)


def _generate(policy, batch_size=1024, samples=5, temperature=1.0, top_p=1.0, length=8):
    sampler = HF(temperature=temperature, top_p=top_p, batch_size=batch_size, ignore_stop=False).bind(
        policy, longest=64
    )
    draws = uniforms(0, Stream.ROLLOUT, 1, range(len(PROMPTS)), samples, length)
    return sampler.generate(policy.encode(PROMPTS), samples, draws, temperature, top_p)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logprobs_are_the_trainers(policy, temperature):
    generation = _generate(policy, temperature=temperature)
    tokens = generation.tokens
    logprobs = statistics(policy, tokens, temperature, ("logprobs",))["logprobs"]
    assert torch.allclose(logprobs, generation.sampler_logprobs, atol=1e-4)
    assert generation.sampler_logprobs.min() < -1.0


def test_masks_end_with_the_end_of_sequence_and_truncation_is_marked(policy):
    tokens = _generate(policy).tokens
    eos = policy.tokenizer.eos_token_id
    for ids, mask in zip(tokens.response_ids, tokens.mask, strict=True):
        length = int(mask.sum())
        assert ids[length - 1] == eos
        assert mask.tolist() == [1.0] * length + [0.0] * (len(mask) - length)
    cut = _generate(policy, length=2)
    assert cut.tokens.mask.shape[1] == 2
    assert cut.truncated.tolist() == [not (ids == eos).any() for ids in cut.tokens.response_ids]
    assert cut.truncated.all()


def test_a_responses_tokens_do_not_depend_on_the_batch(policy):
    whole, single = _generate(policy), _generate(policy, batch_size=1)
    texts = [policy.decode(g.tokens.response_ids) for g in (whole, single)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_inverse_cdf_top_p_and_greedy():
    """Probabilities (.5, .3, .15, .05); top_p .8 keeps the first two, renormalised to .625 and .375."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4, -1)
    draws = torch.tensor([0.0, 0.49, 0.51, 0.96]).double()
    ids, logprobs = draw_tokens(logits, draws, 1.0, 1.0)
    assert ids.tolist() == [0, 0, 1, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.3, 0.05])
    ids, logprobs = draw_tokens(logits, torch.tensor([0.62, 0.63, 0.99, 0.0]).double(), 1.0, 0.8)
    assert ids.tolist() == [0, 1, 1, 0]
    assert logprobs.exp().tolist() == pytest.approx([0.625, 0.375, 0.375, 0.625])
    ids, _ = draw_tokens(logits, draws, 0.0, 1.0)
    assert ids.tolist() == [0, 0, 0, 0]
    _, logprobs = draw_tokens(logits, draws[:1].expand(4), 0.5, 1.0)
    assert logprobs[0].exp().item() == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025))


def test_draws_are_uniform_and_decided_by_their_counters():
    draws = uniforms(3, Stream.ROLLOUT, 7, range(50), 4, 20)
    assert draws.shape == (200, 20)
    assert abs(draws.mean() - 0.5) < 0.02
    assert draws.var() == pytest.approx(1 / 12, rel=0.05)
    again = uniforms(3, Stream.ROLLOUT, 7, [9], 4, 30)
    assert np.array_equal(again[:, :20], draws[36:40])
    others = [(4, Stream.ROLLOUT, 7), (3, Stream.EVALUATION, 7), (3, Stream.ROLLOUT, 8)]
    assert all(not np.isclose(uniforms(*other, [9], 4, 20), draws[36:40]).any() for other in others)


def test_prompt_order_depends_on_the_seed_alone_and_passes_over_the_pool():
    flat = [p for update in range(1, 5) for p in prompt_order(5, update, 6, 12)]
    assert sorted(flat[:12]) == sorted(flat[12:]) == list(range(12))
    assert flat[:12] != flat[12:]
    assert flat == [p for update in range(1, 9) for p in prompt_order(5, update, 3, 12)]
    assert prompt_order(5, 1, 6, 12) != prompt_order(6, 1, 6, 12)


def _versions(lag: int, updates: int, period: int = 1) -> list[tuple[int, int]]:
    """(batch, weights version) consumed at each update; two updates in, the run is resumed."""
    queue, done = RolloutQueue(lag, updates, period=period), 0
    seen = []
    for update in range(1, updates + 1):
        rollout = queue.next(update, lambda i, done=done: lambda: Rollout(i, done, [], None, *[torch.zeros(0)] * 2, []))  # pyright: ignore
        seen.append((rollout.update, rollout.version))
        done = update
        if update == 2:
            queue = RolloutQueue(lag, updates, queue.waiting, period)
    assert not queue.waiting
    return seen


def test_batches_are_consumed_in_order_lag_updates_after_they_were_sampled():
    assert _versions(0, 4) == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert _versions(2, 6) == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 3)]
    assert _versions(9, 3) == [(1, 0), (2, 0), (3, 0)]
    assert _versions(0, 5, period=2) == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4)]
    assert _versions(1, 8, period=3) == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 3), (6, 3), (7, 3), (8, 6)]


@pytest.mark.parametrize(("lag", "period", "stale"), [(0, 1, False), (3, 1, True), (0, 2, True)])
def test_a_lag_or_seldom_new_weights_are_off_policy(lag, period, stale):
    assert OffPolicy(async_level=lag, sync_every=period, overlap=False, device=None).is_stale == stale
    assert not OnPolicy(async_level=None, sync_every=None, overlap=None, device=None).is_stale


def test_scores_are_the_distributions_kl_and_entropy(policy):
    tokens = _generate(policy).tokens
    whole = score(policy, partial(states, policy), tokens, 1.0, 100)
    assert whole.exact_kl.abs().max() < 1e-6
    assert torch.allclose(whole.entropy, score(policy, partial(states, policy), tokens, 1.0, 2).entropy, atol=1e-5)
    distributions = response_distributions(policy.network, tokens, 1.0)[0, 0]
    assert whole.entropy[0, 0].item() == pytest.approx(-(distributions.exp() * distributions).sum().item(), rel=1e-5)
    assert 0 < whole.entropy[0, 0].item() < math.log(distributions.numel())


def test_the_shipped_base_is_small_safe_and_keeps_spaces(policy):
    files = {path.name: path.stat().st_size for path in SHIPPED["klsweep/tiny"].iterdir()}
    assert sum(files.values()) < 1.5e6
    assert "model.safetensors" in files
    assert type(policy.network).__name__ == "Qwen2ForCausalLM"
    for text in (*PROMPTS, " é\n"):
        assert policy.tokenizer.decode(policy.encode([text])[0]) == text
