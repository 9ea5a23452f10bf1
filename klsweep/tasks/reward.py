"""Rewards: the verifier's, and that of a reward model trained on preferences."""

from typing import Annotated, Any, Literal

from annotated_types import Gt, Len, Lt
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from klsweep.component import Seed, component
from klsweep.errors import BadInput
from klsweep.tasks.base import Grade, Item, Reward


@component
class Verifier:
    """The true reward: `correct` or `incorrect` as the task's verifier says."""

    correct: float
    incorrect: float

    def __call__(self, item: Item, response: str, grade: Grade) -> float:
        return self.correct if grade.correct else self.incorrect


@component
class LearnedReward:
    """Choice `reward_model`: training sees a reward model, and what responses are `truth`ly worth is logged beside it.

    The reward model learns from preferences between two responses of one policy to a prompt, `pairs` to each of
    `prompts` prompts. Prompts are dealt in turn to the `behaviour` policies: updates of a run on the true reward
    without a KL term, 0 being the base; one named twice counts twice. Labels: ``bradley_terry``, the first is
    preferred with probability σ((r₁ − r₂)/`temperature`); ``noiseless``, the better one is, and ties say nothing.
    `held_out` of the prompts are not trained on. `output`: σ of the model's score, in [0, 1], or the ``raw`` score.

    Equal settings are one reward model in a sweep, whatever the runs on it differ in. Called as a reward it is `truth`.
    """

    truth: Any
    behaviour: Annotated[list[NonNegativeInt], Len(1)]
    prompts: Annotated[int, Gt(1)]
    pairs: PositiveInt
    labels: Literal["bradley_terry", "noiseless"]
    temperature: PositiveFloat
    held_out: Annotated[float, Gt(0), Lt(1)]
    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    output: Literal["sigmoid", "raw"]
    seed: Seed

    def __post_init__(self) -> None:
        if not callable(self.truth) or isinstance(self.truth, LearnedReward):
            raise ValueError("reward.truth: expected the node of a reward that is no reward model")
        if self.held_out_prompts in (0, self.prompts):
            raise ValueError(
                f"reward.held_out={self.held_out} of reward.prompts={self.prompts} leaves none to "
                + ("train on" if self.held_out_prompts else "hold out")
            )

    def check(self, pool: int) -> None:
        """BadInput if the task has fewer training prompts than are asked for."""
        if self.prompts > pool:
            raise BadInput(f"reward.prompts={self.prompts}: the task has {pool} training prompts")

    @property
    def held_out_prompts(self) -> int:
        """How many prompts are not trained on."""
        return round(self.held_out * self.prompts)

    def __call__(self, item: Item, response: str, grade: Grade) -> float:
        return self.truth(item, response, grade)


def is_learned(reward: Reward) -> bool:
    """True if what training sees is a reward model's."""
    return isinstance(reward, LearnedReward)
