"""Components from configuration nodes, and their errors in one line."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from klsweep.component import Seed, component, one_line, used_fields
from klsweep.config.plugins import import_plugin, is_within
from klsweep.errors import BadInput
from klsweep.tasks.reward import LearnedReward

if TYPE_CHECKING:
    from klsweep.model.adapter import Adapter
    from klsweep.model.parallel import Parallel
    from klsweep.model.source import Model
    from klsweep.objective.advantage import Algorithm
    from klsweep.objective.clip import Clip
    from klsweep.objective.importance import Correction
    from klsweep.objective.kl import Estimator
    from klsweep.objective.objective import Objective
    from klsweep.objective.placement import Placement
    from klsweep.objective.regulariser import KL
    from klsweep.rollout.buffer import Sampling
    from klsweep.rollout.engine import Engine
    from klsweep.sweep.resources import Local, Slurm
    from klsweep.tasks.base import Reward, Task
    from klsweep.tracking import Wandb
    from klsweep.training.settings import Checkpoint, Eval, Train

Node = dict[str, Any]
T = TypeVar("T")


@component
class Root:
    """The fields at the top of the configuration that belong to no group."""

    name: str
    seed: Seed
    sweep_dir: str
    plugins: list[str]


@dataclass(frozen=True)
class RunSpec:
    """Everything a run is made of, validated."""

    root: Root
    model: Model
    adapter: Adapter
    estimator: Estimator
    placement: Placement
    clip: Clip
    correction: Correction
    sampling: Sampling
    algorithm: Algorithm
    task: Task
    reward: Reward
    eval: Eval
    rollout: Engine
    parallel: Parallel
    launcher: Local | Slurm
    kl: KL
    train: Train
    checkpoint: Checkpoint
    wandb: Wandb

    def __post_init__(self) -> None:
        self.adapter.check(self.model)
        self.clip.check(self.train.prompts_per_update, self.algorithm.group_size)
        if isinstance(self.reward, LearnedReward):
            _check_reward_model(self)

    @property
    def objective_parts(self) -> tuple[Estimator, Placement, Clip, Algorithm, KL, Correction]:
        """What `build_objective` takes."""
        return self.estimator, self.placement, self.clip, self.algorithm, self.kl, self.correction

    def simplified(self, objective: Objective) -> RunSpec:
        """The same run with the KL nodes as its objective simplified them, for `canonical`."""
        return dataclasses.replace(
            self, estimator=objective.estimator, placement=objective.placement, clip=objective.clip, kl=objective.kl
        )


def _check_reward_model(spec: RunSpec) -> None:
    """BadInput for what a reward model does not go with."""
    if spec.parallel.is_sharded:
        raise BadInput("reward=reward_model needs parallel=single: it is trained, and asked, in one process")
    if spec.rollout.top_p < 1.0:
        raise BadInput(
            f"rollout.top_p={spec.rollout.top_p} with reward=reward_model: how far a policy has left its data is "
            "told from the probabilities of whole distributions (rollout.top_p=1)"
        )


ROOT_FIELDS = tuple(field.name for field in dataclasses.fields(Root))  # pyright: ignore[reportArgumentType]
NODES = tuple(field.name for field in dataclasses.fields(RunSpec) if field.name != "root")
GRID_NODES = ("grid", "exclude", "values")  # an experiment's, of which its cells know nothing
NO_PART_OF_A_RUN = (*GRID_NODES, "choices", "preset", "evaluate", "smoke")


# What the choices of an axis have in common. Named, not imported: these modules need torch.
BASES = {
    "adapter": "klsweep.model.adapter.Adapter",
    "estimator": "klsweep.objective.kl.Estimator",
    "placement": "klsweep.objective.placement.Placement",
    "clip": "klsweep.objective.clip.Clip",
    "correction": "klsweep.objective.importance.Correction",
    "sampling": "klsweep.rollout.buffer.Sampling",
    "algorithm": "klsweep.objective.advantage.Algorithm",
    "parallel": "klsweep.model.parallel.Parallel",
}


class Builder:
    """Builds run specs; equal nodes are built once, so a thousand cells cost little more than their differences."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def run_spec(self, config: Node) -> RunSpec:
        """Validate one resolved configuration. Raises BadInput."""
        unknown = sorted(set(config) - set(ROOT_FIELDS) - set(NODES) - set(NO_PART_OF_A_RUN))
        if unknown:
            raise BadInput(f"{unknown[0]}: unknown key (choose from {', '.join(sorted((*ROOT_FIELDS, *NODES)))})")
        root = validated(Root, {name: config[name] for name in ROOT_FIELDS if name in config}, "")
        packages = allowed(root.plugins)
        return RunSpec(root, **{name: self.node(config.get(name), name, packages) for name in NODES})

    def node(self, node: Any, path: str, allowed: tuple[str, ...]) -> Any:
        """The component that a node with `_target_` describes, its children first."""
        if not isinstance(node, dict):
            raise BadInput(f"{path}={node!r}: expected a group choice or a mapping with _target_")
        key = json.dumps([path, allowed, node], sort_keys=True)
        if key not in self._built:
            self._built[key] = self._build(node, path, allowed)
        return self._built[key]

    def _build(self, node: Node, path: str, allowed: tuple[str, ...]) -> Any:
        values = {name: self._child(value, f"{path}.{name}", allowed) for name, value in node.items()}
        target = values.pop("_target_", None)
        cls = find_target(target, f"{path}._target_", allowed)
        base = find_target(BASES[path], path, ("klsweep",)) if path in BASES else object
        if not issubclass(cls, base) or cls is base:
            raise BadInput(f"{path}._target_={target!r}: not a choice of {path} (a subclass of {BASES[path]})")
        built = validated(cls, values, f"{path}.")
        if (function := getattr(built, "foreign_code", None)) is not None:
            check_function(function, path, allowed)
        inert = {name: None for name in values if name not in used_fields(cls)} if path in BASES else {}
        return dataclasses.replace(built, **inert) if inert else built

    def _child(self, value: Any, path: str, allowed: tuple[str, ...]) -> Any:
        if isinstance(value, dict) and "_target_" in value:
            return self.node(value, path, allowed)
        if isinstance(value, dict):
            return {name: self._child(child, f"{path}.{name}", allowed) for name, child in value.items()}
        return value


def validated(kind: type[T], values: Node, prefix: str) -> T:
    """A component of these values. BadInput, in one line that begins with `prefix`, for wrong ones."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise BadInput(one_line(error, kind, prefix)) from error
    except BadInput:
        raise
    except (TypeError, ValueError) as error:
        raise BadInput(f"{prefix.rstrip('.: ')}: {error}") from error


def allowed(plugins: Sequence[str]) -> tuple[str, ...]:
    """The packages whose classes may stand in `_target_`."""
    return ("klsweep", *plugins)


def find_target(target: Any, path: str, allowed: tuple[str, ...]) -> type:
    """The component class that `_target_` names. BadInput outside klsweep and the allow-listed packages."""
    if not isinstance(target, str) or "." not in target:
        raise BadInput(f"{path}={target!r}: expected the import path of a component class")
    if not is_within(target, allowed):
        raise BadInput(f"{path}={target!r}: only targets in {', '.join(allowed)} are built (plugins=[…] allows more)")
    module, _, name = target.rpartition(".")
    if not is_within(module, ("klsweep",)):
        import_plugin(module, f"{path}={target!r}")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{path}={target!r}: {error}") from error
    if not dataclasses.is_dataclass(cls):
        raise BadInput(f"{path}={target!r}: not a component class")
    return cls  # pyright: ignore[reportReturnType]


def check_function(target: str, path: str, allowed: tuple[str, ...]) -> None:
    """BadInput for a function that does not exist, or outside klsweep and the allow-listed packages."""
    module, _, name = target.partition(":")
    if not is_within(module, allowed):
        names = ", ".join(allowed)
        raise BadInput(f"{path}: {target!r}: only functions in {names} are called (plugins=[…] allows more)")
    function = getattr(import_plugin(module, f"{path}: {target!r}"), name, None)
    if not callable(function):
        raise BadInput(f"{path}: {target!r}: not a function")
