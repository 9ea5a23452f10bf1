"""What a run *is*: its scientific fields in canonical form, and the ids hashed from them.

Every configuration field is declared here, once, as scientific or operational. Two configurations that differ in
operational fields, in inert ones or in how a default was spelled are the same run and share an id.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from klsweep.config.build import NODES, RunSpec
from klsweep.provenance import science_hash
from klsweep.tasks.base import fingerprint

VERSION = 1

# The longest prefix of a key decides, so a field added below a scientific node is scientific until it is listed.
SCIENTIFIC = (
    "seed",
    "model",
    "estimator",
    "placement",
    "clip",
    "sampling",
    "algorithm",
    "task",
    "reward",
    "rollout",
    "kl",
    "train",
)
OPERATIONAL = (
    "name",
    "sweep_dir",
    "plugins",
    "launcher",
    "wandb",
    "eval",  # results carry an evaluation id of their own
    "train.micro_batch_size",
    "train.checkpoint_seconds",
    "rollout.batch_size",
    "model.path",  # the content is scientific, see `canonical`
    "model.revision",
    "model.attention",
    "model.device",
)
# Values that change nothing. They are left out of the identity, so a field that is added together with its neutral
# value leaves every earlier id as it was.
NEUTRAL: Mapping[str, Any] = {
    "train.minibatches": 1,
    "train.weight_decay": 0.0,
    "train.warmup_updates": 0,
    "kl.schedule": "constant",
    "rollout.top_p": 1.0,
}

Canonical = dict[str, Any]


def covers(prefixes: tuple[str, ...], key: str) -> bool:
    """True if `key` or a parent of it is among `prefixes`."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def is_scientific(key: str) -> bool:
    """Whether a field decides the result. KeyError for one that is not declared."""
    declared = [prefix for prefix in (*SCIENTIFIC, *OPERATIONAL) if covers((prefix,), key)]
    if not declared:
        raise KeyError(f"{key} is declared neither scientific nor operational")
    return max(declared, key=len) in SCIENTIFIC


def canonical(spec: RunSpec) -> Canonical:
    """The scientific fields as a flat mapping from dotted key to value; a node's own key holds its class.

    Inert fields are absent. BadInput if the model cannot be found.
    """
    flat: Canonical = {"seed": spec.root.seed}
    for name in NODES:
        flat.update(_flatten(getattr(spec, name), name))
    flat = {key: value for key, value in flat.items() if is_scientific(key)}
    flat["model.content"] = spec.model.content()
    flat["task.data"] = fingerprint(spec.task)
    flat = _without_inert(flat, spec)
    return {k: v for k, v in sorted(flat.items()) if k not in NEUTRAL or NEUTRAL[k] != v}


def _flatten(component: Any, path: str) -> Canonical:
    """A component's class and non-null fields."""
    cls = type(component)
    tag = cls.__name__ if cls.__module__.startswith("klsweep.") else f"{cls.__module__}.{cls.__name__}"
    flat: Canonical = {path: tag}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(_flatten(value, f"{path}.{field.name}"))
        elif isinstance(value, dict):
            for key, child in value.items():
                flat.update(_flatten(child, f"{path}.{field.name}.{key}"))
        elif value is not None:
            flat[f"{path}.{field.name}"] = value
    return flat


def _without_inert(flat: Canonical, spec: RunSpec) -> Canonical:
    """Drop what cannot change the run: each line is a reason for two cells to be equal."""
    flat = dict(flat)

    def drop(*keys: str) -> None:
        for key in [k for k in flat if covers(keys, k)]:
            del flat[key]

    placement = spec.placement
    if flat.get("placement.baseline") == "auto":
        flat["placement.baseline"] = "inside" if placement.credit == "sequence" else "outside"
    if spec.kl.is_zero or not (placement.in_reward or placement.in_loss):
        drop("estimator", "clip", "kl", "placement")
        flat["placement"] = "NoKL"
    if flat.get("estimator") == "K1":
        drop("placement.level")  # a sum of ℓ_t is the ℓ of the sum
    if flat["algorithm"] == "Reinforce":
        drop("placement.baseline")  # there is none to be inside or outside of
    if not placement.in_loss:
        drop("clip.mode")  # a charge is detached: there is no gradient to pass straight through
    if spec.kl.schedule == "constant":
        drop("kl.final_coef")
    if spec.train.minibatches == 1:
        drop("algorithm.clip_low", "algorithm.clip_high")  # π_θ is π_old: the ratio is 1
    if spec.sampling.lag == 0:
        drop("sampling")
        flat["sampling"] = "OnPolicy"
    return flat


def run_id(flat: Canonical) -> str:
    """Id of a run: version and a hash of every scientific field."""
    return _id("r", flat)


def cell_id(flat: Canonical) -> str:
    """Id of a cell: the same without the seed."""
    return _id("c", {key: value for key, value in flat.items() if key != "seed"})


def eval_id(spec: RunSpec) -> str:
    """Id of an evaluation: its settings and the prompts it asks. Results with different ids are not comparable."""
    flat = _flatten(spec.eval, "eval")
    flat = {key: value for key, value in flat.items() if key not in ("eval.batch_size", "eval.every")}
    data = {name: fingerprint(suite) for name, suite in spec.eval.suites.items()}
    return _id("e", {**flat, **data})


def base_eval_id(spec: RunSpec) -> str:
    """Id of the base model's evaluation by this code, shared by every run that starts from that model."""
    base = {"eval": eval_id(spec), "model": spec.model.content(), "dtype": spec.model.dtype}
    return _id("b", {**base, "code": science_hash()})


def _id(kind: str, content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{kind}{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
