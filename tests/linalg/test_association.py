"""Correlations of few points: against SciPy, and what the smallest p-value can be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gonio.errors import SettingError, ShapeError
from gonio.linalg.association import (
    association,
    association_interval,
    slope_interval,
    student_interval,
    what_points_can_say,
)

VALUES = st.lists(st.integers(-50, 50), min_size=3, max_size=5, unique=True)


@settings(max_examples=15)
@given(VALUES, st.randoms(use_true_random=False))
def test_values_and_exact_p_values_are_those_of_scipy(x, random):
    y = [value * 3 + 100 for value in x]
    random.shuffle(y)
    first, second = np.array(x, dtype=float), np.array(y, dtype=float)
    for statistic, reference in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = association(first, second, statistic)
        assert found.value == pytest.approx(reference(first, second).statistic, abs=1e-12)
        test = stats.permutation_test(
            (second,),
            lambda v, of=reference: of(first, v).statistic,
            permutation_type="pairings",
            n_resamples=np.inf,
            vectorized=False,
        )
        assert found.p_value == pytest.approx(test.pvalue, abs=1e-12)
        assert found.is_exact
        assert found.smallest_p <= found.p_value


@pytest.mark.parametrize(("n", "least"), [(2, 1.0), (3, 1 / 3), (4, 1 / 12), (5, 1 / 60)])
def test_the_smallest_p_value_of_few_points(n, least):
    """Perfect order gives the least p-value there is, two of n! orders."""
    found = association(range(n), [v**2 for v in range(n)])
    assert found.p_value == found.smallest_p == pytest.approx(least)


def test_many_points_use_random_orders(rng):
    x = list(range(12))
    found = association(x, x, permutations=199)
    assert not found.is_exact
    assert found.p_value == found.smallest_p == 2 / 200
    noise = [float(v) for v in np.random.default_rng(0).normal(size=12)]
    assert association(x, noise).p_value == association(x, noise).p_value


def test_what_does_not_vary_correlates_with_nothing():
    found = association([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert math.isnan(found.value)
    assert (found.p_value, found.smallest_p) == (1.0, 1.0)
    assert association_interval([2.0] * 5, range(5)) is None
    assert math.isnan(slope_interval([0.1] * 3, [1.0, 2.0, 3.0])[0])


def test_intervals_hold_the_estimate_and_say_how_they_were_made():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [1.2, 1.9, 3.4, 3.9, 5.1]
    for statistic in ("pearson", "spearman"):
        found = association_interval(x, y, statistic)
        assert found.low <= association(x, y, statistic).value <= found.high
        assert "5 points" in found.method
    assert association_interval(x[:3], y[:3]) is None


def test_student_intervals_are_those_of_scipy():
    values = [3.0, 4.5, 2.5]
    found = student_interval(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert student_interval([1.0]) is None
    two = student_interval([1.0, 2.0])
    assert (two.high - two.low) / 2 == pytest.approx(12.706 * 0.5, rel=1e-4)


def test_slopes_are_those_of_least_squares():
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 2.5, 2.0, 5.0])
    slope, interval = slope_interval(x, y)
    design = np.stack([x, np.ones(4)], axis=1)
    solution, residual = np.linalg.lstsq(design, y, rcond=None)[:2]
    error = math.sqrt(residual[0] / 2 / ((x - x.mean()) ** 2).sum())
    assert slope == pytest.approx(solution[0])
    assert interval.high - slope == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert slope_interval([0.0, 1.0], [0.0, 2.0]) == (2.0, None)


def test_sentences_say_what_is_possible():
    assert "nothing can be said" in what_points_can_say(2)
    assert "however strong" in what_points_can_say(4)
    five = what_points_can_say(5)
    assert "below 0.017" in five
    assert "0.88" in five
    needed = 0.8783
    t = needed * math.sqrt(3 / (1 - needed**2))
    assert 2 * stats.t.sf(t, 3) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "error"),
    [
        ([1.0], [1.0], SettingError),
        ([1.0, 2.0], [1.0], ShapeError),
        ([1.0, math.nan], [1.0, 2.0], SettingError),
        ([[1.0], [2.0]], [1.0, 2.0], ShapeError),
    ],
)
def test_what_is_no_sample_is_refused(x, y, error):
    with pytest.raises(error):
        association(x, y)
    with pytest.raises(SettingError, match="pearson or spearman"):
        association([1.0, 2.0], [1.0, 2.0], "kendall")
