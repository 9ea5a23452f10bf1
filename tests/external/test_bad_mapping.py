"""What is wrong with a mapping or its files is one line, exit code 2, and nothing is written. And what is not wrong."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from klsweep.analysis.build import Layout, build
from klsweep.analysis.compare import compare
from klsweep.cli import main
from klsweep.record.files import read_rows
from klsweep.record.folder import SweepFolder

LABELS = {"model": "m", "estimator": "k1", "placement": "loss", "sampling": "on_policy", "kl.coef": 0.1}
MAPPING = {
    "name": "study",
    "runs": [
        {"metrics": "log{seed}.csv", "items": {"add": "items{seed}.csv"}, "labels": {**LABELS, "state": "done"}},
    ],
    "metrics": {"update": "step", "reward/mean": "reward"},
    "suites": {"add": {"role": "in", "prompt": "question", "correct": "ok"}},
}
LOG = "step,reward\n1,0.2\n2,0.8\n"
ITEMS = "question,ok\np,1\np,0\nq,1\nq,1\n"


@pytest.fixture
def files(in_tmp) -> Path:
    """A folder with the files of two runs."""
    for seed in (0, 1):
        (in_tmp / f"log{seed}.csv").write_text(LOG)
        (in_tmp / f"items{seed}.csv").write_text(ITEMS)
    return in_tmp


def write(folder: Path, place: str = "", value: object = None) -> str:
    """The mapping with a value set at a place, keys separated by spaces; None takes the key out."""
    mapping = copy.deepcopy(MAPPING)
    if place:
        *parents, last = place.split()
        node: Any = mapping
        for parent in parents:
            node = node[0] if isinstance(node, list) else node[parent]
        node[last] = value
        if value is None:
            del node[last]
    (folder / "m.yaml").write_text(yaml.safe_dump(mapping))
    return "m.yaml"


def refused(folder: Path, capsys, mapping: str) -> str:
    """The one line that refuses a mapping."""
    assert main(["import", mapping]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not (folder / "sweeps").exists()
    return line


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            "runs 0 labels estimator",
            "k9",
            "estimator=k9: choose from abs, full, k1, k2, k3, unknown (choices: ",
        ),
        ("runs 0 labels sampling", "async", "sampling=async: choose from off_policy, on_policy, unknown"),
        ("runs 0 labels trainer", "trl", "runs.0 (log0.csv): trainer: no such label (choose from model, adapter,"),
        ("runs 0 labels model", None, "model: missing (labels, a column, or {model} in a path say it)"),
        ("runs 0 labels estimator", None, "estimator: missing, and placement=loss has a KL"),
        ("runs 0 labels kl.coef", None, "kl.coef: missing, and placement=loss has a KL"),
        ("runs 0 labels kl.coef", -1, "kl.coef=-1: expected a number, at least 0"),
        ("runs 0 labels kl.coef", math.nan, "runs.0.labels.kl.coef"),
        ("runs 0 labels seed", 7, "log{seed}.csv: no row has seed=7"),
        ("runs 0 labels state", "running", "state='running': choose from done, diverged, failed"),
        ("runs 0 metrics", "logs/{seed}.csv", "logs/{seed}.csv: no such file in "),
        ("runs 0 items", {"add": "items{seed}_{model}.csv"}, "items{seed}_{model}.csv: no such file in"),
        ("runs 0 items", {"sub": "items{seed}.csv"}, "runs.0.items.sub: no suite of that name (choose from add)"),
        ("runs 0 extra", 1, "m.yaml: runs.0.extra: unknown key (keys: labels, columns, metrics, items)"),
        ("runs", [], "m.yaml: runs=[]: expected a list of groups of runs"),
        ("name", "../x", "m.yaml: name='../x'"),
        ("metrics update", None, "m.yaml: metrics.update: missing (the column that counts updates)"),
        ("metrics length", "tokens", "metrics.length: no file has a column 'tokens' (columns: reward, step)"),
        ("metrics update", "steps", "log0.csv, row 1: no column 'steps' (columns: step, reward)"),
        ("metrics kl/k1_sequence", "reward", "metrics.kl/k1_sequence: kl_definition is missing: say what that KL is"),
        (
            "metrics eval/sub/pass@1",
            "reward",
            "metrics.eval/sub/pass@1: expected eval/<suite>/<metric> with",
        ),
        ("metrics eval/add/pass@1", "reward", "runs.0 (log0.csv): items: eval/add/pass@1=0.75 of update 2: was 0.8"),
        ("suites add role", "inside", "m.yaml: suites.add.role='inside': Input should be 'in' or 'out'"),
        ("suites add correct", None, "suites.add.correct: missing"),
        ("suites add prompt", None, "suites.add: prompt, prompt_hash or item: one column must say which item a row is"),
        ("suites add prompt", "problem", "items0.csv, row 1: no column 'problem' (columns: question, ok)"),
        ("suites add kl", "ok", "suites.add.kl: kl_definition is missing: say what that KL is"),
        ("choices", {"estimators": ["k4"]}, "choices.estimators: no axis of that name (choose from model, adapter,"),
        ("update_offset", -2, "log0.csv, row 1: step='1': expected a whole number, at least 2 (an update)"),
    ],
)
def test_a_mapping_that_is_wrong(files, capsys, place, value, said):
    assert said in refused(files, capsys, write(files, place, value))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("log1.csv", "step,reward\n1,high\n", "log1.csv, row 1: reward='high': expected a number"),
        ("log1.csv", "step,reward\n1.5,1\n", "log1.csv, row 1: step='1.5': expected a whole number, at least 0"),
        ("log1.csv", "step,reward\n1,1\n1,2\n", "log1.csv, row 2: reward/mean=2.0 of update 1: was 1.0 before"),
        ("log1.csv", "step,reward\n1,1\n2\n", "log1.csv, row 2: has more or fewer values than the header has columns"),
        ("log1.csv", "step,reward\n", "log1.csv: has no rows"),
        ("log2.csv", LOG, "items{seed}.csv: nothing there of the run with seed=2 (add)"),
        ("items2.csv", ITEMS, "items2.csv, row 1: belongs to no run of this mapping"),
        ("items1.csv", "question,ok\np,0.5\n", "items1.csv, row 1: ok='0.5': choose from true, false, 1, 0"),
        ("items1.csv", "question,ok\n,1\n", "items1.csv, row 1: question is empty: it says which item a row is"),
    ],
)
def test_files_that_are_wrong(files, capsys, file, content, said):
    (files / file).write_text(content)
    assert said in refused(files, capsys, write(files))


def test_two_runs_with_the_same_labels(files, capsys):
    (files / "log0.0.csv").write_text(LOG)  # seed 0 again
    (files / "items0.0.csv").write_text(ITEMS)
    line = refused(files, capsys, write(files))
    assert "seed=0.0: expected a whole number" in line or "has the labels of" in line


def test_no_mapping_and_no_yaml(in_tmp, capsys):
    assert refused(in_tmp, capsys, "none.yaml").endswith("none.yaml: no such file")
    (in_tmp / "m.yaml").write_text("runs: [")
    assert "m.yaml: cannot be read (" in refused(in_tmp, capsys, "m.yaml")


def test_what_is_not_finite_not_logged_or_out_of_order(files):
    """NaN stays NaN, an empty value is no value; rows of one update are one; the last two updates have 3 and 5."""
    (files / "log0.csv").write_text("step,reward\n3,5\n1,nan\n2,\n2,3\n")
    (files / "items1.csv").write_text(ITEMS.replace("1", "TRUE"))
    assert main(["import", write(files)]) == 0
    sweep = SweepFolder(Path("sweeps/study"))
    folder = sweep.run(next(row["run_id"] for row in sweep.plan() if row["seed"] == 0))
    logged = [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in read_rows(folder.metrics)]
    assert logged == [
        {"update": 1, "reward/mean": None}, {"update": 2, "reward/mean": 3.0}, {"update": 3, "reward/mean": 5.0},
    ]  # fmt: skip
    found = compare(sweep)
    assert [run.training("reward/mean") for run in found.records.runs] == [4.0, 0.5]
    assert [run.evaluation("add", "pass@1") for run in found.records.runs] == [0.75, 0.75]


def test_one_file_of_all_runs_is_taken_apart_by_its_columns(in_tmp):
    """β 0 is no KL: its estimator is inert, as in klsweep's own cells. Nothing is asked after the last update."""
    rows = [{"beta": b, "run": s, "step": u, "acc": 0.1 * u + s} for b in (0, 0.5) for s in (3, 4) for u in (0, 1, 2)]
    rows[-1]["acc"] = None
    Path("all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = {
        "name": "study",
        "runs": [
            {
                "metrics": "all.jsonl",
                "columns": {"kl.coef": "beta", "seed": "run"},
                "labels": {**LABELS, "state": "done", "estimator": "mine"} | {"kl.coef": 0.5},
            },
            {
                "metrics": "all.jsonl",
                "columns": {"kl.coef": "beta", "seed": "run"},
                "labels": {**LABELS, "state": "failed", "cause": "out of memory"} | {"kl.coef": 0},
            },
        ],
        "choices": {"estimator": ["mine"]},
        "metrics": {"update": "step", "eval/add/pass@1": "acc"},
        "suites": {"add": {"role": "in"}},
    }
    Path("m.yaml").write_text(yaml.safe_dump(mapping))
    assert main(["import", "m.yaml"]) == 0
    found = compare(SweepFolder(Path("sweeps/study")))
    assert [(cell.name, cell.states, cell.n_seeds) for cell in found.cells] == [
        ("mine loss β=0.5 on_policy external", {"done": 2}, 1),
        ("no KL on_policy external", {"failed": 2}, 0),
    ]
    runs = {(run.plan["kl_coef"], run.seed): run for run in found.records.runs}
    assert runs[0.5, 3].evaluation("add", "pass@1") == 3.2
    assert runs[0.5, 3].base_evaluation("add", "pass@1") == 3.0
    assert runs[0.5, 4].final_eval is None
    assert runs[None, 3].status["cause"] == "out of memory"


def imported(into: str, **changes) -> SweepFolder:
    """The mapping with these keys, imported."""
    Path("m.yaml").write_text(yaml.safe_dump({**copy.deepcopy(MAPPING), **changes}))
    assert main(["import", "m.yaml", "--into", into]) == 0
    return SweepFolder(Path(into))


def test_a_kl_that_is_declared_to_be_klsweeps_has_no_mark(files):
    figures = {"update": "step", "kl/k1_sequence": "reward"}
    plain = imported("a", metrics=figures, kl_definition="klsweep")
    other = imported("b", metrics=figures, kl_definition="per token")
    layout = Layout(columns=["kl/k1_sequence"])
    texts = [[line.entries[-1].text for line in build(compare(sweep), layout).rows] for sweep in (plain, other)]
    assert texts == [["0.500 ±0.000"], ["0.500 ±0.000‡"]]


def test_items_are_of_the_end_of_a_run_which_its_log_need_not_reach(files, capsys):
    """Updates 1 and 2 are logged. Of 5 planned ones, a run that is done has made 5, one that diverged 2."""
    ends = {}
    for state in ("done", "diverged"):
        labels = {**LABELS, "state": state, "updates": 5}
        sweep = imported(state, runs=[{**MAPPING["runs"][0], "labels": labels}])
        run = compare(sweep).records.runs[0]
        ends[state] = run.last[-1]["update"], run.evaluation("add", "pass@1"), run.training("reward/mean")
    assert ends == {"done": (5, 0.75, 0.5), "diverged": (2, 0.75, 0.5)}
    assert "not evaluated" not in capsys.readouterr().out
    logged = {"metrics": "log{seed}.csv", "labels": {**LABELS, "state": "done", "updates": 5}}
    early = imported("early", runs=[logged], metrics={"update": "step", "eval/add/pass@1": "reward"})
    assert "2 runs have no evaluation after their last update, and count as not evaluated" in capsys.readouterr().out
    assert [run.final_eval for run in compare(early).records.runs] == [None, None]


def test_equal_labels_are_one_run_only_with_equal_content(files):
    first = imported("a")
    (files / "log0.csv").write_text(LOG.replace("0.2", "0.4"))
    second = imported("b")
    assert [row["run_id"] for row in first.plan()] == [row["run_id"] for row in second.plan()]
    found = compare(first, second)
    assert sorted((run.key.sweep, run.seed) for run in found.records.runs) == [("a", 0), ("a", 1), ("b", 0)]
    assert found.warnings == ["1 runs are in several of these sweeps and count once"]


def test_evaluations_are_alike_only_if_they_are_declared_so(files):
    undeclared = [imported(into, name=into).plan()[0]["eval_id"] for into in ("a", "b")]
    declared = [imported(into, name=into, evaluation={"temperature": 1}).plan()[0]["eval_id"] for into in ("c", "d")]
    assert undeclared[0] != undeclared[1]
    assert declared[0] == declared[1]
    assert declared[0] not in undeclared
