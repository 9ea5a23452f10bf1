"""The experiments on the paper: grids, tags, twins; planned in full with stand-ins for models and data."""

import re
from functools import cache

import pytest
import yaml

from klsweep.cli import main
from klsweep.config.compose import CONF
from klsweep.config.tags import TAGS
from tests.conftest import planned
from tests.hub import use

# raw, collapsed and planned runs
GRIDS = {
    "paper_on_policy": (120, 18, 102),  # per model: β = 0 four times over, three seeds
    "paper_both_placements": (12, 0, 12),
    "paper_off_policy": (24, 0, 24),
    "ratio_clipping": (27, 0, 27),
    "minibatches": (36, 0, 36),
    "beta_schedules": (33, 0, 33),
    "learning_rate": (36, 0, 36),
    "clip_calibration": (36, 0, 36),
    "reward_shift": (45, 0, 45),
}
SUBJECTS = ("physics", "chemistry", "biology")
STUDIED = {  # what an experiment varies besides estimator and placement
    "paper_on_policy": "kl.coef",
    "ratio_clipping": "algorithm.clip_low",
    "minibatches": "train.minibatches",
    "beta_schedules": "kl.schedule",
}


@cache
def outline(experiment: str):
    return planned(f"experiment={experiment}", outline=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_is_of_this_size_and_nothing_in_it_is_undefined(name):
    plan = outline(name)
    assert (plan.raw, plan.collapsed, len(plan.runs)) == GRIDS[name]
    assert not plan.excluded
    model = "Qwen/Qwen3-4B-Instruct-2507" if name == "reward_shift" else "Qwen/Qwen2.5-7B"
    assert model in {run.spec.model.path for run in plan.runs}


@pytest.mark.parametrize("name", GRIDS)
def test_every_value_that_decides_a_result_has_one_tag(name):
    plan = outline(name)
    tags = [(field, entry.tag) for entry in plan.values for field in entry.fields]
    assert len(tags) == len({field for field, _ in tags})
    assert {tag for _, tag in tags} == set(TAGS)
    assert [field for field, tag in tags if tag not in TAGS] == []
    assert dict(tags)["train.lr"] == dict(tags)["task.template"] == dict(tags)["task.max_response_tokens"] == "assumed"
    own = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["values"]
    assert set(own) <= {entry.key for entry in plan.values}, "a tag of this file covers nothing"


def test_what_is_printed_as_the_papers_is_the_papers():
    fields = {f: v for entry in outline("paper_on_policy").values for f, v in entry.fields.items()}
    assert fields["kl.coef"] == [0.05, 0.1, 0.3, 1.0]
    assert (fields["algorithm"], fields["algorithm.group_size"]) == (["RLOO"], [5])
    assert (fields["rollout.temperature"], fields["train.minibatches"]) == ([1.0], [1])
    assert (fields["train.updates"], fields["train.prompts_per_update"]) == ([250], [256])
    fields = {f: v for entry in outline("paper_off_policy").values for f, v in entry.fields.items()}
    assert (fields["algorithm"], fields["algorithm.group_size"], fields["kl.coef"]) == (["DrGRPO"], [16], [0.005])
    assert (fields["sampling.async_level"], fields["train.prompts_per_update"]) == ([10], [512])
    assert outline("paper_both_placements").runs[0].spec.train.updates == 150


def test_off_policy_pairs_models_with_tasks_and_evaluations():
    pairs = {(r.spec.model.path, r.row["axes"]["task"], *r.spec.eval.suites) for r in outline("paper_off_policy").runs}
    mmlu = tuple(f"mmlu_college_{subject}" for subject in SUBJECTS)
    assert pairs == {
        ("Qwen/Qwen2.5-7B", "math", "math500", "math_squared", *mmlu),
        ("Qwen/Qwen3-4B-Instruct-2507", "countdown", "countdown", *mmlu),
    }


@pytest.mark.parametrize("name", GRIDS)
def test_a_twin_has_the_same_cells(name):
    def cells(plan) -> set[tuple]:
        axes = ("estimator", "placement", "sampling")
        studied = STUDIED.get(name, "")
        return {(*(r.row["axes"][axis] for axis in axes), r.canonical.get(studied)) for r in plan.runs}

    twin = planned(f"experiment={name}_mini")
    assert cells(twin) == cells(outline(name))
    assert {run.spec.model.path for run in twin.runs} == {"klsweep/tiny"}
    assert len({run.row["seed"] for run in twin.runs}) >= 3


def test_schedules_have_the_same_mean():
    for name in ("beta_schedules", "beta_schedules_mini"):
        means = set()
        for run in outline(name).runs:
            kl, updates = run.spec.kl, run.spec.train.updates
            if run.row["axes"]["estimator"] and kl.schedule != "adaptive":
                means.add(round(sum(kl.betas(u, updates).reward for u in range(1, updates + 1)) / updates, 9))
        assert len(means) == 1, (name, means)


@pytest.mark.slow
def test_planned_in_full_where_models_and_data_are_in_the_cache(hub, in_tmp):
    """`hub` is a cache with small invented stand-ins: all that is real is what the plan does with them."""
    on_policy = planned("experiment=paper_on_policy", "rollout=hf")
    assert (len(on_policy.runs), len({run.run_id for run in on_policy.runs})) == (102, 102)
    suites = {"math500": "in", "math_squared": "in"} | {f"mmlu_college_{s}": "out" for s in SUBJECTS}
    assert all(run.row["suites"] == suites for run in on_policy.runs)
    off_policy = planned("experiment=paper_off_policy", "rollout=hf", "train.lr=3e-6")
    assert len({run.row["cell_id"] for run in off_policy.runs}) == 8
    tags = {field: entry.tag for entry in off_policy.values for field in entry.fields}
    assert (tags["model.content"], tags["task.data"], tags["model.template"]) == ("paper", "paper", "inferred")
    assert (tags["rollout"], tags["train.lr"]) == ("given", "given")
    assert "untagged" not in tags.values()


@pytest.mark.slow
def test_without_a_cache_the_plan_says_so_in_one_line(in_tmp, monkeypatch, capsys):
    use(in_tmp / "empty", monkeypatch)
    assert main(["plan", "experiment=paper_on_policy", "rollout=hf"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"Qwen/Qwen2.5-7B|hendrycks_math|MATH-500", line)
    assert main(["plan", "--outline", "experiment=paper_on_policy"]) == 0
    assert "assumed train.lr=1e-06: the paper's is not known to us\n" in capsys.readouterr().out
