"""`klsweep bound`: from an array, from records made by hand, from a run that was trained; what it refuses."""

import json

import numpy as np
import pytest
import yaml

from klsweep.cli import main
from klsweep.record.files import append_rows, read_rows
from klsweep.record.folder import SweepFolder
from klsweep.theory.bound import hoeffding_alpha, paper_alpha
from tests.conftest import SMALL

pytestmark = pytest.mark.slow

ALPHA = paper_alpha(512, 16, 0.05)
ASKED = ["prompts=512", "rollouts=16", "beta=0.1", "log_ratios=l.npy"]


@pytest.fixture
def arrays(in_tmp):
    """Arrays as a user would have them."""
    rng = np.random.default_rng(0)
    np.save("l.npy", rng.normal(0.2, 1.0, (64, 16)))
    np.save("w.npy", rng.normal(0.0, 0.5, 1000))
    np.save("r.npy", 0.5 * rng.random((64, 1)) + 0.5 * rng.random((64, 16)))
    return in_tmp


def answer(capsys, *words: str):
    assert main(["bound", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *words: str) -> str:
    assert main(["bound", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("klsweep: error: ")


def test_array_form(arrays, capsys):
    found = answer(capsys, *ASKED, "confidence=0.95")
    size = np.abs(np.load("l.npy"))
    tau = float(np.quantile(size, 1 - 2 * ALPHA, method="inverted_cdf"))
    expected = {
        "alpha": ALPHA,
        "quantile": 1 - 2 * ALPHA,
        "tau_star": tau,
        "sampling": (1 + 2 * 0.1 * tau) * ALPHA,
        "clipping": 0.1 * float(np.maximum(size - tau, 0).mean()),
        "reward_shift": 0.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found["total"] == pytest.approx(expected["sampling"] + expected["clipping"])
    assert found["label"].startswith("heuristic: ")
    assert found["notes"] == ["no reward_error given: the reward is taken as the true one"]


def test_array_form_with_everything(arrays, capsys):
    words = ["alpha=paper", "asymmetric=true", "split=true", "seed=3", "log_weights=w.npy", "reward_error=0.2"]
    words += ["reward_low=-1", "reward_high=3", "cost_prefill=8", "cost_decode=1", "rewards=r.npy"]
    found = answer(capsys, *ASKED, *words, "cost_preference=3", "error_rate=2")
    weights = np.exp(np.load("w.npy"))
    coverage = np.sqrt(1000 * (weights**2).sum()) / weights.sum()
    assert found["tau_star"] is None
    assert found["tau_low"] < found["tau_high"]
    assert found["quantile"] == pytest.approx(1 - ALPHA)
    assert found["reward_shift"] == pytest.approx(0.2 * coverage)
    assert found["sampling"] == pytest.approx((4 + 0.1 * (found["tau_low"] + found["tau_high"])) * ALPHA)
    assert found["label"].startswith("split: ")
    assert [row["best_rollouts"] for row in found["spending"]] == pytest.approx(
        [4.0, np.sqrt(8 * found["variance"]["rollout"] / found["variance"]["prompt"])]
    )
    split = found["preference_split"]
    assert split["least"] <= split["total"] == pytest.approx(split["sampling"] + split["reward_shift"])
    assert split["prompts"] * (8 + split["rollouts"]) + 3 * split["preferences"] == split["spent"] <= 512 * 24
    assert split["reward_shift"] == pytest.approx(2 * coverage / np.sqrt(split["preferences"]))
    scale = 4 + 0.1 * (found["tau_low"] + found["tau_high"])
    sampling = scale * paper_alpha(split["prompts"], split["rollouts"], 0.05)
    assert split["sampling"] == pytest.approx(sampling)
    other = answer(capsys, *ASKED, "alpha=hoeffding", "confidence=0.9", "coverage=1.5", "reward_error=0.2")
    assert other["alpha"] == pytest.approx(hoeffding_alpha(512, 0.1))
    assert other["reward_shift"] == pytest.approx(0.3)


def test_array_form_as_a_table_and_a_plot(arrays, capsys):
    costs = ["cost_prefill=8", "cost_decode=1", "rewards=r.npy"]
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert main(["bound", *ASKED, *costs, "--plot", f"plot.{suffix}"]) == 0
        assert (arrays / f"plot.{suffix}").read_bytes().startswith(start)
    out = capsys.readouterr().out
    for text in ("α", "0.081771", "τ* (nats)", "sampling", "clipping", "reward shift", "total", "n = 1024, K = 4"):
        assert text in out
    assert "heuristic: τ* and E|ℓ − ℓ^τ| are from the same log-ratios" in out
    assert main(["bound", *ASKED, "asymmetric=true", "--plot", "plot.svg"]) == 0
    drawn = (arrays / "plot.svg").read_text()
    assert drawn.count("<!-- K* = 1 -->") == 1  # equal costs
    assert "τ_low* = " in drawn
    assert "τ_high* = " in drawn


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["confidence=1.5"], "confidence='1.5': Input should be less than 1"),
        (["confidence=0"], "confidence='0': Input should be greater than 0"),
        (["confidence=nan"], "confidence='nan': "),
        (["prompts=0"], "prompts='0': Input should be greater than 0"),
        (["rollouts=0"], "rollouts='0': Input should be greater than 0"),
        (["rollouts=1.5"], "rollouts='1.5': Input should be a valid integer"),
        (["beta=-1"], "beta='-1': Input should be greater than or equal to 0"),
        (["alpha=tight"], "alpha='tight': Input should be 'paper' or 'hoeffding'"),
        (["gamma=1"], "gamma: unknown key (keys: "),
        (["log_ratios=none.npy"], "log_ratios='none.npy': No such file or directory"),
        (["log_ratios=text.npy"], "log_ratios='text.npy': not an array of numbers"),
        (["log_ratios=empty.npy"], "log_ratios: empty"),
        (["log_ratios=nan.npy"], "log_ratios: 1 of 2 values are not finite (NaN or infinite)"),
        (["log_ratios=two.npz"], "log_ratios='two.npz': several arrays (.npz)"),
        (["log_ratios=cube.npy"], "log_ratios: expected 1 or 2 dimensions, got shape [2, 2, 2]"),
        (["prompts=5"], "the threshold would be 0 and switch KL off: "),
        (["reward_error=0.1"], "reward_error=0.1: needs coverage (1 where it was measured) or log_weights"),
        (["coverage=0.5"], "coverage='0.5': Input should be greater than or equal to 1"),
        (["reward_low=0"], "reward_low=0.0: needs reward_high, too"),
        (["reward_low=2", "reward_high=1"], "reward range [2.0, 1.0]: expected two finite numbers, the lower first"),
        (["budget=10"], "budget=10.0: needs cost_decode, too"),
        (["rewards=big.npy", "cost_prefill=1", "cost_decode=1"], "rewards: 2 of 4 lie outside [0, 1]"),
        (["cost_prefill=1", "cost_decode=1", "budget=1"], "budget=1: less than one prompt with one rollout costs, 2"),
        (["a", "b"], "b: a second folder"),
        (["nowhere"], "nowhere: no run folder"),
        (["--plot", "x.jpg"], "--plot='x.jpg': expected a file that ends in .png, .svg, .pdf"),
    ],
)
def test_bad_input_is_one_line(words, text, arrays, capsys):
    (arrays / "text.npy").write_text("1 2 3")
    np.save("empty.npy", np.zeros(0))
    np.save("nan.npy", np.array([1.0, np.nan]))
    np.savez("two.npz", a=np.zeros(2), b=np.zeros(2))
    np.save("cube.npy", np.ones((2, 2, 2)))
    np.save("big.npy", np.array([[0.0, 2.0], [1.0, -1.0]]))
    keys = {word.split("=")[0] for word in words}
    given = [word for word in ASKED if word.split("=")[0] not in keys]
    assert refusal(capsys, *given, *words).startswith(text)


def test_a_key_given_twice_is_refused(arrays, capsys):
    assert refusal(capsys, *ASKED, "beta=0.2") == "beta: given twice"


CONFIG = {
    "train": {"prompts_per_update": 32},
    "algorithm": {"group_size": 8},
    "task": {"max_response_tokens": 8},
    "reward": {"_target_": "klsweep.tasks.reward.Verifier", "correct": 2.0, "incorrect": -1.0},
    "placement": {"_target_": "klsweep.objective.placement.InReward"},
    "estimator": {"_target_": "klsweep.objective.kl.K1"},
    "kl": {"coef": 0.4},
    "clip": {"_target_": "klsweep.objective.clip.NoClip", "level": None},
}
LEARNED = {
    "_target_": "klsweep.tasks.reward.LearnedReward",
    "output": "sigmoid",
    "truth": {"_target_": "klsweep.tasks.reward.Verifier", "correct": 1.0, "incorrect": 0.0},
}
FIXED = {"_target_": "klsweep.objective.clip.FixedClip", "tau": 0.5, "low": None, "high": None, "half": "both"}
ROW = {"update": 1, "reward/mean": 0.5, "beta/reward": 0.4, "sampler/lag": 0}


def recorded(path, config: dict, *rows: dict):
    """A run folder with a configuration and metrics; its path."""
    run = SweepFolder(path / "s").run("r1-x")
    run.path.mkdir(parents=True)
    run.config.write_text(yaml.dump(CONFIG | config))
    append_rows(run.metrics, [{"update": 0}, *rows])
    return run.path


def test_record_without_a_clip_has_no_sampling_term(in_tmp, capsys):
    found = answer(capsys, str(recorded(in_tmp, {}, ROW)))
    assert (found["sampling"], found["total"], found["clipping"], found["reward_shift"]) == (None, None, 0.0, 0.0)
    assert found["sources"]["sampling"] == "clip=none: ℓ has no bound"
    assert found["sources"]["total"] == "no sampling"
    assert found["sources"]["tau_star"].startswith("not recorded: no single responses")
    assert (found["reward_low"], found["reward_high"]) == (-1.0, 2.0)


def test_record_without_kl_needs_none(in_tmp, capsys):
    none = {"placement": {"_target_": "klsweep.objective.placement.NoKL"}}
    found = answer(capsys, str(recorded(in_tmp, none, {"update": 1, "reward/mean": 0.5})))
    assert found["total"] == found["sampling"] == pytest.approx(3 * paper_alpha(32, 8, 0.05))
    assert found["sources"]["beta"] == "config.yaml: no KL term"


def test_record_of_a_sequence_clip(in_tmp, capsys):
    run = recorded(in_tmp, {"clip": {**FIXED, "level": "sequence", "high": 2.0}}, {**ROW, "clip/distance": 0.7})
    found = answer(capsys, str(run), "confidence=0.9", "alpha=hoeffding")
    assert found["sampling"] == pytest.approx((3 + 0.4 * (0.5 + 2.0)) * hoeffding_alpha(32, 0.1))
    assert found["clipping"] == pytest.approx(0.28)
    assert found["sources"]["clipped_mass"] == "metrics.jsonl, clip/distance"
    assert found["total"] == pytest.approx(found["sampling"] + 0.28)


def test_record_of_a_token_clip_is_bounded_by_the_longest_response(in_tmp, capsys):
    row = {**ROW, "clip/distance": 0.1, "length/mean": 3.5}
    found = answer(capsys, str(recorded(in_tmp, {"clip": {**FIXED, "level": "token"}}, row)))
    assert (found["tau_low"], found["tau_high"]) == (4.0, 4.0)
    assert found["clipped_mass"] == pytest.approx(0.35)
    assert found["sources"]["clipped_mass"].startswith("at most metrics.jsonl, clip/distance × length/mean")


def test_record_of_a_calibrated_clip_and_a_reward_model(in_tmp, capsys):
    """What `clip=quantile` and `reward=reward_model` log; C and √L come from the last evaluation."""
    clip = {"_target_": "klsweep.objective.clip.QuantileClip", "level": "sequence", "confidence": 0.9, "half": "both"}
    rows = [
        {**ROW, "shift/coverage": 1.5, "shift/error": 0.2, "shift/tail_index": 0.6},
        {**ROW, "update": 2, "clip/tau": 0.8, "clip/distance": 0.3, "sampler/lag": 4, "reward/gap": 0.25},
    ]
    run = recorded(in_tmp, {"clip": clip, "reward": LEARNED, "estimator": {"_target_": "x.K3"}}, *rows)
    found = answer(capsys, str(run))
    assert (found["confidence"], found["reward_low"], found["reward_high"]) == (0.9, 0.0, 1.0)
    assert found["sampling"] == pytest.approx((1 + 2 * 0.4 * 0.8) * paper_alpha(32, 8, 0.1))
    assert found["clipping"] == pytest.approx(0.12)
    assert found["reward_shift"] == pytest.approx(0.3)
    assert found["sources"]["coverage"] == "metrics.jsonl, shift/coverage of update 1"
    assert [note.split(":")[0] for note in found["notes"]] == [
        "the bound is on E[r − βℓ]; trained with estimator k3",
        "heuristic",
        "measured on this batch",
        "the weights' tail index is 0.60 ≥ 0.5",
    ]
    append_rows(run / "metrics.jsonl", [{**ROW, "update": 3, "shift/coverage": 2.0}, {**ROW, "update": 4}])
    assert answer(capsys, str(run), "update=2")["coverage"] == 1.5
    assert answer(capsys, str(run))["coverage"] == 2.0
    first = answer(capsys, str(run), "update=1")
    assert (first["sampling"], first["clipping"]) == (None, None)
    assert first["sources"]["sampling"] == "not recorded (clip/tau)"
    assert first["reward_shift"] == pytest.approx(0.3)


def test_record_of_raw_rewards_needs_their_range(in_tmp, capsys):
    config = {"reward": {**LEARNED, "output": "raw"}, "clip": {**FIXED, "level": "sequence"}}
    row = {**ROW, "reward/mean": 3.0, "clip/distance": 0.1}
    run = str(recorded(in_tmp, config, row))
    found = answer(capsys, run)
    assert found["sampling"] is None
    assert found["sources"]["sampling"] == "not recorded: the range of rewards (give reward_low and reward_high)"
    assert found["sources"]["reward_shift"] == "not recorded (shift/coverage)"
    given = answer(capsys, run, "reward_low=-5", "reward_high=5")
    assert given["sampling"] == pytest.approx((10 + 2 * 0.4 * 0.5) * paper_alpha(32, 8, 0.05))
    text = refusal(capsys, run, "reward_low=0", "reward_high=1")
    assert text.startswith("reward/mean of update 1: 1 of 1 lie outside [0, 1]")
    assert refusal(capsys, run, "update=7") == "update=7: the record of r1-x has updates 1 to 1"


def test_record_with_one_half_clipped_or_one_side(in_tmp, capsys):
    both = {"placement": {"_target_": "klsweep.objective.placement.InRewardAndLoss"}}
    clip = {**FIXED, "level": "sequence", "half": "reward"}
    row = {**ROW, "beta/loss": 0.2, "clip/distance": 0.1}
    found = answer(capsys, str(recorded(in_tmp / "a", {**both, "clip": clip}, row)))
    assert found["sources"]["sampling"] == "clip.half=reward: the other half is not clipped"
    assert found["notes"] == ["β differs between reward and loss: the reward's is taken"]
    one = {**FIXED, "level": "sequence", "tau": None, "low": -1.0}
    found = answer(capsys, str(recorded(in_tmp / "b", {"clip": one}, row)))
    assert (found["tau_low"], found["tau_high"]) == (1.0, None)
    assert found["sources"]["sampling"] == "config.yaml: clipped on one side only, ℓ has no bound"


def test_a_run_without_updates_says_so(in_tmp, capsys):
    found = answer(capsys, str(recorded(in_tmp, {})))
    assert found["update"] is None
    assert set(found["sources"].values()) == {"not recorded: no update yet"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with a sequence clip."""
    folder = tmp_path_factory.mktemp("trained")
    words = [
        "clip=fixed",
        "clip.level=sequence",
        "clip.tau=0.3",
        "kl.coef=0.4",
        "train.updates=2",
        "train.probe_every=1",
    ]
    assert main(["train", *SMALL, *words, "wandb.mode=disabled", f"sweep_dir={folder}"]) == 0
    sweep = SweepFolder(folder)
    return sweep.run(sweep.plan()[0]["run_id"])


def test_every_term_comes_from_a_trained_run_s_record(trained, capsys, tmp_path):
    run, last = trained, list(read_rows(trained.metrics))[-1]
    found = answer(capsys, str(run.path), "cost_prefill=4", "cost_decode=1")
    assert (found["update"], found["prompts"], found["rollouts"], found["beta"]) == (2, 4, 4, 0.4)
    assert found["sampling"] == pytest.approx((1 + 2 * 0.4 * 0.3) * paper_alpha(4, 4, 0.05))
    assert found["clipping"] == pytest.approx(0.4 * last["clip/distance"])
    assert found["reward_shift"] == 0.0
    assert found["total"] == pytest.approx(found["sampling"] + found["clipping"])
    evaluated = [r for r in read_rows(run.evaluations / "add.jsonl") if r["update"] == 2]
    within = sum(r["correct"] * (4 - r["correct"]) / 4 for r in evaluated) / (3 * len(evaluated))
    assert found["variance"]["rollout"] == pytest.approx(within)
    assert found["spending"][0]["best_rollouts"] == pytest.approx(4 ** (2 / 3))
    probes = [r for r in read_rows(run.rollouts / "probes.jsonl") if r["update"] == 2]
    size = [abs(sum(r["old_logprobs"]) - sum(r["ref_logprobs"])) for r in probes]
    assert len(size) == 16
    expected = np.quantile(size, 1 - 2 * hoeffding_alpha(4, 0.9), method="inverted_cdf")
    assert answer(capsys, str(run.path), "alpha=hoeffding", "confidence=0.1")["tau_star"] == pytest.approx(expected)
    assert "switch KL off" in found["sources"]["tau_star"]  # four prompts are far too few
    plot = tmp_path / "p.png"
    assert main(["bound", str(run.path), "alpha=hoeffding", "confidence=0.1", "--plot", str(plot)]) == 0
    assert plot.exists()


def test_a_sweep_is_a_row_per_run_with_its_sources(in_tmp, capsys):
    recorded(in_tmp, {"clip": {**FIXED, "level": "sequence"}}, {**ROW, "clip/distance": 0.1})
    other = SweepFolder(in_tmp / "s").run("r1-y")
    other.path.mkdir()
    other.config.write_text(yaml.dump(CONFIG))
    append_rows(other.metrics, [{**ROW, "update": 9}])
    axes = {"estimator": "k1", "placement": "reward", "sampling": "on_policy"}
    plan = {"kl_coef": 0.4, "fields": {}, "suites": {}, "seed": 0}
    clips = (("r1-x", "fixed"), ("r1-y", "none"), ("r1-z", "none"))  # the last has no folder yet
    SweepFolder(in_tmp / "s").extend_plan(
        {"run_id": name, "cell_id": name, "axes": {**axes, "clip": clip}, **plan} for name, clip in clips
    )
    found = answer(capsys, "s")
    assert [row["run_id"] for row in found] == ["r1-x", "r1-y"]
    assert [row["cell"] for row in found] == ["k1 reward β=0.4 clip fixed on_policy", "k1 reward β=0.4 on_policy"]
    assert [row["update"] for row in found] == [1, 9]
    assert [row["sampling"] is None for row in found] == [False, True]
    assert main(["bound", "s"]) == 0
    out = capsys.readouterr().out
    assert "sampling: clip=none: ℓ has no bound (1 of 2 runs)" in out
    assert "beta: metrics.jsonl, beta/reward (2 of 2 runs)" in out
    assert refusal(capsys, "s", "--plot", "p.png").startswith("--plot='p.png': of a run; give one of the folders in")
    assert refusal(capsys, "s", "cost_prefill=1", "cost_decode=2").startswith("cost_decode=2.0: of a run")
    assert refusal(capsys, "s/runs/r1-x", "cost_prefill=1", "cost_decode=2").startswith("r1-x: no evaluation")
    assert "has recorded no single responses" in refusal(capsys, "s/runs/r1-x", "--plot", "p.png")
