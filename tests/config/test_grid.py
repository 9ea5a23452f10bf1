"""Grids: what is enumerated, replaced, excluded, collapsed; fast composition against Hydra's own."""

import random
from pathlib import Path

import pytest
import yaml

from klsweep.config.build import GRID_NODES, Builder
from klsweep.config.compose import CONF, composer, resolve
from klsweep.config.grid import compose_point, expand
from klsweep.errors import BadInput
from klsweep.objective.objective import build_objective
from tests.conftest import planned
from tests.hub import DATA

YAMLS = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
AXES = {"estimator", "placement", "clip", "correction", "sampling"}


NEEDED = {"task/jsonl.yaml": [f"task.source.path={DATA / 'math500.jsonl'}", "task.template='{{ problem }}'"]}
NEEDED["task/jsonl.yaml"] += ["task.eval_prompts=1", "task.verifier=math"]


@pytest.mark.slow
@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_shipped_file_composes_and_builds(path: Path, hub):
    if path.parent.name == "task" and yaml.safe_load((CONF / path).read_text()).get("source", "trained") is None:
        with pytest.raises(BadInput, match="nothing to train on"):
            planned(f"task={path.stem}")
        return  # its file in eval/ is built as an evaluation suite
    engine = ["rollout=hf"] if path.parent.name == "experiment" else []  # vLLM need not be installed
    plan = planned(f"{path.parent}={path.stem}", *engine, *NEEDED.get(str(path), []))
    assert plan.runs
    for run in plan.runs:
        build_objective(*run.spec.objective_parts)


@pytest.mark.parametrize("axis", sorted(AXES | {"model", "algorithm", "task"}))
def test_choices_of_an_axis_have_the_same_keys(axis):
    """Tasks of different kinds are no points of one axis: they need the same keys within a kind."""
    keys: dict[str, dict[str, list[str]]] = {}
    for path in YAMLS:
        if path.parent.name == axis:
            node = yaml.safe_load((CONF / path).read_text())
            keys.setdefault(node["_target_"] if axis == "task" else axis, {})[path.name] = sorted(node)
    assert keys
    for found in keys.values():
        assert len({tuple(names) for names in found.values()}) == 1, found


def test_the_five_axes_are_groups_with_at_least_these_choices():
    with composer() as session:
        for group, choices in {
            "model": {"tiny"},
            "estimator": {"abs", "full", "k1", "k2", "k3"},
            "placement": {"loss", "none", "reward", "reward_and_loss"},
            "clip": {"fixed", "none"},
            "sampling": {"off_policy", "on_policy"},
            "algorithm": {"dr_grpo", "grpo", "reinforce", "rloo"},
        }.items():
            assert choices <= set(session.options(group))


def _names(plan) -> list[tuple]:
    return sorted((r.row["axes"]["estimator"] or "-", r.row["axes"]["placement"], r.row["seed"]) for r in plan.runs)


def test_none_and_zero_collapse_whatever_the_inert_axes_say():
    plan = planned("estimator=k1,k3", "placement=none,reward", "kl.coef=0,0.1", "clip=none,fixed")
    # no KL: 8 + (reward at β = 0) 4 cells are one; β = 0.1 in reward: 2 estimators × 2 clips
    assert (plan.raw, len(plan.excluded), plan.collapsed, len(plan.runs)) == (16, 0, 11, 5)
    none = next(run.row for run in plan.runs if run.row["axes"]["placement"] == "none")
    assert (none["axes"]["estimator"], none["axes"]["clip"], none["kl_coef"]) == (None, None, None)


def test_inert_values_neither_multiply_nor_fail():
    plan = planned("clip=none,fixed", "clip.tau=1,2")
    assert [(r.row["axes"]["clip"], r.row["fields"].get("clip.tau")) for r in plan.runs] == [
        ("none", None),
        ("fixed", 1.0),
        ("fixed", 2.0),
    ]
    assert (plan.raw, plan.collapsed) == (4, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["placement=reward", "clip=fixed", "clip.mode=hard"], ["clip.mode=straight_through"]),
        (["algorithm.clip_low=0.1"], ["algorithm.clip_low=0.2"]),
        (["sampling=off_policy", "sampling.async_level=0"], ["sampling=on_policy"]),
        (["kl.final_coef=0.5"], ["kl.final_coef=0.1"]),
        (["placement.baseline=auto"], ["placement.baseline=inside"]),
        (["placement.credit=to_go", "placement.baseline=auto"], ["placement.baseline=outside"]),
        (["placement=loss", "placement.level=token"], ["placement.level=sequence"]),
        (["algorithm=reinforce", "placement.baseline=inside"], ["placement.baseline=outside"]),
        (["kl.coef=0", "estimator=full", "clip=fixed"], ["clip=none"]),
        (["train.micro_batch_size=7"], ["train.micro_batch_size=8"]),
        (["kl.coef=1"], ["kl.coef=1.0"]),
    ],
)
def test_configurations_that_are_the_same_run(one, other):
    second = [o for o in one if o.split("=")[0] not in {x.split("=")[0] for x in other}] + other
    assert planned(*one).runs[0].run_id == planned(*second).runs[0].run_id


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "estimator=k2",
        "placement=loss",
        "clip=fixed",
        "sampling=off_policy",
        "algorithm=grpo",
        "task=sort",
        "kl.coef=0.2",
        "kl.schedule=linear",
        "train.updates=41",
        "train.lr=1e-3",
        "train.minibatches=2",
        "train.prompts_per_update=16",
        "rollout.temperature=0.9",
        "rollout.top_p=0.9",
        "reward.incorrect=-1.0",
        "algorithm.group_size=4",
        "model.dtype=bfloat16",
        "algorithm.aggregation=fixed",
        "placement.credit=to_go",
        "train.weight_decay=0.1",
        "train.max_grad_norm=2.0",
        "train.warmup_updates=3",
        "train.max_kl=9.0",
    ],
)
def test_configurations_that_are_another_run(change):
    assert planned(change).runs[0].run_id != planned().runs[0].run_id


def test_other_data_is_another_run():
    seeded = planned("task.seed=1", "eval.suites.add.seed=1").runs[0]
    assert seeded.run_id != planned().runs[0].run_id
    assert seeded.row["suites"]["add"] == "in"


@pytest.mark.slow
def test_an_axis_on_the_command_line_replaces_it_in_every_product(in_tmp):
    (in_tmp / "experiment").mkdir()
    (in_tmp / "experiment" / "pair.yaml").write_text(
        "# @package _global_\nname: pair\ngrid:\n"
        "  - {estimator: [k1, k2], seed: [0, 1]}\n"
        "  - {estimator: [k3], placement: [loss], seed: [0, 1]}\n"
        "exclude:\n  - {when: {estimator: k2, seed: [1]}, reason: k2 is dear}\n"
    )
    with composer(in_tmp) as session:
        expansion = expand(session, ["experiment=pair"])
        assert (expansion.raw, len(expansion.cells)) == (6, 5)
        assert [(e.point, e.reason) for e in expansion.excluded] == [({"estimator": "k2", "seed": 1}, "k2 is dear")]
        points = [c.point for c in expand(session, ["experiment=pair", "seed=5"]).cells]
        assert points == [{"estimator": "k1"}, {"estimator": "k2"}, {"estimator": "k3", "placement": "loss"}]
        assert {c.config["seed"] for c in expand(session, ["experiment=pair", "seed=5"]).cells} == {5}
        points = [c.point for c in expand(session, ["experiment=pair", "seed=6,7", "estimator=k3"]).cells]
        assert points == [{"seed": 6}, {"seed": 7}, {"placement": "loss", "seed": 6}, {"placement": "loss", "seed": 7}]
        assert len(expand(session, ["experiment=pair", "estimator=k1,k3", "placement=reward", "seed=0"]).cells) == 2
        assert len(expand(session, ["experiment=pair"], single=True).cells) == 1


def test_the_experiment_of_the_readme(in_tmp):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.split("```yaml\n")[1].split("```")[0]
    (in_tmp / "experiment").mkdir()
    (in_tmp / "experiment" / "mine.yaml").write_text(text)
    with composer(in_tmp) as session:
        expansion = expand(session, ["experiment=mine"])
    assert (expansion.raw, len(expansion.excluded), len(expansion.cells)) == (27, 6, 21)
    assert {exclusion.reason for exclusion in expansion.excluded} == {"known to collapse"}


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (["kl.coef=0.1,0.4", "kl.coef=0.2"], [0.2]),
        (["kl.coef=0.2", "kl.coef=0.1,0.4"], [0.1, 0.4]),
        (["kl.coef=0.1,0.4", "kl.coef=0.3,0.5"], [0.3, 0.5]),
    ],
)
def test_the_last_word_on_a_key_counts(overrides, values):
    with composer() as session:
        assert [cell.config["kl"]["coef"] for cell in expand(session, overrides).cells] == values


def test_hydra_grammar_ranges_choices_and_globs():
    with composer() as session:
        assert [c.point["seed"] for c in expand(session, ["seed=range(0,3)"]).cells] == [0, 1, 2]
        globbed = [c.point["sampling"] for c in expand(session, ["sampling=glob(o*_policy)"]).cells]
        assert globbed == ["off_policy", "on_policy"]
        assert [c.point["kl.coef"] for c in expand(session, ["kl.coef=choice(0.1,0.5)"]).cells] == [0.1, 0.5]


@pytest.mark.slow
def test_fifty_random_cells_are_what_hydra_composes():
    fixed = ["clip.tau=3.0", "train.lr=1e-3", "name=mine"]
    axes = {
        "estimator": ["k1", "k2", "k3", "full", "abs"],
        "placement": ["none", "reward", "loss", "reward_and_loss"],
        "clip": ["none", "fixed"],
        "sampling": ["on_policy", "off_policy"],
        "algorithm": ["rloo", "dr_grpo"],
        "kl.coef": [0.0, 1.0],
        "seed": [0, 7],
        "placement.credit": ["sequence", "to_go"],
    }
    sweeps = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    with composer() as session:
        cells = random.Random(0).sample(expand(session, [*fixed, *sweeps]).cells, 50)
        for cell in cells:
            full = compose_point(session, fixed, cell.point)
            assert {k: v for k, v in cell.config.items() if k != "choices"} == {
                k: v for k, v in resolve(full.config).items() if k not in GRID_NODES
            }
            assert cell.choices == full.choices


@pytest.mark.parametrize("reference", ["${.coef}", "${kl.coef}", "${oc.select:kl.coef}"])
def test_an_interpolation_to_an_axis_follows_it(in_tmp, reference):
    (in_tmp / "experiment").mkdir()
    text = f"# @package _global_\nkl: {{final_coef: '{reference}'}}\ngrid: [{{kl.coef: [0.1, 0.7]}}]\n"
    (in_tmp / "experiment" / "tied.yaml").write_text(text)
    with composer(in_tmp) as session:
        cells = expand(session, ["experiment=tied"]).cells
        assert [cell.config["kl"]["final_coef"] for cell in cells] == [0.1, 0.7]


def test_a_folder_of_ones_own_may_have_any_name(tmp_path):
    folder = tmp_path / "my (own), conf"
    (folder / "estimator").mkdir(parents=True)
    (folder / "estimator" / "mine.yaml").write_text("_target_: klsweep.objective.kl.K2\n")
    with composer(folder) as session:
        assert "mine" in session.options("estimator")
        assert expand(session, ["estimator=mine"]).cells[0].choices["estimator"] == "mine"


def test_plain_hydra_merges_a_mapping():
    assert planned("kl={coef: 0.25}").runs[0].spec.kl.coef == 0.25


def test_a_choice_that_reaches_beyond_its_node_is_composed_in_full(in_tmp):
    (in_tmp / "algorithm").mkdir()
    (in_tmp / "algorithm" / "reaching.yaml").write_text(
        "# @package _global_\nalgorithm:\n"
        + "".join(f"  {line}\n" for line in (CONF / "algorithm" / "rloo.yaml").read_text().splitlines())
        + "train: {lr: 0.25}\n"
    )
    with composer(in_tmp) as session:
        cells = expand(session, ["algorithm=rloo,reaching"]).cells
        assert [cell.config["train"]["lr"] for cell in cells] == [5e-4, 0.25]


def test_a_users_component_needs_its_package_allowed(in_tmp, monkeypatch):
    (in_tmp / "halflab.py").write_text(
        "from klsweep.component import component\nfrom klsweep.objective.kl import Estimator\n\n"
        "@component\nclass Half(Estimator):\n    def __call__(self, log_ratio, exact_kl=None):\n"
        "        return log_ratio / 2\n"
    )
    monkeypatch.syspath_prepend(str(in_tmp))
    (in_tmp / "estimator").mkdir()
    (in_tmp / "estimator" / "half.yaml").write_text("_target_: halflab.Half\ngradient: same\nclip_gradient: false\n")
    with composer(in_tmp) as session:
        cell = expand(session, ["estimator=half", "plugins=[halflab]"]).cells[0]
        assert Builder().run_spec(cell.config).estimator(6.0) == 3.0  # pyright: ignore
        cell = expand(session, ["estimator=half"]).cells[0]
        with pytest.raises(ValueError, match="only targets in klsweep are built"):
            Builder().run_spec(cell.config)
