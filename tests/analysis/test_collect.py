"""Collecting: what is in the tables, what is read again, and records that are torn or damaged."""

import json
import math
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from klsweep.analysis.collect import cache_folder, collect, sweep_names
from klsweep.analysis.compare import compare
from klsweep.analysis.load import load
from klsweep.analysis.query import ask
from klsweep.analysis.store import RunKey
from klsweep.cli import main
from klsweep.errors import BadInput
from klsweep.record.files import append_rows
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_items, write_run


@pytest.fixture
def cache(tmp_path) -> Path:
    folder = tmp_path / "it's [a] cache*"
    folder.mkdir()
    return folder


def two_runs(sweep: SweepFolder) -> None:
    for seed, add in enumerate([0.8, 0.9]):
        write_run(sweep, plan_row("a", seed), "done", add)
        write_items(sweep.run(f"a-{seed}"), "add", 9, [3, 1])


def accuracies(collected) -> dict[str, float]:
    sql = 'SELECT run_id, "eval/add/pass@1" FROM metrics WHERE update = 9'
    return dict(ask(collected, sql).rows)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("cached", [True, False])
def test_every_row_of_every_run_is_there(sweep, cache, cached):
    two_runs(sweep)
    sweep.extend_plan([plan_row("b", 0, estimator="k3")])
    before = files_of(sweep.path)
    collected = collect([sweep], cache if cached else None)
    assert files_of(sweep.path) == before
    assert ask(collected, "SELECT count(*), min(update), max(update) FROM metrics").rows == [(20, 0, 9)]
    assert accuracies(collected) == {"a-0": 0.8, "a-1": 0.9}
    assert ask(collected, "SELECT run_id, state, estimator, seed FROM runs").rows == [
        ("a-0", "done", "k1", 0),
        ("a-1", "done", "k1", 1),
        ("b-0", "pending", "k3", 0),
    ]
    sql = "SELECT item, correct FROM items JOIN runs USING (sweep, run_id) WHERE suite = 'add' AND seed = 1"
    assert ask(collected, f"{sql} ORDER BY item").rows == [(0, 3), (1, 1)]
    assert sorted(f.name for f in cache.iterdir()) == (
        ["items.parquet", "metrics.parquet", "runs.parquet"] if cached else []
    )


def test_only_what_has_changed_is_read_again(sweep, cache):
    two_runs(sweep)
    keys = [RunKey("s", "a-0"), RunKey("s", "a-1")]
    assert collect([sweep], cache).read == set(keys)
    assert collect([sweep], cache).read == set()
    # a file that says of itself that it is unchanged is not opened: the old value stays
    path = sweep.run("a-0").metrics
    stat = path.stat()
    with path.open("r+") as stream:
        text = stream.read()
        stream.seek(0)
        stream.write(text.replace('"eval/add/pass@1": 0.8', '"eval/add/pass@1": 0.1'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    append_rows(sweep.run("a-1").metrics, [{"update": 10, "reward/new": 0.25}])
    collected = collect([sweep], cache)
    assert collected.read == {keys[1]}
    assert accuracies(collected) == {"a-0": 0.8, "a-1": 0.9}
    assert ask(collected, 'SELECT run_id, "reward/new" FROM metrics WHERE update = 10').rows == [("a-1", 0.25)]
    assert ask(collected, "SELECT count(*) FROM metrics").rows == [(21,)]


def test_a_run_that_is_planned_later_takes_its_place(sweep, cache):
    two_runs(sweep)
    collect([sweep], cache)
    write_run(sweep, plan_row("b", 0), "done", 0.4)
    assert collect([sweep], cache).read == {RunKey("s", "b-0")}
    assert accuracies(collect([sweep], cache)) == {"a-0": 0.8, "a-1": 0.9, "b-0": 0.4}


@pytest.mark.parametrize("content", [b"", b"PAR1 not a table", b"PAR1" * 100])
def test_a_damaged_cache_is_made_anew(sweep, cache, content):
    two_runs(sweep)
    collect([sweep], cache)
    (cache / "metrics.parquet").write_bytes(content)
    assert accuracies(collect([sweep], cache)) == {"a-0": 0.8, "a-1": 0.9}


def test_a_torn_last_line_is_left_out_and_what_is_not_finite_is_nan(sweep):
    write_run(sweep, plan_row("a", 0), "running", None)
    path = sweep.run("a-0").metrics
    append_rows(path, [{"update": 10, "reward/mean": math.inf, "loss": 0.5}])
    with path.open("a") as stream:
        stream.write('{"update": 11, "rewa')
    rows = ask(
        collect([sweep]), 'SELECT update, "reward/mean", loss FROM metrics WHERE update > 8 ORDER BY update'
    ).rows
    assert rows[0] == (9, 0.9, None)
    assert (rows[1][0], rows[1][2]) == (10, 0.5)
    assert math.isnan(rows[1][1])
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"update": 0, "x": 1}\n{"upd\n{"update": 2, "x": 1}\n', "line 2 is not JSON"),
        ('{"update": 0, "x": "high"}\n', "x = 'high' is no number"),
        ('{"x": 1}\n', "update"),
        ("5\n", "int"),
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_read(sweep, cache, text, reason):
    two_runs(sweep)
    path = sweep.run("a-0").metrics
    whole = path.read_text()
    path.write_text(text)
    collected = collect([sweep], cache)
    first, second = collected.runs
    assert first.damage is not None
    assert reason in first.damage
    assert "metrics.jsonl" in first.damage
    assert str(sweep.path) not in first.damage  # warnings, and so tables, are the same wherever a sweep lies
    assert second.damage is None
    assert accuracies(collected) == {"a-1": 0.9}
    assert collect([sweep], cache).runs[0].damage == first.damage  # also when nothing is read again
    path.write_text(whole)
    mended = collect([sweep], cache)
    assert mended.runs[0].damage is None
    assert accuracies(mended) == {"a-0": 0.8, "a-1": 0.9}


def odd_item(sweep: SweepFolder, **values) -> None:
    """An item of a-0 with other values than training writes; that of a-1 is as ever, with a figure of its own."""
    usual = {"update": 9, "item": 0, "prompt_hash": "p0", "samples": 4, "correct": 3, "greedy_correct": True}
    for seed, own in enumerate([values, {"note": 0.5}]):
        path = sweep.run(f"a-{seed}").evaluations / "add.jsonl"
        path.unlink()
        append_rows(path, [usual | own])


def test_an_item_is_read_as_what_its_column_holds(sweep, cache):
    two_runs(sweep)
    odd_item(sweep, greedy_correct=1, correct=3.0, kl=2)
    collected = collect([sweep], cache)
    assert [run.damage for run in collected.runs] == [None, None]
    rows = ask(collected, "SELECT run_id, greedy_correct, correct, kl FROM items ORDER BY run_id").rows
    assert rows == [("a-0", True, 3, 2.0), ("a-1", True, 3, None)]


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("greedy_correct", 2, "bool, not int64"),
        ("correct", 0.5, "int64, not double"),
        ("samples", "four", "int64, not large_string"),
        ("prompt_hash", [1.5], "large_string, not large_list"),
    ],
)
def test_an_item_that_cannot_be_read_so_is_damage_of_its_run(sweep, cache, name, value, kinds):
    two_runs(sweep)
    odd_item(sweep, **{name: value})
    collected = collect([sweep], cache)
    first, second = (run.damage for run in collected.runs)
    assert first is not None
    assert f"{name}: expected {kinds}" in first
    assert second is None
    assert ask(collected, "SELECT run_id, correct FROM items").rows == [("a-1", 3)]


def test_what_one_run_has_as_text_and_another_as_number_is_text_as_long_as_that_is_so(sweep, cache):
    two_runs(sweep)
    odd_item(sweep, note="half")
    sql = "SELECT note FROM items ORDER BY run_id"
    assert ask(collect([sweep], cache), sql).rows == [("half",), ("0.5",)]
    odd_item(sweep, note=0.25)
    assert ask(collect([sweep], cache), sql).rows == [(0.25,), (0.5,)]
    assert collect([sweep], cache).read == set()


@pytest.mark.parametrize("text", ['{"update"\n{"update": 1, "errors": 2}\n', '{"errors": 2, "examples": []}\n', "5\n"])
def test_a_run_whose_ungraded_responses_cannot_be_told_has_its_results(sweep, text):
    two_runs(sweep)
    rollouts = sweep.run("a-1").rollouts
    rollouts.mkdir()
    (rollouts / "errors.jsonl").write_text(text)
    comparison = compare(sweep)
    assert comparison.warnings == [
        "how many responses could not be graded is not known of a-1: its errors.jsonl is damaged"
    ]
    assert [run.damage for run in comparison.records.runs] == [None, None]
    assert ask(comparison.records.collected, "SELECT run_id, verifier_errors, damage FROM runs").rows == [
        ("a-0", 0, None),
        ("a-1", None, None),
    ]
    assert [cell.n_seeds for cell in comparison.cells] == [2]


def test_a_damaged_plan_is_one_line(sweep, capsys):
    two_runs(sweep)
    sweep.plan_file.write_text('{"run_id"\n' + sweep.plan_file.read_text())
    with pytest.raises(BadInput, match=r"plan\.jsonl: is damaged .*line 1 is not JSON"):
        collect([sweep])
    assert main(["query", str(sweep.path), "SELECT 1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sweeps_are_named_by_the_shortest_end_that_tells_them_apart(tmp_path):
    def names(*paths):
        return list(sweep_names([SweepFolder(tmp_path / path) for path in paths]))

    assert names("x/one", "y/two") == ["one", "two"]
    assert names("x/one", "y/one", "y/two") == ["x/one", "y/one", "y/two"]
    assert names("x/one", "x/../x/one") == ["one"]
    assert names() == []


def test_sweeps_share_one_file_and_a_run_of_both_is_one_run(tmp_path, cache):
    one, two = SweepFolder(tmp_path / "one"), SweepFolder(tmp_path / "two")
    two_runs(one)
    write_run(two, plan_row("a", 0), "running", 0.5)
    write_run(two, plan_row("a", 1), "done", 0.3)
    write_run(two, plan_row("c", 0), "done", 0.2)
    collected = collect([one, two], cache)
    assert ask(collected, "SELECT sweep, count(*) FROM metrics GROUP BY ALL ORDER BY ALL").rows == [
        ("one", 20),
        ("two", 30),
    ]
    assert pq.read_schema(cache / "metrics.parquet").names[:3] == ["sweep", "run_id", "update"]
    records = load([two, one], cache)
    assert [run.key for run in records.runs] == [RunKey("two", "a-1"), RunKey("two", "c-0"), RunKey("one", "a-0")]
    assert records.repeated == 2
    assert cache_folder([one, two]) == cache_folder([two, one, two]) != cache_folder([one])


def test_evaluated_otherwise_a_run_is_two(tmp_path):
    one, two = SweepFolder(tmp_path / "one"), SweepFolder(tmp_path / "two")
    write_run(one, plan_row("a", 0), "done", 0.8)
    write_run(two, {**plan_row("a", 0), "eval_id": "e2"}, "done", 0.3)
    records = load([one, two])
    assert [(run.key.sweep, run.evaluation("add", "pass@1")) for run in records.runs] == [("one", 0.8), ("two", 0.3)]
    assert records.repeated == 0


def test_series_and_item_scores(sweep):
    two_runs(sweep)
    path = sweep.run("a-1").metrics
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4]["reward/mean"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = load([sweep])
    series = records.series("reward/mean")
    assert list(series) == [RunKey("s", "a-0"), RunKey("s", "a-1")]
    assert series["s", "a-0"].updates.tolist() == list(range(1, 10))
    assert series["s", "a-0"].values.tolist() == pytest.approx([0.1 * u for u in range(1, 10)])
    assert [math.isnan(v) for v in series["s", "a-1"].values] == [u == 4 for u in range(1, 10)]
    assert records.series("no such figure") == {}
    scores = records.item_scores("add", "correct / samples", [RunKey("s", "a-1")])
    assert scores == {RunKey("s", "a-1"): {"p0": 0.75, "p1": 0.25}}


def test_prompts_of_the_final_evaluation_are_told_apart(sweep):
    for seed, prompts in enumerate([["p", "q"], ["q", "p"], ["p", "r"]]):
        write_run(sweep, plan_row("a", seed), "done", 0.8)
        write_items(sweep.run(f"a-{seed}"), "add", 9, [1, 1], prompts)
    same, reordered, other = (run.prompts["add"] for run in load([sweep]).runs)
    assert same == reordered != other


def test_query_prints_a_table_json_or_csv(sweep, capsys, tmp_path):
    two_runs(sweep)
    path, sql = str(sweep.path), 'SELECT run_id, "eval/add/pass@1" AS a, NULL AS b FROM metrics WHERE update = 9'
    assert main(["query", path, sql]) == 0
    assert capsys.readouterr().out.split() == ["run_id", "a", "b", "a-0", "0.8", "–", "a-1", "0.9", "–"]
    assert main(["query", path, f"{sql} LIMIT 1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"run_id": "a-0", "a": 0.8, "b": None}]
    assert main(["query", path, path, f"{sql} LIMIT 1", "--csv", "--cache", str(tmp_path / "own")]) == 0
    assert capsys.readouterr().out == "run_id,a,b\na-0,0.8,\n"
    assert (tmp_path / "own" / "runs.parquet").exists()


def test_a_query_that_cannot_be_answered_is_one_line(sweep, capsys):
    two_runs(sweep)
    assert main(["query", str(sweep.path), "SELECT rewrd FROM metrics"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('klsweep: error: query: Binder Error: Referenced column "rewrd" not found')
    assert main(["query", str(sweep.path), " "]) == 2
    assert "query: nothing is asked" in capsys.readouterr().err
    assert main(["query", str(sweep.path), "SELECT 1", "--cache", "/proc/none"]) == 2
    assert "--cache=/proc/none: cannot be written" in capsys.readouterr().err


def test_without_a_place_to_cache_everything_is_read_in_memory(sweep, capsys, monkeypatch):
    two_runs(sweep)
    monkeypatch.setenv("KLSWEEP_CACHE", "/proc/none")
    assert main(["query", str(sweep.path), "SELECT count(*) AS n FROM runs", "--csv"]) == 0
    out = capsys.readouterr()
    assert out.out == "n\n2\n"
    assert "nothing is cached" in out.err


def test_an_empty_plan_has_empty_tables(sweep, cache):
    sweep.extend_plan([])
    for kept in (None, cache):
        collected = collect([sweep], kept)
        for name in ("runs", "metrics", "items"):
            assert ask(collected, f"SELECT count(*) FROM {name}").rows == [(0,)]
