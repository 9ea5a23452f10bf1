"""Algorithms: how a group of rewards becomes advantages, and how the policy loss is clipped and aggregated."""

from typing import Annotated, ClassVar

from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from klsweep.component import component
from klsweep.objective.importance import Level
from klsweep.objective.reduce import Aggregation


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_i = R_i − mean_{j≠i} R_j over a group; unbiased (the baseline does not depend on sample i).

    Args: `rewards` ``[N, G]``, G ≥ 2. Returns ``[N, G]``. Source: Ahmadian et al. 2024, arXiv 2402.14740 (RLOO).
    """
    group_size = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * group_size / (group_size - 1)


def group_centred(rewards: Tensor) -> Tensor:
    """A_i = R_i − mean_j R_j over a group: the policy gradient shrunk by 1 − 1/G.

    Args: `rewards` ``[N, G]``. Returns ``[N, G]``. Source: Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO).
    """
    return rewards - rewards.mean(1, keepdim=True)


def group_normalised(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (R_i − mean) / (std + ε) over a group, std with ddof 1: β changes its scale from group to group.

    Args: `rewards` ``[N, G]``, G ≥ 2. Returns ``[N, G]``. Source: Shao et al. 2024, arXiv 2402.03300 (GRPO).
    """
    return group_centred(rewards) / (rewards.std(1, keepdim=True, correction=1) + epsilon)


@component
class Algorithm:
    """The algorithm group: `group_size` responses per prompt, ratio clipping to [1 − clip_low, 1 + clip_high].

    `ratio_level`: the ratio that is clipped is a token's, or the product over the sequence (one term per sequence).
    `std_epsilon`: added to a group's standard deviation. `linear`: the advantages are linear in the group's rewards.
    """

    group_size: PositiveInt
    clip_low: PositiveFloat
    clip_high: PositiveFloat
    ratio_level: Level
    aggregation: Aggregation
    std_epsilon: PositiveFloat | None

    linear: ClassVar[bool] = False

    def advantage(self, rewards: Tensor) -> Tensor:
        """Advantages ``[B]`` of rewards ``[B]``, B = prompts × group_size with a group's responses adjacent."""
        raise NotImplementedError


@component
class Reinforce(Algorithm):
    """A_i = R_i, no baseline. Source: Williams 1992."""

    linear: ClassVar[bool] = True

    def advantage(self, rewards: Tensor) -> Tensor:
        return rewards


@component
class RLOO(Algorithm):
    """REINFORCE with a leave-one-out baseline, see `leave_one_out`."""

    group_size: Annotated[int, Ge(2)]

    linear: ClassVar[bool] = True

    def advantage(self, rewards: Tensor) -> Tensor:
        return leave_one_out(rewards.view(-1, self.group_size)).flatten()


@component
class GRPO(Algorithm):
    """Group mean and standard deviation, see `group_normalised`."""

    group_size: Annotated[int, Ge(2)]
    std_epsilon: PositiveFloat

    def advantage(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards.view(-1, self.group_size), self.std_epsilon).flatten()


@component
class DrGRPO(Algorithm):
    """Group mean only, see `group_centred`."""

    group_size: Annotated[int, Ge(2)]

    linear: ClassVar[bool] = True

    def advantage(self, rewards: Tensor) -> Tensor:
        return group_centred(rewards.view(-1, self.group_size)).flatten()
