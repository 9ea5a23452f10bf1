"""What a run *is*: its scientific fields in canonical form, and the ids hashed from them.

Every configuration field is declared here, once, as scientific or operational. Two configurations that differ in
operational fields, in inert ones or in how a default was spelled are the same run and share an id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from klsweep.component import used_fields
from klsweep.config.build import NO_PART_OF_A_RUN, NODES, RunSpec
from klsweep.config.plugins import plugin_hash
from klsweep.provenance import science_hash
from klsweep.tasks.base import fingerprint
from klsweep.tasks.source import Source

if TYPE_CHECKING:
    from klsweep.objective.clip import Clip, Half

VERSION = 1

# The longest prefix of a key decides, so a field added below a scientific node is scientific until it is listed.
SCIENTIFIC = (
    "seed",
    "model",
    "adapter",
    "estimator",
    "placement",
    "clip",
    "correction",
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
    "parallel",  # how many processes train a run changes it by rounding only
    "wandb",
    "checkpoint",
    "eval",  # results carry an evaluation id of their own
    "train.micro_batch_size",
    "train.checkpoint_seconds",
    "train.base_check",
    "train.probe_every",
    "train.probe_prompts",
    "sampling.overlap",
    "sampling.device",
    "rollout.batch_size",
    "rollout.gpu_memory_utilization",
    "rollout.cpu_cache_gib",
    "rollout.tensor_parallel_size",
    "rollout.enforce_eager",
    "rollout.sleep",
    "model.path",  # the content is scientific, see `canonical`
    "model.revision",
    "model.attention",
    "model.device",
    "model.reference",
    "model.logprob_chunk",
    "model.gradient_checkpointing",
    "task.source",  # the data are scientific, see `canonical`; where they come from is not
    "task.eval_source",
)
# Values that change nothing. They are left out of the identity, so a field that is added together with its neutral
# value leaves every earlier id as it was.
NEUTRAL: Mapping[str, Any] = {
    "adapter": "NoAdapter",
    "train.minibatches": 1,
    "train.weight_decay": 0.0,
    "train.warmup_updates": 0,
    "kl.schedule": "constant",
    "kl.weight": "none",
    "estimator.gradient": "same",
    "placement.loss_estimator": "same",
    "algorithm.ratio_level": "token",
    "algorithm.std_epsilon": 1e-6,
    "clip.half": "both",
    "correction": "NoCorrection",
    "rollout.top_p": 1.0,
    "sampling.sync_every": 1,
    "rollout.ignore_stop": False,
}

# Fields of the `eval` node that do not change what an evaluation finds.
NOT_EVALUATION = ("eval.batch_size", "eval.every", "eval.in_distribution")
# Fields of the engine in whose place an evaluation has its own.
OF_TRAINING_ALONE = ("rollout.temperature", "rollout.top_p")

HALVES: tuple[Half, ...] = ("reward", "loss")

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


def is_operational(key: str) -> bool:
    """Whether a run stays the same run with another value of a field; it would not of a choice, say."""
    return not covers(NO_PART_OF_A_RUN, key) and not is_scientific(key)


def canonical(spec: RunSpec, read: bool = True) -> Canonical:
    """The scientific fields as a flat mapping from dotted key to value; a node's own key holds its class.

    Inert fields are absent. The KL nodes of `spec` are those of its objective, which are simplified.
    With `read` False neither model nor data are looked at: the model's name stands for it, and ids mean nothing.
    BadInput if the model cannot be found.
    """
    flat: Canonical = {"seed": spec.root.seed}
    for name in NODES:
        flat.update(_flatten(getattr(spec, name), name))
    flat = {key: value for key, value in flat.items() if is_scientific(key)}
    flat["model.content"] = spec.model.content() if read else spec.model.path
    if read:
        flat.update(_template(spec))
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
        if isinstance(value, Source):
            continue  # data are known by their fingerprint, not by where they lay
        if dataclasses.is_dataclass(value):
            flat.update(_flatten(value, f"{path}.{field.name}"))
        elif isinstance(value, dict):
            for key, child in value.items():
                name = f"{path}.{field.name}.{key}"
                flat.update(_flatten(child, name) if dataclasses.is_dataclass(child) else {name: child})
        elif value is not None:
            flat[f"{path}.{field.name}"] = value
    return flat


def _without_inert(flat: Canonical, spec: RunSpec) -> Canonical:
    """Drop what cannot change the run: each line is a reason for two cells to be equal."""
    flat = dict(flat)

    def drop(*keys: str) -> None:
        for key in [k for k in flat if covers(keys, k)]:
            del flat[key]

    if flat["placement"] == "NoKL":
        drop("estimator", "clip", "kl", "placement")
        flat["placement"] = "NoKL"
    else:
        _drop_inert_kl(flat, spec, drop)
    if flat["algorithm"] == "Reinforce":
        drop("placement.baseline")  # there is none to be inside or outside of
    if spec.train.minibatches == 1:
        drop("algorithm.clip_low", "algorithm.clip_high", "algorithm.ratio_level")  # π_θ is π_old: the ratio is 1
    if flat.get("reward.labels") == "noiseless":
        drop("reward.temperature")
    if not spec.sampling.is_stale:
        drop("sampling")
        flat["sampling"] = "OnPolicy"
    return flat


def _drop_inert_kl(flat: Canonical, spec: RunSpec, drop: Callable[..., None]) -> None:
    """The same for the KL term, in place."""
    placement, clip, kl = spec.placement, spec.clip, spec.kl
    both = placement.in_reward and placement.in_loss
    if flat.get("placement.baseline") == "auto":
        flat["placement.baseline"] = "inside" if placement.inside else "outside"
    own = str(flat["estimator"]).lower()
    if flat.get("placement.loss_estimator") == own:
        flat["placement.loss_estimator"] = "same"
    in_loss = flat.get("placement.loss_estimator", "same")
    unclipped = clip.input_level is None and clip.output is None
    if not both:
        drop("clip.half")
    if not placement.in_loss:  # a charge is detached: it has no gradient of its own, and is not weighted
        drop("clip.mode", "clip.clamp_stage", "estimator.gradient", "kl.weight", "kl.aggregation")
    if both and clip.half == "reward":
        drop("clip.mode", "clip.clamp_stage")
    plain = unclipped and kl.weight == "none"
    if plain and flat.get("estimator.gradient") == (own if in_loss == "same" else in_loss):
        flat["estimator.gradient"] = "same"
    if flat.get("estimator.gradient") in (None, "same"):
        drop("estimator.clip_gradient")
    else:
        drop("clip.clamp_stage")  # the value is not weighted
    if clip.input_level is None:
        drop("estimator.clip_gradient")
    if "clip" in flat:
        _settle_bounds(flat, clip, drop)
    one_step = spec.train.minibatches == 1
    if one_step and kl.is_one_at_first:
        drop("kl.weight")  # the first step is the only one
    if flat.get("kl.weight", "none") == "none":
        drop("kl.weight_over", "kl.weight_grad", "kl.weight_cap", "clip.clamp_stage")
    elif one_step and kl.weight_over == "current":
        flat["kl.weight_over"] = "old"
    if flat.get("kl.aggregation") == flat["algorithm.aggregation"]:
        drop("kl.aggregation")
    moving = [half for half in HALVES if len(set(kl.coefficients(half))) > 1]
    if not moving:
        drop("kl.final_coef", "kl.final_loss_coef")
    if not moving and kl.schedule != "adaptive":
        flat["kl.schedule"] = "constant"
    if kl.schedule != "adaptive":
        drop("kl.target", "kl.horizon")
    if kl.coefficients("loss") == kl.coefficients("reward"):
        drop("kl.loss_coef", "kl.final_loss_coef")
    level_free = {"estimator": "K1", "estimator.gradient": "same", "placement.loss_estimator": "same"}
    level_free["kl.weight"] = "none"
    if all(flat.get(k, v) == v for k, v in level_free.items()) and clip.output is None:
        drop("placement.level")  # a sum of ℓ_t is the ℓ of the sum


def _settle_bounds(flat: Canonical, clip: Clip, drop: Callable[..., None]) -> None:
    """τ for symmetric bounds, low and high for others, however they were given."""
    low, high = clip.bounds
    drop("clip.tau", "clip.low", "clip.high")
    if clip.input_level is None:
        drop("clip.level", "clip.mode")
    elif high is not None and low == -high:
        flat["clip.tau"] = high
    else:
        flat |= {key: value for key, value in (("clip.low", low), ("clip.high", high)) if value is not None}
    if clip.output is None:
        drop("clip.clamp_stage")


def inert_keys(given: Iterable[str], runs: Sequence[tuple[RunSpec, Canonical]]) -> list[str]:
    """Of the keys that a user set, those of the objective's nodes that no run's identity depends on."""
    kept = {key for _, flat in runs for key in flat}
    nodes = {"kl", "adapter", "estimator", "placement", "clip", "correction", "sampling", "algorithm"}
    needed = {"placement.level"} if any(flat.get("clip.level") == "sequence" for _, flat in runs) else set()
    asked = [k for k in sorted(set(given) - {"kl.coef"} - needed) if "." in k and k.split(".")[0] in nodes]
    return [key for key in asked if key not in kept and not _is_neutral(key, runs)]


def _is_neutral(key: str, runs: Sequence[tuple[RunSpec, Canonical]]) -> bool:
    """True if a key is absent from identities only because its value is the neutral one, or null for "not there", or
    because it is operational."""
    node, _, field = key.partition(".")
    parts = [getattr(spec, node) for spec, _ in runs]
    values = [getattr(part, field) for part in parts if field in used_fields(type(part))]
    operational = bool(values) and not is_scientific(key)
    return operational or None in values or (key in NEUTRAL and NEUTRAL[key] in values)


def run_id(flat: Canonical) -> str:
    """Id of a run: version and a hash of every scientific field."""
    return _id("r", flat)


def cell_id(flat: Canonical) -> str:
    """Id of a cell: the same without the seed."""
    return _id("c", {key: value for key, value in flat.items() if key != "seed"})


def with_neutral(flat: Canonical) -> Canonical:
    """The canonical form and, of the nodes in it, what is absent because its value is neutral."""
    return {key: value for key, value in NEUTRAL.items() if "." not in key or key.split(".")[0] in flat} | flat


def eval_fields(spec: RunSpec) -> Canonical:
    """The settings of the evaluation that decide its results."""
    flat = _flatten(spec.eval, "eval")
    return {key: value for key, value in flat.items() if key not in NOT_EVALUATION}


def eval_id(spec: RunSpec) -> str:
    """Id of an evaluation: its settings and the prompts it asks. Results with different ids are not comparable."""
    data = {name: fingerprint(suite) for name, suite in spec.eval.suites.items()}
    return _id("e", {**eval_fields(spec), **_template(spec), **data})


def _template(spec: RunSpec) -> Canonical:
    """How the model is asked, if in a chat template."""
    asked = {"model.template": spec.model.template_id(), "model.system": spec.model.system}
    return {key: value for key, value in asked.items() if value is not None}


def base_eval_id(spec: RunSpec) -> str:
    """Id of the base model's evaluation by this code, shared by every run that starts from that model."""
    base = {"eval": eval_id(spec), "model": spec.model.content(), "dtype": spec.model.dtype}
    engine = _flatten(spec.rollout, "rollout").items()
    base |= {key: value for key, value in engine if is_scientific(key) and key not in OF_TRAINING_ALONE}
    plugins = plugin_hash(spec.root.plugins)  # which may have graded it
    return _id("b", {**base, "code": science_hash(), **({"plugins": plugins} if plugins else {})})


def reward_model_id(spec: RunSpec) -> str:
    """Id of a reward model: its settings, and what decides the responses of the behaviour policies it learns from."""
    nodes = {"reward": spec.reward, "model": spec.model, "rollout": spec.rollout}
    if any(update > 0 for update in getattr(spec.reward, "behaviour", ())):  # a run is trained for it
        nodes |= {"algorithm": spec.algorithm, "train": spec.train, "adapter": spec.adapter}
    flat = {key: value for name, node in nodes.items() for key, value in _flatten(node, name).items()}
    flat = {key: value for key, value in flat.items() if is_scientific(key) and key != "train.updates"}
    data = {"model.content": spec.model.content(), "task.data": fingerprint(spec.task), **_template(spec)}
    length = {"task.max_response_tokens": spec.task.max_response_tokens}
    plugins = plugin_hash(spec.root.plugins)
    code = {"code": science_hash(), **({"plugins": plugins} if plugins else {})}
    return _id("w", {**flat, **data, **length, **code})


def _id(kind: str, content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{kind}{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
