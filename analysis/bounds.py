"""The fixed-policy bound on a run's own batches: every term from its record, with the place it was read.

The terms are those of J = E[r − βℓ] (`klsweep.theory.bound`), whichever estimator the run was trained with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import yaml

from klsweep.record.files import Row, read_rows
from klsweep.record.folder import RunFolder
from klsweep.record.rollouts import rollout_file, rollout_rows
from klsweep.theory.bound import UNIT_REWARDS, AlphaName, ClipInterval, RewardRange, alpha_of, fixed_policy_bound
from klsweep.theory.clip_threshold import KLSwitchedOff, symmetric_clip
from klsweep.theory.inputs import Floats
from klsweep.theory.variance import VarianceComponents, variance_components

CONFIDENCE = 0.95
TRUE_REWARD = "the reward is taken as the true one"
NO_UPDATE = "not recorded: no update yet"
TERMS = ("sampling", "reward_shift", "clipping")
FIGURES = (
    "alpha",
    "beta",
    "tau_low",
    "tau_high",
    "clipped_mass",
    "coverage",
    "reward_error",
    *TERMS,
    "total",
    "tau_star",
)


class Sourced(NamedTuple):
    """A figure, None if there is none, and where it comes from, or why not."""

    value: float | None
    source: str


class Asked(NamedTuple):
    """What the record does not decide; None: as the run has it, else the default, or the last update."""

    confidence: float | None = None
    alpha_name: AlphaName = "paper"
    update: int | None = None
    rewards: RewardRange | None = None


@dataclass(frozen=True)
class RunBound:
    """The bound on one update's batch; `figures` by the names in FIGURES."""

    run_id: str
    update: int | None
    prompts: int
    rollouts: int
    confidence: float
    alpha_name: AlphaName
    rewards: RewardRange | None
    figures: dict[str, Sourced]
    notes: list[str] = field(default_factory=list)


class Batch(NamedTuple):
    """An update as the record has it."""

    config: Mapping[str, Any]
    row: Row
    earlier: list[Row]  # rows up to this one, the latest first

    def choice(self, node: str) -> str:
        """Name of the class that a node of the configuration names."""
        return str((self.config.get(node) or {}).get("_target_", "")).rpartition(".")[2]

    def field(self, node: str, name: str) -> Any:
        return (self.config.get(node) or {}).get(name)

    def metric(self, *names: str) -> Sourced:
        """The first of the metrics that this update has."""
        for name in names:
            if self.row.get(name) is not None:
                return Sourced(float(self.row[name]), f"metrics.jsonl, {name}")
        return Sourced(None, f"not recorded ({' or '.join(names)})")

    def latest(self, name: str) -> Sourced:
        """A metric of this update, or of the last one before that has it."""
        for row in self.earlier:
            if row.get(name) is not None:
                when = "" if row is self.row else f" of update {row['update']}"
                return Sourced(float(row[name]), f"metrics.jsonl, {name}{when}")
        return Sourced(None, f"not recorded ({name})")


def run_bound(folder: RunFolder, asked: Asked) -> RunBound:
    """The bound on a run's batch of an update. ValueError for an update it does not have, or rewards out of range."""
    config = yaml.safe_load(folder.config.read_text("utf-8"))
    rows = [row for row in read_rows(folder.metrics) if row["update"] > 0]
    prompts, rollouts = config["train"]["prompts_per_update"], config["algorithm"]["group_size"]
    confidence = asked.confidence or (config.get("clip") or {}).get("confidence") or CONFIDENCE
    about = prompts, rollouts, confidence, asked.alpha_name
    if not rows and asked.update is None:
        return RunBound(folder.run_id, None, *about, None, {name: Sourced(None, NO_UPDATE) for name in FIGURES})
    update = asked.update or rows[-1]["update"]
    until = [row for row in reversed(rows) if row["update"] <= update]
    if not until or until[0]["update"] != update:
        has = f"updates {rows[0]['update']} to {rows[-1]['update']}" if rows else "no updates"
        raise ValueError(f"update={update}: the record of {folder.run_id} has {has}")
    batch = Batch(config, until[0], until)
    rewards = _reward_range(batch, asked.rewards)
    alpha = alpha_of(asked.alpha_name, prompts, rollouts, 1 - confidence)
    how = f"config.yaml: n = {prompts}, K = {rollouts}; {asked.alpha_name}, confidence {confidence:g}"
    figures = {"alpha": Sourced(alpha, how), **_given(batch)}
    figures |= _terms(figures, rewards, alpha)
    figures["tau_star"] = _suggested(folder, update, alpha, prompts)
    return RunBound(folder.run_id, update, *about, rewards, figures, _notes(batch))


def _reward_range(batch: Batch, asked: RewardRange | None) -> RewardRange | None:
    """The range that rewards are in: as given, or as the reward's configuration says; None if neither does."""
    rewards = asked
    ends = _ends(batch.field("reward", "truth") or batch.config.get("reward") or {})
    if rewards is None and ends is not None:
        if batch.choice("reward") == "LearnedReward":
            ends = None if batch.field("reward", "output") != "sigmoid" else [*ends, 0.0, 1.0]
        rewards = None if ends is None else RewardRange(min(ends), max(ends))
    for name in ("reward/mean", "reward/true_mean"):
        mean = batch.row.get(name)
        if rewards is not None and mean is not None:
            rewards.to_unit([mean], f"{name} of update {batch.row['update']}")
    return rewards


def _ends(node: Mapping[str, Any]) -> list[float] | None:
    """The two rewards that a verifier gives."""
    ends = [node.get("correct"), node.get("incorrect")]
    return None if None in ends else ends  # pyright: ignore[reportReturnType]


def _given(batch: Batch) -> dict[str, Sourced]:
    """β, τ, E|ℓ − ℓ^τ|, C and √L_train."""
    beta = _beta(batch)
    low, high, mass = _clip(batch) if beta.value != 0 else [Sourced(None, "no KL term")] * 3
    coverage, error = Sourced(1.0, TRUE_REWARD), Sourced(0.0, TRUE_REWARD)
    if batch.choice("reward") == "LearnedReward" or "shift/error" in batch.row:
        coverage, error = batch.latest("shift/coverage"), batch.latest("shift/error")
    names = ("beta", "tau_low", "tau_high", "clipped_mass", "coverage", "reward_error")
    return dict(zip(names, (beta, low, high, mass, coverage, error), strict=True))


def _beta(batch: Batch) -> Sourced:
    """β of J. With KL in both halves J has it once: ∇E[k] is the sum of both halves' gradients."""
    if batch.choice("placement") == "NoKL" or (batch.config.get("kl") or {}).get("coef") == 0:
        return Sourced(0.0, "config.yaml: no KL term")
    return batch.metric("beta/reward", "beta/loss")


def _clip(batch: Batch) -> list[Sourced]:
    """τ_lo, τ_hi and E|ℓ − ℓ^τ| of sequences."""
    level, half = batch.field("clip", "level"), batch.field("clip", "half")
    if batch.choice("clip") == "NoClip" or level is None:
        unclipped = Sourced(None, "clip=none: ℓ has no bound")
        return [unclipped, unclipped, Sourced(0.0, "clip=none: ℓ is not clipped")]
    if batch.choice("placement") == "InRewardAndLoss" and half not in (None, "both"):
        return [Sourced(None, f"clip.half={half}: the other half is not clipped")] * 3
    if batch.choice("clip") == "QuantileClip":
        tau = batch.metric("clip/tau")
        return [tau, tau, batch.metric("clip/distance")]
    tau = batch.field("clip", "tau")
    low, high = (batch.field("clip", name) for name in ("low", "high"))
    ends = [tau if low is None else -low, tau if high is None else high]
    moved = batch.metric("clip/distance")
    if level == "sequence":
        return [*(_end(end, 1.0, "") for end in ends), moved]
    longest, length = batch.field("task", "max_response_tokens"), batch.metric("length/mean")
    if moved.value is not None:
        moved = Sourced(
            moved.value * (length.value or np.nan), f"at most {moved.source} × length/mean: Σ_t |ℓ_t − ℓ_t^τ|"
        )
    return [*(_end(end, longest, f" × {longest} tokens of the longest response") for end in ends), moved]


def _end(tau: float | None, times: float, how: str) -> Sourced:
    if tau is None:
        return Sourced(None, "config.yaml: clipped on one side only, ℓ has no bound")
    return Sourced(tau * times, f"config.yaml, clip{how}")


def _terms(figures: Mapping[str, Sourced], rewards: RewardRange | None, alpha: float) -> dict[str, Sourced]:
    """The three terms and their sum, each None where something of it is missing."""
    value = {name: found.value for name, found in figures.items()}
    regularised = value["beta"] != 0
    clip = ClipInterval(value["tau_low"] or 0.0, value["tau_high"] or 0.0)
    bound = fixed_policy_bound(
        alpha,
        clip,
        value["beta"] or 0.0,
        value["clipped_mass"] or 0.0,
        value["coverage"] or 1.0,
        value["reward_error"] or 0.0,
        rewards or UNIT_REWARDS,
    )
    needs = {
        "sampling": ["beta", *(["tau_low", "tau_high"] if regularised else [])],
        "reward_shift": ["coverage", "reward_error"],
        "clipping": ["beta", *(["clipped_mass"] if regularised else [])],
    }
    how = {"sampling": "(width + β(τ_lo + τ_hi))α", "reward_shift": "C √L_train", "clipping": "β E|ℓ − ℓ^τ|"}
    if figures["reward_error"].source == TRUE_REWARD:
        how["reward_shift"] = TRUE_REWARD
    terms: dict[str, Sourced] = {}
    for term in TERMS:
        missing = [figures[name] for name in needs[term] if value[name] is None]
        if term == "sampling" and rewards is None:
            missing.append(Sourced(None, "not recorded: the range of rewards (give reward_low and reward_high)"))
        terms[term] = Sourced(None, missing[0].source) if missing else Sourced(getattr(bound, term), how[term])
    lacking = [term for term in TERMS if terms[term].value is None]
    total = Sourced(bound.total, "the three terms") if not lacking else Sourced(None, f"no {', no '.join(lacking)}")
    return {**terms, "total": total}


class Recorded(NamedTuple):
    """Sequence log-ratios ``[n, K]`` that a record holds, and where."""

    log_ratios: Floats
    source: str


def recorded_log_ratios(folder: RunFolder, update: int) -> Recorded | None:
    """ℓ of the probe responses of the last probe up to an update, None if there are none (train.probe_every=0)."""
    rows = [row for row in rollout_rows(folder, "probes") if row["update"] <= update]
    last = [row for row in rows if row["update"] == rows[-1]["update"]]
    groups: dict[int, list[float]] = {}
    for row in last:
        pairs = zip(row["old_logprobs"], row["ref_logprobs"], strict=True)
        found = [np.nan if None in pair else pair[0] - pair[1] for pair in pairs]
        groups.setdefault(row["item"], []).append(float(np.sum(found)))
    if not groups:
        return None
    name = rollout_file(folder, "probes").name
    source = f"rollouts/{name}, update {last[0]['update']}: {len(last)} responses to {len(groups)} prompts"
    return Recorded(np.array(list(groups.values())), source)


def _suggested(folder: RunFolder, update: int, alpha: float, prompts: int) -> Sourced:
    """The symmetric τ* for this n and K, from the log-ratios that were recorded."""
    recorded = recorded_log_ratios(folder, update)
    if recorded is None:
        return Sourced(None, "not recorded: no single responses (train.probe_every)")
    try:
        return Sourced(symmetric_clip(recorded.log_ratios, alpha, prompts).high, f"heuristic, from {recorded.source}")
    except KLSwitchedOff as off:
        return Sourced(None, f"{recorded.source}: {off}")


def recorded_components(folder: RunFolder) -> tuple[VarianceComponents, str]:
    """Variance components of being right (0 or 1), from the latest evaluation in distribution. ValueError if none."""
    plan = next((row for row in folder.sweep.plan() if row["run_id"] == folder.run_id), {"suites": {}})
    names = [name for name, role in plan["suites"].items() if role == "in"]
    groups: list[list[float]] = []
    for name in names:
        rows = list(read_rows(folder.evaluations / f"{name}.jsonl"))
        groups += [
            [1.0] * row["correct"] + [0.0] * (row["samples"] - row["correct"])
            for row in rows
            if row["update"] == rows[-1]["update"]
        ]
    if not groups:
        raise ValueError(f"{folder.run_id}: no evaluation in distribution is recorded, so no variance components")
    return variance_components(groups), f"right or wrong in eval/{', '.join(names)}"


def _notes(batch: Batch) -> list[str]:
    """What a reader must know before trusting the figures."""
    notes = []
    estimator = batch.choice("estimator").lower()
    if batch.choice("placement") != "NoKL" and estimator != "k1":
        notes.append(f"the bound is on E[r − βℓ]; trained with estimator {estimator}")
    if lag := batch.row.get("sampler/lag"):
        notes.append(f"heuristic: the batch was sampled by weights that were {lag} updates older")
    if batch.choice("placement") == "InRewardAndLoss" and batch.row.get("beta/reward") != batch.row.get("beta/loss"):
        notes.append("β differs between reward and loss: the reward's is taken")
    if (gap := batch.row.get("reward/gap")) is not None:
        notes.append(f"measured on this batch: r̂ is {gap:+.4f} beside r* in the mean (metrics.jsonl, reward/gap)")
    if (tail := batch.latest("shift/tail_index").value) is not None and tail >= 0.5:
        notes.append(f"the weights' tail index is {tail:.2f} ≥ 0.5: the coverage coefficient means nothing")
    return notes
