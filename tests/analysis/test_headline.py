"""Sentences claim what a test has found, and nothing else."""

import pytest

from klsweep.analysis.compare import compare
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.headline import headline, usual_baseline
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_run


def cell(name: str, seed: int, placement: str) -> dict:
    row = plan_row(name, seed, placement=placement)
    return row if placement != "none" else {**row, "axes": {**row["axes"], "estimator": None}, "kl_coef": None}


def write_cells(sweep: SweepFolder, accuracies: dict[str, list[float]], state: str = "done", **figures) -> None:
    for placement, values in accuracies.items():
        for seed, add in enumerate(values):
            write_run(sweep, cell(placement, seed, placement), state, add, **figures)


def sentences(sweep: SweepFolder) -> list[str]:
    comparison = compare(sweep)
    return headline(comparison, effect_table(comparison), usual_baseline(comparison))


def test_a_clear_difference_is_told_with_its_size(sweep):
    write_cells(sweep, {"none": [0.50, 0.52, 0.48, 0.50], "loss": [0.80, 0.82, 0.78, 0.82]})
    found = sentences(sweep)
    assert found[0].startswith("Highest mean accuracy in distribution: k1 loss β=0.1 on_policy, 0.805 ±0.030")
    assert "the other row is told from it" in found[0]
    assert "in distribution, on common seeds: 1 higher (k1 loss β=0.1 on_policy +0.305 ±0.016, p<0.001)" in found[1]
    assert "0 lower, 0 not told from it" in found[1]


def test_rows_that_were_never_compared_are_not_told_from_the_best(sweep):
    write_cells(sweep, {"none": [0.50, 0.52, 0.48, 0.50], "loss": [0.80, 0.82, 0.78, 0.82]})
    write_run(sweep, cell("reward", 0, "reward"), "done", 0.95, science="s2")
    found = sentences(sweep)
    assert found[0].startswith("Results of different science-code hashes are kept apart: none of all is best")
    assert not any("Highest" in line for line in found)
    assert "in distribution, on common seeds: 1 higher (k1 loss β=0.1 on_policy +0.305" in found[1]


def test_noise_is_not_told_as_a_difference(sweep):
    write_cells(sweep, {"none": [0.30, 0.70, 0.45, 0.60], "loss": [0.65, 0.40, 0.66, 0.50]})
    found = sentences(sweep)
    assert "the other row cannot be told from it" in found[0]
    assert "0 higher, 0 lower, 1 not told from it" in found[1]
    assert not any("All else equal" in line for line in found)


def test_a_lower_cell_is_told_as_lower(sweep):
    write_cells(sweep, {"none": [0.80, 0.83, 0.77, 0.81], "loss": [0.60, 0.64, 0.58, 0.61]})
    assert "0 higher, 1 lower (k1 loss β=0.1 on_policy -0.195" in sentences(sweep)[1]


def test_one_seed_claims_nothing(sweep):
    write_cells(sweep, {"none": [0.1], "loss": [0.9]})
    found = sentences(sweep)
    assert found[0] == "No cell has results of two seeds: there is no interval, and no difference is claimed."
    assert not any(word in " ".join(found) for word in ("Highest", "higher", "All else"))
    assert found[1:] == [
        "1 of 2 evaluated runs ended below 0.5 of the base's accuracy on the trained task: no KL on_policy (1)."
    ]


def test_effects_of_axes_are_told_when_a_test_finds_them(sweep):
    # differences of the pairs: mean 0.29, standard deviation 0.0114
    values = {"loss": [0.80, 0.83, 0.77, 0.81, 0.80], "reward": [0.50, 0.55, 0.49, 0.52, 0.50]}
    write_cells(sweep, values)
    lines = [line for line in sentences(sweep) if line.startswith("All else equal")]
    assert len(lines) == 1
    assert "placement reward rather than loss -0.290 ±0.0" in lines[0]
    assert "in distribution (p<0.001)" in lines[0]
    assert "out of distribution (" not in lines[0]  # those are all alike


@pytest.mark.parametrize(("planned", "text"), [([], "Nothing is planned."), ([0], "No run has a result yet.")])
def test_nothing_to_tell(sweep, planned, text):
    sweep.extend_plan([cell("loss", seed, "loss") for seed in planned])
    assert sentences(sweep) == [text]


def test_all_diverged(sweep):
    for seed in range(3):
        write_run(sweep, cell("loss", seed, "loss"), "diverged", None)
    assert sentences(sweep) == ["No run has a result yet.", "3 of 3 ended runs diverged: k1 loss β=0.1 on_policy (3)."]


def test_the_baseline_is_no_kl_if_there_is_such_a_cell(sweep):
    write_cells(sweep, {"loss": [0.5]})
    assert usual_baseline(compare(sweep)) == ["base"]
    write_cells(sweep, {"none": [0.5]})
    assert usual_baseline(compare(sweep)) == ["placement=none"]
