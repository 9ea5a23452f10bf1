"""Each preset's KL term against the library's own function, and what the atlas says of it."""

import math

import pytest
import torch

from klsweep.audit.atlas import atlas, beta_in_effect
from klsweep.audit.cases import cases
from klsweep.audit.tabular import instance
from klsweep.cli import main
from klsweep.config.compose import composer
from tests.audit.library_points import LIBRARIES, POINTS
from tests.conftest import planned

pytestmark = pytest.mark.slow

TABLES = instance(length=4, vocabulary=2)


@pytest.fixture(scope="module")
def session():
    with composer() as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(session):
    return atlas(session, TABLES, lambda done: None)


def token(objective, log_ratio: float, rho: float) -> tuple[float, float]:
    """Value of the KL term at one token and its derivative with respect to log π."""
    logprob = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    denominator, ref = logprob.detach() - math.log(rho), logprob.detach() - log_ratio
    old, sampler = denominator, denominator - 0.7
    if objective.kl.weight_over == "sampler":  # a library whose ρ is over the policy that sampled
        old, sampler = sampler, old
    if objective.placement.in_loss:
        value = objective.terms(logprob, old, ref, sampler, torch.zeros(1, 1), torch.ones(1, 1)).kl.sum()
    else:
        value = objective.reward_term.tokens(logprob - ref, None).sum()
    return value.item(), torch.autograd.grad(value, logprob)[0].item()


@pytest.mark.parametrize(("preset", "estimator"), LIBRARIES)
def test_value_and_gradient_are_the_librarys(session, preset, estimator):
    (case,), _ = cases(session, [f"preset={preset}", f"estimator={estimator}"], "")
    for (log_ratio, rho), expected in zip(POINTS, LIBRARIES[preset, estimator], strict=True):
        assert token(case.objective, log_ratio, rho) == pytest.approx(expected, rel=1e-12, abs=6e-7)  # six decimals


def test_every_preset_has_points_or_is_checked_here(session):
    """Those whose function is an expression in the trainer: k1 in the reward, by hand; k3·ρ as TRL's."""
    without = set(session.options("preset")) - {preset for preset, _ in LIBRARIES}
    by_hand = {
        "trl_rloo": (0.5, 1.0),
        "verl_kl_reward": (0.5, 1.0),
        "verl_kl_reward_to_go": (0.5, 1.0),
        "verl_kl_reward_low_var": (math.expm1(-0.5) + 0.5, 1 - math.exp(-0.5)),
        "openrlhf_reward": (0.5, 1.0),
        "oat": (math.expm1(-0.5) + 0.5, 1 - math.exp(-0.5)),  # with its default coefficients k3 in the loss alone
        "oat_reward": (0.5, 1.0),
        "slime": (0.5, 1.0),
        "slime_reward": (0.5, 1.0),
        "slime_reward_token": (0.5, 1.0),
        "skyrl_reward": (0.5, 1.0),
        "nemo_rl_reward": (0.5, 1.0),
        "slime_low_var": (math.expm1(-0.5) + 0.5, 1 - math.exp(-0.5)),
        "deepseek_v3_2": (1.25 * (math.expm1(-0.5) + 0.5), 0.625),
    }
    assert without == set(by_hand)
    for preset, expected in by_hand.items():
        (case,), _ = cases(session, [f"preset={preset}"], "", whole=True)
        assert token(case.objective, 0.5, 1.25) == pytest.approx(expected), preset
        if preset.endswith("low_var"):
            assert token(case.objective, -3.0, 1.25) == (10.0, 0.0)


def test_oat_has_two_estimators_with_coefficients_of_their_own(session):
    (case,), _ = cases(session, ["preset=oat", "kl.coef=0.2"], "")
    assert case.objective.kl.betas(1, 1) == (0.2, 0.1)
    assert case.betas == (1.0, 0.5)
    labels = case.labels
    assert (labels["estimator"], labels["loss_estimator"], labels["clip_half"]) == ("k1", "k3", "loss")


VERDICTS = {
    ("trl_grpo", "k3"): "biased: token-local reverse KL",
    ("trl_grpo_legacy", "k3"): "biased: token-local forward KL",
    ("trl_rloo", "k1"): "unbiased",
    ("verl_kl_loss", "k3"): "biased: token-local forward KL",
    ("verl_kl_loss_plus", "k3"): "biased: token-local reverse KL",
    ("verl_kl_loss_unclamped", "k1"): "zero: β only adds noise",
    ("verl_kl_reward_to_go", "k1"): "unbiased",
    ("openrlhf_reward", "k1"): "unbiased",
    ("slime_reward", "k1"): "unbiased",
    ("slime_reward_token", "k1"): "biased: token-local reverse KL",
    ("openrlhf_unbiased", "k3"): "biased: token-local reverse KL",
    ("nemo_rl", "k1"): "biased: token-local reverse KL",
    ("nemo_rl", "k2"): "biased: token-local gradient of E[Σ k2]",
    ("areal", "k3"): "biased: reverse KL minus token-local forward KL",
    ("oat_reward", "k1"): "biased: 0.75 × ∇KL",
    ("skyrl_unclamped", "abs"): "biased: 2 × token-local total variation",
    ("deepseek_v3_2", "k3"): "biased: token-local reverse KL",
}


def test_the_atlas_says_what_each_setting_takes(rows):
    idle = " (the clip binds nowhere here)"
    found = {(row["preset"], row["estimator"]): row["verdict"].removesuffix(idle) for row in rows}
    assert all(row["verdict"].endswith(idle) for row in rows if row["preset"] == "nemo_rl")
    assert {key: found.get(key) for key in VERDICTS} == VERDICTS
    assert "divided by the group's std" in found["verl_kl_reward", "k1"]
    assert len(rows) == len(found) == 66


def test_the_atlas_names_the_users_own_settings(rows):
    row = next(row for row in rows if (row["preset"], row["estimator"]) == ("verl_kl_loss_unclamped", "k2"))
    assert row["setting"].endswith("actor.kl_loss_type=mse")
    assert "{}" not in "".join(row["setting"] for row in rows)
    assert all(row["remedy"] and row["source"] and row["version"] for row in rows)


def test_beta_in_effect_is_what_the_group_does_to_it(session):
    """Group mean of four: the reward half shrinks by ¾, the KL loss does not; leave-one-out leaves both."""
    factors = {}
    for algorithm in ("rloo", "dr_grpo"):
        overrides = [f"algorithm={algorithm}", "algorithm.group_size=4", "estimator=k3", "placement=loss"]
        (case,), _ = cases(session, [*overrides, "algorithm.aggregation=seq-sum"], "", whole=True)
        factors[algorithm] = beta_in_effect(TABLES, case)
    assert factors == pytest.approx({"rloo": 1.0, "dr_grpo": 4 / 3})


def test_presets_are_audited_by_name_like_any_configuration(capsys):
    assert main(["audit", "--length", "3", "preset=trl_grpo,trl_grpo_legacy,verl_kl_reward"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines() if line.startswith(" trl_")]
    assert names == ["trl_grpo", "trl_grpo_legacy"]
    assert "excluded 1: placement.baseline=inside with a group's std" in out


def test_presets_are_choices_like_any_other():
    same = ("algorithm.aggregation=seq-sum", "algorithm.std_epsilon=1e-4")
    plan = planned("preset=trl_grpo,trl_rloo,deepseek_v3_2", *same)
    labels = [(run.row["axes"]["preset"], run.row["axes"]["estimator"]) for run in plan.runs]
    assert labels == [("trl_grpo", "k3"), ("trl_rloo", "k1")]  # DeepSeek's is TRL's
    assert plan.collapsed == 1
    alone = planned("preset=trl_rloo").runs[0]
    assert alone.run_id == planned("placement.baseline=inside").runs[0].run_id
