"""Which weights are trained: all of them, or low-rank adapters beside frozen ones."""

import importlib.util
import math
import re
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Len
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.model.source import Model


@component
class Adapter:
    """The adapter axis: makes a network trainable."""

    rank: PositiveInt | None
    alpha: PositiveFloat | None
    target_modules: Annotated[list[str], Len(1)] | None

    def check(self, model: Model) -> None:
        """BadInput for a place of the reference that does not go with what is trained."""
        raise NotImplementedError

    def __call__(self, network: Any, seed: int) -> Any:
        """The network, with what is to be trained (and nothing else) requiring a gradient. Changes it in place."""
        raise NotImplementedError


@component
class NoAdapter(Adapter):
    """Choice `none`: every weight is trained."""

    def check(self, model: Model) -> None:
        if model.reference == "adapter_base":
            raise BadInput("model.reference=adapter_base needs an adapter to leave out (adapter=lora)")

    def __call__(self, network: Any, seed: int) -> Any:
        return network.requires_grad_(True)


ALL_WEIGHTS = NoAdapter(rank=None, alpha=None, target_modules=None)


@component
class LoRA(Adapter):
    """Choice `lora`: W + (alpha / rank)·B·A with A ``[rank, in]``, B ``[out, rank]``, for modules whose names end so.

    A is drawn from the run's seed, uniform in ±1/√in, and B is 0: update 0 is the base. Source: Hu et al. 2021, arXiv
    2106.09685. The adapters are float32 whatever the model's dtype.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    target_modules: Annotated[list[str], Len(1)]

    def __post_init__(self) -> None:
        if importlib.util.find_spec("peft") is None:
            raise ValueError("lora needs the package peft: pip install 'klsweep[lora]'")

    def check(self, model: Model) -> None:
        if model.reference == "offload":
            raise BadInput(
                "model.reference=offload saves nothing with an adapter, whose frozen weights are on the device anyway "
                "(model.reference=adapter_base)"
            )

    def __call__(self, network: Any, seed: int) -> Any:
        from peft import LoraConfig, get_peft_model

        network.requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=0.0,
            target_modules=list(self.target_modules),
            task_type="CAUSAL_LM",
        )
        try:
            adapted = get_peft_model(network, config)
        except ValueError as error:
            raise BadInput(f"adapter.target_modules={self.target_modules}: {error}") from error
        _draw(adapted, seed)
        return adapted.eval()


@torch.no_grad()
def _draw(adapted: Any, seed: int) -> None:
    """Fill the adapters' A, in the order of their names' appearance, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            drawn = torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1)
            parameter.copy_(drawn / math.sqrt(parameter.shape[1]))


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a model in HF format, or of an adapter in peft's, by the names of a network's parameters."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    if (adapter := folder / "adapter_model.safetensors").exists():
        return {re.sub(r"\.(lora_[AB])\.", r".\1.default.", name): x for name, x in load_file(adapter).items()}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    return dict(loaded.named_parameters())
