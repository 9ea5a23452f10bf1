"""The gap between a batch's proxy and the true objective, in its three parts, beside the terms of the bound."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from benchmarks.frame import Row, command
from klsweep.config.build import Builder, RunSpec
from klsweep.objective.objective import build_objective
from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.rollout.random import Stream, draws
from klsweep.theory.bound import ClipInterval, fixed_policy_bound, paper_alpha
from klsweep.training.collect import Draws
from klsweep.training.metrics import sequence_log_ratios
from klsweep.training.shift import Shift, reward_model_artifact
from klsweep.training.trainer import Trainer

PROMPTS, ROLLOUTS, BATCHES, DELTA = 32, 8, 100, 0.05
CELL = [
    *("task=sort", "reward=reward_model", "reward.epochs=6", "reward.temperature=0.3", "estimator=k1"),
    *(
        "placement=reward",
        "clip=quantile",
        "kl.coef=0.05,0.2",
        "train.updates=5,40",
        "eval.samples_per_prompt=1",
        "eval.pass_at=[1]",
    ),
    *("wandb.mode=disabled", "launcher.threads=1", "sweep_dir=gap"),
]


def rows(folder: Path) -> Iterator[Row]:
    """A reward model of the base's preferences, sorting, `clip=quantile`: the policies after 5 and 40 updates are each
    asked 100 fresh batches of n = 32 prompts and K = 8 responses. Ĵ − J* of a batch is split into Ĵ − E[r̂ − βℓ^τ]
    (sampling), E[r̂ − r*] (reward shift) and βE[ℓ − ℓ^τ] (clipping); expectations are means over all 25,600 responses.
    Sampling: the largest of the 100 batches. The bound's terms at δ = 0.05 with the paper's α; C(θ) from the held-out
    responses of the reward model's data."""
    command(folder, "sweep", *CELL)()
    sweep = SweepFolder(folder / "gap")
    for planned in sweep.plan():
        yield from _run(sweep.run(planned["run_id"]), sweep.artifacts)


class Measured(NamedTuple):
    """What the responses of many batches are, ``[batches, n·K]``."""

    proxies: np.ndarray
    rewards: np.ndarray
    log_ratios: np.ndarray


def _run(run: RunFolder, artifacts: Path) -> Iterator[Row]:
    spec = Builder().run_spec(yaml.safe_load(run.config.read_text()))
    artifact = reward_model_artifact(spec, artifacts)
    assert artifact is not None
    trainer = Trainer(spec, build_objective(*spec.objective_parts), reward_model=artifact / "model")
    trainer.load_weights(run, spec.train.updates)
    found = _measured(trainer, spec)
    beta, tau = spec.kl.coef, list(read_rows(run.metrics))[-1]["clip/tau"]
    clip = ClipInterval.symmetric(tau)
    clipped = np.clip(found.log_ratios, -tau, tau)
    proxy = found.proxies - beta * clipped
    sampling = np.abs(proxy.mean(1) - proxy.mean()).max()
    shift, clipping = (found.proxies - found.rewards).mean(), beta * (found.log_ratios - clipped).mean()
    whole = np.abs(proxy.mean(1) - (found.rewards - beta * found.log_ratios).mean()).max()
    left = Shift.load(artifact, spec).metrics(trainer)
    error = (read_json(artifact / "report.json") or {})["error"]
    alpha, mass = paper_alpha(PROMPTS, ROLLOUTS, DELTA), clip.clipped_mass(found.log_ratios)
    bound = fixed_policy_bound(alpha, clip, beta, mass, left["shift/coverage"], error)
    what = f"β {beta:g}, {spec.train.updates} updates, τ {tau:.3f}, C(θ) {left['shift/coverage']:.2f}"
    for name, measured, term in (
        ("sampling", sampling, bound.sampling),
        ("reward shift", shift, bound.reward_shift),
        ("clipping", clipping, bound.clipping),
        ("largest abs(Ĵ − J*)", whole, bound.total),
    ):
        yield Row(f"{what}: {name}, measured beside the bound", f"{measured:+.4f}, {term:.4f}")


def _measured(trainer: Trainer, spec: RunSpec) -> Measured:
    """Fresh batches of prompts drawn anew from the training prompts, with replacement."""
    pool, columns = len(spec.task.train_items()), []
    chosen = (draws(1, Stream.PROMPT_ORDER, BATCHES * PROMPTS) * pool).astype(int).reshape(BATCHES, PROMPTS)
    for batch, prompts in enumerate(chosen.tolist()):
        rollout = trainer.answers(prompts, ROLLOUTS, Draws(1, Stream.ROLLOUT, batch))
        tokens = rollout.generation.tokens
        log_ratios = sequence_log_ratios(trainer.score(tokens), tokens.mask)
        columns.append([x.double().cpu().numpy() for x in (rollout.rewards, rollout.true_rewards, log_ratios)])
    return Measured(*(np.stack(column) for column in zip(*columns, strict=True)))
