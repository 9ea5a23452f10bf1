"""Where an experiment's values come from: what a tag covers, what is printed, what is refused."""

import json

import pytest

from klsweep.cli import main
from klsweep.config.tags import tagged
from tests.conftest import planned

MINE = """# @package _global_
name: mine
grid: [{estimator: [k1], placement: [none, reward], kl.coef: [0.1, 0.2]}]
values:
  algorithm: paper
  algorithm.group_size: assumed, "eight, as ever"
  train.lr: 'inferred, from a plot: its legend'
  train.minibatches: paper
  kl.coef: paper
  eval: assumed
  eval.suites.*.seed: paper
  eval.suites.*.operation: assumed, all that the base knows
"""


@pytest.fixture
def mine(in_tmp):
    (in_tmp / "experiment").mkdir()
    (in_tmp / "experiment" / "mine.yaml").write_text(MINE.replace('"eight, as ever"', "eight, as ever"))
    return in_tmp


def plan_json(capsys, *arguments: str) -> dict:
    assert main(["plan", "--config-dir", ".", "experiment=mine", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_longest_key_that_covers_a_field_tags_it():
    tags = {"a": "paper, note, with a comma", "a.b": "assumed", "unused": "inferred"}
    cells = [{"a": "A", "a.b": 1, "a.b.c": 2, "ab": 3}, {"a": "A", "a.b": 5}]
    found = {entry.key: (entry.tag, entry.note, entry.fields) for entry in tagged(tags, ["a.b.c"], cells)}
    assert found == {
        "a": ("paper", "note, with a comma", {"a": ["A"]}),
        "a.b": ("assumed", "", {"a.b": [1, 5]}),
        "a.b.c": ("given", "", {"a.b.c": [2]}),
        "ab": ("untagged", "", {"ab": [3]}),
    }


def test_a_star_stands_for_one_name_and_a_name_goes_before_it():
    tags = {"s": "paper", "s.*.t": "assumed", "s.x.t": "inferred", "s.*": "paper"}
    cell = {"s": 0, "s.x": 1, "s.x.t": 2, "s.y.t": 3, "s.y.t.u": 4, "s.t": 5}
    found = {entry.key: list(entry.fields) for entry in tagged(tags, [], [cell])}
    assert found == {"s": ["s"], "s.*": ["s.x", "s.t"], "s.x.t": ["s.x.t"], "s.*.t": ["s.y.t", "s.y.t.u"]}


def test_a_plan_has_every_field_that_decides_its_results_once(mine, capsys):
    plan = plan_json(capsys, "train.lr=0.1")
    tags = {field: entry["tag"] for entry in plan["values"] for field in entry["fields"]}
    assert len(tags) == sum(len(entry["fields"]) for entry in plan["values"])
    assert tags["algorithm"] == tags["algorithm.aggregation"] == tags["train.minibatches"] == "paper"
    assert (tags["algorithm.group_size"], tags["train.lr"], tags["seed"]) == ("assumed", "given", "untagged")
    assert tags["eval.suites.add.seed"] == "paper"
    assert tags["eval.temperature"] == tags["eval.suites.sort.operation"] == "assumed"
    assert not {"kl", "train", "eval", "train.micro_batch_size", "eval.batch_size"} & set(tags)
    fields = {field for run in plan["runs"] for field in run["fields"]} | {"seed", "kl.coef"}
    assert fields < set(tags)
    (betas,) = (entry["fields"] for entry in plan["values"] if entry["key"] == "kl.coef")
    assert betas == {"kl.coef": [0.1, 0.2]}


def test_a_plan_prints_what_is_not_the_papers(mine, capsys):
    assert main(["plan", "--config-dir", ".", "experiment=mine", "algorithm.aggregation=fixed"]) == 0
    out = capsys.readouterr().out
    assert "    assumed algorithm.group_size=8: eight, as ever\n" in out
    assert "    assumed eval.suites.*.operation=add,subtract,reverse,max,sort: all that the base knows\n" in out
    assert "    inferred train.lr=0.0005: from a plot: its legend\n" in out
    assert "    given algorithm.aggregation=fixed\n" in out
    assert "paper algorithm" not in out


def test_tags_enter_no_id(mine):
    with_tags = planned("estimator=k1", "placement=reward", "kl.coef=0.1").runs[0]
    from klsweep.config.compose import composer
    from klsweep.sweep.plan import make_plan

    with composer(mine) as session:
        plan = make_plan(session, ["experiment=mine", "wandb.mode=disabled"])
    assert with_tags.run_id in {run.run_id for run in plan.runs}
    assert not any("values" in run.config for run in plan.runs)
    assert plan.values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{train.lr: guessed}", "values.train.lr='guessed': expected one of paper, inferred, assumed"),
        ("{train.lr: 3}", "values.train.lr=3: expected one of paper"),
        ("3", "values=3: expected a mapping"),
        ("{train.rate: paper}", "values.train.rate: unknown key (keys of train: updates"),
        ("{eval.suites.*.word: paper}", "values.eval.suites.*.word: unknown key (keys of eval.suites"),
        ("{nothing: paper}", "values.nothing: unknown key"),
    ],
)
def test_wrong_tags_are_refused(in_tmp, capsys, values, message):
    (in_tmp / "experiment").mkdir()
    (in_tmp / "experiment" / "mine.yaml").write_text(f"# @package _global_\nvalues: {values}\n")
    assert main(["plan", "--config-dir", ".", "experiment=mine"]) == 2
    assert message in capsys.readouterr().err


def test_an_outline_needs_neither_model_nor_data(in_tmp, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("looked at")

    overrides = ["model.path=nobody/nothing", "estimator=k1,k3", "placement=reward,loss", "kl.coef=0,0.1", "seed=0,1"]
    monkeypatch.setattr("klsweep.model.source._hub_commit", refuse)
    monkeypatch.setattr("klsweep.tasks.arithmetic.Arithmetic.train_items", refuse)
    monkeypatch.setattr("klsweep.tasks.arithmetic.Arithmetic.eval_items", refuse)
    assert main(["plan", "--outline", *overrides]) == 0
    out = capsys.readouterr().out
    assert "outline of sweeps/default, without model and data: 16 raw − 0 excluded − 6 collapsed = 10 runs\n" in out
    assert "KL term with zero expected gradient (β adds only noise): k1 loss β=0.1" in out
    assert "c1-" not in out
    assert "cost" not in out
    assert main(["plan", "--outline", "--json", *overrides]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["outline"], plan["cost"], len(plan["runs"])) == (True, None, 10)
    assert main(["plan", "--outline", "--calibrate"]) == 2
