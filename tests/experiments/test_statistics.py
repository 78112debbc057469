"""Intervals against the textbook, and the rule of verdicts on both sides of its edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.report.statistics import Interval, interval, paired_effect_pct, verdict

VALUES = st.lists(st.floats(0.5, 9.0), min_size=2, max_size=8)


@given(values=VALUES)
def test_the_interval_is_students(values):
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert found.ci95 == pytest.approx(half, abs=1e-12)
    if half > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high))


def test_one_value_has_no_interval():
    assert interval([2.5]) == Interval(2.5, None)
    assert (Interval(2.5, None).low, Interval(2.5, None).high) == (-math.inf, math.inf)


@given(values=VALUES, shift=st.floats(-0.2, 0.2))
def test_the_effect_is_paired_seed_by_seed(values, shift):
    """A common factor on every seed is that effect exactly, however far the seeds lie apart."""
    found = paired_effect_pct([value * (1 + shift) for value in values], values)
    assert found.mean == pytest.approx(100 * shift, abs=1e-9)
    assert found.ci95 == pytest.approx(0.0, abs=1e-9)


def test_counterpart_unpaired_the_same_effect_drowns():
    values = [1.0, 2.0, 3.0]
    unpaired = paired_effect_pct([value * 0.98 for value in values[::-1]], values)
    assert unpaired.ci95 > 10


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="longer"):
        paired_effect_pct([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("effect", "claim", "expected"),
    [
        (Interval(-3.0, 1.0), -2.2, "reproduced"),
        (Interval(-0.2, 0.1), -8.9, "reproduced"),  # the sign, not the size
        (Interval(3.0, 1.0), -2.2, "not reproduced"),
        (Interval(3.0, 1.0), 0.7, "reproduced"),
        (Interval(-3.0, 1.0), 0.7, "not reproduced"),
        (Interval(-1.0, 1.0), -2.2, "inconclusive"),  # the interval touches zero
        (Interval(-1.0, 2.0), -2.2, "inconclusive"),
        (Interval(-9.0, None), -2.2, "inconclusive"),
        (Interval(0.0, 0.0), -2.2, "inconclusive"),
    ],
)
def test_verdicts_on_a_signed_claim(effect, claim, expected):
    assert verdict(effect, claim) == expected


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (Interval(0.1, 0.5), "reproduced"),
        (Interval(-0.5, 0.5), "reproduced"),
        (Interval(0.5, 0.6), "inconclusive"),
        (Interval(3.0, 1.5), "not reproduced"),
        (Interval(-3.0, 1.5), "not reproduced"),
        (Interval(0.0, 5.0), "inconclusive"),
        (Interval(0.0, None), "inconclusive"),
    ],
)
def test_verdicts_on_a_claim_of_no_effect(effect, expected):
    assert verdict(effect, 0.0) == expected


@given(mean=st.floats(-5, 5), half=st.floats(0, 5), claim=st.sampled_from([-1.0, 1.0]))
def test_a_claim_and_its_opposite_get_opposite_verdicts(mean, half, claim):
    opposite = {"reproduced": "not reproduced", "not reproduced": "reproduced", "inconclusive": "inconclusive"}
    assert verdict(Interval(mean, half), claim) == opposite[verdict(Interval(mean, half), -claim)]
