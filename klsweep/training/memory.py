"""Memory of a run: what a formula says each part takes, and what was really taken at most."""

import gc
from pathlib import Path
from typing import Any, NamedTuple

import torch

from klsweep.config.build import RunSpec
from klsweep.model.policy import Policy, device_of
from klsweep.rollout.vllm import VLLM

FLOAT = 4  # bytes of float32
SPREAD = ("gradients", "optimiser", "reference", "checkpoint")  # over ranks, besides the weights
COPIES = 3  # of a chunk's logits at a time: logits, log-probabilities, and what is computed from them
DRAWING = 24  # bytes per vocabulary entry of a row being sampled: logits, log-probabilities; their exp and cdf double


class Network(NamedTuple):
    """The sizes that decide: weights, those trained and those of them that have a float32 master, bytes of a weight,
    layers, and the widths of the hidden states, the MLP, the keys, and the vocabulary."""

    weights: int
    trained: int
    copied: int
    bytes: int
    layers: int
    hidden: int
    inner: int
    kv: int
    vocabulary: int


def sizes(policy: Policy) -> Network:
    """The sizes of a policy's network."""
    network: Any = policy.network
    config, parameters = network.config, list(network.parameters())
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Network(
        weights=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        copied=sum(p.numel() for p in parameters if p.requires_grad and p.dtype != torch.float32),
        bytes=getattr(torch, policy.model.dtype).itemsize,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        kv=head * (getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=config.vocab_size,
    )


def formula(spec: RunSpec, network: Network, longest: int, ranks: int = 1) -> dict[str, float]:
    """Bytes of each part; those of `PHASES` are not there at the same time.

    W weights of b bytes, of which T are trained and C have float32 masters; L layers of width D with an MLP of width F
    and keys of width K, a vocabulary of V; sequences of at most n tokens, S of them sampled at a time, M of them in a
    micro-batch:

    - weights W·b, masters 4·C, gradients 4·T, optimiser 8·T (Adam's moments)
    - reference W·b, if it has weights of its own
    - KV cache 2·L·K·b·n·S and drawing 24·V·S, or what vLLM is told to take beside its copy of the weights
    - logits 3·c·V·4 for chunks of c tokens
    - activations: with `gradient_checkpointing` L·D·b and a layer's own per token, else L times a layer's own, which
      are (8·D + 3·K + 4·F)·b: norms, queries, keys, values, attention, residuals and the MLP (without attention scores)
    - scoring: a layer's own per token of as many sequences as are scored at a time, without gradient
    - checkpoint 8·T, the largest file as bytes on their way to the disk

    With `parallel=fsdp2` each of R ranks has 1/R of the weights, which are float32, of gradients, optimiser, reference
    and checkpoint; gathered besides, of policy and reference, embedding and head and two layers at a time,
    2·(2·V·D + 2·W/L)·b, and with `rollout=hf` a whole copy W·b to sample from.
    """
    w = network
    n, c = longest, spec.model.logprob_chunk
    batch = spec.train.prompts_per_update * spec.algorithm.group_size
    micro = min(spec.train.micro_batch_size, batch // spec.train.minibatches)
    layer = (8 * w.hidden + 3 * w.kv + 4 * w.inner) * w.bytes
    kept = w.layers * w.hidden * w.bytes + layer if spec.model.gradient_checkpointing else w.layers * layer
    terms = {
        "weights": w.weights * w.bytes,
        "masters": FLOAT * w.copied,
        "gradients": FLOAT * w.trained,
        "optimiser": 2 * FLOAT * w.trained,
        "reference": 0 if spec.model.reference == "adapter_base" else w.weights * w.bytes,
        **_sampling(spec, w, n),
        "logits": COPIES * c * w.vocabulary * FLOAT,
        "activations": micro * n * kept,
        "scoring": _scored(spec) * n * layer,
        "checkpoint": 2 * FLOAT * w.trained,
    }
    return _spread(spec, w, terms, ranks) if spec.parallel.is_sharded else terms


def _spread(spec: RunSpec, w: Network, terms: dict[str, float], ranks: int) -> dict[str, float]:
    """What one of several ranks has of it."""
    parts = {"weights": FLOAT * w.weights, **{name: terms[name] for name in SPREAD}}
    gathered = 2 * (2 * w.vocabulary * w.hidden + 2 * w.weights / w.layers) * w.bytes
    own = {"gathered": gathered, "sampler": 0 if isinstance(spec.rollout, VLLM) else w.weights * w.bytes}
    return {**terms, **{name: size / ranks for name, size in parts.items()}, **own}


def _scored(spec: RunSpec) -> int:
    """Sequences scored at a time, at most: of a batch, or of an evaluation."""
    asked = max(len(suite.eval_items()) for suite in spec.eval.suites.values()) * spec.eval.samples_per_prompt
    batch = spec.train.prompts_per_update * spec.algorithm.group_size
    return max(min(spec.eval.batch_size, asked), min(spec.train.micro_batch_size, batch))


PHASES = (("KV cache", "drawing"), ("logits", "activations"), ("scoring",), ("checkpoint",))


def at_most(spec: RunSpec, terms: dict[str, float]) -> float:
    """Bytes of what is always there and of the largest phase, on the GPU if there is one."""
    if device_of(spec.model) != "cpu":
        on_host = {"checkpoint", *(["reference"] if spec.model.reference == "offload" else [])}
        terms = {name: size for name, size in terms.items() if name not in on_host}
    phases = [sum(terms.get(name, 0.0) for name in phase) for phase in PHASES]
    lasting = sum(terms.values()) - sum(phases)
    return lasting + max(phases)


def _sampling(spec: RunSpec, w: Network, longest: int) -> dict[str, float]:
    rollout: Any = spec.rollout
    if isinstance(rollout, VLLM):
        if not torch.cuda.is_available():
            return {"vLLM": w.weights * w.bytes + rollout.cpu_cache_gib * 2**30}
        return {"vLLM": rollout.gpu_memory_utilization * torch.cuda.get_device_properties(0).total_memory}
    rows = min(rollout.batch_size, spec.train.prompts_per_update * spec.algorithm.group_size)
    return {"KV cache": 2 * w.layers * w.kv * w.bytes * longest * rows, "drawing": DRAWING * w.vocabulary * rows}


class Peak(NamedTuple):
    """Most bytes held so far: resident memory of the process; on a GPU, what torch allocated, else None."""

    host: int
    device: int | None


def peak() -> Peak:
    """The peaks of this process since it began."""
    host = _status("VmHWM")  # not getrusage's, which begins with the parent's memory
    return Peak(host, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None)


def release() -> None:
    """Give back what nothing refers to any more: a trainer's parts refer to each other, and would wait for Python."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def without_model() -> int:
    """Resident bytes of this process with its libraries: what is there before a model is loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - lazy: naming them imports them

    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024
