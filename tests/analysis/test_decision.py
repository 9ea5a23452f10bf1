"""Verdicts against p values worked out by hand.

Student's t with two degrees of freedom is closed: P(T > t) = 1/2 − t/(2√(2 + t²)). A binomial of 1/2 counts subsets.
"""

import math

import numpy as np
import pytest

from klsweep.analysis.decision import ABOVE_ZERO, BELOW_ZERO, Region, Tails, decide, mean_tails, share_tails

UNSEEN = "cannot be seen at this scale"


def beyond(t: float) -> float:
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


def test_a_mean_is_tested_at_the_end_of_its_region():
    t = 2 / math.sqrt(1 / 3)  # 1, 2, 3: mean 2, s 1
    assert beyond(t) == pytest.approx(0.037090, abs=1e-6)
    assert mean_tails([1, 2, 3], ABOVE_ZERO) == pytest.approx((beyond(t), 1 - beyond(t)))
    assert mean_tails([1, 2, 3], BELOW_ZERO) == pytest.approx((1 - beyond(t), beyond(t)))
    assert mean_tails([1, 2, 3], Region(low=2)) == pytest.approx((0.5, 0.5))
    found = mean_tails([1, 2, 3], ABOVE_ZERO)
    assert found is not None
    assert found.p == pytest.approx(0.074180, abs=1e-6)


def test_between_two_ends_the_nearer_one_decides():
    """−11, −10, −9 is t = 8√3 above −18 and t = 7√3 below −3, so −3 decides; 1, 2, 3 is beyond it."""
    inside = mean_tails([-11, -10, -9], Region(-18, -3))
    assert inside is not None
    assert inside.outside == pytest.approx(beyond(7 * math.sqrt(3)))
    assert inside.inside == pytest.approx(1 - beyond(7 * math.sqrt(3)))
    outside = mean_tails([1, 2, 3], Region(-18, -3))  # t = 5√3 above the end
    assert outside == pytest.approx((1 - beyond(5 * math.sqrt(3)), beyond(5 * math.sqrt(3))))


def test_values_without_spread_lie_where_they_lie():
    assert mean_tails([0.5, 0.5], ABOVE_ZERO) == (0.0, 1.0)
    assert mean_tails([0.5, 0.5], BELOW_ZERO) == (1.0, 0.0)
    assert mean_tails([0.0, 0.0], ABOVE_ZERO) == (1.0, 1.0)
    assert mean_tails([1.0], ABOVE_ZERO) is None


def test_a_share_is_tested_by_counting_subsets():
    most = Region(low=0.5)
    assert share_tails(10, 10, most) == pytest.approx((1 / 1024, 1.0))
    assert share_tails(9, 10, most) == pytest.approx((11 / 1024, 1023 / 1024))
    assert share_tails(0, 10, most) == pytest.approx((1.0, 1 / 1024))
    assert share_tails(5, 10, most) == pytest.approx((638 / 1024, 638 / 1024))
    assert share_tails(1, 10, Region(high=0.5)) == pytest.approx((11 / 1024, 1023 / 1024))
    assert share_tails(0, 0, most) is None


def test_the_rule_agrees_does_not_and_cannot_tell():
    """Holm over three: 2 · 0.002 takes 3, 2 · 0.02 takes 2 and is beyond 0.05, and so is 0.4."""
    found = decide([Tails(0.002, 0.998), Tails(0.98, 0.02), None, Tails(0.8, 0.2)])
    assert found == [
        ("agrees", pytest.approx(0.012)),
        (UNSEEN, pytest.approx(0.08)),
        (UNSEEN, None),
        (UNSEEN, pytest.approx(0.4)),
    ]
    (alone,) = decide([Tails(0.98, 0.02)])
    assert alone == ("does not", pytest.approx(0.04))
    assert decide([Tails(0.0251, 0.9749)])[0].verdict == UNSEEN  # 0.0502


def test_wrong_verdicts_are_as_rare_as_promised():
    """Four figures that lie on an end of their region, so that any verdict is wrong: at most 5 % of pages have one."""
    rng, wrong, pages = np.random.default_rng(0), 0, 2000
    for _ in range(pages):
        draws = rng.normal(size=(3, 10))
        tails = [
            mean_tails(draws[0].tolist(), ABOVE_ZERO),
            mean_tails(draws[1].tolist(), Region(0, 0.2)),
            mean_tails(draws[2].tolist(), Region(-9, 0)),
            share_tails(int(rng.binomial(10, 0.5)), 10, Region(low=0.5)),
        ]
        wrong += any(decision.verdict != UNSEEN for decision in decide(tails))
    assert 0.02 < wrong / pages < 0.06
