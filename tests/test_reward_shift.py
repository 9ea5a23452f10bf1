"""`reward=reward_model`: the preferences, the reward model, what runs share of both, and what a run logs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from klsweep.config.build import Builder
from klsweep.config.identity import canonical, reward_model_id
from klsweep.errors import BadInput
from klsweep.model.policy import load_base
from klsweep.model.reward_model import bradley_terry_loss, load_reward_model, new_reward_model
from klsweep.model.tokens import Tokens
from klsweep.objective.objective import build_objective
from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import RunFolder
from klsweep.rollout.random import Stream
from klsweep.sweep.job import execute
from klsweep.sweep.plan import write_plan
from klsweep.tasks.reward import LearnedReward
from klsweep.training import behaviour
from klsweep.training.collect import Draws
from klsweep.training.preferences import Samples, chosen_prompts, preferred_first
from klsweep.training.reward_fit import calibration_error, fit
from klsweep.training.trainer import Trainer
from tests.conftest import SMALL, planned, small_spec
from tests.plain import chosen, response_distributions

FEW = ("eval.samples_per_prompt=1", "eval.pass_at=[1]")
MODEL = ("reward=reward_model", "reward.prompts=24", "reward.pairs=2")
SHIFTED = (*SMALL, *FEW, "task=max", "task.train_prompts=64", *MODEL)


def settings(*overrides: str) -> LearnedReward:
    reward = small_spec("reward=reward_model", "reward.prompts=24", *overrides).reward
    assert isinstance(reward, LearnedReward)
    return reward


def prepared(folder: Path, *overrides: str) -> list[RunFolder]:
    plan = planned(*SHIFTED, *overrides, f"sweep_dir={folder}")
    write_plan(plan)
    return [plan.folder.run(run.run_id) for run in plan.runs]


def executed(folder: RunFolder, should_stop=lambda: None) -> str:
    status = execute(folder, should_stop, lambda *_: None, threads=1)
    assert status["state"] != "failed", status
    return status["state"]


def spec_of(folder: RunFolder):
    return Builder().run_spec(yaml.safe_load(folder.config.read_text()))


def artifact_of(folder: RunFolder) -> Path:
    return folder.sweep.artifacts / reward_model_id(spec_of(folder))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two runs on one reward model, of the base and of update 2 of a behaviour run, trained to their end."""
    runs = prepared(
        tmp_path_factory.mktemp("sweep"), "reward.behaviour=[0,2]", "train.updates=3", "kl.coef=0.0,0.1", "eval.every=2"
    )
    assert [executed(run) for run in runs] == ["done", "done"]
    return runs


def test_labels_follow_bradley_and_terry():
    found = preferred_first(settings("reward.temperature=0.5"), [1.0, 0.0] * 4000 + [0.3, 0.3] * 4000)
    share = 1 / (1 + math.exp(-2.0))
    assert sum(map(bool, found[:4000])) / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
    assert sum(map(bool, found[4000:])) / 4000 == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert preferred_first(settings("reward.labels=noiseless"), [1.0, 0.0, 0.0, 1.0, 0.5, 0.5]) == [True, False, None]
    assert preferred_first(settings("reward.temperature=1e-3"), [1.0, 0.0, 0.0, 1.0]) == [True, False]  # exp(1000)
    assert preferred_first(settings("reward.seed=1"), [0.0] * 200) != preferred_first(settings(), [0.0] * 200)


def test_the_loss_is_bradley_terrys():
    loss = bradley_terry_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2, rel=1e-6)


def test_the_calibration_error_is_that_of_a_hand_case():
    """Confidences ½ (one of two right), 0.88 (right) and 0.88 (wrong): bins |½ − ½|·2/4 and |0.88 − ½|·2/4."""
    apart = 2.0
    confidence = 1 / (1 + math.exp(-apart))
    found = calibration_error(np.array([1e-9, -1e-9, apart, -apart]))
    assert found == pytest.approx((confidence - 0.5) / 2, rel=1e-6)


def test_a_score_is_read_off_the_last_token_whatever_the_padding():
    spec = small_spec()
    model = new_reward_model(spec.model)
    torch.nn.init.normal_(model.network.score.weight, generator=torch.Generator().manual_seed(0))
    policy, texts = load_base(spec.model), (["12+7=", "max 3 14 15="], ["19", "150"])
    prompts, responses = (policy.encode(column) for column in texts)
    rows = [(p, [*r, policy.stop_ids[0]]) for p, r in zip(prompts, responses, strict=True)]
    tokens = Tokens(
        prompt_ids=torch.tensor([[0] * (20 - len(p)) + p for p, _ in rows]),
        prompt_mask=torch.tensor([[0] * (20 - len(p)) + [1] * len(p) for p, _ in rows]),
        response_ids=torch.tensor([r + [0] * (9 - len(r)) for _, r in rows]),
        mask=torch.tensor([[1.0] * len(r) + [0.0] * (9 - len(r)) for _, r in rows]),
    )
    found = model.scores(tokens)
    for (prompt, response), score in zip(rows, found, strict=True):
        alone = model.network(input_ids=torch.tensor([prompt + response])).logits  # transformers' own pooling
        assert score.item() == pytest.approx(alone.item(), abs=1e-5)
    torch.testing.assert_close(model.rewards(tokens, "sigmoid", 1), model.rewards(tokens, "raw", 2).sigmoid())
    torch.testing.assert_close(model.rewards(tokens, "raw", 1), found)


def test_a_new_model_prefers_nothing():
    model = new_reward_model(small_spec().model)
    tokens = Tokens(*(torch.ones(3, 2, dtype=torch.int64) for _ in range(3)), torch.ones(3, 2))
    assert model.scores(tokens).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_held_out_samples_know_their_probability_under_the_mixture(sweep):
    """log ½(π_base + π_2), from whole logits of the base and of the behaviour run's milestone."""
    artifact = artifact_of(sweep[0])
    held_out = Samples.load(artifact / "held_out.safetensors", "cpu")
    assert len(held_out.rewards) == 6 * 2 * 2  # a quarter of 24 prompts
    run = sweep[0].sweep.artifacts / "behaviour/runs" / (artifact / "behaviour_run").read_text().strip()
    base = load_base(spec_of(sweep[0]).model)
    from transformers import AutoModelForCausalLM

    later = AutoModelForCausalLM.from_pretrained(run / "models/update-000002")
    sums = []
    with torch.no_grad():
        for network in (base.network, later):
            logprobs = chosen(response_distributions(network, held_out.tokens, 1.0), held_out.tokens.response_ids)
            sums.append(logprobs.masked_fill(held_out.tokens.mask == 0, 0.0).double().sum(1))
    expected = torch.stack(sums).logsumexp(0) - math.log(2)
    assert (sums[0] - sums[1]).abs().max() > 0.1
    torch.testing.assert_close(held_out.log_behaviour, expected, atol=1e-4, rtol=0)


def test_the_preferences_are_written_down(sweep):
    rows = list(read_rows(artifact_of(sweep[0]) / "preferences.jsonl"))
    reward = spec_of(sweep[0]).reward
    assert isinstance(reward, LearnedReward)
    items = spec_of(sweep[0]).task.train_items()
    asked = [items[i].prompt for i in chosen_prompts(reward, len(items)) for _ in range(2)]
    assert [row["prompt"] for row in rows] == asked
    assert [row["behaviour"] for row in rows] == [0, 0, 2, 2] * 12
    assert [row["held_out"] for row in rows] == [False] * 36 + [True] * 12
    answers = {item.prompt: item.answer for item in items}
    for row in rows:
        assert row["rewards"] == [float(r.strip() == answers[row["prompt"]]) for r in row["responses"]]
    labels = preferred_first(reward, [value for row in rows for value in row["rewards"]])
    assert [row["preferred"] for row in rows] == [int(not first) for first in labels]


def test_it_is_built_once_for_all_runs(sweep):
    artifacts = sweep[0].sweep.artifacts
    assert artifact_of(sweep[0]) == artifact_of(sweep[1])
    assert len(list(artifacts.glob("w1-*"))) == 1
    (run,) = (artifacts / "behaviour/runs").iterdir()
    assert RunFolder(run).attempts.latest() == 1
    assert (artifacts / "claims" / artifact_of(sweep[0]).name / "1/end.json").exists()
    assert not (artifacts / "claims" / artifact_of(sweep[0]).name / "2").exists()


def test_what_training_sees_is_the_reward_models(sweep):
    """The rewards of update 1 are σ(s) of the saved model on the base's responses; the truth stands beside."""
    spec = spec_of(sweep[0])
    trainer = Trainer(spec, build_objective(*spec.objective_parts), reward_model=artifact_of(sweep[0]) / "model")
    rollout = trainer.begin(1, 0)()
    model = load_reward_model(artifact_of(sweep[0]) / "model", spec.model)
    tokens = rollout.generation.tokens
    with torch.no_grad():
        expected = model.network(
            input_ids=torch.cat([tokens.prompt_ids, tokens.response_ids], 1)[:1, (tokens.prompt_mask[0] == 0).sum() :][
                :, : int(tokens.widths[0])
            ]
        ).logits.sigmoid()
    assert rollout.rewards[0].item() == pytest.approx(expected.item(), abs=1e-5)
    assert rollout.true_rewards.tolist() == [float(grade.correct) for grade in rollout.grades]
    row = list(read_rows(sweep[0].metrics))[1]
    assert row["reward/mean"] == rollout.rewards.double().mean().item()
    assert row["reward/true_mean"] == rollout.true_rewards.double().mean().item()
    assert row["reward/gap"] == row["reward/mean"] - row["reward/true_mean"]


def test_a_run_logs_how_far_it_has_left_the_data(sweep):
    """At update 2: C = √(N Σw²)/Σw with w = π_θ/D_train on the held-out samples, from the recorded weights' own run."""
    rows = list(read_rows(sweep[0].metrics))
    report = read_json(artifact_of(sweep[0]) / "report.json")
    assert report is not None
    assert ["shift/coverage" in row for row in rows] == [True, False, True, True]
    held_out = Samples.load(artifact_of(sweep[0]) / "held_out.safetensors", "cpu")
    spec = spec_of(sweep[0])
    trainer = Trainer(spec, build_objective(*spec.objective_parts))
    for update in (0, 3):
        if update:
            trainer.load_weights(sweep[0], update)
        logs = (trainer.score(held_out.tokens).old_logprobs.double().sum(1) - held_out.log_behaviour).numpy()
        weights = np.exp(logs)
        found = math.sqrt(len(weights) * (weights**2).sum()) / weights.sum()
        assert rows[update]["shift/coverage"] == pytest.approx(found, rel=1e-9)
        assert rows[update]["bound/reward_shift"] == pytest.approx(found * report["error"], rel=1e-9)
        assert rows[update]["shift/ess"] == pytest.approx(1 / found**2, rel=1e-9)


def test_the_error_is_that_of_the_held_out_rewards(sweep):
    held_out = Samples.load(artifact_of(sweep[0]) / "held_out.safetensors", "cpu")
    model = load_reward_model(artifact_of(sweep[0]) / "model", spec_of(sweep[0]).model)
    apart = (model.rewards(held_out.tokens, "sigmoid", 5) - held_out.rewards).double().numpy()
    report = json.loads((artifact_of(sweep[0]) / "report.json").read_text())
    assert report["error"] == pytest.approx(math.sqrt((apart**2).mean()), rel=1e-5)
    assert report["aligned_error"] == pytest.approx(math.sqrt(apart.reshape(6, 4).var(1, ddof=1).mean()), rel=1e-5)


def test_stopped_while_it_is_made_ready_and_gone_on_with(tmp_path, sweep):
    """SIGTERM in the behaviour run: it is checkpointed, the run is preempted, and the next attempt ends the same."""
    (run,) = prepared(tmp_path, "reward.behaviour=[0,2]", "train.updates=3", "kl.coef=0.0", "eval.every=2")
    asked = 0

    def after_one_update() -> str | None:
        nonlocal asked
        asked += 1
        return "preempted" if asked > 3 else None

    assert executed(run, after_one_update) == "preempted"
    assert not artifact_of(run).exists()
    (behaved,) = (run.sweep.artifacts / "behaviour/runs").iterdir()
    assert RunFolder(behaved).recorded()["state"] == "preempted"
    assert executed(run) == "done"
    assert RunFolder(behaved).attempts.latest() == 2
    assert run.metrics.read_bytes() == sweep[0].metrics.read_bytes()


def test_a_process_that_died_in_the_behaviour_run_is_taken_over(tmp_path, monkeypatch, sweep):
    (run,) = prepared(tmp_path, "reward.behaviour=[0,2]", "train.updates=3", "kl.coef=0.0", "eval.every=2")
    train = behaviour.train
    monkeypatch.setattr(behaviour, "train", lambda *a: (_ for _ in ()).throw(RuntimeError("gone")))
    status = execute(run, lambda: None, lambda *_: None, threads=1)
    assert (status["state"], status["cause"]) == ("failed", "RuntimeError: gone")
    monkeypatch.setattr(behaviour, "train", train)
    assert executed(run) == "done"
    assert run.metrics.read_bytes() == sweep[0].metrics.read_bytes()


@pytest.mark.slow
def test_with_overlap_the_same_bytes(tmp_path):
    cell = ("train.updates=4", "sampling=off_policy", "sampling.async_level=1", "sampling.overlap=false,true")
    plain, beside = (prepared(tmp_path / word, *cell[:3], f"sampling.overlap={word}")[0] for word in ("false", "true"))
    assert executed(plain) == executed(beside) == "done"
    assert plain.metrics.read_bytes() == beside.metrics.read_bytes()


def test_cells_share_a_reward_model_unless_it_differs(tmp_path):
    def ids(*overrides: str) -> set[str]:
        return {reward_model_id(run.spec) for run in planned(*SHIFTED, *overrides).runs}

    assert len(ids("kl.coef=0.0,0.1", "seed=0,1", "estimator=k1,k3", "clip=none,fixed", "clip.tau=1")) == 1
    assert len(ids("train.updates=5,6")) == 1
    assert len(ids("train.lr=1e-4,1e-3")) == 1  # of the base's responses
    assert len(ids("train.lr=1e-4,1e-3", "reward.behaviour=[0,2]")) == 2
    assert len(ids("reward.seed=0,1")) == 2
    assert len(ids("rollout.temperature=0.7,1.0")) == 2


def test_the_temperature_of_noiseless_labels_is_no_difference():
    runs = planned(*SHIFTED, "reward.labels=noiseless", "reward.temperature=0.1,0.5").runs
    assert len(runs) == 1
    assert "reward.temperature" not in canonical(runs[0].spec)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.prompts=65"], "reward.prompts=65: the task has 64 training prompts"),
        (["rollout.top_p=0.9"], "rollout.top_p=0.9 with reward=reward_model"),
        (["parallel=fsdp2", "parallel.processes=2"], "reward=reward_model needs parallel=single"),
        (["reward.held_out=0.01"], "reward.held_out=0.01 of reward.prompts=24 leaves none to hold out"),
        (["reward.behaviour=[]"], "reward.behaviour=[]"),
        (["reward.labels=thurstone"], "reward.labels='thurstone'"),
        (["reward.temperature=0.0"], "reward.temperature=0.0"),
    ],
)
def test_what_cannot_be_is_said_before_a_run(overrides, message):
    with pytest.raises(BadInput) as found:
        planned(*SHIFTED, *overrides)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_each_prompt_is_answered_by_the_behaviour_whose_turn_it_is(sweep):
    """The responses on record are those of update 2's milestone, and of the base, to their prompts and draws."""
    spec, artifact = spec_of(sweep[0]), artifact_of(sweep[0])
    reward, rows = spec.reward, list(read_rows(artifact / "preferences.jsonl"))
    assert isinstance(reward, LearnedReward)
    run = sweep[0].sweep.artifacts / "behaviour/runs" / (artifact / "behaviour_run").read_text().strip()
    prompts = chosen_prompts(reward, len(spec.task.train_items()))
    trainer = Trainer(spec, build_objective(*spec.objective_parts))
    for turn, update in enumerate((0, 2)):
        if update:
            trainer.load_model(run / f"models/update-{update:06d}")
        rollout = trainer.answers(prompts[turn::2], 4, Draws(reward.seed, Stream.PREFERENCES, update))
        texts = trainer.policy.decode(rollout.generation.tokens.response_ids)
        assert [text for row in rows if row["behaviour"] == update for text in row["responses"]] == texts


def test_what_is_preferred_comes_to_have_the_higher_score():
    """Pairs of responses "7" and "8", the first or the second preferred: always the one that says 7."""
    reward = settings("reward.epochs=8", "reward.batch_size=8")
    policy, pairs = load_base(small_spec().model), 24
    firsts = [i % 3 == 0 for i in range(pairs)]
    responses = policy.encode([text for first in firsts for text in (("7", "8") if first else ("8", "7"))])
    prompts = policy.encode([f"{i}+1=" for i in range(10, 10 + pairs) for _ in range(2)])
    whole = torch.ones(2 * pairs, len(prompts[0]), dtype=torch.int64)
    tokens = Tokens(torch.tensor(prompts), whole, torch.tensor(responses), torch.ones(2 * pairs, 1))
    model = new_reward_model(small_spec().model)
    losses = fit(model, tokens, firsts, reward, lambda: None)
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.1
    scores = model.rewards(tokens, "raw", 16)
    assert ((scores[0::2] > scores[1::2]) == torch.tensor(firsts)).all()
    with pytest.raises(ValueError, match="none of 24 pairs has a better response"):
        fit(model, tokens, [None] * pairs, reward, lambda: None)
