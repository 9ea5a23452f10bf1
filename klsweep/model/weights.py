"""A policy's weights as others take them: by their Hugging Face names, one at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klsweep.model.parallel import whole
from klsweep.model.policy import Policy


def named_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name in a Hugging Face checkpoint and whole tensor of every weight, adapters added to what they adapt.

    Layer by layer. Tied weights come under each of their names: an engine may hold them apart (vLLM does, on the CPU).
    Tensors without an adapter may be the policy's own, to be copied before it is trained on. Weights that are spread
    over ranks are gathered one at a time, in the dtype that the network computes in: all ranks have to go through them.
    """
    modules = dict(policy.network.named_modules())
    for name, tensor in policy.network.state_dict().items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        owner, adapted, _ = name.partition(".base_layer.weight")
        weight = whole(tensor.to(getattr(torch, policy.model.dtype)))
        yield plain, _merged(weight, modules[owner]) if adapted else weight


def trained_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name in the network and tensor, the policy's own, of every weight that training changes; tied ones come once."""
    for name, parameter in policy.network.named_parameters():
        if parameter.requires_grad:
            yield name, parameter.detach()


def _merged(weight: Tensor, layer: Any) -> Tensor:
    """W + (alpha / rank)·B·A, summed in the adapter's dtype."""
    (adapter,) = layer.active_adapters
    delta = layer.get_delta_weight(adapter)
    return (weight.to(delta.dtype) + delta).to(weight.dtype)
