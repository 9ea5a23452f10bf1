"""One table in every format: the same numbers, escaped as each needs, and LaTeX that compiles."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from klsweep.analysis.build import Layout, build
from klsweep.analysis.compare import compare
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.latex import escaped, latex
from klsweep.analysis.table import BLANK, Column, Entry, Line, Table, label_entry
from klsweep.analysis.tables import TEXTS, as_csv, as_json, html, markdown, print_table
from klsweep.cli import main
from tests.analysis.records import plan_row, write_run
from tests.required import unavailable

NASTY = r"50 % & #1_a ~^\{x}|y <b>β</b> 数"


def by_hand() -> Table:
    columns = [
        Column("model", "model_x", label=True),
        Column("out", "out β"),
        Column("kl", "KL", "τ=1"),
        Column("in", "in", "τ=1"),
    ]
    rows = [
        Line(
            [label_entry(NASTY, NASTY), Entry("0.500 ±0.100", {"mean": 0.5, "n": 3}, "best"), BLANK, Entry("–")], ["c"]
        ),
        Line(
            [label_entry("b", 0.1), Entry("0.400*", {"mean": 0.4}, "tied"), Entry("1/3", {"k": 1, "list": [1]}), BLANK]
        ),
    ]
    return Table(["s: 2 cells, 100 % done"], columns, rows, ["a note | of π"], ["careful & so"])


class Cells(HTMLParser):
    """Texts and attributes of table cells, and classes of paragraphs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[dict, str]]] = []
        self.paragraphs: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((dict(attrs), ""))
        if tag == "p":
            self.paragraphs.append(dict(attrs)["class"])

    def handle_data(self, data):
        if self.rows and self.rows[-1] and self.get_starttag_text().startswith(("<td", "<th")):
            attributes, text = self.rows[-1][-1]
            self.rows[-1][-1] = attributes, (text + data).rstrip("\n")


def test_html_is_escaped_and_has_numbers_to_sort_by():
    found = Cells(html(by_hand()))
    assert found.paragraphs == ["coverage", "warning", "note"]
    head, first, second = found.rows
    assert [text for _, text in head] == ["model_x", "out β", "τ=1 KL", "τ=1 in"]
    assert first[0] == ({"class": "label"}, NASTY)
    assert first[1] == ({"class": "best", "data-value": "0.5"}, "0.500 ±0.100◆")
    assert second[0] == ({"class": "label", "data-value": "0.1"}, "b")
    assert second[2] == ({"data-value": "1"}, "1/3")


def test_csv_has_a_column_for_each_number():
    lines = as_csv(by_hand()).splitlines()
    assert lines[:2] == ["# s: 2 cells, 100 % done", "# warning: careful & so"]
    head, first, second = csv.reader(io.StringIO("\n".join(lines[2:])))
    assert head == ["model", "out.mean", "out.n", "out.mark", "τ=1 kl.k", "τ=1 kl.list", "τ=1 in"]
    assert first == [NASTY, "0.5", "3", "best", "", "", "–"]
    assert second == ["0.1", "0.4", "", "tied", "1", "[1]", ""]


def test_csv_names_the_base_model(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    rows = list(csv.DictReader(line for line in as_csv(build(compare(sweep), Layout())).splitlines() if line[0] != "#"))
    assert [(row["estimator"], row["kl.coef"], row["add.mean"]) for row in rows] == [
        ("base tiny", "", "0.4"),
        ("k1", "0.1", "0.8"),
    ]


def test_files_have_no_digits_that_depend_on_the_processor():
    entry = Entry("0.333", {"mean": 1 / 3, "n": 3, "list": [2e-7 / 3]})
    table = Table(["s"], [Column("out", "out")], [Line([entry], [])])
    assert as_csv(table).splitlines()[-1] == "0.333333333,3,[6.66666667e-08]"
    assert json.loads(as_json(table))["rows"][0]["entries"][0] == {
        "text": "0.333",
        "mark": None,
        "mean": 0.333333333,
        "n": 3,
        "list": [6.66666667e-08],
    }
    assert ' data-value="0.333333333"' in html(table)


def test_an_interquartile_mean_is_a_figure_and_no_label(sweep):
    for seed in range(2):
        write_run(sweep, plan_row("a", seed), "done", 0.8)
    table = build(compare(sweep), Layout(columns=["iqm/in"]))
    assert r"\begin{tabular}{@{}lllr@{}}" in latex(table)
    assert Cells(html(table)).rows[2][3] == ({"data-value": "0.8"}, "0.800 (0.800–0.800)")
    head, base, row = csv.reader(line for line in as_csv(table).splitlines() if line[0] != "#")
    assert head[3:6] == ["iqm/in.n", "iqm/in.value", "iqm/in.ci_low"]
    assert (base[:4], row[3:6]) == (["base tiny", "", "", ""], ["2", "0.8", "0.8"])


def test_json_has_the_whole_table():
    found = json.loads(as_json(by_hand()))
    assert (found["coverage"], found["notes"], found["warnings"]) == (
        ["s: 2 cells, 100 % done"],
        ["a note | of π"],
        ["careful & so"],
    )
    assert found["columns"][2] == {"name": "kl", "title": "KL", "group": "τ=1", "label": False}
    assert found["rows"][0]["entries"][1] == {"text": "0.500 ±0.100", "mark": "best", "mean": 0.5, "n": 3}
    assert found["rows"][0]["cells"] == ["c"]


def test_markdown_keeps_its_columns():
    lines = markdown(by_hand()).splitlines()
    assert lines[0] == "s: 2 cells, 100 % done"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert [len(row) for row in rows] == [4] * 4
    assert rows[2][1:3] == [" 0.500 ±0.100◆ ", "  "]
    assert lines[-2:] == ["a note | of π  ", "warning: careful & so  "]


def test_latex_by_hand():
    lines = latex(by_hand()).splitlines()
    assert lines[0] == r"% \usepackage{booktabs}"
    assert r"\noindent\begin{tabular}{@{}lrrr@{}}" in lines
    assert r" &  & \multicolumn{2}{c}{$\tau$=1} \\" in lines
    assert r"\cmidrule(lr){3-4}" in lines
    assert r"model\_x & out $\beta$ & KL & in \\" in lines
    assert r"b & \underline{0.400*} & 1/3 &  \\" in lines
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert escaped(NASTY).startswith(r"50 \% \& \#1\_a \textasciitilde{}\textasciicircum{}\textbackslash{}\{x\}")
    assert escaped("数") == r"\texttt{U+6570}"


def test_latex_takes_no_label_for_an_argument():
    """`[…]` and `*` after the end of a row or a rule are arguments of it."""
    columns = [Column("task.ops", "[ops]", label=True), Column("in", "in")]
    rows = [Line([label_entry(text, text), Entry("0.5")]) for text in ("[add]", "*", "add")]
    lines = latex(Table([], columns, rows)).splitlines()
    assert lines[lines.index(r"\toprule") + 1] == r"{}[ops] & in \\"
    after = lines.index(r"\midrule")
    assert lines[after + 1 : after + 4] == [r"{}[add] & 0.5 \\", r"{}* & 0.5 \\", r"add & 0.5 \\"]


def longer(table: Table, rows: int) -> Table:
    return Table(table.coverage, table.columns, table.rows * rows, table.notes, table.warnings)


@pytest.mark.slow
def test_latex_compiles(sweep, tmp_path):
    """Every layout there is, alone in a document; pages of a long table hold all its rows."""
    for seed in range(3):
        for name, placement in (("a", "loss"), ("b", "reward")):
            write_run(sweep, plan_row(name, seed, placement=placement), "done", 0.5 + 0.1 * seed)
    comparison = compare(sweep)
    tables = [by_hand(), longer(by_hand(), 30), effect_table(comparison)]
    tables.append(
        build(comparison, Layout(columns=["paper", "outcome", "trouble"], baseline=["placement=loss"], detect=0.1))
    )
    tables.append(build(comparison, Layout(columns=["placement"], metrics=["in", "out"])))
    assert latex(tables[1]).startswith(r"% \usepackage{booktabs}, \usepackage{longtable}")
    if shutil.which("pdflatex") is None:
        unavailable("latex", "pdflatex is not installed")
    body = "\n\\clearpage\n".join(map(latex, tables))
    packages = r"\usepackage{booktabs}\usepackage{longtable}\usepackage[landscape,margin=1cm,a2paper]{geometry}"
    document = "\n".join([r"\documentclass{article}", packages, r"\begin{document}", body, r"\end{document}"])
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Undefined" not in made.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 10_000


def test_the_command_prints_each_format(sweep, capsys):
    for seed in range(2):
        write_run(sweep, plan_row("a", seed), "done", 0.8)
    table = build(compare(sweep), Layout(columns=["in"]))
    for form, render in TEXTS.items():
        assert main(["compare", str(sweep.path), "--columns", "in", "--format", form]) == 0
        assert capsys.readouterr().out == render(table) + "\n"
    print_table(table)
    shown = capsys.readouterr().out
    assert main(["compare", str(sweep.path), "--columns", "in", "--format", "terminal"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["compare", str(sweep.path), "--effects", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown(effect_table(compare(sweep))) + "\n"


def test_cells_as_a_list_keep_their_keys(sweep, capsys):
    for seed in range(2):
        write_run(sweep, plan_row("a", seed), "done", 0.8)
    sweep.extend_plan([plan_row("a", 2)])
    write_run(sweep, plan_row("b", 0, placement="reward"), "done", 0.8, science="s2")
    assert main(["compare", str(sweep.path), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"{sweep.path}: 2 cells, 4 runs: 3 done, 1 pending",
        "of 2 cells 1 have all their results; 1 have fewer than planned (k1 loss β=0.1 on_policy)",
        "warning: finished runs have 2 different science-code hashes (s1, s2): rows may not be comparable; "
        "kept apart (--mix science)",
    ]
    (cell, _) = json.loads(captured.out)
    keys = ["cell_id", "kl_coef", "n_seeds", "states", "collapsed", "suites", "in_distribution", "out_of_distribution"]
    assert {*keys, "kl", "reward", "base", "fields", "estimator", "placement"} <= cell.keys()
    assert cell["runs"][1] == {"sweep": "s", "run_id": "a-1", "seed": 1, "state": "done"}
