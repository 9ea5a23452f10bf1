"""What an optimiser steps: a network's trainable weights, or float32 copies of those that are bfloat16.

bfloat16 has 8 significant bits: a step of 1e-6 on a weight of 1e-2 is a sixtieth of the distance to its neighbour, and
added to the weight itself it is lost, every time. So the optimiser has float32 weights of its own ("masters") and
float32 sums of gradients, and the network gets the masters rounded after each step: sampler, trainer and reference
compute in the same dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from klsweep.model.parallel import local


class Masters:
    """The trainable weights of a network by name, as the optimiser and checkpoints know them.

    A float32 parameter is its own master. Any other has a float32 copy: gradients go there as soon as a backward pass
    has them, and `publish` rounds the copy into the network.
    """

    def __init__(self, network: Any) -> None:
        self.named: dict[str, Parameter] = {}
        self._copied: list[tuple[Parameter, Parameter]] = []
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                self.named[name] = self._master(parameter)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(iter(self.named.values())).device

    def _master(self, parameter: Parameter) -> Parameter:
        if parameter.dtype == torch.float32:
            return parameter
        master = Parameter(parameter.detach().float())
        parameter.register_post_accumulate_grad_hook(_into(master))
        self._copied.append((parameter, master))
        return master

    @torch.no_grad()
    def publish(self) -> None:
        """Give the network what the masters have become."""
        for parameter, master in self._copied:
            parameter.copy_(master)

    @torch.no_grad()
    def load(self, read: Callable[[str, Tensor], Tensor]) -> None:
        """Take over weights, and publish them. `read`: a weight by its name, or the part that this rank has of it."""
        for name, master in self.named.items():
            local(master).copy_(read(name, master))
        self.publish()


def _into(master: Parameter) -> Callable[[Tensor], None]:
    """Move a parameter's gradient to its master's, which adds up."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return move
