"""The reference: what the policy's token distributions are compared with, and where its weights are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from klsweep.model.logprobs import Head, States
from klsweep.model.policy import Policy, Reference, device_of, states
from klsweep.model.tokens import Tokens


def reference_of(base: Policy, policy: Policy) -> Reference:
    """The base as the reference of a policy trained from it, kept as `model.reference` says.

    `device`: a network of its own beside the policy. `offload`: on the CPU, each layer on the device only while it
    computes. `adapter_base`: the policy's own network without its adapter.
    """
    if base.model.reference == "adapter_base":
        return partial(_states_without_adapter, policy)
    if base.model.reference == "offload":
        return partial(offloaded_states, base, device_of(base.model))
    return partial(states, base)


def offloaded_states(base: Policy, device: str, tokens: Tokens) -> States:
    """`states` on `device` of a base whose weights lie on the CPU. The head stays on the device with the result."""
    with streamed(base.network, device):
        hidden, (weight, bias) = states(base, tokens)
    return States(hidden, Head(weight.to(device), None if bias is None else bias.to(device)))


def _states_without_adapter(policy: Policy, tokens: Tokens) -> States:
    with policy.network.disable_adapter():
        return states(policy, tokens)


@contextmanager
def streamed(network: Any, device: str) -> Iterator[None]:
    """Every module has its own weights and buffers on `device` while it computes, and only then.

    What computing changed in them is lost: this is for networks that are not trained.
    """
    kept: dict[Tensor, Tensor] = {}

    def fetch(module: torch.nn.Module, _: Any) -> None:
        for x in _own_tensors(module):
            kept[x] = x.data
            x.data = x.data.to(device, non_blocking=True, copy=True)

    def leave(module: torch.nn.Module, *_: Any) -> None:
        for x in _own_tensors(module):
            x.data = kept.pop(x)

    owners = [module for module in network.modules() if _own_tensors(module)]
    hooks = [module.register_forward_pre_hook(fetch) for module in owners]
    hooks += [module.register_forward_hook(leave, always_call=True) for module in owners]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _own_tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
