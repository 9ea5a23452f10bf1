"""What figures show: numbers worked out by hand, or by scipy."""

import numpy as np
import pytest
from scipy import stats

from klsweep.analysis.charts import forests, scatters, stability_maps
from klsweep.analysis.compare import compare
from klsweep.analysis.curves import curves, learning_curves
from klsweep.analysis.effect_table import effect_table
from tests.analysis.records import plan_row, write_run, write_series


def test_a_band_is_the_t_interval_over_seeds(sweep):
    series = [[1.0, 2.0, 4.0], [3.0, 2.0, 5.0], [2.0, 5.0, 9.0]]
    for seed, values in enumerate(series):
        write_run(sweep, plan_row("c", seed), "done", 0.5)
        write_series(sweep.run(f"c-{seed}"), {"entropy": values})
    found = curves(compare(sweep), "entropy", "Entropy")
    (band,) = found.bands
    assert found.updates.tolist() == [1, 2, 3]
    assert band.mean.tolist() == [2.0, 3.0, 6.0]
    assert band.seeds.tolist() == [3, 3, 3]
    low, high = stats.t.interval(0.95, 2, loc=6.0, scale=stats.sem([4.0, 5.0, 9.0]))
    assert (band.low[2], band.high[2]) == pytest.approx((low, high))


def test_thinned_points_are_means_and_count_who_is_there(sweep):
    for seed, length in enumerate((7, 4)):
        write_run(sweep, plan_row("c", seed), "done", 0.5)
        write_series(sweep.run(f"c-{seed}"), {"entropy": [float(u) for u in range(1, length + 1)]})
    found = curves(compare(sweep), "entropy", "Entropy", points=3)  # 7 updates: 1–3, 4–6, 7
    assert found.updates_per_point == 3
    assert found.updates.tolist() == [2, 5, 7]
    (band,) = found.bands
    assert band.mean.tolist() == [2.0, 4.5, 7.0]  # (5 + 4) / 2, then the longer run alone
    assert band.seeds.tolist() == [2, 2, 1]
    assert np.isnan(band.low[2])


def test_what_is_not_finite_is_a_gap_and_not_a_mean(sweep):
    for seed, values in enumerate(([1.0, float("nan"), 3.0], [3.0, float("nan"), 5.0])):
        write_run(sweep, plan_row("c", seed), "diverged", None)
        write_series(sweep.run(f"c-{seed}"), {"entropy": values})
    (band,) = curves(compare(sweep), "entropy", "Entropy").bands
    assert band.seeds.tolist() == [2, 0, 2]
    assert np.isnan(band.mean[1])
    assert band.mean[[0, 2]].tolist() == [2.0, 4.0]


def test_gradient_norms_are_averaged_as_logarithms(sweep):
    for seed, values in enumerate(([1.0, 0.0], [100.0, 4.0])):
        write_run(sweep, plan_row("c", seed), "done", 0.5)
        write_series(sweep.run(f"c-{seed}"), {"grad_norm": values})
    (band,) = curves(compare(sweep), "grad_norm", "Gradient norm").bands
    assert band.mean == pytest.approx([10.0, 4.0])
    assert band.seeds.tolist() == [2, 1]  # a norm of zero has no logarithm


def test_staleness_is_shown_off_policy_only(sweep):
    write_run(sweep, plan_row("c", 0), "done", 0.5)
    write_series(sweep.run("c-0"), {"sampler/ess": [1.0, 1.0]})
    assert "sampler/ess" not in [one.name for one in learning_curves(compare(sweep))]
    write_run(sweep, plan_row("d", 0, sampling="off_policy"), "done", 0.5)
    write_series(sweep.run("d-0"), {"sampler/ess": [0.5, 0.4]})
    assert "sampler/ess" in [one.name for one in learning_curves(compare(sweep))]


def test_the_front_and_joint_intervals(sweep):
    # (in, out) with out the mean of sort and max: a is dominated by b; b and c are not by any
    cells = {"a": [(0.5, 0.40), (0.5, 0.40)], "b": [(0.6, 0.50), (0.7, 0.60)], "c": [(0.2, 0.90), (0.3, 0.90)]}
    for i, (name, values) in enumerate(cells.items()):
        for seed, (add, out) in enumerate(values):
            write_run(sweep, {**plan_row(name, seed), "kl_coef": 0.1 * (i + 1)}, "done", add, sort=out, max=out)
    found = scatters(compare(sweep))[0]
    assert found.name == "in-out"
    assert [point.front for point in found.points] == [False, True, True]
    assert found.base == [pytest.approx((0.4, 0.4))]
    low, high = stats.t.interval(0.975, 1, loc=0.65, scale=stats.sem([0.6, 0.7]))
    assert found.points[1].x == (2, pytest.approx(0.65), pytest.approx(low), pytest.approx(high))


def test_a_map_counts_runs_that_did_not_hold(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.9)
    write_run(sweep, plan_row("a", 1), "done", 0.19)  # the base has .4
    write_run(sweep, plan_row("a", 2), "diverged", None)
    write_run(sweep, plan_row("a", 3), "running", None)
    write_run(sweep, {**plan_row("b", 0, estimator="k3"), "kl_coef": 0.2}, "done", 0.21)
    (found,) = stability_maps(compare(sweep))
    assert (found.rows, found.columns) == (["k1 loss", "k3 loss"], ["0.1", "0.2"])
    rates = [[rate and rate[:2] for rate in row] for row in found.rates]
    assert rates == [[(2, 3), None], [None, (0, 1)]]
    assert found.planned == [[4, 0], [0, 1]]
    assert found.cells == [[[0], []], [[], [1]]]
    assert found.counts == [[[(2, 3, 4)], []], [[], [(0, 1, 1)]]]
    assert "taken together" not in found.note


def test_results_that_the_table_keeps_apart_are_on_no_front_and_in_no_map_together(sweep):
    """Evaluated otherwise, b is better on both, and what collapsed did by another measure."""
    cells = {"a": ("e1", 0.5, 0.4), "b": ("e2", 0.9, 0.9), "c": ("e1", 0.6, 0.3), "d": ("e2", 0.1, 0.1)}
    for name, (evaluation, add, out) in cells.items():
        row = {**plan_row(name, 0, clip=name), "eval_id": evaluation}
        write_run(sweep, row, "done", add, sort=out, max=out)
    write_run(sweep, {**plan_row("e", 0, clip="e"), "eval_id": "e1"}, "diverged", None)
    write_run(sweep, {**plan_row("f", 0, clip="f"), "eval_id": "e2"}, "running", None)
    found, *_ = scatters(compare(sweep))
    assert [p.group for p in found.points] == [0, 1, 0, 1]
    assert [p.front for p in found.points] == [True, True, True, False]
    (told,) = stability_maps(compare(sweep))
    assert [rate and rate[:2] for rate in told.rates[0]] == [(1, 3)]
    assert told.cells == [[[0, 2, 4, 5]]]
    assert told.planned == [[4]]
    assert "2 cells are left out, whose results are kept apart" in told.note
    assert told.note.endswith(" Cells that differ in something else are taken together.")
    (mixed,) = stability_maps(compare(sweep, mix=["evaluation"]))
    assert [rate and rate[:2] for rate in mixed.rates[0]] == [(2, 5)]
    found, *_ = scatters(compare(sweep, mix=["all"]))
    assert [p.cell for p in found.points if p.front] == [1]


def test_contrasts_are_those_of_the_table_of_effects(sweep):
    for seed in range(4):
        write_run(sweep, plan_row("a", seed), "done", 0.5 + 0.01 * seed)
        write_run(sweep, plan_row("b", seed, placement="reward"), "done", 0.7 + 0.012 * seed)
    table = effect_table(compare(sweep))
    first, *_ = forests(table)
    (contrast,) = first.contrasts
    assert contrast.label == "placement: reward rather than loss"
    assert contrast.mean == pytest.approx(0.203)
    differences = [0.2 + 0.002 * seed for seed in range(4)]
    low, high = stats.t.interval(0.95, 3, loc=0.203, scale=stats.sem(differences))
    assert (contrast.ci_low, contrast.ci_high) == pytest.approx((low, high))
