"""`klsweep report`: its specification, and the real client that saves it at a server on the loopback."""

import json
from pathlib import Path

import pytest

from klsweep.analysis.wandb_report import Findings, build_report, findings, specification
from klsweep.cli import main
from klsweep.commands import mirrors
from tests.mirror.records import begin, finished, planned

GOLDEN = Path(__file__).parent / "report.json"

FINDINGS = Findings(
    headline=[
        "mine: 2 cells, 4 runs: 4 done",
        "Highest accuracy on the trained task: 0.700 (mean over 2 of 2 runs), one",
    ],
    tables={"Comparison": "| β | add (in) |\n|---|---|\n| 0.1 | 0.700 |", "Paired": "| β | difference |\n|---|---|"},
    cells={"c1-a": "k1 reward β=0.1", "c1-b": "k1 reward β=0.4"},
    inside=["add"],
    outside=["sort"],
    curves={"reward/mean": "Reward", "grad_norm": "Gradient norm"},
)


def blocks(view):
    """The blocks of a saved or printed specification, without empty paragraphs."""
    spec = json.loads(view["spec"]) if isinstance(view["spec"], str) else view["spec"]
    return [block for block in spec["blocks"] if block != {"type": "paragraph", "children": [{"text": ""}]}]


def markdown(view):
    return [block["content"] for block in blocks(view) if block["type"] == "markdown-block"]


def run_sets(view):
    """For each grid of panels, its run sets: name, filters as key → value, and what they are grouped by."""
    return [
        [
            (
                entry["name"],
                {own["key"]["name"]: own["value"] for own in entry["filters"]["filters"]},
                [key["name"] for key in entry["grouping"]],
            )
            for entry in block["metadata"]["runSets"]
        ]
        for block in blocks(view)
        if block["type"] == "panel-grid"
    ]


def panels(view):
    grids = [block["metadata"]["panelBankSectionConfig"] for block in blocks(view) if block["type"] == "panel-grid"]
    return [[panel["config"] for panel in grid["panels"]] for grid in grids]


def test_the_specification_is_the_golden_one():
    """After a change that is meant: `python -m tests.mirror.test_report` writes the file anew."""
    assert specification(build_report(FINDINGS, "ada", "klsweep", "mine")) == json.loads(GOLDEN.read_text())


def test_a_dry_run_needs_no_server_and_prints_the_same_bytes_twice(cli, tmp_path):
    sweep = finished(tmp_path / "mine")
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": ""}
    first, second = (cli("report", sweep.path, "--dry-run", **nowhere) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == second.stdout
    view = json.loads(first.stdout)
    assert view["title"] == "klsweep mine"
    headline, table, against, _ = markdown(view)
    coverage, best, *_, fallen = headline.splitlines()
    assert coverage == "- mine: 2 cells, 4 runs: 4 done"
    assert best.startswith("- Highest mean accuracy in distribution: k1 reward β=0.1 on_policy, 0.700 ±0.000;")
    assert fallen == "- None of 4 ended runs diverged or collapsed."
    assert str(tmp_path) not in first.stdout
    assert [row.split("|")[3].strip() for row in table.splitlines()[2:5]] == ["", "0.1", "0.4"]
    assert "0.700 ±0.000" in table
    assert "+0.450 ±0.000 |" in against  # 0.7 after training, 0.25 before
    headings = [block["children"][0]["text"] for block in blocks(view) if block["type"] == "heading"]
    assert headings[:3] == ["Comparison", "Against the model before training", "Effects of the axes"]
    ours = {"sweep_name": "mine"}
    cells = [
        ("k1 reward β=0.1 on_policy", {"cell_id": "c1-a", **ours}),
        ("k1 reward β=0.4 on_policy", {"cell_id": "c1-b", **ours}),
    ]
    assert run_sets(view) == [[(*cell, ["cell.value"]) for cell in cells], [(*cell, []) for cell in cells]]
    curves, scatters = panels(view)
    assert [curve["metrics"] for curve in curves][:2] == [["reward/mean"], ["kl/full_sequence"]]
    assert {(curve["xAxis"], curve["groupAgg"], curve["groupArea"]) for curve in curves} == {
        ("_step", "mean", "minmax")
    }
    assert [(plot["xAxis"], plot["yAxis"]) for plot in scatters] == [
        ("summary:eval/add/kl", "summary:eval/add/pass@1"),
        ("summary:eval/add/pass@1", "summary:eval/sort/pass@1"),
    ]


@pytest.mark.slow
def test_a_report_is_saved_and_the_next_call_updates_it(server, cli, tmp_path):
    sweep = planned(tmp_path / "mine", seeds=1)
    begin(sweep, "r1-a0").update(0, 4).update(5, 5, **{"eval/add/pass@1": 0.7, "eval/sort/pass@1": 0.4}).end()
    missing = cli("report", sweep.path)
    assert missing.returncode == 2
    assert missing.stderr == "klsweep: error: ada/klsweep: no such W&B project yet (klsweep sync fills it)\n"
    assert cli("sync", sweep.path).returncode == 0
    first = cli("report", sweep.path)
    url = f"{server.url}/ada/klsweep/reports/klsweep-mine--Vmlldzow"  # base64 of the server's `View:0`, unpadded
    assert (first.returncode, first.stderr) == (0, "")
    shown = f"its plots show 1 of 2 runs: the others are not at W&B (klsweep sync {sweep.path})"
    assert first.stdout.splitlines() == [f"created {url}", shown]
    (view,) = server.views()
    expected = specification(build_report(findings(sweep, "mine"), "ada", "klsweep", "mine"))
    assert json.loads(view["spec"]) == expected["spec"]
    assert (view["displayName"], view["type"]) == ("klsweep mine", "runs")
    assert "1 pending" in markdown(view)[0]

    theirs = json.loads(view["spec"])
    theirs["discussionThreads"] = [{"id": "a comment"}]
    view["spec"], view["displayName"] = json.dumps(theirs), "renamed by hand"
    begin(sweep, "r1-b0").update(0, 4).update(5, 5, **{"eval/add/pass@1": 0.8, "eval/sort/pass@1": 0.4}).end()
    assert cli("sync", sweep.path).returncode == 0
    again = cli("report", sweep.path, "--json")
    found = json.loads(again.stdout)
    assert (found["url"], found["created"], found["runs"], found["runs_there"]) == (url, False, 2, 2)
    (view,) = server.views()
    headline, table, *_ = markdown(view)
    assert headline.startswith("- mine: 2 cells, 2 runs: 2 done\n")
    assert [row.split("|")[5].strip() for row in table.splitlines()[3:5]] == ["0.700◇", "0.800◆"]
    assert json.loads(view["spec"])["discussionThreads"] == [{"id": "a comment"}]
    assert view["displayName"] == "klsweep mine"
    assert server.refusals == []


@pytest.mark.slow
def test_another_sweep_has_a_report_of_its_own(server, cli, tmp_path):
    sweeps = [finished(tmp_path / name, seeds=1).path for name in ("mine", "mine.b")]
    assert cli("sync", *sweeps).returncode == 0
    for sweep in sweeps:
        assert cli("report", sweep).stdout.startswith("created ")
    assert [view["displayName"] for view in server.views()] == ["klsweep mine", "klsweep mine.b"]
    assert cli("report", sweeps[0]).stdout.startswith("updated ")
    assert len(server.views()) == 2


def test_without_its_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirrors, "find_spec", lambda name: None)
    assert main(["report", str(finished(tmp_path / "mine").path)]) == 2
    expected = "klsweep: error: klsweep report needs wandb-workspaces (pip install 'klsweep[report]')\n"
    assert capsys.readouterr().err == expected


def test_many_cells_are_one_run_set_grouped_by_cell():
    cells = {f"c1-{number}": f"cell {number}" for number in range(13)}
    many = Findings([], {}, cells, ["add"], [], {"reward/mean": "Reward"})
    view = specification(build_report(many, "ada", "klsweep", "mine"))
    ours = {"sweep_name": "mine"}
    assert run_sets(view) == [[("13 cells", ours, ["cell.value"])], [("13 cells", ours, [])]]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(specification(build_report(FINDINGS, "ada", "klsweep", "mine")), indent=1) + "\n")
