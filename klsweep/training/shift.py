"""How far a policy has left its reward model's data, and by how much proxy and truth may differ for that."""

from dataclasses import dataclass
from pathlib import Path

from klsweep.config.build import RunSpec
from klsweep.config.identity import reward_model_id
from klsweep.model.policy import device_of
from klsweep.record.files import read_json
from klsweep.rollout.engine import Rollout
from klsweep.tasks.reward import is_learned
from klsweep.theory.coverage import coverage_from_weights
from klsweep.training.metrics import Metrics
from klsweep.training.preferences import Samples
from klsweep.training.trainer import Trainer

LOGGED = ("accuracy", "true_accuracy", "calibration_error", "error", "aligned_error")  # of report.json


def reward_model_artifact(spec: RunSpec, artifacts: Path) -> Path | None:
    """Where a run's reward model is, or will be; None if it has none."""
    return artifacts / reward_model_id(spec) if is_learned(spec.reward) else None


@dataclass(frozen=True)
class Shift:
    """Held-out samples of D_train, and what the reward model is worth on them; see `klsweep.training.behaviour`."""

    samples: Samples
    report: Metrics

    @classmethod
    def load(cls, artifact: Path, spec: RunSpec) -> "Shift":
        """From a reward model's folder."""
        found = read_json(artifact / "report.json") or {}
        report = {name: found[name] for name in LOGGED if found.get(name) is not None}
        return cls(Samples.load(artifact / "held_out.safetensors", device_of(spec.model)), report)

    def metrics(self, trainer: Trainer) -> Metrics:
        """Of the policy as it is: C(θ), √L_train and C(θ)·√L_train, which bounds what r̂ and r* differ by in the mean.

        `shift/ess`: effective share of the samples; `shift/tail_index`: from 0.5 on, C means nothing.
        """
        logprobs = trainer.score(self.samples.tokens).old_logprobs.double().sum(1)
        found = coverage_from_weights((logprobs - self.samples.log_behaviour).cpu().numpy())
        metrics: Metrics = {f"shift/{name}": value for name, value in self.report.items()}
        metrics |= {
            "shift/coverage": found.coefficient,
            "shift/ess": found.effective_samples / found.samples,
            "shift/carriers": found.carriers,
            "bound/reward_shift": found.coefficient * self.report["error"],
        }
        if found.tail_index is not None:
            metrics["shift/tail_index"] = found.tail_index
        return metrics


def shift_metrics(rollout: Rollout) -> Metrics:
    """What the batch is truly worth beside `reward/mean`, which training sees, and by how much that is more."""
    true = rollout.true_rewards.double().mean().item()
    return {"reward/true_mean": true, "reward/gap": rollout.rewards.double().mean().item() - true}
