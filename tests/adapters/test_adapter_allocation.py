"""Ranks under a parameter budget equal brute force; energy shares keep what they promise."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.adapters.allocation import allocate_parameters, ranks_for_energy
from gonio.errors import SettingError

SPECTRUM = st.lists(st.floats(0, 10), min_size=1, max_size=3).map(
    lambda values: np.array(sorted(values, reverse=True))
)


def brute_force(spectra, costs, budget) -> float:
    """Largest energy any choice of ranks keeps within the budget."""
    best = 0.0
    for ranks in itertools.product(*(range(len(sigma) + 1) for sigma in spectra)):
        if sum(rank * cost for rank, cost in zip(ranks, costs, strict=True)) <= budget:
            best = max(best, kept_energy(spectra, ranks))
    return best


def kept_energy(spectra, ranks) -> float:
    return sum(float((s[:k] ** 2).sum()) for s, k in zip(spectra, ranks, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_budget_is_spent_as_well_as_brute_force_spends_it(data):
    spectra = data.draw(st.lists(SPECTRUM, min_size=1, max_size=4))
    costs = data.draw(st.lists(st.integers(1, 12), min_size=len(spectra), max_size=len(spectra)))
    budget = data.draw(st.integers(min(costs), 60))
    ranks = allocate_parameters(spectra, costs, budget)
    assert sum(rank * cost for rank, cost in zip(ranks, costs, strict=True)) <= budget
    found, best = kept_energy(spectra, ranks), brute_force(spectra, costs, budget)
    assert found == pytest.approx(best, rel=1e-12, abs=1e-12)


def test_greedy_by_energy_per_parameter_is_a_mutant_that_fails():
    """The knapsack needs more than a greedy rule: here greedy takes the small item and is stuck."""
    spectra, costs = [np.array([2.0]), np.array([3.0])], [2, 5]
    assert allocate_parameters(spectra, costs, 5) == [0, 1]
    assert 2.0**2 / 2 > 3.0**2 / 5  # greedy would start with the first


def test_a_budget_for_everything_keeps_everything():
    spectra = [np.array([3.0, 1.0]), np.array([2.0, 2.0, 1.0])]
    assert allocate_parameters(spectra, [10, 4], 10**9) == [2, 3]


def test_budgets_out_of_reach_are_refused():
    with pytest.raises(SettingError, match="keeps no direction; the cheapest costs 7"):
        allocate_parameters([np.array([1.0])], [7], 6)
    with pytest.raises(SettingError, match="too large to solve exactly"):
        allocate_parameters([np.ones(1000)] * 300, [1_000_003, *[1_000_033] * 299], 10**9)


def test_energy_shares_take_the_fewest_directions():
    spectra = [np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.0]), np.array([0.0, 0.0])]
    assert ranks_for_energy(spectra, 0.66) == [1, 1, 1]
    assert ranks_for_energy(spectra, 0.67) == [2, 1, 1]
    assert ranks_for_energy(spectra, 1.0) == [3, 1, 1]
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(SettingError, match="must be in"):
            ranks_for_energy(spectra, share)
