"""What runs with `reward=reward_model` share: a behaviour run, and the reward model trained on its responses.

`<sweep>/artifacts/behaviour/runs/<id>` is a run like any other, on the true reward. `<sweep>/artifacts/<id>` holds the
reward model (`model/`), the preferences it learned from, held-out samples of D_train, and `report.json`. Each is built
once, by the first run that needs it; what an interrupted behaviour run has done is gone on with.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from klsweep.config.build import Builder, Node, RunSpec
from klsweep.config.identity import canonical, run_id
from klsweep.model.policy import Policy
from klsweep.model.reward_model import new_reward_model
from klsweep.objective.objective import Objective, build_objective
from klsweep.provenance import science_hash
from klsweep.record.claims import Turns, beating, shared_artifact, wait_for_turn
from klsweep.record.files import Row, append_rows, write_json, write_text
from klsweep.record.folder import FINISHED, VANISHED, RunFolder, SweepFolder
from klsweep.tasks.reward import LearnedReward
from klsweep.tracking import Tracker
from klsweep.training.loop import train
from klsweep.training.preferences import Samples, chosen_prompts, preferred_first, sample_responses
from klsweep.training.reward_fit import fit, report
from klsweep.training.shift import reward_model_artifact
from klsweep.training.trainer import Trainer

ShouldStop = Callable[[], str | None]
POLL_SECONDS = 0.5


class Stopped(Exception):
    """Told to stop before it was ready; the argument says by what."""


def prepare_reward_model(config: Node, spec: RunSpec, artifacts: Path, should_stop: ShouldStop) -> str | None:
    """Have a run's reward model there, by building it or by waiting for who does; why it stopped before, if it did.

    `config` is the run's resolved configuration, of which `spec` was built. RuntimeError if the behaviour run diverges.
    """
    artifact = reward_model_artifact(spec, artifacts)
    if artifact is None:
        return None

    def check() -> None:
        if reason := should_stop():
            raise Stopped(reason)

    try:
        shared_artifact(artifact, lambda folder: _build(folder, config, artifacts, should_stop, check), check=check)
    except Stopped as stopped:
        return str(stopped)
    return None


def behaviour_config(config: Node) -> Node:
    """The configuration of the behaviour run: the true reward, no KL term, on policy, as many updates as it takes.

    Model, task, algorithm, engine and optimiser are the run's; the seed is the reward model's.
    """
    reward, kl = config["reward"], config["kl"]
    kept = sorted({update for update in reward["behaviour"] if update > 0})
    on_policy = "klsweep.rollout.buffer.OnPolicy"
    return {
        **config,
        "name": "behaviour",
        "seed": reward["seed"],
        "reward": reward["truth"],
        "kl": {**kl, "coef": 0.0, "final_coef": 0.0, "loss_coef": None, "schedule": "constant", "weight": "none"},
        "clip": {**dict.fromkeys(config["clip"]), "_target_": "klsweep.objective.clip.NoClip"},
        "correction": {**dict.fromkeys(config["correction"]), "_target_": "klsweep.objective.importance.NoCorrection"},
        "sampling": {**dict.fromkeys(config["sampling"]), "_target_": on_policy},
        "train": {**config["train"], "updates": max([1, *kept]), "max_kl": None, "min_reward": None, "probe_every": 0},
        "checkpoint": {**config["checkpoint"], "keep_at": kept},
        "eval": {**config["eval"], "every": 0},
        "wandb": {**config["wandb"], "mode": "disabled"},
    }


def _build(folder: Path, config: Node, artifacts: Path, should_stop: ShouldStop, check: Callable[[], None]) -> None:
    """Fill a reward model's folder."""
    content = behaviour_config(config)
    spec = Builder().run_spec(content)
    settings = Builder().run_spec(config).reward
    assert isinstance(settings, LearnedReward)
    objective = build_objective(*spec.objective_parts)
    models: dict[int, Path | None] = dict.fromkeys(sorted(set(settings.behaviour)))
    if any(models):
        run = _behaviour_run(content, spec, objective, artifacts, should_stop, check)
        models |= {update: run.path / f"models/update-{update:06d}" for update in models if update > 0}
        write_text(folder / "behaviour_run", f"{run.path.name}\n")
    prompts = chosen_prompts(settings, len(spec.task.train_items()))
    with Trainer(spec, objective) as trainer:
        samples = sample_responses(trainer, settings, prompts, models)
        policy = trainer.policy
    preferred = preferred_first(settings, samples.rewards.tolist())
    _write_preferences(folder / "preferences.jsonl", policy, spec, settings, prompts, samples, preferred)
    train_pairs = (settings.prompts - settings.held_out_prompts) * settings.pairs
    places = torch.arange(len(samples.rewards))
    held_out = samples.rows(places[2 * train_pairs :])
    reward_model = new_reward_model(spec.model)
    learned = samples.rows(places[: 2 * train_pairs])
    losses = fit(reward_model, learned.tokens, preferred[:train_pairs], settings, check)
    held_out.save(folder / "held_out.safetensors")
    found = report(reward_model, held_out, preferred[train_pairs:], settings)
    found |= {"losses": losses, "true_reward": samples.rewards.double().mean().item()}
    write_json(folder / "report.json", found)
    reward_model.save(folder / "model")
    print(f"reward model: held-out accuracy {found['accuracy']}, √L_train {found['error']:.3f}", flush=True)


def _behaviour_run(
    content: Node,
    spec: RunSpec,
    objective: Objective,
    artifacts: Path,
    should_stop: ShouldStop,
    check: Callable[[], None],
) -> RunFolder:
    """The finished behaviour run: trained here, gone on with, or waited for. Raises Stopped."""
    kept = "-".join(map(str, spec.checkpoint.keep_at))
    folder = SweepFolder(artifacts / "behaviour").run(f"{run_id(canonical(spec.simplified(objective)))}-{kept}")
    turns = Turns(artifacts / "claims" / folder.run_id)

    def is_finished() -> bool:
        check()
        return folder.recorded()["state"] in FINISHED

    number = wait_for_turn(turns, is_finished, POLL_SECONDS)
    if number is not None:
        try:
            with beating(turns.heartbeat(number)):
                _train_behaviour(folder, content, spec, artifacts, should_stop)
        finally:
            turns.end(number, folder.recorded())
    status = folder.recorded()
    if status["state"] == "diverged":
        raise RuntimeError(f"the behaviour run {folder.path} diverged: {status['cause']}")
    return folder


def _train_behaviour(folder: RunFolder, content: Node, spec: RunSpec, artifacts: Path, should_stop: ShouldStop) -> None:
    """One attempt at it. Who has its turn is its only process: an attempt that seems to go on is a dead one's."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    if latest := folder.attempts.latest():
        folder.end(latest, "failed", VANISHED)
    attempt = folder.claim(science_hash=science_hash())
    if attempt is None:  # finished between the look and the turn
        return
    try:
        outcome = train(spec, attempt, artifacts, Tracker(None), should_stop, lambda *_: None)
    except BaseException as error:
        attempt.finish("failed", f"{type(error).__name__}: {error}")
        raise
    attempt.finish(outcome.state, outcome.cause)
    if outcome.state == "failed":
        raise RuntimeError(f"the behaviour run {folder.path} failed: {outcome.cause}")
    if outcome.state not in FINISHED:
        raise Stopped(outcome.state)


def _write_preferences(
    file: Path,
    policy: Policy,
    spec: RunSpec,
    settings: LearnedReward,
    prompts: Sequence[int],
    samples: Samples,
    preferred: Sequence[bool | None],
) -> None:
    """A row per pair: prompt, both responses and what they are worth, which was preferred (null: neither), held out?"""
    items = spec.task.train_items()
    texts = policy.decode(samples.tokens.response_ids)
    rewards = samples.rewards.tolist()

    def row(pair: int) -> Row:
        place = pair // settings.pairs
        return {
            "prompt": items[prompts[place]].prompt,
            "behaviour": settings.behaviour[place % len(settings.behaviour)],
            "responses": texts[2 * pair : 2 * pair + 2],
            "rewards": rewards[2 * pair : 2 * pair + 2],
            "preferred": None if preferred[pair] is None else int(not preferred[pair]),
            "held_out": place >= settings.prompts - settings.held_out_prompts,
        }

    append_rows(file, [row(pair) for pair in range(len(preferred))])
