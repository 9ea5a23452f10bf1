"""The documentation without training anything: links, words of commands, the errors of the FAQ, the axes' pages."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from klsweep.cli import main
from tests.docs.check import Report, check_page, static_faults
from tests.docs.figures import check
from tests.docs.pages import ROOT, SHELL, Block, blocks, commands, pages
from tests.docs.workshop import Workshop


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere_and_every_command_has_a_rule_and_is_read(page):
    assert list(static_faults(page)) == []


def test_faults_are_found(tmp_path, monkeypatch):
    """One of each kind, in a page of three sentences."""
    text = "`klsweep plan --nonsense x=1`, [a](none.md), [b](page.md#c)\n\n```\nklsweep fly\n```\n\n```rust\nx\n```\n"
    (tmp_path / "page.md").write_text(text)
    for module in ("pages", "check"):
        monkeypatch.setattr(f"tests.docs.{module}.ROOT", tmp_path)
    assert [fault.split(": ", 1)[1] for fault in static_faults("page.md")] == [
        "none.md: no such file",
        "page.md#c: no such heading",
        "klsweep plan --nonsense x=1: klsweep: error: unrecognized arguments: --nonsense (see klsweep --help)",
        "klsweep fly: no rule in tests/docs/rules.py",
        "a block of rust without a rule in tests/docs/rules.py",
    ]


def test_commands_of_a_block():
    text = "a 'b #c' \\\n    d  # e\n\n# only a comment\nf 'g\n  h'\n"
    assert [(c.line, c.text) for c in commands(Block("p", 10, "", text))] == [(10, "a 'b #c' d"), (14, "f 'g h'")]
    shown = commands(Block("p", 1, "console", "$ a b\nout # put\n$ c\n"))
    assert [(c.text, c.output) for c in shown] == [("a b", "out # put\n"), ("c", "")]


def test_figures_of_a_block():
    check("x = 1 / 3  # 0.333\nx * 2  # 0.67 nats\n")
    with pytest.raises(AssertionError, match=r"0\.333.*, not 0\.334"):
        check("x = 1 / 3  # 0.334\n")


def test_the_readmes_figures_of_the_audit_are_the_pages():
    section = (ROOT / "README.md").read_text().split("## Audit")[1].split("\n## ")[0]
    figures = re.findall(r"\b\d\.\d{6}\b", section)
    page = (ROOT / "docs/audit.md").read_text()
    assert len(figures) == 10
    assert [figure for figure in figures if figure not in page] == []


FAQ = [c for block in blocks("docs/faq.md") if block.language in SHELL for c in commands(block)]


@pytest.mark.slow
@pytest.mark.parametrize("command", FAQ, ids=lambda c: c.text)
def test_the_errors_of_the_faq_are_worded_so(command, in_tmp, capfd):
    words = shlex.split(command.text)[1:]
    if "model=qwen2_5_7b" in words:  # what it says of the hub is decided when its library is imported
        process = [sys.executable, "-m", "klsweep.cli", *words]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(in_tmp)}
        code = subprocess.run(process, env=offline).returncode
    else:
        code = main(words)
    assert (code, capfd.readouterr().err) == (2, command.output)
    assert {path.name for path in in_tmp.iterdir()} <= {"hub"}


def test_the_faq_has_ten():
    assert len(FAQ) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "text", "outcome"),
    [
        ("docs/new.md", "klsweep plan seed=0,1", (1, 0)),
        ("docs/new.md", "klsweep compare nowhere", (0, 1)),
        ("docs/faq.md", "$ klsweep compare x\nklsweep: error: x: something else", (0, 1)),
    ],
)
def test_a_page_is_executed(page, text, outcome, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / page).write_text(f"```\n{text}\n```\n")
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    report = Report()
    check_page(page, Workshop(tmp_path, "http://127.0.0.1:1"), False, report)
    assert (len(report.executed), len(report.failed)) == outcome
