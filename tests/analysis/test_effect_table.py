"""The effects of a sweep's axes: which levels there are, which cells take part, and what is said of the others."""

import numpy as np
import pytest

from klsweep.analysis.charts import forests
from klsweep.analysis.choose import conditions
from klsweep.analysis.compare import compare
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.effects import Observation, effects
from tests.analysis.records import plan_row, write_run


def write_cell(
    sweep, name: str, values: list[float], beta: float | None = 0.1, fields: dict | None = None, **axes
) -> None:
    for seed, add in enumerate(values):
        row = {**plan_row(name, seed, **axes), "kl_coef": beta, "fields": fields or {}}
        write_run(sweep, row, "done", add)


LEFT_OUT = "Left out: no KL on_policy: estimator, clip without effect there."


def texts(table) -> list[list[str]]:
    return [[entry.text for entry in line.entries] for line in table.rows]


@pytest.fixture
def study(sweep):
    """Two estimators × two placements, one cell missing; no KL besides; clips of two sizes in one cell."""
    write_cell(sweep, "none", [0.5, 0.6], None, estimator=None, placement="none", clip=None)
    write_cell(sweep, "a", [0.50, 0.62], estimator="k1", placement="reward", clip="none")
    write_cell(sweep, "b", [0.70, 0.78], estimator="k1", placement="loss", clip="none")
    write_cell(sweep, "c", [0.55, 0.69], estimator="k3", placement="reward", clip="none")
    write_cell(sweep, "d", [0.51, 0.64], fields={"clip.tau": 1.0}, estimator="k1", placement="reward", clip="fixed")
    write_cell(sweep, "e", [0.56, 0.61], fields={"clip.tau": 2.0}, estimator="k1", placement="reward", clip="fixed")
    return sweep


def test_levels_and_missing_combinations(study):
    table = effect_table(compare(study), ["in"])
    rows = texts(table)
    assert [row[:3] for row in rows[:4]] == [
        ["estimator", "k3", "k1"],
        ["placement", "loss", "reward"],
        ["clip", "fixed τ=1", "none"],
        ["clip", "fixed τ=2", "none"],
    ]
    interactions = {tuple(row[:2]): row[3] for row in rows[4:]}
    assert interactions["estimator × placement", "k3 × loss"] == "–"
    said = " ".join(table.notes)
    assert "estimator=k3 with placement=loss" in said
    assert LEFT_OUT in table.notes
    assert "Seeds are blocks" in said
    assert len(table.rows[0].runs) == 10


def test_the_numbers_are_those_of_the_statistics(study):
    levels = {
        "a": ("k1", "reward", "none"),
        "b": ("k1", "loss", "none"),
        "c": ("k3", "reward", "none"),
        "d": ("k1", "reward", "fixed τ=1"),
        "e": ("k1", "reward", "fixed τ=2"),
    }
    values = {"a": [0.50, 0.62], "b": [0.70, 0.78], "c": [0.55, 0.69], "d": [0.51, 0.64], "e": [0.56, 0.61]}
    axes = ("estimator", "placement", "clip")
    known = effects(
        [
            Observation(dict(zip(axes, levels[name], strict=True)), seed, value)
            for name, found in values.items()
            for seed, value in enumerate(found)
        ]
    )
    entry = effect_table(compare(study), ["in"]).rows[1].entries[3]
    assert entry.values["mean"] == pytest.approx(np.mean([0.70 - 0.50, 0.78 - 0.62]))
    assert entry.values["ci_low"] == pytest.approx(known.main[1].ci_low)
    assert entry.values["p_holm"] == pytest.approx(known.main[1].adjusted)


def test_the_baseline_names_the_references(study):
    comparison = compare(study)
    runs = [run for cell in comparison.cells for run in cell.runs]
    table = effect_table(comparison, ["in"], conditions(["placement=loss", "clip=fixed"], runs))
    rows = texts(table)
    assert ["placement", "reward", "loss"] in [row[:3] for row in rows]
    assert ["clip", "none", "fixed τ=1"] in [row[:3] for row in rows]


def test_results_of_other_code_do_not_take_part(study):
    write_run(study, {**plan_row("f", 0, estimator="k3", placement="loss")}, "done", 0.1, science="s2")
    table = effect_table(compare(study))
    assert "Left out: k3 loss β=0.1 on_policy: no result, or one that is kept apart." in table.notes
    assert "science-code" in table.warnings[0]
    mixed = effect_table(compare(study, mix=["all"]))
    assert [note for note in mixed.notes if note.startswith("Left out")] == [LEFT_OUT]
    assert len(mixed.rows[0].runs) == 11


def test_effects_over_incomplete_cells_are_starred_and_diverged_ones_signed(study):
    whole = effect_table(compare(study), ["in", "reward"])
    assert not any(sign in entry.text for line in whole.rows for entry in line.entries for sign in "*†")
    study.extend_plan([plan_row("a", 2, estimator="k1", placement="reward", clip="none")])
    write_run(study, plan_row("g", 0, estimator="k3", placement="loss", clip="none"), "diverged", None)
    table = effect_table(compare(study), ["in", "reward"])
    first, second = table.rows[0].entries[3:]
    assert (first.text[-1], second.text[-2:]) == ("*", "*†")  # of the diverged run there is a reward, but no accuracy
    assert (first.values["n"], first.values["planned"], second.values["n"]) == (10, 12, 11)
    assert any(note.startswith("* mean over fewer runs") for note in table.notes)
    assert all(forest.note.endswith("(* in the table of effects).") for forest in forests(table))


def test_what_is_said_of_effects_is_of_all_figures(study):
    """Figures that only some runs have: notes are not those of the first alone. A baseline that is no level is told."""
    comparison = compare(study)
    runs = [run for cell in comparison.cells for run in cell.runs]
    table = effect_table(comparison, ["out", "in"], conditions(["placement=none", "estimator=k3"], runs))
    assert any(note.startswith("What the baseline says of placement does not count here") for note in table.notes)
    assert texts(table)[0][:3] == ["estimator", "k1", "k3"]
    assert any(note.startswith("Seeds are blocks") for note in effect_table(comparison, ["entropy", "in"]).notes)
