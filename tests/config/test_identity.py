"""Identity: golden ids, every field declared once, content instead of paths."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from klsweep.audit.gradient import batch_coefficients, charges, per_sample
from klsweep.audit.tabular import every_sequence, instance
from klsweep.cells import describe
from klsweep.config.build import GRID_NODES, NODES, ROOT_FIELDS, Builder
from klsweep.config.compose import composer, resolve
from klsweep.config.identity import (
    NEUTRAL,
    OPERATIONAL,
    SCIENTIFIC,
    base_eval_id,
    canonical,
    cell_id,
    is_operational,
    is_scientific,
    run_id,
)
from klsweep.errors import BadInput
from klsweep.model.source import SHIPPED
from klsweep.objective.objective import Undefined, build_objective
from tests.conftest import planned

EXAMPLES = Path(__file__).parents[2] / "examples"

# A change of any of these orphans every finished run of every user: they may only be added to.
GOLDEN = {
    (): "r1-07a92ec4a583",
    ("placement=none",): "r1-ab1831fb7c0a",
    ("placement=none", "estimator=k3", "kl.coef=0.7"): "r1-ab1831fb7c0a",
    ("estimator=k3", "placement=loss", "seed=3"): "r1-07438cf26644",
    ("sampling=off_policy", "algorithm=dr_grpo", "train.minibatches=2"): "r1-299e27763b63",
    ("clip=fixed", "clip.level=sequence", "clip.tau=2"): "r1-984d857ffd1e",
}


@pytest.mark.parametrize("overrides", GOLDEN, ids=" ".join)
def test_golden_run_ids(overrides):
    assert planned(*overrides).runs[0].run_id == GOLDEN[overrides]


def _leaves(node, path: str) -> list[str]:
    if isinstance(node, dict) and node:
        return [leaf for key, child in node.items() for leaf in _leaves(child, f"{path}.{key}" if path else key)]
    return [path]


def test_every_field_is_declared_scientific_or_operational_and_not_both():
    with composer() as session:
        config = session.compose([]).config
    leaves = [leaf for leaf in _leaves(config, "") if leaf.split(".")[0] in (*NODES, *ROOT_FIELDS)]
    operational = {leaf for leaf in leaves if not is_scientific(leaf)}  # KeyError for an undeclared one
    assert len(leaves) - len(operational) > 40
    assert {"train.micro_batch_size", "rollout.batch_size", "model.path", "eval.temperature"} < operational
    assert not set(SCIENTIFIC) & set(OPERATIONAL)
    with pytest.raises(KeyError, match="neither"):
        is_scientific("novel.field")
    asked = ("launcher.time", "kl.coef", "choices.model", "preset.library", "smoke", "evaluate.update")
    assert [is_operational(key) for key in asked] == [True, False, False, False, False, False]


def test_which_engine_samples_is_part_of_the_identity():
    assert planned().runs[0].canonical["rollout"] == "HF"
    assert planned().runs[0].row["axes"]["rollout"] == "hf"


def test_models_given_by_path_are_told_apart(in_tmp):
    for name in ("one", "two"):
        shutil.copytree(SHIPPED["klsweep/tiny"], in_tmp / name)
    (in_tmp / "two" / "config.json").write_text((in_tmp / "two" / "config.json").read_text() + "\n")
    rows = [run.row for run in planned("model.path=./one,./two").runs]
    assert [row["axes"]["model"] for row in rows] == ["./one", "./two"]
    assert list(describe(rows).values()) == ["k1 reward β=0.1 on_policy ./one", "k1 reward β=0.1 on_policy ./two"]


def test_in_distribution_is_the_suite_with_the_tasks_own_evaluation_prompts():
    plan = planned("task.operation=add,sort")
    assert [run.row["suites"]["add"] for run in plan.runs] == ["in", "out"]
    assert [run.row["suites"]["sort"] for run in plan.runs] == ["out", "in"]
    alone = planned("task.operation=sort", "~eval.suites.sort")
    assert "1 runs have no suite with their task's evaluation prompts: nothing in distribution" in alone.notes


def test_operational_fields_do_not_enter_the_id():
    changes = ["name=x", "sweep_dir=elsewhere", "launcher.threads=2", "wandb.project=p", "eval.samples_per_prompt=8"]
    changes += ["train.checkpoint_seconds=0", "train.micro_batch_size=3", "rollout.batch_size=5"]
    changes += ["model.attention=eager", "model.device=cpu", "plugins=[json]"]
    changes += ["model.reference=offload", "model.logprob_chunk=7", "model.gradient_checkpointing=true"]
    assert planned(*changes).runs[0].run_id == planned().runs[0].run_id


def test_a_model_is_its_content_not_its_path(in_tmp):
    for name in ("one", "two"):
        shutil.copytree(SHIPPED["klsweep/tiny"], in_tmp / name)
    (in_tmp / "two" / "config.json").write_text((in_tmp / "two" / "config.json").read_text() + "\n")
    shipped, one, two = (planned(f"model.path={p}").runs[0].run_id for p in ("klsweep/tiny", "./one", "./two"))
    assert shipped == one
    assert one != two


def test_a_neutral_field_added_later_keeps_old_ids():
    flat = planned().runs[0].canonical
    assert not set(NEUTRAL) & set(flat)
    assert run_id(flat) == planned("train.weight_decay=0.0", "rollout.top_p=1.0").runs[0].run_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["estimator=k1", "placement=reward", "estimator.gradient=k2"], ["estimator=k1", "placement=reward"]),
        (["estimator=k2", "placement=loss", "estimator.gradient=k2"], ["estimator=k2", "placement=loss"]),
        (["placement=loss", "kl.weight=token"], ["placement=loss"]),  # one step per batch: the weight is 1
        (["clip=fixed", "clip.low=-2", "clip.high=2"], ["clip=fixed", "clip.tau=2.0"]),
        (["clip=fixed", "clip.half=reward"], ["clip=fixed"]),
        (["clip=fixed", "clip.half=loss"], []),
        (["placement=loss", "clip=fixed", "clip.half=reward"], ["placement=loss"]),
        (["kl.schedule=linear", "kl.final_coef=0.1"], []),
        (
            ["placement=reward_and_loss", "placement.loss_estimator=k3", "estimator.gradient=k3"],
            ["placement=reward_and_loss", "placement.loss_estimator=k3"],
        ),
        (
            ["placement=reward_and_loss", "clip=fixed", "clip.half=reward", "clip.mode=straight_through"],
            ["placement=reward_and_loss", "clip=fixed", "clip.half=reward"],
        ),
        (["kl.target=3.0", "kl.horizon=9.0"], []),
        (["placement=loss", "kl.aggregation=seq-sum"], ["placement=loss"]),
        (["placement=loss", "kl.coef=0.3", "kl.loss_coef=0.1"], ["placement=loss", "kl.coef=0.1"]),
        (
            ["placement=reward_and_loss", "placement.loss_estimator=k3", "kl.coef=0", "kl.loss_coef=0.1"],
            ["placement=loss", "estimator=k3"],
        ),
        (["placement=reward_and_loss", "kl.loss_coef=0.0", "estimator=k3"], ["placement=reward", "estimator=k3"]),
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_two_spellings_of_one_run(one, other):
    assert planned(*one).runs[0].run_id == planned(*other).runs[0].run_id


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (["estimator=k3", "placement=loss"], ["estimator.gradient=k2"]),
        (["placement=loss"], ["kl.weight=token", "kl.weight_over=sampler"]),
        (["placement=loss"], ["kl.weight=token", "kl.weight_grad=differentiable"]),
        (["placement=loss"], ["kl.weight=token", "kl.weight_cap=0.5"]),
        (["clip=fixed"], ["clip.low=-0.5"]),
        (["clip=fixed"], ["clip.output=3.0"]),
        ([], ["correction=truncated"]),
        (["placement=loss"], ["kl.aggregation=token-mean"]),
        (["placement=reward_and_loss"], ["kl.loss_coef=0.3"]),
        (["placement=reward_and_loss"], ["placement.loss_estimator=k3"]),
        (["placement=reward_and_loss", "clip=fixed"], ["clip.half=loss"]),
        (["placement=reward_and_loss", "placement.loss_estimator=k3"], ["estimator.gradient=k1"]),
        (["estimator=k1", "placement=loss", "estimator.gradient=k2"], ["placement.level=sequence"]),
        ([], ["placement.credit=token"]),
        ([], ["kl.schedule=adaptive", "kl.target=3.0", "kl.horizon=9000.0"]),
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_two_runs_that_differ(base, change):
    assert planned(*base).runs[0].run_id != planned(*base, *change).runs[0].run_id


AXES = {
    "estimator": ["k1", "k2", "k3", "abs", "full"],
    "estimator.gradient": ["same", "same", "same", "k1", "k2"],
    "estimator.clip_gradient": [False, True],
    "placement": ["reward", "loss", "reward_and_loss"],
    "placement.credit": ["sequence", "to_go", "token"],
    "placement.baseline": ["auto", "outside"],
    "placement.level": ["token", "sequence"],
    "placement.loss_estimator": ["same", "k1", "k3"],
    "clip": ["none", "fixed", "fixed"],
    "clip.tau": [0.3, None],
    "clip.low": [None, None, -0.2],
    "clip.high": [None, None, 0.2],
    "clip.level": ["token", "sequence"],
    "clip.mode": ["hard", "straight_through"],
    "clip.output": [None, None, 0.2],
    "clip.clamp_stage": ["after_weight", "before_weight"],
    "clip.half": ["both", "reward", "loss"],
    "kl.loss_coef": [None, 0.1, 0.3, 0.0],
    "kl.weight": ["none", "none", "token", "sequence"],
    "kl.weight_over": ["old", "sampler", "current"],
    "kl.weight_grad": ["detached", "differentiable"],
    "kl.weight_cap": [None, 0.8],
    "kl.aggregation": [None, "fixed"],
    "correction": ["none", "truncated"],
    "correction.level": ["token", "sequence"],
}


@pytest.mark.slow
def test_equal_ids_mean_equal_gradients():
    """Random configurations: those that share a run id are audited to the same gradient of every sequence."""
    rng = random.Random(0)
    points = []
    for _ in range(400):
        point = {key: rng.choice(values) for key, values in AXES.items()}
        points += [point, *({**point, key: rng.choice(AXES[key])} for key in rng.sample(list(AXES), 8))]
    axes = ("estimator", "placement", "clip", "correction")
    with composer() as session:
        base = session.compose(["algorithm=reinforce", "algorithm.group_size=1"]).config
        nodes = {(a, choice): session.compose([f"{a}={choice}"]).config[a] for a in axes for choice in AXES[a]}
    base = resolve({key: value for key, value in base.items() if key not in GRID_NODES})
    builder, gradients, identities = Builder(), {}, []
    batch = next(iter(every_sequence(instance(3, 2), off_policy=True)))
    for point in points:
        config = {**base, "kl": dict(base["kl"]), **{axis: dict(nodes[axis, point[axis]]) for axis in axes}}
        for key, value in point.items():
            node, _, field = key.partition(".")
            if field and (node == "kl" or config[node][field] is not None or point[node] == "fixed"):
                config[node][field] = value  # a choice leaves null what it does not use
        try:
            spec = builder.run_spec(config)
            objective = build_objective(*spec.objective_parts)
        except (BadInput, Undefined):
            continue
        identities.append(run_id(canonical(spec.simplified(objective))))
        betas = objective.kl.betas(1, 1)
        found = batch_coefficients(objective, batch, charges(objective, batch, betas.reward), betas.loss)
        gradient = per_sample(batch, found)
        assert torch.allclose(gradients.setdefault(identities[-1], gradient), gradient, atol=1e-12), point
    assert len(identities) > 300
    assert len(identities) - len(set(identities)) > 60


def test_the_cell_is_the_run_without_its_seed():
    rows = [run.row for run in planned("seed=0,1").runs]
    assert rows[0]["cell_id"] == rows[1]["cell_id"]
    assert rows[0]["run_id"] != rows[1]["run_id"]
    flat = dict(planned().runs[0].canonical)
    assert cell_id(flat) == cell_id({**flat, "seed": 99})


def test_evaluation_has_an_id_of_its_own():
    base, other = planned().runs[0].row, planned("eval.temperature=0.5").runs[0].row
    assert base["run_id"] == other["run_id"]
    assert base["eval_id"] != other["eval_id"]
    assert planned("eval.every=5", "eval.batch_size=9").runs[0].row["eval_id"] == base["eval_id"]


def test_the_bases_evaluation_is_shared_by_runs_that_sample_it_alike():
    plain = base_eval_id(planned().runs[0].spec)
    alike = ("estimator=k2", "seed=7", "rollout.temperature=0.7", "rollout.top_p=0.9", "rollout.batch_size=9")
    assert [base_eval_id(planned(field).runs[0].spec) for field in alike] == [plain] * len(alike)
    assert base_eval_id(planned("rollout.ignore_stop=true").runs[0].spec) != plain  # its responses never end


@pytest.mark.slow
def test_what_a_plan_says_beforehand():
    plan = planned("estimator=k1,k2,k3", "placement=reward,loss", "kl.coef=0.1", "seed=0,1")
    assert plan.notes == ["KL term with zero expected gradient (β adds only noise): k1 loss β=0.1 on_policy"]
    plan = planned("estimator=k1,k3", "placement=reward,reward_and_loss")
    assert plan.notes == [
        "equal in expectation (the gradient of the sequence KL): k1 reward β=0.1 on_policy; "
        "k1 reward_and_loss β=0.1 on_policy; k3 reward_and_loss β=0.1 on_policy"
    ]
    assert planned("clip.tau=3").notes == ["clip.tau has no effect on any of these runs"]
    assert planned("clip=fixed", "clip.low=null", "correction=truncated", "correction.cap=null").notes == []
    assert planned("sampling=off_policy", "estimator=k1", "placement=loss").notes == []


@pytest.mark.slow
def test_nothing_is_claimed_where_the_audit_does_not_carry_over():
    zero = ["estimator=k1", "placement=loss"]
    assert planned(*zero).notes == ["KL term with zero expected gradient (β adds only noise): k1 loss β=0.1 on_policy"]
    for change in (
        "algorithm.aggregation=seq-mean",
        "train.minibatches=2",
        "sampling=off_policy",
        "rollout.top_p=0.9",
        "kl.aggregation=token-mean",
    ):
        assert planned(*zero, change).notes == []
    pair = ["estimator=k1,k2", "placement=loss", "placement.level=sequence", "estimator.gradient=k2"]
    assert planned(*pair).notes == [
        "equal in expectation (the gradient of the sequence KL): k1 loss β=0.1 on_policy; k2 loss β=0.1 on_policy"
    ]
    for change in (
        ["placement.baseline=inside", "algorithm=grpo"],
        ["placement=loss", "clip=fixed", "clip.tau=1,3"],  # no log-ratio of the audited tables is that large
        ["placement=reward_and_loss", "placement.baseline=outside", "kl.aggregation=fixed"],
        ["placement=reward_and_loss", "kl.schedule=linear", "kl.final_coef=0.1", "kl.final_loss_coef=0.0"],
    ):
        assert planned("estimator=k1,k3", *change).notes == []


def test_nothing_is_claimed_of_a_plugins_estimator(monkeypatch):
    """Huber is k2 on the audited tables, where no |ℓ| is above 1, and another function beyond."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "mylab"))
    overrides = ["plugins=[mylab.rl]", "estimator=huber,k2", "placement=loss"]
    assert planned(*overrides).notes == []
