"""What it saves to read a network in chunks and to put similar lengths together.

`python -m benchmarks.logprobs WAY TOKENS COLUMN,…` measures one way in a process of its own: bytes at the peak,
seconds, and sums by which ways can be told equal.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.frame import Row

VOCABULARY, WIDTH, CHUNK = 152_064, 64, 256
ROOT = Path(__file__).parents[1]


class Measured(NamedTuple):
    """One forward and backward pass: what it took beyond its arguments and their gradients, and what came out."""

    peak_bytes: int
    seconds: float
    value: float
    hidden_gradient: float  # norms
    weight_gradient: float


def measured(way: str, tokens: int, *columns: str) -> Measured:
    """`way`: plain, or tokens per chunk. In a fresh process, because a peak stays."""
    command = [sys.executable, "-m", "benchmarks.logprobs", way, str(tokens), ",".join(columns)]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return Measured(**json.loads(out.stdout))


def _measure(way: str, tokens: int, columns: list[str]) -> Measured:
    import torch

    from klsweep.model.logprobs import Head, States, token_statistics

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    hidden, weight, other, other_weight = (
        torch.randn(rows, WIDTH, generator=generator).mul_(scale).to(device).requires_grad_()
        for rows, scale in ((tokens, 1.0), (VOCABULARY, 0.1), (tokens, 1.0), (VOCABULARY, 0.1))
    )
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator).to(device)
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
    before, start = _peak(device), time.perf_counter()
    if way == "plain":
        log_p = torch.log_softmax(hidden @ weight.T, -1)
        total = log_p.gather(1, ids[:, None]).sum()
        if "exact_kl" in columns:
            with torch.no_grad():
                log_q = torch.log_softmax(other @ other_weight.T, -1)
            total = total + (log_p.exp() * (log_p - log_q)).sum()
    else:
        reference = States(other.detach(), Head(other_weight.detach(), None)) if "exact_kl" in columns else None
        policy = States(hidden, Head(weight, None))
        total = token_statistics(policy, ids, tuple(columns), 1.0, int(way), reference).sum()  # pyright: ignore
    total.backward()
    norms = hidden.grad.norm().item(), weight.grad.norm().item()
    return Measured(_peak(device) - before, time.perf_counter() - start, total.item(), *norms)


def _peak(device: str) -> int:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rows(folder: Path) -> Iterator[Row]:
    """Forward and backward pass of log-probabilities in chunks of 256 tokens against whole logits, vocabulary 152,064,
    hidden states of width 64, each in a process of its own, one thread; and what sorting by length saves."""
    for tokens, columns, what in (
        (4096, ("logprobs",), "log-probabilities of 4,096 tokens"),
        (1024, ("logprobs", "exact_kl"), "log-probabilities and exact KL of 1,024 tokens"),
    ):
        plain, chunked = (measured(way, tokens, *columns) for way in ("plain", str(CHUNK)))
        share = chunked.peak_bytes / plain.peak_bytes
        aim = ", aim: at most 0.167" if tokens == 4096 else ""
        size = f"{chunked.peak_bytes / 2**20:,.0f} of {plain.peak_bytes / 2**20:,.0f} MiB"
        yield Row(f"peak memory, {what}: chunked / plain{aim}", f"{share:.3f} ({size})")
        yield Row(f"time, {what}: chunked / plain", f"{chunked.seconds / plain.seconds:.2f}")
    yield from _padding()


def _padding() -> Iterator[Row]:
    """Positions that are computed for 256 sequences: prompts of 20 to 200 tokens, responses of 100 on average."""
    import torch

    from klsweep.model.tokens import Tokens, micro_batches

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(20, 201, (256,), generator=generator)
    lengths = torch.empty(256).exponential_(1 / 100, generator=generator).long().clamp(1, 512)
    prompt_mask = (torch.arange(int(prompts.max())) >= prompts.max() - prompts[:, None]).long()
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).float()
    tokens = Tokens(prompt_mask, prompt_mask, mask.long(), mask)
    padded = 256 * (prompt_mask.shape[1] + mask.shape[1])
    for name, parts in (
        ("in the order they come", torch.arange(256).split(8)),
        ("sorted by length", micro_batches(tokens, torch.arange(256), 8)),
    ):
        computed = sum(tokens.rows(part).aligned()[0].numel() for part in parts)
        needed = int(tokens.widths.sum())
        text = f"{computed / padded:.2f} (no padding at all: {needed / padded:.2f})"
        yield Row(f"positions computed, micro-batches of 8 {name} / all padded to the longest", text)


if __name__ == "__main__":
    found = _measure(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","))
    print(json.dumps(found._asdict()))
