"""Transformers policies: loading them, and the log-probabilities of given tokens."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from klsweep.errors import BadInput
from klsweep.model.adapter import ALL_WEIGHTS, Adapter
from klsweep.model.logprobs import Column, Head, States, token_statistics
from klsweep.model.source import Model
from klsweep.model.tokens import Tokens, micro_batches

TEMPLATE_DATE = "26 Jul 2024"  # for templates that print today's (Llama's own default): runs are no matter of the day


@dataclass(frozen=True)
class Scores:
    """What the trainer knows of sampled tokens before an update; all ``[B, T]``, nats, without gradient."""

    old_logprobs: Tensor
    ref_logprobs: Tensor
    exact_kl: Tensor  # KL(π_old ‖ π_ref) of the token distributions
    forward_kl: Tensor  # KL(π_ref ‖ π_old) of the token distributions, at prefixes sampled from π
    entropy: Tensor
    kept: dict[Column, Tensor] | None = None  # of the same forward pass, with its graph: see `score`

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The constants, in their order."""
        return self.old_logprobs, self.ref_logprobs, self.exact_kl, self.forward_kl, self.entropy


@dataclass(frozen=True)
class Policy:
    """A loaded network, and what turns text into its tokens and back."""

    model: Model
    network: Any
    tokenizer: Any

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a response: the tokenizer's end of sequence, and what the generation config lists."""
        listed = self.network.generation_config.eos_token_id
        listed = listed if isinstance(listed, list) else [listed]
        return tuple(sorted({self.tokenizer.eos_token_id, *listed} - {None}))

    @property
    def longest(self) -> int | None:
        """Most tokens of prompt and response together that the network has positions for, None if it does not say."""
        return getattr(self.network.config, "max_position_embeddings", None)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt, as the policy is asked it: in its chat template, if it has one."""
        template = self.model.template_text()
        if template is None:
            return self.tokenizer(list(prompts))["input_ids"]
        system = [] if self.model.system is None else [{"role": "system", "content": self.model.system}]
        texts = [
            self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                date_string=TEMPLATE_DATE,
            )
            for prompt in prompts
        ]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # a template writes its own BOS

    def encode_answers(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text as a whole response: after a space, unless a chat template sets responses apart."""
        lead = "" if self.model.template is not None else " "
        return self.tokenizer([lead + text for text in texts], add_special_tokens=False)["input_ids"]

    def decode(self, response_ids: Tensor) -> list[str]:
        """The text of each response, without special tokens."""
        return self.tokenizer.batch_decode(response_ids, skip_special_tokens=True)

    def trainable_copy(self, adapter: Adapter = ALL_WEIGHTS, seed: int = 0, device: str | None = None) -> "Policy":
        """The same policy with weights of its own that can be trained, on the model's device unless another is given.

        Under `model.reference=adapter_base` the frozen ones stay those of this policy: there is one copy of them.
        `seed` is that of an adapter's first weights.
        """
        tensors = [*self.network.parameters(), *self.network.buffers()]
        shared = {id(x): x for x in tensors} if self.model.reference == "adapter_base" else {}
        network = copy.deepcopy(self.network, shared).to(device or device_of(self.model))
        if self.model.gradient_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        return self.adapted(network, adapter, seed)

    def adapted(self, network: Any, adapter: Adapter, seed: int) -> "Policy":
        """The same policy over a network like its own with what the adapter trains. BadInput if that has its head."""
        policy = replace(self, network=adapter(network, seed))
        _check_head(self.model, policy.network)
        return policy


def load_base(model: Model) -> Policy:
    """The frozen base, loaded once in a process that trains several runs from it."""
    return _load_base(model, model.content())


@lru_cache(maxsize=1)
def _load_base(model: Model, content: str) -> Policy:
    policy = load_policy(model, "cpu" if model.reference == "offload" else None)
    policy.network.requires_grad_(False)
    return policy


def load_policy(model: Model, device: str | None = None) -> Policy:
    """A policy ready to run, in evaluation mode: no dropout, sampler and trainer see the same function.

    On the model's own device unless `device` says otherwise. BadInput for a network whose logits are not simply what
    its output head gives.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model.location, revision=model.revision, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network: Any = AutoModelForCausalLM.from_pretrained(
        model.location,
        revision=model.revision,
        dtype=getattr(torch, model.dtype),
        attn_implementation=model.attention,
        use_safetensors=True,
    )
    network.to(device or device_of(model)).eval()
    _check_head(model, network)
    return Policy(model, network, tokenizer)


@torch.no_grad()
def _check_head(model: Model, network: Any) -> None:
    """BadInput unless the output head is a linear layer whose result the network passes on untouched."""
    head = network.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise BadInput(f"model.path={model.path!r}: its output head is a {type(head).__name__}, no plain linear layer")
    probe = torch.linspace(-300.0, 300.0, 5, device=head.weight.device)
    with _replaced(head, lambda _: probe):
        found = network(input_ids=torch.zeros(1, 2, dtype=torch.long, device=head.weight.device), use_cache=False)
    if not torch.equal(found.logits.float(), probe):
        raise BadInput(
            f"model.path={model.path!r}: {type(network).__name__} changes its output head's logits (scaled or "
            "soft-capped), which log-probabilities in chunks do not follow"
        )


def device_of(model: Model) -> str:
    """Where the model runs: its `device`, or for `auto` the GPU if there is one."""
    if model.device != "auto":
        return model.device
    return "cuda" if torch.cuda.is_available() else "cpu"


Reference = Callable[[Tokens], States]
"""Gives the hidden states at the positions that predict a response token, and the head that reads them."""


def statistics(
    policy: Policy,
    tokens: Tokens,
    temperature: float,
    columns: tuple[Column, ...],
    reference: States | None = None,
    differentiable: tuple[Column, ...] | None = None,
) -> dict[Column, Tensor]:
    """What `columns` ask of π(· | prefix) at the sampling temperature; see `token_statistics`.

    The output head is replaced for the time of the network's own forward pass, so that whatever is wrapped around the
    network (an adapter, shards that must be gathered first) acts as in any other forward pass. Logits exist for
    `model.logprob_chunk` tokens at a time, and for response tokens alone.

    Returns a tensor ``[B, T]`` for each column, float32 and 0 in padding, differentiable in the network's weights (all,
    or those named `differentiable`).
    """
    mask = tokens.mask.bool()
    settings = columns, temperature, policy.model.logprob_chunk, reference, differentiable
    found = _read(policy, tokens, lambda states: token_statistics(states, tokens.response_ids[mask], *settings))
    table = found.new_zeros(*mask.shape, len(columns)).index_put((mask,), found)
    return dict(zip(columns, table.unbind(2), strict=True))


@torch.no_grad()
def states(policy: Policy, tokens: Tokens) -> States:
    """Hidden states at the positions that predict a response token ``[N, D]``, row by row, and the head."""
    head = policy.network.get_output_embeddings()
    return States(_read(policy, tokens, lambda states: states.hidden), Head(head.weight, head.bias))


def _read(policy: Policy, tokens: Tokens, function: Callable[[States], Tensor]) -> Tensor:
    """Run the network with `function` of the states that predict response tokens in its output head's place.

    Padding is on the right, where causal attention does not look: no mask is needed.
    """
    ids, predicting = tokens.aligned()
    head = policy.network.get_output_embeddings()
    with (
        _replaced(head, lambda hidden: function(States(hidden[predicting], Head(head.weight, head.bias)))),
        _recomputing(policy.network),
    ):
        return policy.network(input_ids=ids, use_cache=False).logits


@contextmanager
def _recomputing(network: Any) -> Iterator[None]:
    """Layers recompute in backward if that is enabled: transformers' only do in training mode.

    The mode is set on the layers alone, not on what is in them: no dropout.
    """
    layers = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@contextmanager
def _replaced(module: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` computes `forward` for a while; hooks on it run as ever."""
    module.forward = forward  # of the instance, before that of its class
    try:
        yield
    finally:
        del module.forward


def score(
    policy: Policy,
    reference: Reference,
    tokens: Tokens,
    temperature: float,
    batch_size: int,
    keep: tuple[Column, ...] = (),
) -> Scores:
    """Old and reference log-probabilities and what the logs need of both distributions, `batch_size` rows at a time.

    Of a batch that is a single part, the columns in `keep` are also kept with their graph: the first optimiser step on
    all of it needs them of the same weights.
    """
    columns: tuple[Column, ...] = ("logprobs", "ref_logprobs", "exact_kl", "forward_kl", "entropy")
    table = torch.zeros(len(columns), *tokens.mask.shape, device=tokens.mask.device)
    parts = micro_batches(tokens, torch.arange(len(tokens.mask)), batch_size)
    kept: dict[Column, Tensor] | None = {} if keep and len(parts) == 1 else None
    for rows in parts:
        part = tokens.rows(rows)
        with torch.set_grad_enabled(kept is not None):
            found = statistics(policy, part, temperature, columns, reference(part), keep)
        table[:, rows] = torch.stack([found[column].detach() for column in columns])
        if kept is not None:
            kept = {column: found[column][rows.argsort()] for column in keep}
    return Scores(*table, kept=kept)
