"""Results made elsewhere, as runs of a sweep: equal to the last digit, marked everywhere, and never gone on with."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from klsweep.analysis.build import Layout, build
from klsweep.analysis.compare import compare
from klsweep.analysis.report import report
from klsweep.analysis.tables import TEXTS
from klsweep.cli import main
from klsweep.mirror.content import contents, tags
from klsweep.record.files import read_json, read_rows
from klsweep.record.folder import SweepFolder
from klsweep.sweep.status import sweep_status
from tests.external.foreign import DEFINITION, own_sweep, prompt, write_foreign

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("in", "out", "kl", "reward", "add", "sort", "max", "kl/k1_sequence", "in/greedy", "eval/sort/greedy")


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> tuple[SweepFolder, SweepFolder]:
    """klsweep's own sweep, and the same results as they came back in from another's files."""
    folder = tmp_path_factory.mktemp("both")
    own = own_sweep(folder / "mine")
    assert main(["import", str(write_foreign(own, folder / "files")), "--into", str(folder / "theirs")]) == 0
    return own, SweepFolder(folder / "theirs")


def test_means_and_intervals_are_those_of_the_record_to_the_last_digit(imported):
    own, theirs = (compare(sweep) for sweep in imported)
    assert [cell.plan["kl_coef"] for cell in theirs.cells] == [0.1, 0.4]
    for name in FIGURES:
        figures = [[cell.estimate(one.metric(name)) for cell in one.cells] for one in (own, theirs)]
        assert figures[0] == figures[1]
        assert all(estimate is not None and estimate.n == 3 for estimate in figures[0])
        bases = [sorted(one.metric(name).base(base.run) or 0 for base in one.bases) for one in (own, theirs)]
        assert bases[0] == bases[1]
    assert [cell.states for cell in theirs.cells] == [{"done": 3}, {"done": 2, "diverged": 1}]
    assert [cell.collapsed for cell in theirs.cells] == [cell.collapsed for cell in own.cells] != [0, 0]


def test_prompts_are_recognised_and_cells_held_against_each_other_when_asked(imported):
    both = compare(*imported)
    assert both.warnings == [
        "finished runs have 2 different origins (external, klsweep): rows may not be comparable; kept apart "
        "(--mix origin)"
    ]
    assert len({run.prompts["add"] for run in both.records.runs}) == 1
    assert [[e.text for e in line.entries[3:5]] for line in build(both, Layout()).rows if line.cells] == [
        ["klsweep", "3/3"], ["klsweep", "3/3"], ["external", "3/3"], ["external", "3/3"],
    ]  # fmt: skip
    layout = Layout(rows=["origin", "kl.coef"], columns=["in"], baseline=["origin=klsweep"])
    apart, mixed = (build(compare(*imported, mix=mix), layout) for mix in ([], ["all"]))
    assert [line.entries[-1].text for line in apart.rows if line.cells] == ["", "", "–", "–"]
    found = [line.entries[-1].values for line in mixed.rows if line.cells][2:]
    assert [(values["mean"], values["n"]) for values in found] == [(0.0, 3), (0.0, 3)]
    kl = Layout(rows=["origin", "kl.coef"], columns=["kl"], baseline=["origin=external"])
    told = [line.entries[-1].text for line in build(compare(*imported, mix=["all"]), kl).rows if line.cells]
    assert [text.count("‡") for text in told] == [1, 1, 0, 0]  # of the baseline's KL, which is another
    pooled = build(compare(*imported, mix=["all"]), Layout(columns=["runs"]))
    assert [[e.text for e in line.entries[-2:]] for line in pooled.rows if line.cells] == 2 * [
        ["external, klsweep", "6/6"]
    ]


def test_a_run_that_is_still_to_come_is_not_counted_as_external(imported, tmp_path):
    own, theirs = imported
    row = own.plan()[0]
    waiting = SweepFolder(tmp_path / "waiting")
    waiting.extend_plan([{**row, "run_id": "r1-w"}])
    lines = [line for line in build(compare(waiting, theirs), Layout()).rows if line.cells]
    assert [e.text for e in lines[0].entries[3:6]] == ["klsweep", "0/1", "–"]


@pytest.mark.parametrize("form", TEXTS)
def test_every_format_marks_the_row_and_the_kl(imported, form):
    text = TEXTS[form](build(compare(*imported), Layout(columns=["kl"])))
    marks = {"csv": (f'"[""{DEFINITION}""]"', 4), "json": (r"\u2021", 5), "latex": (r"\ddag{}", 5)}
    mark, count = marks.get(form, ("‡", 5))  # two cells, two bases, a note
    assert text.count(mark) == count
    rows = {"markdown": "| external |", "latex": "& external &", "csv": ",external,", "json": '"text": "external"'}
    assert text.count(rows.get(form, '<td class="label">external</td>')) == 4  # and of the bases
    assert "12 runs: 10 done, 2 diverged (6 external)" in text


def test_terminal_json_and_page_mark_them(imported, tmp_path, capsys):
    paths = [str(sweep.path) for sweep in imported]
    assert main(["compare", *paths]) == 0
    text = capsys.readouterr().out
    assert text.count(" external   3/3 ") == 2
    assert f"‡ KL of theirs: {DEFINITION}; not as klsweep measures it." in " ".join(text.split())
    assert main(["compare", *paths, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert [cell["origin"] for cell in cells] == ["klsweep", "klsweep", "external", "external"]
    assert [cell.get("kl_definition") for cell in cells] == [None, None, DEFINITION, DEFINITION]
    page = report(compare(*imported), imported, Layout(), tmp_path / "page.html", ["klsweep"])
    assert '"name":"k1 loss β=0.4 on_policy external"' in page
    assert len(re.findall(r'"note":"(?:collapsed; )?external"', page)) == 6
    assert "external: imported by study.yaml (sha256" in page
    assert f"‡ KL of theirs: {DEFINITION}" in page
    assert "import.json" in page


def test_w_and_b_is_told(imported):
    _, theirs = imported
    statuses = {row["run_id"]: theirs.run(row["run_id"]).status() for row in theirs.plan()}
    for row in theirs.plan():
        content = contents(theirs, statuses)[row["run_id"]]()
        assert (content.job_type, content.host) == ("external", "external")
        assert content.name == f"k1 loss β={row['kl_coef']} on_policy external seed {row['seed']}"
        assert tags(content, None) == ("external", content.state)
        assert content.config["origin"] == "external"
        assert content.config["kl_definition"] == DEFINITION
        assert [r["update"] for r in content.rows] == list(range(13))
        assert "_timestamp" not in content.rows[1]


def test_status_query_and_diff_read_them(imported, capsys):
    _, theirs = imported
    status = sweep_status(theirs)
    assert status["counts"] == {"done": 5, "diverged": 1}
    assert {(run["origin"], run["update"], run["updates"]) for run in status["runs"]} == {("external", 12, 12)}
    assert main(["status", str(theirs.path)]) == 0
    assert "6 runs: 5 done, 1 diverged (6 external)" in capsys.readouterr().out
    sql = "SELECT origin, trainer, count(*) AS n FROM items JOIN runs USING (sweep, run_id) GROUP BY ALL"
    assert main(["query", str(theirs.path), sql, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"origin": "external", "trainer": "theirs", "n": 6 * 2 * 21}]
    runs = [str(theirs.run(row["run_id"]).path) for row in theirs.plan()]
    assert main(["diff", runs[0], runs[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == [{"key": "seed", "one": 0, "other": 1}]


@pytest.mark.parametrize("command", ["retry", "cancel", "eval", "bound"])
def test_a_sweep_of_them_is_not_gone_on_with(imported, capsys, command):
    assert main([command, str(imported[1].path)]) == 2
    assert ": is external, made elsewhere and imported" in capsys.readouterr().err


def test_the_papers_findings_are_not_held_against_them(imported, capsys):
    assert main(["reproduce", str(imported[1].path)]) == 2
    assert f"{imported[1].path}: holds imported runs; findings are held" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "eval", "export", "bound", "logs", "inspect"])
def test_nor_is_one_of_them(imported, tmp_path, capsys, command):
    run = imported[1].run(imported[1].plan()[0]["run_id"])
    assert main([command, str(run.path), *([str(tmp_path / "out")] if command == "export" else [])]) == 2
    assert f"{run.run_id}: is external, made elsewhere and imported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_again_changes_nothing_and_another_content_is_refused(tmp_path, capsys):
    own = own_sweep(tmp_path / "mine", seeds=3)
    mapping = write_foreign(own, tmp_path / "files")
    command = ["import", str(mapping), "--into", str(tmp_path / "theirs")]
    assert main(command) == 0
    capsys.readouterr()
    theirs = SweepFolder(tmp_path / "theirs")
    before = {file: file.read_bytes() for file in theirs.path.rglob("*") if file.is_file()}
    (tmp_path / "files").rename(tmp_path / "elsewhere")  # what a run is does not depend on where its files lie
    command[1] = str(tmp_path / "elsewhere" / "study.yaml")
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [len(told[key]) for key in ("new", "replaced", "unchanged", "others", "not_evaluated")] == [0, 0, 6, 0, 0]
    assert {file: file.read_bytes() for file in theirs.path.rglob("*") if file.is_file()} == before
    log = tmp_path / "elsewhere" / "logs" / "beta0.4_seed1.csv"
    first, *rest = log.read_text().splitlines()
    log.write_text("\n".join([first, rest[0].replace("0,", "0,9", 1), *rest[1:]]) + "\n")
    assert main(command) == 2
    assert "(1 of 6 runs): --replace takes the new one" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in theirs.path.rglob("*") if file.is_file()} == before
    assert main([*command, "--replace"]) == 0
    assert "1 replaced, 5 unchanged" in capsys.readouterr().out
    changed = {file.parent.name for file, content in before.items() if file.read_bytes() != content}
    assert len([name for name in changed if name.startswith("x1-")]) == 1
    assert not list(theirs.path.rglob(".x1-*"))


def test_a_folder_says_what_was_declared_and_where_it_came_from(imported):
    _, theirs = imported
    row = theirs.plan()[0]
    folder = theirs.run(row["run_id"])
    assert row["run_id"].startswith("x1-")
    assert row["cell_id"].startswith("xc1-")
    config = yaml.safe_load(folder.config.read_text())
    declared = {"estimator": "k1", "placement": "loss", "kl.coef": 0.1, "seed": 0, "state": "done", "trainer": "theirs"}
    assert declared.items() <= config.items()
    assert config["origin"] == "external"
    assert not {"algorithm", "adapter", "reward", "launcher", "train"} & config.keys()
    record = read_json(folder.path / "import.json")
    names = ["logs/beta0.1_seed0.csv", "logs/beta0.1_seed0_add.csv", "logs/beta0.1_seed0_sort.jsonl", "max.csv"]
    assert [source["file"] for source in record["sources"]] == names
    assert yaml.safe_load(record["mapping"]["text"])["name"] == "theirs"
    item = next(read_rows(folder.evaluations / "add.jsonl"))
    assert item["prompt_hash"] == hashlib.sha256(prompt("add", 0).encode()).hexdigest()[:12]


def test_a_sweep_of_our_own_and_an_import_do_not_share_a_folder(tmp_path, capsys):
    own = own_sweep(tmp_path / "mine")
    mapping = write_foreign(own, tmp_path / "files")
    before = own.plan_file.read_text()
    assert main(["import", str(mapping), "--into", str(own.path)]) == 2
    assert "holds runs of klsweep's own" in capsys.readouterr().err
    assert own.plan_file.read_text() == before
    assert len(list((own.path / "runs").iterdir())) == 6


def test_no_sweep_is_launched_into_a_folder_of_them(imported, capsys):
    assert main(["plan", f"sweep_dir={imported[1].path}"]) == 2
    assert "holds external runs (klsweep import): give another folder" in capsys.readouterr().err


def test_a_report_needs_a_project_and_marks_them(imported, capsys):
    command = ["report", str(imported[1].path), "--dry-run"]
    assert main(command) == 2
    assert "--project: missing, and external runs name no W&B project" in capsys.readouterr().err
    assert main([*command, "--project", "mine"]) == 0
    text = capsys.readouterr().out
    assert "(6 external)" in text
    assert "k1 loss \\u03b2=0.4 on_policy external" in text
    assert "| external | 3/3 |" in text


def test_the_example_of_the_docs(in_tmp, capsys):
    """Means by hand: k1 (4/6, 6/6) on gsm8k, k3 (4/6, 5/6); on math500 (4/8, 6/8) and (3/8, 4/8)."""
    shutil.copytree(ROOT / "examples" / "import", in_tmp / "examples" / "import")
    text = (ROOT / "docs" / "import.md").read_text()
    assert f"```yaml\n{(ROOT / 'examples/import/trl.yaml').read_text()}```" in text
    shown = []
    for command in [line.removeprefix("$ klsweep ") for line in text.splitlines() if line.startswith("$ klsweep ")]:
        assert main(command.split()) == 0
        shown += [f"$ klsweep {command}", *(line.rstrip() for line in capsys.readouterr().out.splitlines())]
    assert len(shown) > 10
    assert "\n".join(shown).rstrip() in text
    comparison = compare(SweepFolder(in_tmp / "sweeps" / "trl"))
    found = {
        (cell.plan["axes"]["estimator"], name): estimate.mean
        for cell in comparison.cells
        for name in ("gsm8k", "math500", "kl/k1_sequence")
        if (estimate := cell.estimate(comparison.metric(name))) is not None
    }
    assert found == {
        ("k1", "gsm8k"): pytest.approx((4 / 6 + 1) / 2),
        ("k1", "math500"): pytest.approx((4 / 8 + 6 / 8) / 2),
        ("k1", "kl/k1_sequence"): pytest.approx((1.25 + 2.5 + 1.125 + 2.25) / 4),
        ("k3", "gsm8k"): pytest.approx((4 / 6 + 5 / 6) / 2),
        ("k3", "math500"): pytest.approx((3 / 8 + 4 / 8) / 2),
        ("k3", "kl/k1_sequence"): pytest.approx((0.75 + 1.5 + 0.625 + 1.25) / 4),
    }
