"""The page of `klsweep compare --html`: in a browser, and what it says at the edges."""

import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from klsweep.cli import main
from klsweep.record.files import append_rows
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_run, write_series
from tests.browser import Page, chromium

EVIL = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLSWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def page():
    with chromium() as found:
        yield found


def cell(name: str, seed: int, placement: str, beta: float | None) -> dict:
    row = {**plan_row(name, seed, placement=placement), "kl_coef": beta}
    return row if beta is not None else {**row, "axes": {**row["axes"], "estimator": None}}


def study(sweep: SweepFolder) -> SweepFolder:
    """Three cells of three seeds, one run of which diverged."""
    cells = {"none": ("none", None, 0.5), "loss": ("loss", 0.1, 0.8), "reward": ("reward", 0.02, 0.3)}
    for name, (placement, beta, add) in cells.items():
        for seed in range(3):
            diverged = (name, seed) == ("reward", 2)
            row = cell(name, seed, placement, beta)
            write_run(sweep, row, "diverged" if diverged else "done", None if diverged else add + 0.02 * seed)
            run = sweep.run(row["run_id"])
            write_series(run, {"reward/mean": [0.1, 0.2 + 0.1 * seed, add], "entropy": [1.0, float("nan"), 0.5]})
            run.config.write_text("seed: 0\n")
    return sweep


def write(sweep: SweepFolder, *options: str) -> Path:
    """The page of a sweep, beside its runs."""
    file = sweep.path / "report.html"
    assert main(["compare", str(sweep.path), *options, "--html", str(file)]) == 0
    return file


def shown(page: Page, selector: str) -> list[str]:
    """Texts of what is visible."""
    script = (
        f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.offsetParent).map((e) => e.innerText)"
    )
    return page.run(script)


def opened(page: Page, file: Path, width: int = 1280) -> Page:
    page.trouble.clear()
    page.open(file.as_uri(), width, 844)
    return page


def test_the_page_works_in_a_browser(page, sweep):
    opened(page, write(study(sweep)))
    assert shown(page, "header .coverage")[0].endswith("3 cells, 9 runs: 8 done, 1 diverged")
    assert shown(page, ".bar .state") == ["8 done", "1 diverged"]
    assert len(shown(page, "#comparison tbody tr")) == 4  # the base and three cells
    titles = shown(page, "figcaption")
    assert titles[:2] == ["In and out of distribution", "Reward and distance from the base"]
    assert {"Stability", "Reward", "Entropy"} <= set(titles)
    assert len(shown(page, "#run-list tbody tr")) == 9
    assert page.trouble == []


def test_a_click_sorts_by_number_and_what_is_missing_is_last(page, sweep):
    opened(page, write(study(sweep)))
    names = shown(page, "#comparison thead th")
    column = names.index("add (in)") + 2  # the first is for phones, and hidden
    entries = f"#comparison tbody td:nth-child({column})"
    unsorted = [text.split(" ")[0] for text in shown(page, entries)]
    assert unsorted == ["0.400", "0.520", "0.820", "0.310"]
    click = f"document.querySelector('#comparison th:nth-child({column}) button').click()"
    page.run(click)
    assert [text.split(" ")[0] for text in shown(page, entries)] == ["0.310", "0.400", "0.520", "0.820"]
    page.run(click)
    assert [text.split(" ")[0] for text in shown(page, entries)] == ["0.820", "0.520", "0.400", "0.310"]
    beta = names.index("β") + 2
    page.run(f"document.querySelector('#comparison th:nth-child({beta}) button').click()")
    assert shown(page, f"#comparison tbody td:nth-child({beta})")[:2] == ["0.02", "0.1"]  # not as texts
    page.run(f"document.querySelector('#comparison th:nth-child({beta}) button').click()")
    assert shown(page, f"#comparison tbody td:nth-child({beta})")[:2] == ["0.1", "0.02"]
    assert page.trouble == []


def test_a_filter_leaves_rows_points_and_runs(page, sweep):
    opened(page, write(study(sweep)))
    points = "document.querySelectorAll('#charts svg[aria-label=\"In and out of distribution\"] .point').length"
    assert page.run(points) == 3
    page.run(
        "(() => { const s = document.querySelector('select[name=placement]'); s.value = '=loss';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert shown(page, "#shown") == ["1 of 3 cells; findings and effects of axes are of all"]
    assert [text for text in shown(page, "#comparison tbody td:nth-child(3)") if text] == ["loss"]
    assert page.run(points) == 1
    assert len(shown(page, "#run-list tbody tr")) == 3
    page.run(
        "(() => { const s = document.querySelector('select[name=placement]'); s.value = '';"
        "s.dispatchEvent(new Event('change'));"
        "const i = document.getElementById('search'); i.value = 'reward'; i.dispatchEvent(new Event('input')); })()"
    )
    assert shown(page, "#shown") == ["1 of 3 cells; findings and effects of axes are of all"]
    assert page.trouble == []


def test_figures_follow_the_filters_or_say_that_they_do_not(page, sweep):
    """(in, out): one cell is over both others, which are the front without it; two cells share a place of the map."""
    cells = {"over": (0.9, 0.9), "under-a": (0.1, 0.5), "under-b": (0.3, 0.4)}
    for i, (name, (add, out)) in enumerate(cells.items()):
        for seed in range(2):
            row = {**plan_row(name, seed, clip=name), "kl_coef": 0.1 + 0.1 * (i > 1)}
            write_run(sweep, row, "diverged" if (name, seed) == ("under-a", 1) else "done", add, sort=out, max=out)
    opened(page, write(sweep))
    front = "document.querySelectorAll('#charts path.front').length"
    assert page.run(front) == 0  # of one cell
    assert shown(page, ".map .place") == ["2/4", "0/2"]  # one collapsed: below half of the base's 0.4
    assert "Effects of axes" in shown(page, "#charts h3")

    def search(text: str) -> None:
        page.run(
            f"(() => {{ const i = document.getElementById('search'); i.value = {json.dumps(text)};"
            "i.dispatchEvent(new Event('input')); })()"
        )

    search("under")
    assert page.run(front) == 1
    assert shown(page, ".map .place") == ["2/2", "0/2"]
    search("under-a")
    assert shown(page, ".map .place") == ["2/2"]
    assert shown(page, ".map thead th") == ["", "β=0.1"]
    assert "Effects of axes, of all cells: filters do not change them" in shown(page, "#charts h3")
    search("no such cell")
    assert shown(page, ".map .place") == []
    assert page.trouble == []


def test_points_of_one_colour_differ_in_shape(page, sweep):
    """As the lines of the same cells differ in dashes: after ten cells colours come again."""
    for i in range(11):
        write_run(sweep, {**plan_row(f"c{i}", 0), "kl_coef": i / 10}, "done", i / 20)
    opened(page, write(sweep))
    found = page.run(
        "[...document.querySelectorAll('#charts svg[aria-label=\"In and out of distribution\"] .point')]"
        ".map((p) => [p.getAttribute('stroke'), p.getAttribute('d')])"
    )
    assert found[0][0] == found[10][0]
    assert found[0][1] == found[9][1] != found[10][1]
    assert page.trouble == []


def test_links_lead_to_files_that_are_there(page, sweep):
    opened(page, write(study(sweep)))
    page.run("document.querySelectorAll('#comparison tbody tr')[2].querySelector('a').click()")
    assert page.run("document.getElementById('cell').open")
    assert len(shown(page, "#cell tbody tr")) == 3
    assert page.run("location.hash") == "#cells=loss"
    links = page.run("[...document.querySelectorAll('#cell a, #run-list a')].map((a) => a.href)")
    files = [Path(unquote(urlparse(link).path)) for link in links if not urlparse(link).fragment]
    assert sum(file.name == "config.yaml" for file in files) == 12
    assert [file for file in files if not file.exists()] == []
    assert sweep.run("loss-0").config in files
    curves = page.run("document.querySelectorAll('#cell svg[aria-label=\"Reward, each run\"] path').length")
    assert curves == 3
    assert page.trouble == []


def test_an_address_opens_its_cell(page, sweep):
    file = write(study(sweep))
    page.trouble.clear()
    page.open(file.as_uri() + "#cells=reward", 1280, 844)
    assert page.run("document.getElementById('cell').open")
    assert "reward" in shown(page, "#cell h2")[0]


def test_a_phone_sees_names_and_scrolls_no_page_sideways(page, sweep):
    opened(page, write(study(sweep)), width=390)
    assert page.run("document.documentElement.scrollWidth") == 390
    assert shown(page, "#comparison tbody td.name")[1:] == [
        "no KL on_policy",
        "k1 loss β=0.1 on_policy",
        "k1 reward β=0.02 on_policy",
    ]
    assert shown(page, "#comparison td.label") == []
    widths = page.run("[...document.querySelectorAll('#charts svg')].map((s) => s.getBoundingClientRect().right)")
    assert max(widths) <= 390
    assert page.trouble == []


def test_no_text_becomes_markup(page, tmp_path):
    sweep = study(SweepFolder(tmp_path / EVIL.replace("/", "∕")))
    row = plan_row("evil", 0, estimator=EVIL)
    write_run(sweep, row, "done", 0.5)
    attempt = sweep.run("pending").claim()
    assert attempt is not None
    sweep.extend_plan([cell("pending", 0, "loss", 0.5) | {"run_id": "pending"}])
    attempt.finish("failed", EVIL)
    opened(page, write(sweep))
    assert page.run("document.title").startswith("klsweep: <script>")
    assert page.run("document.scripts.length") == 2
    assert page.run("document.images.length") == 0
    assert EVIL in " ".join(shown(page, "#run-list td"))
    assert page.trouble == []


def test_the_same_records_give_the_same_bytes(sweep):
    file = write(study(sweep))
    first = file.read_bytes()
    assert write(sweep).read_bytes() == first
    assert b"http" not in re.sub(rb"http://www.w3.org/2000/svg|http-equiv", b"", first)  # nothing to fetch


def test_how_to_make_it_again(sweep):
    study(sweep)
    sweep.launches.write_text("- overrides: [experiment=mine, 'kl.coef=0.1,0.2']\n- overrides: [seed=3]\n")
    text = unescape(write(sweep, "--where", "seed<2", "--metric", "in,kl").read_text())
    assert f"klsweep compare {sweep.path} --where 'seed<2' --metric in,kl --html" in text
    assert "klsweep sweep experiment=mine kl.coef=0.1,0.2" in text
    assert "klsweep sweep seed=3" in text
    assert "science-code hash: s1" in text
    assert "(3 runs left out by --where)" in text


def coverage_of(page: Page) -> str:
    assert page.trouble == []
    return " ".join(shown(page, "header .coverage"))


def test_an_empty_sweep(page, sweep):
    sweep.extend_plan([])
    sweep.plan_file.touch()
    opened(page, write(sweep))
    assert "nothing is planned" in coverage_of(page)
    assert shown(page, "#findings li") == ["Nothing is planned."]


@pytest.mark.parametrize("state", ["done", "diverged", "running"])
def test_one_run(page, sweep, state):
    write_run(sweep, plan_row("c", 0), state, 0.6 if state == "done" else None)
    opened(page, write(sweep))
    assert f"1 cells, 1 runs: 1 {state}" in coverage_of(page)
    assert len(shown(page, "#run-list tbody tr")) == 1


def test_all_diverged(page, sweep):
    for seed in range(3):
        write_run(sweep, plan_row("c", seed), "diverged", None)
    opened(page, write(sweep))
    assert "3 diverged" in coverage_of(page)
    assert shown(page, ".map .place") == ["3/3"]


def test_a_half_written_record(page, sweep):
    study(sweep)
    append_rows(sweep.run("loss-0").metrics, [{"update": 9, "reward/mean": 0.5}])
    with sweep.run("loss-0").metrics.open("a") as stream:
        stream.write('{"update": 10, "rew')
    sweep.run("loss-1").environment.write_text('{"git": ')
    sweep.launches.write_text("- overrides: [")
    opened(page, write(sweep))
    assert "9 runs" in coverage_of(page)
    assert "sweep.yaml cannot be read" in " ".join(shown(page, "#origins li"))


@pytest.mark.slow
def test_a_thousand_cells_open_at_once(page, sweep):
    rows = [{**plan_row(f"c{i}", 0, estimator=f"k{i % 5}"), "kl_coef": i / 1000} for i in range(1000)]
    sweep.extend_plan(rows)
    write_run(sweep, rows[0], "done", 0.5)
    opened(page, write(sweep))
    assert "1000 cells, 1000 runs" in coverage_of(page)
    assert page.run("performance.timing.loadEventEnd - performance.timing.navigationStart") < 10_000
    assert len(shown(page, "#run-list tbody tr")) == 100


def test_bad_input_is_one_line(sweep, capsys):
    study(sweep)
    assert main(["compare", str(sweep.path), "--html", str(sweep.path / "none" / "x.html")]) == 2
    assert main(["compare", str(sweep.path), "--effects", "--html", str(sweep.path / "x.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
