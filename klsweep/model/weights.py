"""A policy's weights as others take them: by their Hugging Face names, one at a time."""

from collections.abc import Iterator

from torch import Tensor

from klsweep.model.policy import Policy


def named_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name in a Hugging Face checkpoint and whole tensor of every weight, layer by layer.

    Tied weights come under each of their names: an engine may hold them apart (vLLM does, on the CPU). The tensors are
    the policy's own, to be copied before it is trained on.
    """
    yield from policy.network.state_dict().items()
