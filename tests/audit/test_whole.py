"""The whole objective, the synthetic study, a real policy, and the page."""

import csv
import itertools
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from klsweep.analysis.plots import bias_and_variance
from klsweep.audit.cases import cases
from klsweep.audit.study import synthetic_study
from klsweep.audit.tabular import every_sequence, instance
from klsweep.audit.transformer import Subject, _comparison, transformer_table
from klsweep.audit.whole import task_rewards, whole_table
from klsweep.cli import main
from klsweep.config.compose import composer
from klsweep.model.policy import load_policy, states
from klsweep.terminal import markdown_grid, print_grid
from tests.conftest import small_spec
from tests.plain import chosen, response_distributions

DOCS = Path(__file__).resolve().parents[2] / "docs"
TINY = instance(length=2, vocabulary=2)


def found(overrides: list[str], default: str = "", whole: bool = False):
    with composer() as session:
        return cases(session, overrides, default, whole).chosen


def rows_by(tables, overrides):
    rows = whole_table(tables, found(overrides, "effective_beta", whole=True), lambda done: None)
    return {(row["algorithm"], row["placement"], row["baseline"]): row for row in rows}


def test_group_means_and_standard_deviations_move_beta():
    rows = rows_by(TINY, [])
    for key in (("rloo", "reward", "inside"), ("rloo", "reward", "outside"), ("reinforce", "reward", "outside")):
        row = rows[key]
        assert (row["reward_scale"], row["kl_scale"]) == pytest.approx((1.0, 1.0))
        assert row["residual"] < 1e-12
    inside, outside = (rows["dr_grpo", "reward", baseline] for baseline in ("inside", "outside"))
    assert (inside["reward_scale"], inside["kl_scale"]) == pytest.approx((0.75, 0.75))
    assert (outside["reward_scale"], outside["kl_scale"]) == pytest.approx((0.75, 1.0))
    assert outside["effective_beta"] == pytest.approx(0.1 / 0.75)
    assert rows["grpo", "reward", "outside"]["kl_scale"] == pytest.approx(1.0)
    assert rows["grpo", "reward", "inside"]["residual"] > 0.01


def test_grpo_by_enumerating_ordered_groups():
    """All 4³ ordered groups of three, each advantage and gradient by hand."""
    (case,) = found(["algorithm=grpo", "algorithm.group_size=3", "algorithm.aggregation=seq-sum"], whole=True)
    (row,) = whole_table(TINY, [case], lambda done: None)
    (batch,) = every_sequence(TINY, off_policy=False)
    rewards = task_rewards(TINY)
    assert rewards.tolist() == [1, 1, 1, 0]  # of 00, 01, 10, 11
    scalars = rewards - 0.1 * (batch.logprobs - batch.ref_logprobs).sum(1)
    scores = torch.zeros(4, 6, 2, dtype=torch.float64)
    for i in range(4):
        scores[i].index_add_(0, batch.cells[i], batch.score[i])
    gradient, equal = torch.zeros(6, 2, dtype=torch.float64), 0.0
    for group in itertools.product(range(4), repeat=3):
        members = torch.tensor(group)
        probability = batch.weights[members].prod().item()
        values = scalars[members]
        advantages = (values - values.mean()) / (values.std() + 1e-6)
        gradient -= probability * (advantages[:, None, None] * scores[members]).mean(0)
        equal += probability * float(len(set(rewards[members].tolist())) == 1)
    assert row["equal_groups"] == pytest.approx(equal)
    reward_gradient = -(batch.weights[:, None, None] * rewards[:, None, None] * scores).sum(0)
    kl = (batch.logprobs - batch.ref_logprobs).sum(1)
    kl_gradient = 0.1 * (batch.weights[:, None, None] * kl[:, None, None] * scores).sum(0)
    basis = torch.stack([reward_gradient.flatten(), kl_gradient.flatten()], 1)
    expected = torch.linalg.lstsq(basis, gradient.flatten()[:, None]).solution.squeeze(1)
    assert (row["reward_scale"], row["kl_scale"]) == pytest.approx(tuple(expected.tolist()))
    assert row["effective_beta"] == pytest.approx(0.1 * (expected[1] / expected[0]).item())


@pytest.mark.slow
def test_the_study_agrees_with_enumeration_within_standard_errors():
    rows = synthetic_study(found([], "main_estimators"), [3, 5], 60, 400, 0, 5, lambda done: None)
    assert len(rows) == 22
    assert all(0.2 < row["distance"] < 2.0 for row in rows)
    for row in rows:
        assert row["variance"] == pytest.approx(row["exact_variance"], rel=0.25)
    by_name = {(row["configuration"], row["length"]): row for row in rows}
    assert by_name["k1 loss token", 5]["exact_bias"] == pytest.approx(1.0)
    unbiased = by_name["k2 loss sequence", 5]
    assert unbiased["exact_bias"] < 1e-12
    assert unbiased["bias"] < 3 * unbiased["bias_noise"]
    assert by_name["k3 loss token", 5]["bias"] > 5 * by_name["k3 loss token", 5]["bias_noise"]
    fewer = synthetic_study(found([], "main_estimators"), [3], 60, 400, 0, 0, lambda done: None)
    assert fewer[0]["bias"] == rows[0]["bias"]  # the same seed
    assert fewer[0]["exact_bias"] is None


def test_the_plot_has_two_panels_and_every_configuration(tmp_path, monkeypatch):
    from matplotlib import pyplot

    rows = synthetic_study(found([], "main_estimators"), [2, 3], 5, 50, 0, 3, lambda done: None)
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    bias_and_variance(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    panels = figures[0].axes
    assert [panel.get_xlabel() for panel in panels] == ["response length T"] * 2
    for panel, key in zip(panels, ("bias", "variance"), strict=True):
        lines = {line.get_label(): list(line.get_ydata()) for line in panel.lines if line.get_linestyle() != "None"}
        assert lines["k1 loss token"] == [row[key] for row in rows if row["configuration"] == "k1 loss token"]
        assert len(lines) == 11


@pytest.fixture(scope="module")
def drifted():
    """The shipped policy with its last layer shifted, away from the shipped reference; and its own samples."""
    from klsweep.rollout.random import Stream, uniforms

    spec = small_spec("placement=none")
    policy = load_policy(spec.model)
    reference = load_policy(spec.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    sampler, items = spec.rollout.bind(policy, longest=64), spec.task.train_items()
    batches = []
    for index in range(16):
        texts = [items[i].prompt for i in range(4 * index, 4 * index + 4)]
        draws = uniforms(0, Stream.AUDIT, index, range(4), 16, spec.task.max_response_tokens)
        batches.append(sampler.generate(policy.encode(texts), 16, draws, 1.0, 1.0).tokens)
    return Subject(policy, partial(states, reference), 1.0, spec.task.max_response_tokens, batches)


@pytest.mark.slow
def test_a_real_policy_against_its_reference(drifted):
    chosen = found(["estimator=k1", "placement=reward,loss", "placement.baseline=outside"])
    chosen += found(["estimator=full", "placement=reward_and_loss", "placement.credit=to_go"])
    kl, rows = transformer_table(drifted, chosen, lambda done: None)
    assert kl.value > 0.5
    assert kl.low < kl.value < kl.high
    reward, loss, target = rows
    assert target["relative_error"] == 0.0  # the target itself: same batches, same gradients
    assert target["verdict"] == "the target itself"
    assert (target["cosine"], target["norm_ratio"]) == pytest.approx((1.0, 1.0))
    assert (target["cosine_low"], target["cosine_high"]) == pytest.approx((1.0, 1.0))
    assert loss["projection_low"] < 0 < loss["projection_high"]
    assert loss["verdict"] == "biased: no part along ∇KL seen"
    assert reward["projection_low"] < 1 < reward["projection_high"]
    assert reward["verdict"] == "no bias seen"


def test_group_and_longest_length_count_on_a_network_as_in_training(drifted):
    """dr_grpo inside with G = 4 and aggregation fixed: ¾ of the charge, over L_max = 8 however wide a batch is."""
    dr_grpo = ["algorithm=dr_grpo", "algorithm.group_size=4", "placement.baseline=inside"]
    plain, fixed = found([*dr_grpo, "algorithm.aggregation=seq-sum,fixed"])
    _, (one, other) = transformer_table(drifted, [plain, fixed], lambda done: None)
    outside = found(["placement.baseline=outside"])
    _, (whole,) = transformer_table(drifted, outside, lambda done: None)
    assert one["projection"] == pytest.approx(0.75 * whole["projection"], rel=1e-4)
    assert other["projection"] == pytest.approx(one["projection"] / 8, rel=1e-4)


def test_degenerate_tables_have_no_scale():
    from klsweep.audit.tabular import Tables

    same = Tables(TINY.theta, TINY.theta, None)
    (row,) = whole_table(same, found(["estimator=k1", "placement=reward"], whole=True), lambda done: None)
    assert (row["kl_scale"], row["effective_beta"]) == (None, None)
    assert row["reward_scale"] == pytest.approx(1.0)


def test_the_gradient_on_a_network_is_that_of_the_loss_itself(drifted):
    """k3 in the loss: the audit's way through coefficients against plain backpropagation of Σ k3/B."""
    from klsweep.audit.transformer import _gradients, _Scored
    from klsweep.objective.regulariser import Betas

    (case,) = found(["estimator=k3", "placement=loss"])
    tokens = drifted.batches[0]
    (found_gradient,) = _gradients(drifted, [_Scored.of(drifted, tokens)], case.objective, Betas(1.0, 1.0))
    log_p = chosen(response_distributions(drifted.policy.network, tokens, 1.0), tokens.response_ids)
    log_q = chosen(response_distributions(load_policy(drifted.policy.model).network, tokens, 1.0), tokens.response_ids)
    ell = (log_p - log_q) * tokens.mask
    loss = (torch.expm1(-ell) + ell).sum() / len(ell)
    expected = torch.autograd.grad(loss, list(drifted.policy.network.parameters()))
    expected = torch.cat([part.flatten() for part in expected])
    assert torch.allclose(found_gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_products_of_different_batches_leave_noise_out():
    """g_b = 2t + noise: with E⟨noise, noise⟩ = 9 per batch, the norm ratio is 2 and not √13."""
    generator = torch.Generator().manual_seed(1)
    t = torch.zeros(400, 500, dtype=torch.float64)
    t[:, 0] = 1.0
    g = 2 * t + 3 / math.sqrt(500) * torch.randn(400, 500, generator=generator, dtype=torch.float64)
    row = _comparison(g @ g.T, g @ t.T, t @ t.T)
    assert row["norm_ratio"] == pytest.approx(2.0, abs=0.02)
    assert row["projection_low"] < 2.0 < row["projection_high"]
    assert row["projection_high"] - row["projection_low"] == pytest.approx(2 * 1.966 * 3 / 500**0.5 / 400**0.5, rel=0.1)
    assert row["cosine"] == pytest.approx(1.0, abs=0.005)
    assert row["relative_error"] == pytest.approx(1.0, abs=0.02)
    assert row["verdict"] == "biased"


@pytest.mark.slow
def test_audit_of_a_run_and_of_two_models(in_tmp, capsys):
    options = ["--batches", "3", "--prompts", "4", "--json", "estimator=k1,k3", "placement=loss"]
    train = ["train", "placement=none", "train.updates=2", "train.prompts_per_update=4", "algorithm.group_size=4"]
    assert main([*train, "task.train_prompts=64", "wandb.mode=disabled", "sweep_dir=s", "launcher.parallel=1"]) == 0
    capsys.readouterr()
    (run,) = (in_tmp / "s" / "runs").iterdir()
    assert main(["audit", "--run", str(run), *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["estimator"] for row in rows] == ["k1", "k3"]
    assert 0 < rows[0]["kl"] < 0.5
    assert main(["audit", "--model", "klsweep/tiny", "--reference", "klsweep/tiny", *options]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kl"] == 0.0
    (run / "checkpoints").rename(run / "gone")
    assert main(["audit", "--run", str(run)]) == 2
    assert "no checkpoint in it" in capsys.readouterr().err
    assert main(["audit", "--model", "klsweep/tiny", "--reference", "./no", *options]) == 2
    assert "model.path='./no': no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_is_generated_whole(in_tmp, monkeypatch, capsys):
    from klsweep.audit import page

    monkeypatch.setattr(page, "LENGTHS", [5, 6])
    monkeypatch.setattr(page, "ROUNDS", 4)
    monkeypatch.setattr(page, "SAMPLES", 50)
    assert main(["audit", "--page", "docs"]) == 0
    text = (in_tmp / "docs" / "audit.md").read_text()
    for line in (
        "KL 0.518092, ‖∇KL‖ 0.392448.",
        "| k1 | reward sequence outside | sequence τ=0.5 |",
        "| 0.670041 | 0.977521 |",
        "## Aggregations, where responses end at different lengths",
        "| biased: weighs responses by their length |",
        "| grpo | 4 | k1 reward sequence inside |",
        "| trl_grpo | TRL 1.16.0 | GRPOConfig(beta=β, use_bias_correction_kl=True) |",
        "![bias and variance](study.png)",
    ):
        assert line in text
    with (in_tmp / "docs" / "study.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 22
    assert "written: docs/audit.md" in capsys.readouterr().out


def test_the_committed_page_is_of_this_code():
    from klsweep.audit.page import _bias_part

    with composer() as session:
        assert _bias_part(session, 4, 3) in (DOCS / "audit.md").read_text()


def test_grids_of_text(capsys):
    header, rows = ["name", "figure"], [["a b", "1.5"], ["c", "–"]]
    assert markdown_grid(header, rows) == "| name | figure |\n|---|---|\n| a b | 1.5 |\n| c | – |"
    print_grid(header, rows)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        " name  figure",
        " a b      1.5",
        " c          –",
    ]
    long = "word " * 60
    print_grid(["text", "n"], [[long, "7"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 200
    assert sum(line.count("word") for line in lines) == 60
