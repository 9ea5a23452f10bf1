"""Effects of axes: the cases where they are known tests, dense matrices in general, unbalanced grids, and coverage."""

import numpy as np
import pytest
from scipy import stats

from klsweep.analysis.effects import Effect, Observation, effects


def grid(values: dict[tuple[str, ...], list[float]], axes: tuple[str, ...], seeds: int = 0) -> list[Observation]:
    return [
        Observation(dict(zip(axes, levels, strict=True)), seed + seeds * i, value)
        for i, (levels, found) in enumerate(values.items())
        for seed, value in enumerate(found)
    ]


def test_two_levels_on_common_seeds_are_the_paired_t_test():
    a, b = [0.1, 0.4, 0.2, 0.6], [0.3, 0.5, 0.25, 0.9]
    found = effects(grid({("a",): a, ("b",): b}, ("x",)))
    known = stats.ttest_rel(b, a)
    (effect,) = found.main
    assert found.blocked
    assert effect[:4] == (("x",), ("b",), ("a",), pytest.approx(np.mean(b) - np.mean(a)))
    assert (effect.ci_low, effect.ci_high) == tuple(map(pytest.approx, known.confidence_interval()))
    assert (effect.freedom, effect.p) == (pytest.approx(3), pytest.approx(known.pvalue))
    assert effect.adjusted == effect.p
    assert effect.mean == 0.1625  # without the last digits of a matrix product, which depend on the processor
    assert (found.interactions, found.missing) == ([], [])


def test_two_levels_on_other_seeds_have_welchs_error():
    a, b = [0.1, 0.4, 0.2, 0.6], [0.3, 0.5]
    (effect,) = (found := effects(grid({("a",): a, ("b",): b}, ("x",), seeds=10))).main
    assert not found.blocked
    error = (np.var(a, ddof=1) / 4 + np.var(b, ddof=1) / 2) ** 0.5
    freedom = (1 / 4 + 1 / 2) ** 2 / (1 / (16 * 3) + 1 / (4 * 1))
    assert effect.freedom == pytest.approx(freedom)
    assert effect.ci_high - effect.mean == pytest.approx(stats.t.ppf(0.975, freedom) * error)


def test_a_balanced_grid_by_hand():
    """Means 1, 2; 4, 9 (x down, y across): x is (3 + 7)/2, y is (1 + 5)/2, and y does 4 more at x = b."""
    means = {("a", "c"): 1.0, ("a", "d"): 2.0, ("b", "c"): 4.0, ("b", "d"): 9.0}
    found = effects(grid({cell: [m - 0.1, m + 0.1] for cell, m in means.items()}, ("x", "y")))
    assert [(e.axes, e.mean) for e in found.main] == [(("x",), pytest.approx(5)), (("y",), pytest.approx(3))]
    (both,) = found.interactions
    assert both[:4] == (("x", "y"), ("b", "d"), ("a", "c"), pytest.approx(4))
    assert [e.adjusted >= e.p for e in found.main] == [True] * 2
    assert (both.ci_high, both.p) == (pytest.approx(4), None)  # it does so on every seed


def dense(observations: list[Observation], columns: list[list[float]], contrast: int) -> tuple[float, float, float]:
    """Estimate, HC2 error and Bell–McCaffrey's degrees of freedom, with N × N matrices as they are defined."""
    x, y = np.array(columns, float).T, np.array([o.value for o in observations])
    inverse = np.linalg.inv(x.T @ x)
    hat = x @ inverse @ x.T
    residual = np.eye(len(y)) - hat
    a = (x @ inverse)[:, contrast]
    g = np.diag(a**2 / (1 - np.diag(hat)))
    gm = g @ residual
    error = (residual @ y) @ g @ (residual @ y)
    return a @ y, error**0.5, np.trace(gm) ** 2 / np.trace(gm @ gm)


def test_an_unbalanced_grid_against_dense_matrices():
    rng = np.random.default_rng(0)
    cells = {
        ("k1", "r", "0.1"): 3,
        ("k1", "l", "0.1"): 2,
        ("k3", "r", "0.1"): 3,
        ("k3", "l", "0.4"): 3,
        ("k1", "l", "0.4"): 3,
    }
    values = {cell: rng.normal(size=n).tolist() for cell, n in cells.items()}
    observations = grid(values, ("estimator", "placement", "beta"))
    found = effects(observations)
    levels = [("estimator", "k3"), ("placement", "l"), ("beta", "0.4")]
    columns = [[1.0] * len(observations)]
    columns += [[float(o.levels[axis] == level) for o in observations] for axis, level in levels]
    columns += [[float(o.seed == seed) for o in observations] for seed in (1, 2)]
    for i, effect in enumerate(found.main, 1):
        mean, error, freedom = dense(observations, columns, i)
        assert (effect.mean, effect.freedom) == (pytest.approx(mean), pytest.approx(freedom))
        assert effect.ci_high - effect.mean == pytest.approx(stats.t.ppf(0.975, freedom) * error)
        assert effect.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, freedom))
    assert found.missing == [("placement", "r", "beta", "0.4")]
    by_axes = {effect.axes: effect for effect in found.interactions}
    assert by_axes["placement", "beta"] == Effect(("placement", "beta"), ("l", "0.4"), ("r", "0.1"), None)


def test_axes_that_move_together_cannot_be_told_apart():
    values = {("a", "c"): [1.0, 1.1], ("b", "d"): [2.0, 2.1]}
    found = effects(grid(values, ("x", "y")))
    assert [e.mean for e in (*found.main, *found.interactions)] == [None] * 3
    assert found.missing == [("x", "a", "y", "d"), ("x", "b", "y", "c")]


def test_without_repetition_there_is_an_effect_and_no_interval():
    values = {("a", "c"): [1.0], ("a", "d"): [2.0], ("b", "c"): [4.0], ("b", "d"): [9.0]}
    found = effects(grid(values, ("x", "y")))
    assert [e.mean for e in found.main] == [pytest.approx(5), pytest.approx(3)]
    assert [e[4:] for e in (*found.main, *found.interactions)] == [(None,) * 5] * 3
    assert effects([]).main == effects(grid({("a",): [1.0, 2.0]}, ("x",))).main == []


def test_intervals_cover_where_cells_differ_in_spread_and_seeds_in_level():
    """2 × 3 cells on 3 common seeds, one cell missing, spreads from 0.5 to 3: main effect and interaction."""
    rng = np.random.default_rng(0)
    cells = [("a", "c"), ("a", "d"), ("a", "e"), ("b", "c"), ("b", "d")]
    spreads = [0.5, 1.0, 3.0, 2.0, 1.0]
    hits = np.zeros(2)
    for _ in range(1000):
        level = rng.normal(size=3)
        values = {
            cell: (float(cell[0] == "b") + level + s * rng.normal(size=3)).tolist()
            for cell, s in zip(cells, spreads, strict=True)
        }
        found = effects(grid(values, ("x", "y")))
        x, interaction = found.main[0], found.interactions[0]
        hits += [x.ci_low <= 1.0 <= x.ci_high, interaction.ci_low <= 0.0 <= interaction.ci_high]
    assert ((hits / 1000 >= 0.92) & (hits / 1000 <= 0.985)).all(), hits
