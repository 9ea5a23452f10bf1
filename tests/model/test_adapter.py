"""Low-rank adapters, and float32 masters of bfloat16 weights."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from klsweep.cli import main
from klsweep.model.masters import Masters
from klsweep.model.policy import load_base, load_policy, score, states
from klsweep.model.reference import reference_of
from klsweep.model.weights import named_weights
from klsweep.rollout.random import Stream, uniforms
from tests.conftest import planned, small_spec
from tests.test_training import rows, run

LORA = ["adapter=lora", "adapter.rank=4"]


def sampled(spec, policy):
    prompts = policy.encode([item.prompt for item in spec.task.train_items()[:8]])
    draws = uniforms(0, Stream.ROLLOUT, 1, range(8), 4, 8)
    return spec.rollout.bind(policy, 64).generate(prompts, 4, draws, 1.0, 1.0).tokens


def moved(spec):
    """(base, policy with an adapter that does something)"""
    base = load_base(spec.model)
    policy = base.trainable_copy(spec.adapter, spec.root.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for master in Masters(policy.network).named.values():
            master.add_(0.1 * torch.randn(master.shape, generator=generator))
    return base, policy


@pytest.mark.parametrize("where", ["device", "adapter_base"])
def test_the_reference_under_an_adapter_is_the_base_bit_for_bit(where):
    spec = small_spec(*LORA, f"model.reference={where}")
    base, policy = moved(spec)
    tokens = sampled(spec, policy)
    found = score(policy, reference_of(base, policy), tokens, 1.0, 32)
    wanted = score(load_policy(spec.model), partial(states, policy), tokens, 1.0, 32)  # the other way round
    assert torch.equal(found.ref_logprobs, wanted.old_logprobs)
    assert found.exact_kl.max() > 0.01
    assert torch.equal(found.exact_kl, wanted.forward_kl)


def test_an_adapter_trains_itself_alone_and_shares_the_bases_weights_if_the_base_is_its_reference():
    spec = small_spec(*LORA, "model.reference=adapter_base")
    base, policy = moved(spec)
    pointers = {x.data_ptr() for x in base.network.parameters()}
    frozen = [x for x in policy.network.parameters() if not x.requires_grad]
    assert {x.data_ptr() for x in frozen} == pointers
    names = Masters(policy.network).named
    assert len(names) == 2 * 7 * 2  # A and B of seven modules in two layers
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    own = base.trainable_copy(small_spec(*LORA).adapter, 0).network
    again = base.trainable_copy(small_spec(*LORA).adapter, 0).network
    other = base.trainable_copy(small_spec(*LORA).adapter, 1).network
    name = next(iter(Masters(own).named))
    drawn = [dict(network.named_parameters())[name] for network in (own, again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert 0.9 < drawn[0].abs().max() * 96**0.5 <= 1


def test_merged_weights_are_a_plain_network_that_says_the_same():
    spec = small_spec(*LORA)
    base, policy = moved(spec)
    plain = load_policy(spec.model)
    before = plain.network.state_dict()
    merged = dict(named_weights(policy))
    assert list(merged) == list(before)
    plain.network.load_state_dict(merged)
    tokens = sampled(spec, policy)
    one, other = (score(x, partial(states, base), tokens, 1.0, 32) for x in (policy, plain))
    assert torch.allclose(one.old_logprobs, other.old_logprobs, atol=1e-4)
    assert one.exact_kl.max() > 0.01
    assert list(dict(named_weights(base))) == list(before)


@pytest.mark.parametrize("fields", [[*LORA, "model.reference=adapter_base"], ["model.dtype=bfloat16"]])
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, fields):
    """An adapter alone, and float32 masters, are what a checkpoint needs."""
    fields = [*fields, "train.minibatches=2", "placement=loss", "estimator=full", "checkpoint.keep_at=[2]"]
    _, whole = run(tmp_path, "whole", *fields)
    outcome, broken = run(tmp_path, "broken", *fields, stop_after=2)
    assert outcome.state == "preempted"
    outcome, broken = run(tmp_path, "broken", *fields)
    assert outcome.state == "done"
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    saved = load_file(sorted(whole.checkpoints.iterdir())[-1] / "model.safetensors")
    assert {x.dtype for x in saved.values()} == {torch.float32}
    assert all("lora_" in name for name in saved) == (fields[0] == "adapter=lora")
    assert rows(whole)[-1]["kl/full_token"] > 0
    milestone = whole.path / "models/update-000002"
    assert (milestone / "adapter_model.safetensors").exists() == (fields[0] == "adapter=lora")
    assert (milestone / "model.safetensors").exists() != (fields[0] == "adapter=lora")


@pytest.mark.parametrize("fields", [LORA, []])
def test_a_milestone_is_read_back(tmp_path, fields):
    from klsweep.objective.objective import build_objective
    from klsweep.training.trainer import Trainer

    spec = small_spec(*fields)
    _, folder = run(tmp_path, "run", *fields, "checkpoint.keep_at=[4]")
    trainers = [Trainer(spec, build_objective(*spec.objective_parts)) for _ in range(2)]
    trainers[0].load_weights(folder, 4)
    trainers[1].load_model(folder.path / "models/update-000004")
    one, other = (trainer._share._weights.named for trainer in trainers)
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="its weights do not fit the base's network"):
        Trainer(small_spec(*([] if fields else LORA)), build_objective(*spec.objective_parts)).load_model(
            folder.path / "models/update-000004"
        )


def test_steps_too_small_for_bfloat16_add_up_in_the_masters():
    """Of a weight of 1, bfloat16's neighbour is 2⁻⁷ away: sixteen steps of 2⁻¹⁰ come to it in the masters alone."""
    network = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    network.weight.data.fill_(1.0)
    weights = Masters(network)
    optimiser = torch.optim.SGD(weights.named.values(), lr=2**-10)
    optimiser.register_step_post_hook(lambda *_: weights.publish())
    for step in range(1, 17):
        for _ in range(2):  # two micro-batches add up
            network(torch.full((1, 1), 0.5, dtype=torch.bfloat16)).sum().backward()
        assert network.weight.grad is None
        assert weights.named["weight"].grad.item() == 1.0
        optimiser.step()
        optimiser.zero_grad()
        assert weights.named["weight"].item() == 1 - step * 2**-10
    assert network.weight.item() == 1 - 2**-6
    kept = Masters(torch.nn.Linear(2, 2))
    assert all(kept.named[name] is parameter for name, parameter in kept.named.items())


def test_an_adapter_is_scientific_and_its_absence_changes_no_id():
    plain, lora, other = (planned(*o).runs[0] for o in ([], LORA, [*LORA, "adapter.rank=8"]))
    assert len({plain.run_id, lora.run_id, other.run_id}) == 3
    assert not any(key.startswith("adapter") for key in plain.canonical)
    assert planned("adapter=none", "adapter.rank=4").runs[0].run_id == plain.run_id
    assert planned(*LORA, "model.reference=adapter_base").runs[0].run_id == lora.run_id
    assert lora.row["axes"]["adapter"] == "lora"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.reference=adapter_base"], "model.reference=adapter_base needs an adapter to leave out (adapter=lora)"),
        (["adapter=lora", "model.reference=offload"], "model.reference=offload saves nothing with an adapter"),
        (["adapter=lora", "adapter.rank=0"], "adapter.rank=0: Input should be greater than 0"),
        (["adapter=lora", "adapter.target_modules=[]"], "adapter.target_modules=[]: List should have at least 1 item"),
        (["model.reference=disk"], "model.reference='disk': Input should be 'device', 'offload' or 'adapter_base'"),
        (["model.logprob_chunk=0"], "model.logprob_chunk=0: Input should be greater than 0"),
    ],
)
def test_bad_input_is_one_line(in_tmp, capsys, overrides, message):
    assert main(["train", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_without_peft_one_line_says_what_to_install(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "adapter=lora"]) == 2
    assert "error: adapter: lora needs the package peft: pip install 'klsweep[lora]'\n" in capsys.readouterr().err


def test_modules_that_cannot_be_adapted_are_refused():
    from klsweep.errors import BadInput

    spec = small_spec(*LORA)
    for name, message in (("w_q", r"adapter.target_modules=\['w_q'\]: "), ("lm_head", "its output head is a ")):
        adapter = replace(spec.adapter, target_modules=[name])
        with pytest.raises(BadInput, match=message):
            load_base(spec.model).trainable_copy(adapter, 0)
    assert "peft" in sys.modules
