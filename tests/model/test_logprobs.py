"""Log-probabilities, entropies and KLs in chunks: values, gradients and memory against the plain way."""

import pytest
import torch

from benchmarks.logprobs import measured
from klsweep.model.logprobs import Head, States, token_statistics

COLUMNS = ("logprobs", "entropy", "exact_kl", "forward_kl")
N, D, V = 37, 12, 53


def states(seed: int, dtype: torch.dtype, bias: bool = True) -> States:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (0.7 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    return States(draw(N, D), Head(draw(V, D), draw(V) if bias else None))


def gradients(of: torch.Tensor, policy: States) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(of, [x for x in (policy.hidden, *policy.head) if x is not None])


def plain(policy: States, ids: torch.Tensor, temperature: float, reference: States) -> torch.Tensor:
    """All columns by autograd through whole logits, from probabilities and not from the code under test."""
    p, q = (torch.softmax(x.hidden @ x.head.weight.T + x.head.bias, -1) for x in (policy, reference))
    if temperature != 1:
        p, q = (x ** (1 / temperature) / (x ** (1 / temperature)).sum(1, keepdim=True) for x in (p, q))
    kl, forward = (p * (p / q).log()).sum(1), (q * (q / p).log()).sum(1)
    return torch.stack([p[torch.arange(N), ids].log(), -(p * p.log()).sum(1), kl, forward], 1)


IDS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(7))
UPSTREAM = torch.randn(N, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 8, N, 100])
def test_values_and_gradients_are_those_of_the_plain_way(dtype, tolerance, temperature, chunk):
    policy, reference = states(0, dtype), states(1, dtype)
    found = token_statistics(policy, IDS, COLUMNS, temperature, chunk, reference)
    ours = gradients((found * UPSTREAM.to(dtype)).sum(), policy)
    exact = states(0, torch.float64)
    wanted = plain(exact, IDS, temperature, states(1, torch.float64))
    assert (found - wanted).abs().max() < 10 * tolerance
    for gradient, exactly in zip(ours, gradients((wanted * UPSTREAM).sum(), exact), strict=True):
        assert (gradient - exactly).abs().max() < tolerance * exactly.abs().max()


def test_a_column_asked_for_alone_is_that_column_of_all():
    policy, reference = states(0, torch.float64, bias=False), states(1, torch.float64, bias=False)
    together = token_statistics(policy, IDS, COLUMNS, 1.0, 8, reference)
    for i, column in enumerate(COLUMNS):
        alone = token_statistics(policy, IDS, (column,), 1.0, 8, reference)
        assert torch.equal(alone[:, 0], together[:, i])
        of_alone = gradients(alone.sum(), policy)
        of_all = gradients(token_statistics(policy, IDS, COLUMNS, 1.0, 8, reference)[:, i].sum(), policy)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(of_alone, of_all, strict=True))
    with pytest.raises(ValueError, match="columns exact_kl need a reference"):
        token_statistics(policy, IDS, ("exact_kl",), 1.0, 8)


def test_a_tied_weight_gets_both_of_its_gradients():
    """With the head's weight as the embedding too, autograd adds the two parts, as it does for whole logits."""
    weight = states(2, torch.float64).head.weight
    hidden = torch.tanh(weight[IDS])
    chunked = token_statistics(States(hidden, Head(weight, None)), IDS, ("logprobs",), 1.0, 5).sum()
    whole = torch.log_softmax(hidden @ weight.T, -1)[torch.arange(N), IDS].sum()
    ours, wanted = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (chunked, whole))
    assert torch.allclose(ours, wanted, rtol=1e-10, atol=1e-12)


def test_a_token_that_cannot_come_contributes_nothing():
    """A logit of −inf (a vocabulary entry that is switched off) gives 0 · ∞ nowhere."""
    policy, reference = states(0, torch.float32), states(1, torch.float32)
    possible = IDS.where(IDS != 3, 4)
    for state in (policy, reference):
        state.head.bias.data[3] = -torch.inf
    found = token_statistics(policy, possible, COLUMNS, 1.0, 8, reference)
    assert found.isfinite().all()
    assert all(x.isfinite().all() for x in gradients(found.sum(), policy))
    p = torch.softmax(policy.hidden @ policy.head.weight.T + policy.head.bias, -1)
    assert p[:, 3].max() == 0
    assert torch.allclose(found[:, 1], torch.special.entr(p).sum(1), atol=1e-5)


def test_bfloat16_agrees_with_float32_to_its_three_digits_and_sums_in_float32():
    """The logits are rounded to 8 bits (|logit| < 16: by at most 1/32), what follows is not: log-probabilities of one
    row still sum to one, and a weight's gradient over many chunks is as good as over one."""
    exact, rounded = states(0, torch.float32, bias=False), states(0, torch.bfloat16, bias=False)
    wanted = token_statistics(exact, IDS, COLUMNS, 1.0, 8, exact)
    found = token_statistics(rounded, IDS, COLUMNS, 1.0, 8, rounded)
    assert found.dtype == torch.float32
    assert 1e-4 < (found - wanted).abs().max() < 2 / 32
    assert found[:, 2:].abs().max() == 0  # the KL of equal distributions
    every = States(rounded.hidden[:1].expand(V, D), rounded.head)
    assert token_statistics(every, torch.arange(V), ("logprobs",), 1.0, 8).exp().sum().item() == pytest.approx(
        1, abs=1e-6
    )
    by_one, by_all = (
        gradients(token_statistics(rounded, IDS, ("logprobs",), 1.0, chunk).sum(), rounded)[1].float()
        for chunk in (1, N)
    )
    assert (by_one - by_all).abs().max() <= by_all.abs().max() * 2**-7


@pytest.mark.slow
def test_peak_memory_is_a_sixth_of_the_plain_ways_at_most():
    """4,096 tokens, vocabulary 152,064, forward and backward, in processes of their own."""
    whole, chunked = measured("plain", 4096, "logprobs"), measured("256", 4096, "logprobs")
    assert whole.peak_bytes > 2 * 4096 * 152_064 * 4  # the logits and their gradient at least: measured indeed
    assert chunked.peak_bytes <= whole.peak_bytes / 6, (chunked, whole)
    assert chunked[2:] == pytest.approx(whole[2:], rel=1e-5)


def test_columns_that_are_not_differentiable_are_constants():
    policy, reference = states(0, torch.float32), states(1, torch.float32)
    every = token_statistics(policy, IDS, COLUMNS, 1.0, 8, reference)
    some = token_statistics(policy, IDS, COLUMNS, 1.0, 8, reference, ("logprobs",))
    assert torch.equal(every, some)
    alone = gradients(token_statistics(policy, IDS, ("logprobs",), 1.0, 8)[:, 0].sum(), policy)
    assert all(torch.equal(a, b) for a, b in zip(gradients(some.sum(), policy), alone, strict=True))
