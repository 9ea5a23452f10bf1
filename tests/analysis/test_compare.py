"""The comparison: intervals, coverage, collapse, and nothing averaged away. Records are written by hand."""

import json

import pytest

from klsweep.analysis.build import Layout, build
from klsweep.analysis.compare import compare
from klsweep.analysis.tables import cells_json, markdown, print_table, remarks
from klsweep.record.files import read_json, write_json
from klsweep.sweep.show import print_status
from klsweep.sweep.status import sweep_status
from tests.analysis.records import plan_row, write_run


def test_a_cells_means_are_over_its_finished_runs_and_say_so(sweep):
    for seed, (state, add) in enumerate([("done", 0.8), ("done", 0.9), ("diverged", 0.1), ("failed", None)]):
        write_run(sweep, plan_row("a", seed), state, add, sort=0.5 + 0.1 * seed)
    sweep.extend_plan([plan_row("a", 4)])  # never started
    comparison = compare(sweep)
    (cell,) = cells_json(comparison)
    assert cell["n_seeds"] == 3
    assert cell["states"] == {"done": 2, "diverged": 1, "failed": 1, "pending": 1}
    assert cell["suites"]["add"]["mean"] == pytest.approx(0.6)
    assert cell["suites"]["add"]["role"] == "in"
    assert cell["collapsed"] == 1
    # out of distribution: mean of sort and max within each run, then over runs: .35, .40, .45
    assert cell["out_of_distribution"]["mean"] == pytest.approx(0.40)
    assert cell["out_of_distribution"]["ci_high"] == pytest.approx(0.40 + 4.302653 * 0.05 / 3**0.5, abs=1e-6)
    assert cell["kl"]["mean"] == pytest.approx(1.5)
    assert cell["reward"]["mean"] == pytest.approx((0.5 + 0.6 + 0.7 + 0.8 + 0.9) / 5)
    text = markdown(build(comparison, Layout()))
    assert "| 3/5 |" in text
    assert "0.600 ±1.083*" in text
    assert "1 diverged, 1 failed, 1 pending, collapsed 1/3" in text
    assert "* mean over fewer runs than planned (see runs)." in text
    assert "1 cells, 5 runs: 2 done, 1 diverged, 1 failed, 1 pending" in build(comparison, Layout()).coverage[0]


def test_a_run_in_flight_counts_as_running_and_enters_no_mean(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    write_run(sweep, plan_row("a", 1), "running", 0.2)
    (cell,) = cells_json(compare(sweep))
    assert (cell["n_seeds"], cell["states"]) == (1, {"done": 1, "running": 1})
    assert cell["suites"]["add"] == {"role": "in", "n": 1, "mean": 0.8, "ci_low": None, "ci_high": None}


def test_the_base_and_what_varies_are_in_the_table(sweep):
    write_run(sweep, {**plan_row("a", 0), "fields": {"train.lr": 0.2}}, "done", 0.8)
    row = plan_row("b", 0, estimator=None, placement="none", clip=None)
    write_run(sweep, {**row, "kl_coef": None, "fields": {"train.lr": 0.1, "clip.tau": 1.0}}, "done", 0.9)
    text = markdown(build(compare(sweep), Layout()))
    header, base, first, second = (line for line in text.splitlines() if line.startswith("| "))
    names = ["estimator", "placement", "clip", "β", "train.lr", "runs", "add (in)", "sort", "max", "out mean"]
    assert header == "| " + " | ".join([*names, "KL", "reward", "outcome"]) + " |"
    assert base == "| base tiny |  |  |  |  |  | 0.400 | 0.500 | 0.300 | 0.400 | 0 |  |  |"
    assert first == "| k1 | loss | none | 0.1 | 0.2 | 1/1 | 0.800◇ | 0.600◆ | 0.200◆ | 0.400◆ | 1.500 | 0.700◆ | done |"
    assert second.startswith("| – | none | – | – | 0.1 | 1/1 | 0.900◆ |")


@pytest.mark.parametrize("columns", ["40", "100", "250"])
def test_a_narrow_terminal_never_cuts_a_figure(sweep, columns, monkeypatch, capsys):
    for seed, add in enumerate([0.8, 0.9]):
        write_run(sweep, plan_row("a", seed), "done", add)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(build(compare(sweep), Layout()))
    text = capsys.readouterr().out
    assert "…" not in text
    assert "0.850" in text
    assert "±0.635" in text


def test_results_that_may_not_be_comparable_are_marked(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    write_run(sweep, {**plan_row("a", 1), "eval_id": "e2"}, "done", 0.8, science="s2")
    warnings = [note for note in remarks(build(compare(sweep), Layout())) if note.startswith("warning")]
    assert len(warnings) == 2
    assert "2 different evaluation settings (e1, e2)" in warnings[0]
    assert "2 different science-code hashes (s1, s2)" in warnings[1]


def test_figures_that_are_not_finite_are_missing_not_zero(sweep):
    write_run(sweep, plan_row("a", 0), "diverged", 0.8)
    path = sweep.run("a-0").metrics
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["eval/add/kl"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"update": 10, "rew')
    (cell,) = cells_json(compare(sweep))
    assert cell["kl"] == {"n": 0, "mean": None, "ci_low": None, "ci_high": None}
    assert cell["suites"]["add"]["mean"] == 0.8


def test_an_earlier_evaluation_is_not_the_final_one(sweep):
    """Evaluated well at update 5, diverged at 9 without an evaluation: nothing is known of its end."""
    write_run(sweep, plan_row("a", 0), "diverged", None)
    path = sweep.run("a-0").metrics
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[5]["eval/add/pass@1"] = 0.95
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell,) = cells_json(compare(sweep))
    assert (cell["n_seeds"], cell["states"], cell["suites"]["add"]["mean"]) == (0, {"diverged": 1}, None)


@pytest.mark.parametrize(
    ("state", "cause", "evaluated"),
    [
        ("diverged", "update 6: logits are not finite", 0),  # no response could be sampled: update 6 has no row
        ("diverged", "update 5: kl/k1_sequence = inf", 1),  # in the update that was evaluated
        ("done", None, 0),  # the rows after it are torn off
    ],
)
def test_an_evaluation_in_the_last_row_is_final_only_if_the_run_ended_there(sweep, state, cause, evaluated):
    write_run(sweep, plan_row("a", 0), state, None, cause=cause)
    path = sweep.run("a-0").metrics
    rows = [json.loads(line) for line in path.read_text().splitlines()][:6]
    rows[5] |= {f"eval/{suite}/pass@1": 0.95 for suite in ("add", "sort", "max")}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell,) = cells_json(compare(sweep))
    assert (cell["n_seeds"], cell["suites"]["add"]["n"]) == (evaluated, evaluated)


def test_an_evaluations_end_is_the_update_that_it_evaluates(sweep):
    """Its plan counts suites as updates."""
    row = {**plan_row("a", 0), "updates": 30, "evaluates": {"run_id": "a-0", "update": 9}}
    write_run(sweep, row, "done", 0.8)
    assert cells_json(compare(sweep))[0]["n_seeds"] == 1


def test_two_models_have_a_base_row_each(sweep):
    write_run(sweep, plan_row("a", 0, model="./one"), "done", 0.8)
    write_run(sweep, plan_row("b", 0, model="./two"), "done", 0.8)
    path = sweep.run("b-0").metrics
    path.write_text(path.read_text().replace('"eval/add/pass@1": 0.4', '"eval/add/pass@1": 0.05'))
    comparison = compare(sweep)
    assert [cell["base"]["add"] for cell in cells_json(comparison)] == [0.4, 0.05]
    lines = [
        line.split("|")[1].strip()
        for line in markdown(build(comparison, Layout())).splitlines()
        if line.startswith("| base")
    ]
    assert lines == ["base ./one", "base ./two"]


def test_where_the_trained_task_differs_so_does_what_is_in_distribution(sweep):
    write_run(sweep, plan_row("a", 0, task="add"), "done", 0.8)
    sort = {**plan_row("b", 0, task="sort"), "suites": {"add": "out", "sort": "in", "max": "out"}}
    write_run(sweep, sort, "done", 0.1, sort=0.9)
    comparison = compare(sweep)
    by_task = {cell["cell_id"]: cell for cell in cells_json(comparison)}
    assert by_task["a"]["in_distribution"]["mean"] == 0.8
    assert by_task["b"]["in_distribution"]["mean"] == 0.9
    assert by_task["b"]["out_of_distribution"]["mean"] == pytest.approx(0.15)
    header, base = (
        line for line in markdown(build(comparison, Layout())).splitlines() if line.startswith(("| est", "| base"))
    )
    assert "| in mean | add | sort | max | out mean |" in header
    assert base.endswith("| 0.400 | 0.500 | 0.300 | – | 0 |  |  |")


def test_brackets_are_printed_as_they_are(sweep, capsys):
    write_run(sweep, {**plan_row("a", 0, model="./[bold]/x"), "fields": {"task.ops": "[red]"}}, "done", 0.8)
    write_run(sweep, {**plan_row("b", 0, model="./y"), "fields": {"task.ops": "[/]"}}, "failed", None)
    end = sweep.run("b-0").attempt(1) / "attempt.json"
    write_json(end, {**read_json(end), "cause": "KeyError: [/a] [dim]"})
    print_table(build(compare(sweep), Layout()))
    print_status(sweep_status(sweep))
    text = capsys.readouterr().out
    for shown in ("./[bold]/x", "[red]", "[/]", "KeyError: [/a] [dim]"):
        assert shown in text


def test_an_empty_plan_is_an_empty_table(sweep):
    sweep.extend_plan([])
    assert cells_json(compare(sweep)) == []
    assert "0 cells, 0 runs" in markdown(build(compare(sweep), Layout()))
