"""Paired differences, several comparisons at once, which may be best, seeds needed: other ways to the same numbers."""

import numpy as np
import pytest
from scipy import integrate, stats

from klsweep.analysis.paired import best_of, holm, paired_difference, power, seeds_needed


def test_a_paired_difference_is_scipys_paired_t():
    cell = {0: 0.5, 1: 0.7, 2: 0.65, 5: 0.9}
    baseline = {0: 0.4, 1: 0.65, 2: 0.5, 3: 0.1, 4: 0.2}
    common = [(cell[seed], baseline[seed]) for seed in (0, 1, 2)]
    known = stats.ttest_rel(*map(list, zip(*common, strict=True)))
    found = paired_difference(cell, baseline)
    assert found is not None
    interval = known.confidence_interval()
    assert found.estimate == (3, pytest.approx(0.1), pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.p == pytest.approx(known.pvalue)
    assert found.spread == pytest.approx(np.std([0.1, 0.05, 0.15], ddof=1))
    assert (found.alone, found.baseline_alone) == (1, 2)


def test_what_seeds_have_in_common_cancels():
    """Seeds differ by far more than cells: unpaired, nothing would be found."""
    baseline = {0: 0.1, 1: 0.5, 2: 0.9}
    cell = {seed: value + 0.05 + 0.001 * seed for seed, value in baseline.items()}
    found = paired_difference(cell, baseline)
    assert found is not None
    assert found.p is not None
    assert found.p < 0.001
    assert stats.ttest_ind(list(cell.values()), list(baseline.values())).pvalue > 0.8


def test_few_common_seeds():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({0: 1.0, 1: 2.0}, {1: 1.5}) == ((1, 0.5, None, None), None, None, 1, 0)
    same = paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})
    assert same is not None
    assert (same.p, same.estimate) == (None, (2, 0.0, 0.0, 0.0))


def test_rounding_is_no_difference():
    """0.1 + 0.2 is not 0.3 in binary; nor are an equal cell and one always as much worse told apart."""
    sums, direct = dict.fromkeys(range(3), 0.1 + 0.2), dict.fromkeys(range(3), 0.3)
    found = paired_difference(sums, direct)
    assert found is not None
    assert (found.estimate, found.p, found.spread) == ((3, 0.0, 0.0, 0.0), None, 0.0)
    lower = {0: 0.7, 1: 0.1 + 0.2 + 0.1, 2: 0.8}
    higher = {seed: value + 0.1 for seed, value in lower.items()}  # by 0.1 up to rounding
    shifted = paired_difference(higher, lower)
    assert shifted is not None
    assert (shifted.estimate.mean, shifted.p) == (pytest.approx(0.1), None)
    assert best_of({"a": sums, "b": direct}).tied == {"a", "b"}
    assert best_of({"a": lower, "b": higher}) == ("b", {"a", "b"})


def test_equal_cells_of_coarse_accuracies_are_seldom_told_apart():
    """Two seeds, 16 prompts: 5 % of studies may find a difference; were no spread p = 0, 7 % would by that alone."""
    rng = np.random.default_rng(0)
    studies = rng.binomial(16, 0.5, size=(4000, 2, 2)) / 16
    found = [paired_difference(dict(enumerate(a)), dict(enumerate(b))) for a, b in studies.tolist()]
    assert np.mean([d is not None and d.p is not None and d.p < 0.05 for d in found]) < 0.05
    assert np.mean([d is not None and not d.spread and d.estimate.mean != 0 for d in found]) > 0.06


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04 times 4, 3, 2, 1 is .04 .06 .06 .04, made to rise: .04 .06 .06 .06."""
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == [
        pytest.approx(0.06),
        pytest.approx(0.04),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_who_may_be_best():
    noise = {0: 0.010, 1: -0.012, 2: 0.004, 3: -0.002, 4: 0.001}
    cells = {
        "best": {seed: 0.90 + e for seed, e in noise.items()},
        "near": {seed: 0.899 + e * 1.1 - 0.004 * (seed == 2) for seed, e in noise.items()},
        "worse": {seed: 0.70 - 2 * e for seed, e in noise.items()},
        "one seed": {0: 0.1},
        "other seeds": {7: 0.2, 8: 0.2, 9: 0.2},
        "none": {},
    }
    found = best_of(cells)
    assert found is not None
    assert found == ("best", {"best", "near", "one seed", "other seeds"})
    lowest = best_of({name: {s: -v for s, v in values.items()} for name, values in cells.items()}, highest=False)
    assert lowest == found
    assert best_of({"none": {}}) is None
    assert best_of({"only": {0: 1.0}}) == ("only", {"only"})


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_truly_best_is_kept_as_often_as_promised(seeds):
    """Six cells of one mean, the hardest case: whichever is called best, each of them is kept in 95 % of studies."""
    rng = np.random.default_rng(seeds)
    kept = 0
    for _ in range(1500):
        values = rng.normal(size=(6, seeds)) + rng.normal(size=seeds)
        found = best_of({i: dict(enumerate(row)) for i, row in enumerate(values)})
        assert found is not None
        kept += 0 in found.tied
    assert 0.94 <= kept / 1500 < 0.975


@pytest.mark.parametrize(
    ("difference", "spread", "n", "alpha"), [(0.5, 1.0, 34, 0.05), (1.0, 1.0, 3, 0.05), (0.3, 0.2, 6, 0.005)]
)
def test_power_is_that_of_a_normal_over_an_independent_chi(difference, spread, n, alpha):
    """P(|Z + δ| > c √(V/ν)), integrated over V ~ χ²_ν."""
    c, shift = stats.t.ppf(1 - alpha / 2, n - 1), difference / spread * n**0.5

    def missed(v: float) -> float:
        bound = c * (v / (n - 1)) ** 0.5
        return (stats.norm.cdf(bound - shift) - stats.norm.cdf(-bound - shift)) * stats.chi2.pdf(v, n - 1)

    expected = 1 - integrate.quad(missed, 0, np.inf, limit=200)[0]
    assert power(difference, spread, n, alpha) == pytest.approx(expected, abs=1e-6)


def test_seeds_needed_is_the_smallest_number_with_that_power():
    """d = 0.5 needs 34 pairs for 80 %, as tables of the paired t test have it."""
    found = seeds_needed(0.5, 1.0, 5)
    assert (found.total, found.more) == (34, 29)
    assert power(0.5, 1.0, 33) < 0.8 <= power(0.5, 1.0, 34)
    # χ²_{4} has 20 % below 1.648777: the spread may be 1.557585 times as large
    assert found.cautious == seeds_needed(0.5, (4 / 1.648777) ** 0.5, 5).total
    assert seeds_needed(-0.5, 1.0, 50) == (34, 0, seeds_needed(-0.5, 1.0, 50).cautious)
    assert seeds_needed(0.001, 1.0, 5) == (None, None, None)
    assert seeds_needed(0.0, 1.0, 5) == (None, None, None)
    assert seeds_needed(0.1, 0.0, 3) == (2, 0, 2)
