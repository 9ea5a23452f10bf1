"""Reading a network in chunks: against whole logits, for the architectures used, and wherever the reference lies."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config, Qwen3Config

from klsweep.errors import BadInput
from klsweep.model.policy import Policy, _check_head, load_policy, score, states, statistics
from klsweep.model.reference import offloaded_states, streamed
from klsweep.model.tokens import Tokens, micro_batches
from klsweep.objective.kl import exact_token_kl
from klsweep.rollout.random import Stream, uniforms
from tests.conftest import small_spec
from tests.plain import chosen, response_distributions

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=False),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
}


def policy_of(config, seed: int = 0, **fields) -> Policy:
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config).eval()
    return Policy(replace(small_spec().model, **fields), network, tokenizer=None)


def tokens_of(prompts: list[int], responses: list[int]) -> Tokens:
    """Random tokens of these lengths, padded as rollouts are."""
    generator = torch.Generator().manual_seed(5)
    p, t = torch.tensor(prompts)[:, None], torch.tensor(responses)[:, None]
    prompt_mask = (torch.arange(max(prompts)) >= max(prompts) - p).long()
    mask = (torch.arange(max(responses)) < t).float()
    ids = torch.randint(1, 61, (len(prompts), max(prompts) + max(responses)), generator=generator)
    return Tokens(ids[:, : max(prompts)] * prompt_mask, prompt_mask, ids[:, max(prompts) :] * mask.long(), mask)


TOKENS = tokens_of([3, 7, 1, 5, 7], [4, 1, 6, 6, 2])


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_whole_logits(name):
    policy, base = policy_of(CONFIGS[name], 0, logprob_chunk=4), policy_of(CONFIGS[name], 1)
    found = score(policy, partial(states, base), TOKENS, 0.7, batch_size=2)
    log_p, log_q = (response_distributions(x.network, TOKENS, 0.7).detach() for x in (policy, base))
    wanted = {
        "old_logprobs": chosen(log_p, TOKENS.response_ids),
        "ref_logprobs": chosen(log_q, TOKENS.response_ids),
        "exact_kl": exact_token_kl(log_p, log_q),
        "forward_kl": exact_token_kl(log_q, log_p),
        "entropy": -(log_p.exp() * log_p).sum(-1),
    }
    for field, value in wanted.items():
        assert torch.allclose(getattr(found, field), value * TOKENS.mask, atol=2e-5), field
    assert found.exact_kl.max() > 0.5


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_those_of_whole_logits(name, recomputed):
    """With and without gradient checkpointing, and with a padding column that no sequence needs."""
    policy = policy_of(CONFIGS[name], gradient_checkpointing=recomputed, logprob_chunk=4)
    if recomputed:
        policy = policy.trainable_copy()
    upstream = torch.randn(TOKENS.mask.shape, generator=torch.Generator().manual_seed(3)) * TOKENS.mask
    parameters = list(policy.network.parameters())
    found = statistics(policy, TOKENS, 0.7, ("logprobs",))["logprobs"]
    ours = torch.autograd.grad((found * upstream).sum(), parameters)
    log_p = chosen(response_distributions(policy.network, TOKENS, 0.7), TOKENS.response_ids)
    for one, other in zip(ours, torch.autograd.grad((log_p * upstream).sum(), parameters), strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item())


def test_gradient_checkpointing_keeps_no_activations_of_layers():
    """The gradient is the same to the last bit, though what the layers would have kept is gone."""

    def run(recomputed: bool) -> tuple[int, tuple[torch.Tensor, ...]]:
        policy, saved = policy_of(CONFIGS["qwen2"], gradient_checkpointing=recomputed).trainable_copy(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss = statistics(policy, TOKENS, 1.0, ("logprobs",))["logprobs"].sum()
        assert not any(module.training for module in policy.network.modules())
        return sum(saved), torch.autograd.grad(loss, list(policy.network.parameters()))

    (least, recomputed), (most, kept) = run(True), run(False)
    assert least < 0.7 * most
    assert all(torch.equal(one, other) for one, other in zip(recomputed, kept, strict=True))


def test_sequences_are_joined_without_padding_and_similar_lengths_go_together():
    ids, predicting = TOKENS.aligned()
    assert ids.shape == (5, 11)  # the longest is 5 + 6, not 7 + 6
    for row, (prompt, response) in enumerate(zip([3, 7, 1, 5, 7], [4, 1, 6, 6, 2], strict=True)):
        whole = torch.cat([TOKENS.prompt_ids[row, 7 - prompt :], TOKENS.response_ids[row, :response]])
        assert torch.equal(ids[row, : len(whole)], whole)
        assert predicting[row].nonzero().flatten().tolist() == list(range(prompt - 1, prompt + response - 1))
    parts = micro_batches(TOKENS, torch.tensor([4, 3, 1, 0]), 2)
    assert [part.tolist() for part in parts] == [[0, 1], [4, 3]]  # widths 7, 8, 9, 11; 2 is not asked for


def test_given_sequences_are_padded_outwards():
    tokens = Tokens.of([[1, 2], [3]], [[4], [5, 6, 7]], pad_id=9)
    assert tokens.prompt_ids.tolist() == [[1, 2], [9, 3]]
    assert tokens.prompt_mask.tolist() == [[1, 1], [0, 1]]
    assert tokens.response_ids.tolist() == [[4, 9, 9], [5, 6, 7]]
    assert tokens.mask.tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_an_offloaded_reference_is_the_one_on_the_device_and_leaves_its_weights_where_they_were():
    base = policy_of(CONFIGS["qwen2"], 1)
    before = {name: x.data_ptr() for name, x in base.network.state_dict().items()}
    offloaded = offloaded_states(base, "cpu", TOKENS)
    assert torch.equal(offloaded.hidden, states(base, TOKENS).hidden)
    assert {name: x.data_ptr() for name, x in base.network.state_dict().items()} == before
    while_computing = []
    layer = base.network.model.layers[1].mlp.up_proj
    other = base.network.model.layers[0].mlp.up_proj.weight
    layer.register_forward_hook(lambda *_: while_computing.append((layer.weight.data_ptr(), other.data_ptr())))
    with streamed(base.network, "cpu"):
        states(base, TOKENS)
    ((own, others),) = while_computing
    assert own != before["model.layers.1.mlp.up_proj.weight"]  # fetched
    assert others == before["model.layers.0.mlp.up_proj.weight"]  # gone again


def test_a_network_that_changes_its_logits_is_refused():
    config = Gemma2Config(**SIZES, final_logit_softcapping=30.0)
    policy = policy_of(config)
    with pytest.raises(BadInput, match=r"Gemma2ForCausalLM changes its output head's logits \(scaled or soft-capped\)"):
        _check_head(policy.model, policy.network)
    config.final_logit_softcapping = None
    _check_head(policy.model, policy_of(config).network)
    policy.network.lm_head = torch.nn.Sequential(policy.network.lm_head)
    with pytest.raises(BadInput, match="its output head is a Sequential, no plain linear layer"):
        _check_head(policy.model, policy.network)


def test_bfloat16_scores_are_float32s_to_its_digits():
    """The shipped policy on its own samples: bfloat16 has 8 bits, logits reach 16, so rounding is 1/32 and more."""
    spec = small_spec()
    exact, rounded = (load_policy(replace(spec.model, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    prompts = exact.encode([item.prompt for item in spec.task.train_items()[:8]])
    draws = uniforms(0, Stream.ROLLOUT, 1, range(8), 4, 8)
    tokens = spec.rollout.bind(exact, 64).generate(prompts, 4, draws, 1.0, 1.0).tokens
    (wanted, found) = (score(policy, partial(states, policy), tokens, 1.0, 32) for policy in (exact, rounded))
    real = tokens.mask.bool()
    differences = (found.old_logprobs - wanted.old_logprobs)[real].abs()
    assert found.old_logprobs.dtype == torch.float32
    assert 1e-4 < differences.mean() < 0.03
    assert differences.max() < 0.3
    assert found.exact_kl.abs().max() == 0
    assert (found.entropy - wanted.entropy)[real].abs().mean() < 0.03
