"""The `train` and `eval` nodes. No torch: plans read them."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from klsweep.component import Seed, component


@component
class Train:
    """Optimisation. Sizes count sequences unless they say prompts."""

    updates: PositiveInt
    prompts_per_update: PositiveInt
    minibatches: PositiveInt
    micro_batch_size: PositiveInt
    lr: PositiveFloat
    warmup_updates: NonNegativeInt
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    max_kl: PositiveFloat | None
    min_reward: float | None
    checkpoint_seconds: NonNegativeFloat
    base_check: Literal["refuse", "warn", "off"]
    probe_every: NonNegativeInt
    probe_prompts: Annotated[int, Ge(1), Le(64)]

    def __post_init__(self) -> None:
        if self.prompts_per_update % self.minibatches:
            raise ValueError(
                f"train.minibatches={self.minibatches} must divide train.prompts_per_update={self.prompts_per_update}"
            )

    def lr_at(self, update: int) -> float:
        """Learning rate of update 1, 2, …: linear warm-up, then constant."""
        return self.lr * min(1.0, update / self.warmup_updates) if self.warmup_updates else self.lr


@component
class Checkpoint:
    """What is kept besides the last checkpoints: `keep_at` lists updates whose weights stay in HF format."""

    keep_at: list[PositiveInt]


@component
class Subject:
    """The `evaluate` node of an evaluation: whose weights. Paths are relative to the evaluation's own run folder.

    The weights are those of `folder`, in HF format, else those that `run` has kept after its `update`, else the base's.
    """

    run: str | None
    folder: str | None
    update: PositiveInt


@component
class Eval:
    """Evaluation: suites by name, sampled and greedy. `every` 0 evaluates before and after training only.

    `in_distribution` names the suites that count so in tables; null: those with the trained task's evaluation prompts.
    """

    suites: Annotated[dict[str, Any], Len(1)]
    samples_per_prompt: PositiveInt
    temperature: PositiveFloat
    top_p: Annotated[float, Gt(0), Le(1)]
    pass_at: list[PositiveInt]
    every: NonNegativeInt
    batch_size: PositiveInt
    seed: Seed
    in_distribution: list[str] | None

    def __post_init__(self) -> None:
        too_large = [k for k in self.pass_at if k > self.samples_per_prompt]
        if too_large:
            raise ValueError(
                f"eval.pass_at={self.pass_at} needs at least that many samples "
                f"(eval.samples_per_prompt={self.samples_per_prompt})"
            )
