"""What `klsweep bound` is told: KEY=VALUE words as validated options, and the arrays they name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Ge, Gt, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from klsweep.component import Seed, component, one_line
from klsweep.errors import BadInput
from klsweep.theory.bound import RewardRange
from klsweep.theory.budget import Costs
from klsweep.theory.inputs import Floats, finite_array

Options = TypeVar("Options")
Confidence = Annotated[float, Gt(0), Lt(1)]


@component
class Common:
    """Options of either form: the range of rewards, and what prompts and rollouts cost."""

    alpha: Literal["paper", "hoeffding"] = "paper"
    reward_low: float | None = None
    reward_high: float | None = None
    cost_prefill: NonNegativeFloat | None = None
    cost_decode: PositiveFloat | None = None
    budget: PositiveFloat | None = None

    def __post_init__(self) -> None:
        self._needs("reward_low", "reward_high")
        self._needs("reward_high", "reward_low")
        self._needs("cost_prefill", "cost_decode")
        self._needs("cost_decode", "cost_prefill")
        self._needs("budget", "cost_decode")
        if self.reward_low is not None and self.reward_high is not None:
            RewardRange(self.reward_low, self.reward_high)

    def _needs(self, name: str, other: str) -> None:
        if getattr(self, name) is not None and getattr(self, other) is None:
            raise ValueError(f"{name}={getattr(self, name)}: needs {other}, too")

    @property
    def reward_range(self) -> RewardRange | None:
        """As given, None if it is not."""
        if self.reward_low is None or self.reward_high is None:
            return None
        return RewardRange(self.reward_low, self.reward_high)

    @property
    def costs(self) -> Costs | None:
        """As given, None if they are not."""
        if self.cost_prefill is None or self.cost_decode is None:
            return None
        return Costs(self.cost_prefill, self.cost_decode)


@component
class FromSamples(Common):
    """Options of the form that reads an array of log-ratios. `log_ratios`, `log_weights`, `rewards` are .npy files."""

    prompts: PositiveInt
    rollouts: PositiveInt
    beta: NonNegativeFloat
    log_ratios: str
    confidence: Confidence = 0.95
    asymmetric: bool = False
    split: bool = False
    seed: Seed = 0
    resamples: PositiveInt = 1000
    reward_error: NonNegativeFloat | None = None
    coverage: Annotated[float, Ge(1)] | None = None
    log_weights: str | None = None
    rewards: str | None = None
    cost_preference: PositiveFloat | None = None
    error_rate: PositiveFloat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs("rewards", "cost_decode")
        self._needs("cost_preference", "cost_decode")
        self._needs("cost_preference", "error_rate")
        self._needs("error_rate", "cost_preference")
        if self.coverage is not None and self.log_weights is not None:
            raise ValueError(f"coverage={self.coverage}: log_weights={self.log_weights!r} gives it; give one of them")
        if self.reward_error is not None and self.coverage is None and self.log_weights is None:
            raise ValueError(
                f"reward_error={self.reward_error}: needs coverage (1 where it was measured) or log_weights"
            )
        if self.cost_preference is not None and self.alpha != "paper":
            raise ValueError(f"cost_preference={self.cost_preference}: the split is by the paper's alpha (alpha=paper)")


@component
class FromRecord(Common):
    """Options of the form that reads a record; what is not given is as the run has it."""

    confidence: Confidence | None = None
    update: PositiveInt | None = None


def told(words: Sequence[str]) -> tuple[Path | None, dict[str, str]]:
    """The folder among the words, if there is one, and the values by key."""
    folders = [word for word in words if "=" not in word]
    keys = [word.split("=", 1)[0] for word in words if "=" in word]
    if len(folders) > 1:
        raise BadInput(f"{folders[1]}: a second folder (give a run folder or a sweep folder, and KEY=VALUE)")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise BadInput(f"{twice[0]}: given twice")
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return Path(folders[0]) if folders else None, values


def options(kind: type[Options], values: Mapping[str, str]) -> Options:
    """Validated options from text. BadInput in one line."""
    try:
        return TypeAdapter(kind).validate_strings(dict(values))
    except ValidationError as error:
        raise BadInput(one_line(error, kind, "")) from error


def load_array(name: str, file: str) -> Floats:
    """The array of a .npy file, of one or two dimensions. BadInput if there is none, or other values than numbers."""
    found: Any
    try:
        found = np.load(file, allow_pickle=False)
    except OSError as error:
        raise BadInput(f"{name}={file!r}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise BadInput(f"{name}={file!r}: not an array of numbers as numpy.save writes it (.npy)") from error
    if not isinstance(found, np.ndarray):
        raise BadInput(f"{name}={file!r}: several arrays (.npz); expected one, as numpy.save writes it (.npy)")
    return finite_array(name, found, (1, 2))
