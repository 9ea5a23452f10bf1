"""Where two runs part, and where a run leaves its siblings."""

import json
import math

import pytest
import yaml

from klsweep.analysis.departure import (
    Departure,
    FieldDifference,
    config_differences,
    departures,
    left_siblings,
    metrics_of,
    siblings_of,
)
from klsweep.cli import main
from klsweep.record.files import append_rows
from klsweep.record.folder import RunFolder, SweepFolder


def run_folder(sweep: SweepFolder, run_id: str, config: dict, rows: list[dict]) -> RunFolder:
    folder = sweep.run(run_id)
    folder.path.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump(config))
    append_rows(folder.metrics, rows)
    return folder


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    """Two runs that part in the KL at update 2, by 0.5 %, and in the reward at update 3."""
    found = SweepFolder(tmp_path / "s")
    config = {"name": "s", "seed": 0, "kl": {"coef": 0.1, "schedule": "constant"}}
    rows = [{"update": u, "kl": 1.0 + u, "reward/mean": 0.5, "note": "text"} for u in range(4)]
    other = [dict(row) for row in rows]
    other[2]["kl"], other[3]["kl"], other[3]["reward/mean"] = 3.015, 4.5, 0.6
    other[3]["bound/alpha"] = 0.1
    run_folder(found, "r1-a", config, rows)
    run_folder(found, "r1-b", {**config, "name": "t", "seed": 1, "kl": {"coef": 0.1, "target": 2}}, other)
    return found


def test_fields_that_differ_are_named_without_where_the_run_lies(sweep):
    assert config_differences(sweep.run("r1-a"), sweep.run("r1-b")) == [
        FieldDifference("kl.schedule", "constant", None),
        FieldDifference("kl.target", None, 2),
        FieldDifference("seed", 0, 1),
    ]


def test_each_metric_parts_at_its_first_update_beyond_the_tolerance():
    one = {0: {"a": 1.0, "b": 2.0}, 1: {"a": 1.0, "b": 2.0}, 2: {"a": 1.0, "b": math.nan}}
    other = {0: {"a": 1.0, "b": 2.0}, 1: {"a": 1.001, "b": 2.0}, 2: {"a": 2.0, "b": math.nan, "c": 1.0}, 3: {"a": 0.0}}
    assert departures(one, other, 0.0) == [Departure(1, "a", 1.0, 1.001), Departure(2, "c", None, 1.0)]
    assert departures(one, other, 0.01) == [Departure(2, "c", None, 1.0), Departure(2, "a", 1.0, 2.0)]
    assert departures(one, one, 0.0) == []


def test_diff_prints_the_earliest_first(sweep, capsys):
    runs = [str(sweep.run(name).path) for name in ("r1-a", "r1-b")]
    assert main(["diff", *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["kl.schedule: 'constant' | None", "kl.target: None | 2", "seed: 0 | 1"]
    assert lines[3:] == [
        "update 2: kl 3 | 3.015",
        "update 3: bound/alpha not logged | 0.1",
        "update 3: reward/mean 0.5 | 0.6",
    ]
    assert main(["diff", *runs, "--tolerance=0.01", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(d["update"], d["metric"]) for d in found["metrics"]] == [
        (3, "bound/alpha"),
        (3, "reward/mean"),
        (3, "kl"),
    ]
    assert found["updates"] == 4
    assert main(["diff", runs[0], runs[0]]) == 0
    assert capsys.readouterr().out == "equal configurations\nno metric differs in the 4 rows that both have\n"


def test_a_figure_that_is_no_longer_finite_is_not_one_that_was_never_logged(tmp_path, capsys):
    """A record has null for NaN: such a run leaves siblings whose gradient norms stay at 1, and parts from them."""
    found = SweepFolder(tmp_path / "s")
    for name in "abc":
        norms = [1.0, 1.0, *([math.nan] * 3 if name == "a" else [1.0] * 3)]
        rows = [{"update": u, "grad_norm": norm} for u, norm in enumerate(norms)]
        run_folder(found, f"r1-{name}", {}, [*rows, {"update": 5, **({"entropy": 2.0} if name == "a" else {})}])
    found.extend_plan([{"run_id": f"r1-{name}", "cell_id": 1} for name in "abc"])
    folder = found.run("r1-a")
    (left,) = left_siblings(metrics_of(folder), [metrics_of(sibling) for sibling in siblings_of(folder)])
    assert (left.update, left.metric, left.low, left.high) == (2, "grad_norm", 1.0, 1.0)
    assert math.isnan(left.value)
    pair = [str(found.run(f"r1-{name}").path) for name in "ab"]
    assert main(["diff", *pair]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "update 2: grad_norm nan | 1",
        "update 5: entropy 2 | not logged",
    ]
    assert main(["diff", *pair, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == [
        {"update": 2, "metric": "grad_norm", "one": None, "other": 1.0},
        {"update": 5, "metric": "entropy", "one": 2.0},
    ]


def test_inspect_says_whether_a_run_left_its_siblings_or_that_it_cannot_be_told(tmp_path, capsys):
    """Three runs of one cell, of which the first leaves the others' entropy of 1 at update 1."""
    found = SweepFolder(tmp_path / "s")
    response = {"prompt": "p", "response": "r", "extracted": "r", "error": None, "correct": True, "truncated": False}
    for name, entropies in {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0] * 4, "c": [1.0] * 4}.items():
        folder = run_folder(found, f"r1-{name}", {}, [{"update": u, "entropy": x} for u, x in enumerate(entropies)])
        folder.rollouts.mkdir()
        append_rows(folder.rollouts / "base.jsonl", [response])
    paths = [str(found.run(f"r1-{name}").path) for name in "abc"]
    found.extend_plan([{"run_id": f"r1-{name}", "cell_id": 1} for name in "ab"])

    def last_line(path: str) -> str:
        assert main(["inspect", path]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert last_line(paths[0]) == "siblings that have begun: 1; whether it left them can be told from 2 on"
    found.extend_plan([{"run_id": "r1-c", "cell_id": 1}])
    assert last_line(paths[0]) == "left its 2 siblings at update 1: entropy 2, theirs 1 to 1"
    assert last_line(paths[1]).startswith("has not left its 2 siblings in reward/mean, kl/full_sequence, entropy")
    assert main(["inspect", paths[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "responses": [response],
        "siblings": 2,
        "left": [{"update": 1, "metric": "entropy", "value": 2.0, "low": 1.0, "high": 1.0}],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r1-a", "nowhere"], "nowhere: no run folder"),
        (["r1-a", "r1-b", "--tolerance=-1"], "--tolerance=-1.0: expected a number, at least 0"),
        (["r1-a", "r1-b", "--tolerance=nan"], "--tolerance=nan: expected a number, at least 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(sweep, arguments, message, capsys):
    places = [word if word.startswith("-") else str(sweep.path / "runs" / word) for word in arguments]
    assert main(["diff", *places]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_run_has_left_when_it_is_outside_three_times_in_a_row():
    """Siblings at 1.0 and 1.2: the range, widened by its width, is 0.8 to 1.4."""
    siblings = [{u: {"entropy": x} for u in range(10)} for x in (1.0, 1.2)]
    values = [1.1, 1.5, 1.5, 1.39, 0.79, 0.81, 1.41, 1.5, math.nan, 1.1]
    run = {u: {"entropy": x} for u, x in enumerate(values)}
    (left,) = left_siblings(run, siblings)
    assert (left.update, left.metric, left.value, left.low, left.high) == (6, "entropy", 1.41, 1.0, 1.2)
    assert left_siblings(run, siblings[:1]) == []
    assert left_siblings({u: run[u] for u in range(8)}, siblings) == []


def test_siblings_that_agree_leave_room_of_five_percent():
    siblings = [{u: {"entropy": 2.0} for u in range(4)} for _ in range(2)]
    assert left_siblings({u: {"entropy": 2.09} for u in range(4)}, siblings) == []
    assert left_siblings({u: {"entropy": 2.11} for u in range(4)}, siblings)[0].update == 0


def test_siblings_are_the_begun_runs_of_the_same_cell(sweep):
    run_folder(sweep, "r1-c", {}, [{"update": 0}])
    rows = [{"run_id": f"r1-{x}", "cell_id": cell} for x, cell in (("a", 1), ("b", 2), ("c", 1), ("d", 1))]
    sweep.extend_plan(rows)
    assert siblings_of(sweep.run("r1-a")) == [sweep.run("r1-c")]
    assert siblings_of(sweep.run("r1-b")) == []
