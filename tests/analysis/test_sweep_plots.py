"""Figures as files: every one, the same bytes each time, and the numbers that `charts` has."""

from pathlib import Path

import numpy as np
import pytest

from klsweep.analysis import sweep_plots
from klsweep.analysis.compare import compare
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.sweep_plots import cell_styles, plot_all
from klsweep.cli import main
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_run, write_series


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLSWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def study(sweep) -> SweepFolder:
    """Two cells; a seed of the second stops after two of three updates."""
    for i, placement in enumerate(("loss", "reward")):
        for seed in range(2):
            short = (i, seed) == (1, 1)
            row = plan_row(placement, seed, placement=placement, sampling="off_policy")
            write_run(sweep, row, "diverged" if short else "done", None if short else 0.5 + 0.1 * i + 0.01 * seed)
            values = [0.1, 0.2 + 0.1 * seed, 0.6]
            write_series(sweep.run(f"{placement}-{seed}"), {"entropy": values[:2] if short else values})
    return sweep


@pytest.mark.slow
def test_every_figure_in_every_format_and_the_same_bytes(study, tmp_path, capsys, monkeypatch):
    written = draw(study, tmp_path / "a")
    assert len(capsys.readouterr().out.splitlines()) == len(written)
    figures = {"in-out", "reward-kl", "effects-in", "effects-out", "stability", "curve-entropy", "curve-reward-mean"}
    assert set(written) == {f"{figure}.{suffix}" for figure in figures for suffix in ("png", "svg", "pdf")}
    for suffix, start in {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}.items():
        assert written[f"in-out.{suffix}"].startswith(start)
    monkeypatch.setattr(sweep_plots, "forests", lambda effects: [])  # it takes long enough
    monkeypatch.setattr(sweep_plots, "stability_maps", lambda comparison: [])
    again = draw(study, tmp_path / "b")
    assert len(again) == 12
    assert again == {name: written[name] for name in again}


def draw(sweep: SweepFolder, folder: Path) -> dict[str, bytes]:
    assert main(["compare", str(sweep.path), "--plots", str(folder)]) == 0
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_curve_is_dotted_where_a_seed_is_missing(study, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sweep_plots, "save", lambda figure, file: drawn.setdefault(file.stem, figure))
    comparison = compare(study)
    plot_all(comparison, effect_table(comparison), tmp_path)
    (panel,) = drawn["curve-entropy"].axes
    lines = [np.asarray(line.get_ydata(), float) for line in panel.get_lines()]
    np.testing.assert_allclose(lines[0], [np.nan] * 3)  # the first cell has all its seeds
    np.testing.assert_allclose(lines[1], [0.1, 0.25, 0.6])
    np.testing.assert_allclose(lines[2], [np.nan, 0.25, 0.6])  # from the last whole point on
    np.testing.assert_allclose(lines[3], [0.1, 0.25, np.nan])


def test_many_cells_share_the_colour_of_a_level(sweep):
    rows = [{**plan_row(f"c{i}", 0, estimator=f"k{i % 3}"), "kl_coef": i / 100} for i in range(30)]
    sweep.extend_plan(rows)
    styles = cell_styles(compare(sweep))
    assert [style.label for style in styles[:3]] == ["estimator=k0", "estimator=k1", "estimator=k2"]
    assert len({style.colour for style in styles}) == 3
    assert styles[0] == styles[3]


def test_nothing_to_draw(sweep, tmp_path, capsys):
    sweep.extend_plan([plan_row("c", 0)])
    assert main(["compare", str(sweep.path), "--plots", str(tmp_path / "p")]) == 0
    assert capsys.readouterr().out == "no run has a result or a curve yet: nothing is drawn\n"
    assert main(["compare", str(sweep.path), "--plots", str(tmp_path / "p"), "--rows", "placement"]) == 2


def test_cells_of_one_colour_differ_in_line_and_shape(sweep):
    for i in range(12):
        sweep.extend_plan([{**plan_row(f"c{i}", 0), "kl_coef": i / 10}])
    styles = cell_styles(compare(sweep))
    assert (styles[0].colour, styles[0].shape) == (styles[10].colour, "o")
    assert (styles[10].line, styles[10].shape) == ("--", "s")
    assert len({(style.colour, style.line) for style in styles}) == 12
    assert len({(style.colour, style.shape) for style in styles}) == 12
