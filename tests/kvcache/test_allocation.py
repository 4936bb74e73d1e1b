"""Sharing bits: exact totals, brute force on small cases, honest limits, and what is refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.kvcache.allocation import (
    allocate_quanta,
    equal_quanta,
    lower_hull,
)
from gonio.kvcache.policies import collapse_bits
from gonio.kvcache.quality_target import Trial, find_least_bits
from gonio.kvcache.sharing import LIMITS, Sharing, search_sharing

GAINS = st.lists(
    st.lists(st.integers(0, 50), min_size=1, max_size=4).map(lambda x: sorted(x, reverse=True)),
    min_size=1,
    max_size=4,
)


def convex(gains):
    """Damages that fall by gains that descend."""
    return [
        np.concatenate([[sum(each)], sum(each) - np.cumsum(each)]).astype(float) for each in gains
    ]


def spent(tables, counts):
    return sum(table[count] for table, count in zip(tables, counts, strict=True))


def brute_force(tables, total):
    """Least sum over every split of the total."""
    choices = itertools.product(*(range(len(table)) for table in tables))
    return min(spent(tables, counts) for counts in choices if sum(counts) == total)


@given(gains=GAINS, share=st.floats(0, 1))
def test_convex_damages_are_shared_as_brute_force_does(gains, share):
    tables = convex(gains)
    total = round(share * sum(len(each) for each in gains))
    counts = allocate_quanta(tables, total)
    assert counts.sum() == total
    assert spent(tables, counts) == brute_force(tables, total)


@given(
    tables=st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=6), min_size=2, max_size=4),
    share=st.floats(0, 1),
)
def test_any_table_is_met_exactly_and_never_worse_than_equal_on_its_hull(tables, share):
    tables = [np.sort(np.array(table, dtype=float))[::-1] for table in tables]
    most = [len(table) - 1 for table in tables]
    total = round(share * sum(most))
    counts = allocate_quanta(tables, total)
    uniform = equal_quanta([1.0] * len(tables), total, most=most)
    assert counts.sum() == uniform.sum() == total
    hulls = [lower_hull(table) for table in tables]
    assert spent(hulls, counts) <= spent(hulls, uniform) + 1e-9


def test_greedy_without_the_hull_would_be_wrong():
    """A first quantum that gains nothing, and a second that gains all: the mutant stops before."""
    tables = [np.array([10.0, 10, 0]), np.array([3.0, 2, 1])]
    assert allocate_quanta(tables, 2).tolist() == [2, 0]
    assert spent(tables, [2, 0]) == brute_force(tables, 2) < spent(tables, [0, 2])


@given(values=st.lists(st.integers(-20, 20), min_size=1, max_size=12))
def test_the_hull_is_the_largest_convex_function_below(values):
    table = np.array(values, dtype=float)
    hull = lower_hull(table)
    assert (hull <= table + 1e-9).all()
    assert (np.diff(hull, 2) >= -1e-9).all()
    chords = [
        min(
            ((j - k) * table[i] + (k - i) * table[j]) / (j - i) if j > i else table[k]
            for i in range(k + 1)
            for j in range(k, len(table))
        )
        for k in range(len(table))
    ]
    np.testing.assert_allclose(hull, chords, atol=1e-9)


@given(
    sizes=st.lists(st.floats(0.1, 9), min_size=1, max_size=6),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_equal_shares_meet_total_and_limits(sizes, share, data):
    low = data.draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)))
    high = [each + data.draw(st.integers(0, 20)) for each in low]
    total = round(sum(low) + share * (sum(high) - sum(low)))
    counts = equal_quanta(sizes, total, low, high)
    assert counts.sum() == total
    assert ((counts >= low) & (counts <= high)).all()


def test_equal_shares_are_proportional_where_nothing_limits_them():
    assert equal_quanta([1, 2, 3], 600).tolist() == [100, 200, 300]
    assert equal_quanta([1, 1, 1], 4).tolist() == [2, 1, 1]


def test_least_quanta_are_kept_and_impossible_totals_refused():
    tables = [np.array([9.0, 1, 0]), np.array([1.0, 0.9, 0.8])]
    assert allocate_quanta(tables, 3, [0, 1]).tolist() == [2, 1]
    for total, least in ((5, None), (0, [0, 1])):
        with pytest.raises(SettingError, match="cannot be shared"):
            allocate_quanta(tables, total, least)
    with pytest.raises(ShapeError):
        allocate_quanta([], 0)
    with pytest.raises(SettingError, match="above 0"):
        equal_quanta([1, 0], 4)


def test_the_published_rule_is_a_border_at_44_degrees_and_one_bit_for_wide_heads():
    assert collapse_bits(np.array([36.8, 44.0, 44.1, 50]), 64).tolist() == [2, 2, 3, 3]
    assert collapse_bits(np.array([36.8, 50]), 512).tolist() == [1, 1]


def bowl(optimum):
    """A divergence that is least at a sharing, its numbers acting on each other."""

    def measure(sharing):
        far = [getattr(sharing, name) - getattr(optimum, name) for name in LIMITS]
        return 1 + sum(x * x for x in far) + 0.5 * far[0] * far[1]

    return measure


@pytest.mark.parametrize("optimum", [Sharing(), Sharing(-0.4, 0.5, 1.0, 0.6), Sharing(0.3, 0.8)])
def test_a_search_comes_near_the_optimum_and_is_never_worse_than_equal_bits(optimum):
    measure = bowl(optimum)
    trials = search_sharing(measure, most=60)
    assert trials[0].sharing == Sharing()
    assert len({each.sharing for each in trials}) == len(trials) <= 60
    best = min(trials, key=lambda each: each.divergence)
    assert best.divergence < 1.02
    for each in trials:
        assert measure(each.sharing) == each.divergence
        assert all(low <= getattr(each.sharing, n) <= high for n, (low, high) in LIMITS.items())
    few = search_sharing(measure, starts=[optimum], most=2)
    assert [each.sharing for each in few] == list(dict.fromkeys([Sharing(), optimum]))[:2] or (
        optimum == Sharing()
    )


def test_a_search_among_worse_sharings_stays_and_ends():
    trials = search_sharing(lambda sharing: float(sharing != Sharing()))
    assert min(trials, key=lambda each: each.divergence).sharing == Sharing()
    assert len(trials) < 20


def curve(bits):
    """Trials of a curve that falls as codecs' do."""
    ratio = np.exp(2.0 ** (-2 * bits + 1))
    return Trial(bits, ratio, 1.001 * ratio)


@pytest.mark.parametrize("bias", [0.5, 0.9, 1.6])
@pytest.mark.parametrize("start", [0.3, 2.25, 6.0])
@pytest.mark.parametrize("target", [1.005, 1.05, 3.0])
def test_a_search_finds_where_a_curve_meets_the_target(start, target, bias):
    lowest, highest = 0.2, 8.0
    trials = find_least_bits(
        curve,
        target,
        predict=lambda bits: bias * 2.0 ** (-2 * bits + 1),
        start=start,
        lowest=lowest,
        highest=highest,
        tolerance=0.1,
    )
    exact = (1 - np.log2(np.log(target / 1.001))) / 2
    best = min(trial.bits for trial in trials if trial.bound <= target)
    assert max(exact, lowest) <= best <= max(exact, lowest) + 0.11
    assert len(trials) <= 4


def test_stand_ins_that_are_plain_wrong_cost_trials_not_truth():
    """Flat, steep, rising, far off: what is reached is reached by fitted codecs."""
    exact = (1 - np.log2(np.log(1.05 / 1.001))) / 2
    for wrong in (lambda b: 0.2, lambda b: 9.0**-b, lambda b: b / 9, lambda b: 0.0):
        trials = find_least_bits(
            curve,
            1.05,
            predict=wrong,
            start=2.25,
            lowest=0.2,
            highest=8.0,
        )
        best = min(trial.bits for trial in trials if trial.bound <= 1.05)
        assert exact <= best <= exact + 0.3
        assert len(trials) <= 10


def test_a_target_out_of_reach_or_at_once_reached_is_told():
    out = {"start": 2.0, "lowest": 1.0, "highest": 4.0, "predict": lambda bits: 0.1}
    with pytest.raises(SettingError, match="not reached at 4 bits"):
        find_least_bits(lambda bits: Trial(bits, 2.0, 2.1), 1.5, **out)
    trials = find_least_bits(lambda bits: Trial(bits, 0.9, 0.95), 1.5, **out)
    assert trials[-1].bits == 1.0
    with pytest.raises(SettingError, match="above 1"):
        find_least_bits(lambda bits: Trial(bits, 1.0, 1.0), 1.0, **out)
