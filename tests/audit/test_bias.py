"""The bias table: figures from an independent computation, other ways to the same gradients, and random policies."""

import dataclasses
import json

import pytest
import torch

from klsweep.audit.bias import bias_table, exact_source
from klsweep.audit.cases import cases
from klsweep.audit.gradient import kl_moments
from klsweep.audit.reference import kl_gradient, named_gradients
from klsweep.audit.tabular import Tables, every_sequence, instance, sampled
from klsweep.cli import main
from klsweep.config.compose import composer
from klsweep.objective.kl import K1
from klsweep.objective.regulariser import Betas
from tests.conftest import ALGORITHMS, algorithm, composed, placed
from tests.objective.tabular import chosen, distributions, sequences
from tests.objective.tabular import expected_gradient as differentiated

INSTANCE_A = instance(length=4, vocabulary=3)
LABELS = ["estimator", "placement", "credit", "level", "baseline", "clip", "clip_level", "clip_mode", "tau"]
LABELS += ["gradient", "kl_weight", "kl_weight_grad", "sampling"]
FIGURES = {"relative_error", "cosine", "norm_ratio", "variance", "verdict"}


@pytest.fixture(scope="module")
def every_case():
    with composer() as session:
        return cases(session, [], "bias_table").chosen


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Instance A through the command line, as a user would audit tables of their own."""
    file = tmp_path_factory.mktemp("policy") / "a.json"
    file.write_text(json.dumps({name: table.tolist() for name, table in vars(INSTANCE_A).items() if table is not None}))
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["audit", "--policy", str(file), "--json"]) == 0
    return json.loads(out.getvalue())


def on(rows, **wanted):
    """The rows with these fields, sampled on policy unless said otherwise."""
    wanted = {"sampling": "on_policy", "clip": "none", "gradient": None, "kl_weight": "none", **wanted}
    if wanted["placement"] != "reward" and wanted["gradient"] is None:
        wanted["gradient"] = "same"
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert found, wanted
    return found


REWARD, LOSS = {"placement": "reward"}, {"placement": "loss"}
CLIP = {"clip": "fixed", "clip_level": "sequence"}
THROUGH, HARD = {**CLIP, "clip_mode": "straight_through"}, {**CLIP, "clip_mode": "hard"}
WEIGHTED = {"kl_weight": "sequence", "sampling": "off_policy"}
SCIENCE = [
    ({"estimator": "k1", "credit": "sequence", **REWARD}, 0.0),
    ({"estimator": "k1", "credit": "to_go", **REWARD}, 0.0),
    ({"estimator": "k1", "credit": "token", **REWARD}, 0.212748),
    ({"estimator": "k2", "level": "token", **LOSS}, 0.212748),
    ({"estimator": "full", "level": "token", **LOSS}, 0.212748),
    ({"estimator": "k1", **LOSS}, 1.0),
    ({"estimator": "k2", "level": "sequence", **LOSS}, 0.0),
    ({"estimator": "k3", "level": "token", **LOSS}, 0.244666),
    ({"estimator": "k3", "level": "sequence", **LOSS}, 0.250976),
    ({"estimator": "k3", **REWARD}, 0.927081),
    ({"estimator": "k2", **REWARD}, 0.849384),
    *(({"estimator": name, "placement": "reward_and_loss"}, 0.0) for name in ("k1", "k3", "full")),
    ({"estimator": "k2", "placement": "reward_and_loss"}, 0.241548),
    ({"estimator": "abs", "placement": "reward_and_loss"}, 1.557620),
    *(
        ({"estimator": name, "tau": tau, **where}, error)
        for name, where in (("k1", {**REWARD, **CLIP}), ("k2", {**LOSS, **THROUGH}))
        for tau, error in ((0.5, 0.670041), (1.0, 0.378019), (2.0, 0.070440))
    ),
    *(
        ({"estimator": "k2", "tau": tau, **LOSS, **HARD}, error)
        for tau, error in ((0.5, 1.006065), (1.0, 0.920605), (2.0, 0.331599))
    ),
    ({"estimator": "k1", "kl_weight_grad": "detached", **REWARD, **WEIGHTED}, 0.0),
    ({"estimator": "k2", "level": "sequence", "kl_weight_grad": "detached", **LOSS, **WEIGHTED}, 0.0),
    ({"estimator": "k1", "kl_weight_grad": "differentiable", **LOSS, **WEIGHTED}, 0.0),
    ({"estimator": "k3", "kl_weight_grad": "differentiable", **LOSS, **WEIGHTED}, 0.0),
    ({"estimator": "k1", "sampling": "off_policy", **REWARD}, 0.319731),
    ({"estimator": "k2", "level": "sequence", "sampling": "off_policy", **LOSS}, 0.319731),
    ({"estimator": "k1", "sampling": "off_policy", "kl_weight": "token", **REWARD}, 0.188846),
]


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "error"), SCIENCE, ids=lambda value: str(value))
def test_instance_a_digit_for_digit(rows, wanted, error):
    for row in on(rows, **wanted):
        assert row["relative_error"] == pytest.approx(error, abs=5e-7)
        assert (row["verdict"] == "unbiased") == (error == 0.0)


def test_every_row_has_the_columns(rows):
    assert len(rows) == 51
    assert all(list(row)[: len(LABELS)] == LABELS and set(row) >= FIGURES for row in rows)
    zero = on(rows, estimator="k1", level="token", **LOSS)[0]
    assert (zero["cosine"], zero["verdict"], zero["credit"], zero["tau"]) == (
        None,
        "zero: β only adds noise",
        None,
        None,
    )
    assert zero["norm_ratio"] < 1e-15


def test_straight_through_in_the_loss_is_the_clip_in_the_reward(rows):
    keys = ("relative_error", "cosine", "norm_ratio", "variance")
    for tau in (0.5, 1.0, 2.0):
        (charged,) = on(rows, estimator="k1", tau=tau, **REWARD, **CLIP)
        (differentiated_,) = on(rows, estimator="k2", tau=tau, **LOSS, **THROUGH)
        assert [charged[key] for key in keys] == pytest.approx([differentiated_[key] for key in keys], rel=1e-12)


def random_tables(seed: int, length: int = 4, vocabulary: int = 3) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    shape = (length, vocabulary + 1, vocabulary)
    return Tables(*(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)))


UNBIASED = 15  # rows of the default table that are unbiased for every policy


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_verdicts_hold_on_random_policies(every_case, seed):
    tables = random_tables(seed)
    rows = bias_table(tables, every_case, None, 0, lambda done: None)
    unbiased = [row for row in rows if row["verdict"] == "unbiased"]
    assert max(row["relative_error"] for row in unbiased) < 1e-9
    assert min(row["relative_error"] for row in rows if row["verdict"] != "unbiased") > 1e-3
    assert len(unbiased) == UNBIASED


def start_first(tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
    """θ and reference with the start symbol's row first, as tests/objective/tabular.py has it."""
    theta, ref = (torch.cat([table[:, -1:], table[:, :-1]], 1) for table in (tables.theta, tables.ref))
    return theta.requires_grad_(), ref


def test_gradients_are_those_of_differentiating_through_the_logits(every_case):
    """Another way to every on-policy row: automatic differentiation of the probability-weighted loss itself."""
    tables = random_tables(99)
    theta, ref = start_first(tables)
    for case in every_case:
        if case.off_policy or case.labels["baseline"] == "inside":
            continue
        plain = dataclasses.replace(case.objective, algorithm=algorithm())
        expected = differentiated(plain, theta, ref)
        moments = kl_moments(tables, case.objective, case.betas, exact_source(tables, False))
        found = moments.mean.view_as(tables.theta)
        assert torch.allclose(torch.cat([found[:, -1:], found[:, :-1]], 1), expected, atol=1e-13), case.labels


def test_the_variance_is_that_of_single_samples():
    """k3 in both places: each of the 81 sequences differentiated by itself."""
    tables = random_tables(5)
    theta, ref = start_first(tables)
    objective = composed(composed(K1, placed("none")).estimator, placed("loss", level="sequence"))
    objective = dataclasses.replace(objective, placement=placed("reward_and_loss", baseline="outside"))
    y = sequences()
    gradients, weights = [], []
    for one in y.split(1):
        logprobs = chosen(distributions(theta, one), one)
        old, ref_logprobs = logprobs.detach(), chosen(distributions(ref, one), one)
        mask = torch.ones_like(old)
        advantages = objective.advantages(torch.zeros(1).double(), old, ref_logprobs, mask, 1.0)
        terms = objective.terms(logprobs, old, ref_logprobs, old, advantages, mask)
        gradients.append(torch.autograd.grad((terms.policy + terms.kl).sum(), theta)[0].flatten())
        weights.append(old.sum().exp())
    samples, weight = torch.stack(gradients), torch.stack(weights)
    mean = (weight[:, None] * samples).sum(0)
    expected = (weight * (samples - mean).square().sum(1)).sum().item()
    moments = kl_moments(tables, objective, Betas(1.0, 1.0), exact_source(tables, False))
    assert moments.variance == pytest.approx(expected, rel=1e-12)


def test_the_target_by_enumeration_and_by_finite_differences():
    tables = random_tables(7, length=3)
    value, gradient = kl_gradient(tables)
    batch = next(iter(every_sequence(tables, False)))
    assert (batch.weights * (batch.logprobs - batch.ref_logprobs).sum(1)).sum().item() == pytest.approx(
        value, rel=1e-13
    )
    assert batch.weights.sum().item() == pytest.approx(1.0)
    for place in ((0, 3, 1), (1, 0, 2), (2, 2, 0)):
        step = torch.zeros_like(tables.theta)
        step[place] = 1e-6
        up, down = (kl_gradient(dataclasses.replace(tables, theta=tables.theta + s))[0] for s in (step, -step))
        assert (up - down) / 2e-6 == pytest.approx(gradient[place].item(), rel=1e-6)


def test_the_forward_kl_by_enumeration():
    """The gradient of KL(π_ref ‖ π_θ) over sequences is −E_ref[∇log π]."""
    tables = random_tables(8, length=3)
    swapped = Tables(tables.theta, tables.ref, tables.ref)
    batch = next(iter(every_sequence(swapped, off_policy=True)))
    expected = torch.zeros(3 * 4, 3, dtype=torch.float64)
    weighted = batch.weights[:, None, None] * batch.score
    expected.index_add_(0, batch.cells.flatten(), -weighted.flatten(0, 1))
    found = named_gradients(tables)["forward KL of sequences"]
    assert torch.allclose(found.flatten(0, 1), expected, atol=1e-14)


def ending(seed: int) -> Tables:
    return dataclasses.replace(random_tables(seed), eos=0)


def test_responses_that_end_have_a_target_of_their_own():
    """With token 0 ending a response: KL of what is left, by enumeration; the mean length; and its gradient."""
    tables = ending(7)
    (batch,) = every_sequence(tables, False)
    value, gradient = kl_gradient(tables)
    sums = ((batch.logprobs - batch.ref_logprobs) * batch.mask).sum(1)
    assert (batch.weights * sums).sum().item() == pytest.approx(value, rel=1e-13)
    assert batch.mean_length == pytest.approx((batch.weights * batch.mask.sum(1)).sum().item(), rel=1e-13)
    assert 1.5 < batch.mean_length < 3.9
    moments = kl_moments(tables, composed(K1, placed("reward")), Betas(1.0, 1.0), exact_source(tables, False))
    assert torch.allclose(moments.mean, gradient.flatten(0, 1), atol=1e-14)
    assert value < kl_gradient(random_tables(7))[0]


@pytest.mark.parametrize("aggregation", ["seq-sum", "token-mean", "seq-mean", "fixed"])
def test_aggregations_of_responses_that_end(aggregation):
    """k1 in the loss, by differentiating the probability-weighted, aggregated loss itself."""
    tables = ending(12)
    theta, ref = start_first(tables)
    y = sequences()
    ends = (y == 0).long().cumsum(1)
    mask = torch.cat([torch.ones(len(y), 1), (ends[:, :-1] == 0).double()], 1)
    log_p, log_q = chosen(distributions(theta, y), y), chosen(distributions(ref, y), y)
    weights = log_p.detach().sum(1).exp()
    lengths = mask.sum(1)
    scale = {"seq-mean": 1 / lengths, "token-mean": 1 / (weights * lengths).sum(), "fixed": 0.25, "seq-sum": 1.0}
    loss = (weights * scale[aggregation] * ((log_p - log_q) * mask).sum(1)).sum()
    expected = torch.autograd.grad(loss, theta)[0]
    objective = composed(K1, placed("loss"), of=algorithm(aggregation=aggregation))
    found = kl_moments(tables, objective, Betas(1.0, 1.0), exact_source(tables, False)).mean.view_as(tables.theta)
    assert torch.allclose(torch.cat([found[:, -1:], found[:, :-1]], 1), expected, atol=1e-14)
    assert (found.norm() > 0.01) == (aggregation == "seq-mean")


def test_seq_mean_pushes_the_length_and_the_verdict_says_so(capsys):
    cell = ["audit", "--length", "4", "--vocabulary", "3", "estimator=k1", "placement=loss", "--json"]
    assert main([*cell, "algorithm.aggregation=seq-sum,seq-mean", "--eos", "0"]) == 0
    plain, mean = json.loads(capsys.readouterr().out)
    assert plain["verdict"] == "zero: β only adds noise"
    assert mean["verdict"] == "biased: weighs responses by their length"
    assert mean["relative_error"] == pytest.approx(1.461328, abs=1e-6)
    assert main([*cell, "algorithm.aggregation=seq-mean"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "zero: β only adds noise (at equal lengths)"


def test_a_baseline_inside_the_group_by_enumerating_groups():
    """All 27² pairs of a leave-one-out group of two: mean and variance of the first sample's gradient."""
    tables = random_tables(3, length=3)
    objective = composed(K1, placed("reward", baseline="inside"), of=algorithm(ALGORITHMS["rloo"], 2))
    moments = kl_moments(tables, objective, Betas(1.0, 1.0), exact_source(tables, False))
    (batch,) = every_sequence(tables, False)
    total = (batch.logprobs - batch.ref_logprobs).sum(1)
    charge = total[:, None] - total[None, :]  # of the first sample beside the second
    square = batch.score.square().sum((1, 2))
    second = (batch.weights[:, None] * batch.weights[None, :] * charge.square() * square[:, None]).sum().item()
    target = kl_gradient(tables)[1].flatten(0, 1)
    assert torch.allclose(moments.mean, target, atol=1e-13)
    assert moments.square == pytest.approx(second, rel=1e-12)
    dr_grpo = composed(K1, placed("reward", baseline="inside"), of=algorithm(ALGORITHMS["dr_grpo"], 4))
    shrunk = kl_moments(tables, dr_grpo, Betas(1.0, 1.0), exact_source(tables, False))
    assert torch.allclose(shrunk.mean, 0.75 * target, atol=1e-13)


@pytest.mark.slow
def test_monte_carlo_agrees_with_enumeration_and_says_how_far_to_trust_it(every_case):
    exact = bias_table(INSTANCE_A, every_case, None, 0, lambda done: None)
    estimated = bias_table(INSTANCE_A, every_case, 40_000, 1, lambda done: None)
    for one, other in zip(exact, estimated, strict=True):
        assert other["relative_error"] == pytest.approx(one["relative_error"], abs=3 * other["standard_error"])
        assert other["variance"] == pytest.approx(one["variance"], rel=0.15)
        if one["verdict"] == "unbiased":
            assert other["verdict"] == "no bias beyond 3 standard errors (40000 samples)"
    verdict = on(estimated, estimator="k3", level="token", **LOSS)[0]["verdict"]
    assert verdict == "biased, by more than 3 standard errors (40000 samples)"


def test_sampling_follows_the_table():
    tables = random_tables(11, length=2)
    batch = sampled(tables, True, 200_000, torch.Generator().manual_seed(0))
    first = torch.softmax(tables.sampler[0, -1], -1)
    counts = torch.bincount(batch.cells[:, 1] - 4, minlength=3) / 200_000  # row of token 2 = token 1
    assert counts.tolist() == pytest.approx(first.tolist(), abs=0.005)


def test_large_tables_are_enumerated_in_chunks(monkeypatch):
    import klsweep.audit.bias as bias
    import klsweep.audit.tabular as tabular

    objective = composed(K1, placed("loss", level="sequence"))
    whole = kl_moments(INSTANCE_A, objective, Betas(1.0, 1.0), exact_source(INSTANCE_A, True))
    monkeypatch.setattr(tabular, "CHUNK", 7)
    monkeypatch.setattr(bias, "KEPT", 0)
    parts = kl_moments(INSTANCE_A, objective, Betas(1.0, 1.0), exact_source(INSTANCE_A, True))
    assert torch.allclose(whole.mean, parts.mean, atol=1e-15)
    assert whole.square == pytest.approx(parts.square, rel=1e-13)


def test_the_reference_itself_has_no_gradient_to_compare_with(every_case):
    same = Tables(INSTANCE_A.theta, INSTANCE_A.theta, None)
    on_policy = [case for case in every_case if not case.off_policy]
    for row in bias_table(same, on_policy, None, 0, lambda done: None):
        assert row["verdict"].startswith("undefined")
        assert (row["relative_error"], row["cosine"], row["norm_ratio"]) == (None, None, None)


@pytest.mark.slow
def test_overrides_are_those_of_training(capsys):
    arguments = [
        "audit",
        "estimator=k1,k3",
        "placement=loss",
        "clip=fixed",
        "clip.low=-0.2",
        "clip.high=0.4",
        "seed=0,1",
    ]
    assert main([*arguments, "--length", "3", "--vocabulary", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["estimator"], row["clip_low"], row["clip_high"], row["tau"]) for row in rows] == [
        ("k1", -0.2, 0.4, None),
        ("k3", -0.2, 0.4, None),
    ]
    assert all(row["verdict"] == "biased by the clip" for row in rows)
    assert main(["audit", "experiment=quickstart", "--length", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 9  # of 11 cells two have no KL


def test_a_charge_over_a_groups_std_is_refused_alone(capsys):
    assert main(["audit", "algorithm=grpo", "placement.baseline=inside"]) == 2
    assert "placement.baseline=inside with a group's std" in capsys.readouterr().err


BAD = {
    "no file": ("absent.json", None, "--policy='absent.json': No such file"),
    "not JSON": ("p.json", "{", "not JSON"),
    "keys": ("p.json", {"theta": [], "reference": []}, "expected the keys theta, ref and optionally sampler, eos; "),
    "null": ("p.json", {"theta": None, "ref": [[[0, 1]] * 3]}, "theta: expected nested lists [T][V + 1][V] of numbers"),
    "eos": ("p.json", {"theta": [[[0, 1]] * 3], "ref": [[[0, 1]] * 3], "eos": "x"}, "eos=x: expected a token, 0 to 1"),
    "one token": (
        "p.json",
        {"theta": [[[1], [1]]], "ref": [[[1], [1]]]},
        "theta: shape [1, 2, 1], expected [T][V +",
    ),
    "words": ("p.json", {"theta": "x", "ref": "y"}, "theta: expected nested lists [T][V + 1][V] of numbers"),
    "ragged": (
        "p.json",
        {"theta": [[[0, 1], [1]]], "ref": []},
        "theta: expected nested lists [T][V + 1][V] of numbers",
    ),
    "no start row": (
        "p.json",
        {"theta": [[[0, 1], [1, 0]]], "ref": []},
        "theta: shape [1, 2, 2], expected [T][V + 1][V]",
    ),
    "unequal": (
        "p.json",
        {"theta": [[[0, 1]] * 3], "ref": [[[0, 1]] * 3] * 2},
        "ref: shape [2, 3, 2] is not that of the",
    ),
    "infinite": (
        "p.json",
        {"theta": [[[0, 1]] * 3], "ref": [[[0, 1], [0, -torch.inf], [0, 1]]]},
        "ref[0][1][1]=-inf: log",
    ),
    "NaN": (
        "p.json",
        {"theta": [[[torch.nan, 1]] * 3], "ref": [[[0, 1]] * 3]},
        "theta[0][0][0]=nan: logits must be fini",
    ),
    "sampler shape": (
        "p.json",
        {"theta": [[[0, 1]] * 3], "ref": [[[0, 1]] * 3], "sampler": [[[0, 1, 2]] * 4]},
        "sampler: shape [1, 4, 3] is not that of theta, [1, 3, 2]",
    ),
    "too large": (
        "p.json",
        {"theta": [[[0, 1]] * 3] * 21, "ref": [[[0, 1]] * 3] * 21},
        "V^T = 2^21 sequences are more than can be enumerated (1048576): give --samples N for Monte Carlo",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_in_one_line(name, in_tmp, capsys):
    file, content, message = BAD[name]
    if content is not None:
        (in_tmp / file).write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["audit", "--policy", file]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("klsweep: error: ")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "21"], "V^T = 2^21 sequences are more than can be enumerated"),
        (["--length", "0"], "--length=0: expected at least 1"),
        (["--vocabulary", "1"], "--vocabulary=1: expected at least 2"),
        (["--samples", "1"], "--samples=1: expected at least 2"),
        (["--policy", "x.json", "--length", "3"], "its tables have a length, vocabulary and eos of their own"),
        (["estimator=k9"], "estimator='k9': choose from abs,"),
        (["placement=none"], "nothing to audit: all cells (1) are excluded (no KL term: nothing to audit)"),
        (["kl.weight=token"], "a second one would count double"),
        (["--model", "x"], "--model=x: needs --reference"),
        (["--reference", "x"], "--reference=x: goes with --model"),
        (["--run", "x", "task=sort"], "task=sort: --run audits the run's own model on its own task"),
        (["--run", "nowhere"], "--run='nowhere': no run folder"),
        (["--whole", "--samples", "5"], "--samples=5: --whole and --presets enumerate"),
        (["--whole", "--length", "9"], "with V^T = 2^9 sequences makes more than 2000000 groups"),
        (["--presets", "estimator=k1"], "--presets, --page and --axes take no overrides"),
        (["--run", "x", "--samples", "9"], "--samples=9: --run and --model take --batches of --prompts samples each"),
        (["--run", "x", "--length", "3"], "are for the tabular audits"),
        (["--eos", "2"], "--eos=2: expected a token, 0 to 1"),
        (["--eos", "0", "--study", "d"], "--eos and --samples are for the tabular audits"),
        (["--batches", "3"], "--batches and --prompts go with --run and --model"),
        (["--page", "d", "--json"], "--json: --page and --axes write files"),
        (["--axes", "d", "kl.coef=1"], "kl.coef=1: --presets, --page and --axes take no overrides"),
        (["--study", "/proc/x"], "--study='/proc/x': No such file or directory"),
        (["--study", "d", "sampling=off_policy", "placement=loss"], "the study samples from the policy itself"),
        (["--study", "d", "placement=reward"], "placement.baseline=inside: the study has no groups"),
        (["--vocabulary", "10000000", "--samples", "5"], "tables of more than 10000000 logits"),
        (["--vocabulary", "300", "--presets"], "V^T = 300^14 sequences are more than can be enumerated"),
        (["--whole", "--length", "20000"], "with V^T = 2^20000 sequences makes more than 2000000 groups"),
        (["--seed", "99999999999999999999"], "expected at least 0 and below 2^63"),
        (["--run", "x", "--batches", "2"], "--batches=2: an interval needs at least 3"),
    ],
)
def test_bad_options_in_one_line(arguments, message, in_tmp, capsys):
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_wrong_options_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["audit", "--samples", "x"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error == "klsweep: error: argument --samples: invalid int value: 'x' (see klsweep audit --help)\n"


def test_rows_that_differ_are_not_merged_and_say_how(capsys):
    off = ["sampling=off_policy", "correction=truncated", "correction.level=sequence", "correction.cap=0.5,2.0"]
    assert main(["audit", "--length", "3", *off, "estimator=k3", "placement=reward_and_loss", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["correction_cap"] for row in rows] == [0.5, 2.0]
    assert rows[0]["relative_error"] != pytest.approx(rows[1]["relative_error"], rel=1e-3)
    mixed = ["algorithm.aggregation=seq-sum,token-mean", "kl.aggregation=seq-sum,token-mean"]
    assert main(["audit", "--length", "3", "estimator=k3", "placement=reward_and_loss", *mixed, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = [row["aggregation"] for row in rows]
    assert names == [None, "seq-sum/token-mean", "token-mean/seq-sum", "token-mean"]
    assert len({round(row["relative_error"], 6) for row in rows}) == 4


@pytest.mark.slow
def test_what_is_left_out_or_without_effect_is_said(capsys):
    arguments = ["audit", "--length", "3", "estimator=k1,full", "placement=loss", "clip=fixed", "clip.tau=0.2"]
    assert main([*arguments, "placement.credit=to_go", "--json"]) == 0
    notes = capsys.readouterr().err
    assert "note: excluded 1: estimator=full has no clip" in notes
    assert "note: placement.credit has no effect on any of these" in notes


def test_a_clip_that_binds_nowhere_is_not_blamed(capsys):
    cell = ["audit", "--length", "3", "--json", "estimator=k3", "placement=loss", "clip=fixed"]
    assert main([*cell, "clip.tau=40,0.3,0.1"]) == 0
    verdicts = [row["verdict"] for row in json.loads(capsys.readouterr().out)]
    whole = "biased: token-local forward KL (the clip binds nowhere here)"
    assert verdicts == [whole, "biased by the clip", "zero: cut off by the clip"]
    assert main([*cell, "clip.tau=40", "algorithm.aggregation=seq-mean"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "biased: 0.3333 × token-local forward KL (the clip binds nowhere here, at equal lengths)"


def test_a_strength_that_begins_at_zero_is_audited_where_it_ends(capsys):
    assert main(["audit", "--length", "3", "kl.coef=0", "kl.schedule=linear", "kl.final_coef=0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "unbiased"


@pytest.mark.slow
def test_off_policy_rows_need_a_sampler(in_tmp, capsys):
    (in_tmp / "p.json").write_text(json.dumps({"theta": [[[0, 1]] * 3] * 2, "ref": [[[1, 0]] * 3] * 2}))
    assert main(["audit", "--policy", "p.json", "sampling=off_policy"]) == 2
    assert "sampling=off_policy: the policy file has no sampler table" in capsys.readouterr().err
    assert main(["audit", "--policy", "p.json", "--json"]) == 0
    assert {row["sampling"] for row in json.loads(capsys.readouterr().out)} == {"on_policy"}
    assert main(["audit", "--policy", "p.json"]) == 0
    assert "9 off-policy configurations left out" in capsys.readouterr().out
