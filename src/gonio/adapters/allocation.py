"""How many directions each module keeps: one rank, an energy share, or a parameter budget.

A module of shape (m, n) costs ``m + n`` parameters a direction, and keeping k of them discards
``sum_{i > k} sigma_i^2`` (Eckart & Young 1936), so a budget is a knapsack whose items are the
modules' prefixes of directions. It is solved exactly by dynamic programming over the budget in
units of the costs' greatest common divisor.

Theorem: ``residual_topk_eckart_young``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gonio.errors import SettingError

__all__ = ["allocate_parameters", "ranks_for_energy"]

_MAX_CELLS = 200_000_000  # choices kept by the dynamic programme, one byte each


def ranks_for_energy(spectra: Sequence[NDArray[np.float64]], share: float) -> list[int]:
    """The fewest directions of each module that hold ``share`` of its energy, at least one.

    Args:
        spectra: Singular values per module, descending.
        share: Energy to keep, in (0, 1].

    Raises:
        SettingError: ``share`` is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise SettingError(f"the energy to keep must be in (0, 1], found {share}")
    ranks = []
    for sigma in spectra:
        kept = np.cumsum(sigma**2)
        # A share of 1 must not ask for directions that only rounding separates from zero.
        enough = kept >= share * kept[-1] * (1 - 1e-15)
        ranks.append(int(np.argmax(enough)) + 1)
    return ranks


def allocate_parameters(
    spectra: Sequence[NDArray[np.float64]], costs: Sequence[int], budget: int
) -> list[int]:
    """Ranks that discard the least total energy within a parameter budget; exact.

    Args:
        spectra: Singular values per module, descending.
        costs: Parameters of one direction per module, m + n.
        budget: Parameters in all, at least the cheapest direction's cost.

    Returns:
        Rank of each module, 0 where the module is dropped.

    Raises:
        SettingError: The budget keeps nothing, or the problem is too large to solve exactly.
    """
    unit = math.gcd(*costs)
    sizes = [cost // unit for cost in costs]
    capacity = min(
        budget // unit, sum(len(s) * size for s, size in zip(spectra, sizes, strict=True))
    )
    if capacity < min(sizes):
        raise SettingError(
            f"a budget of {budget} parameters keeps no direction; the cheapest costs {min(costs)}"
        )
    if len(spectra) * (capacity + 1) > _MAX_CELLS:
        raise SettingError(
            f"a budget of {budget} parameters in units of {unit} over {len(spectra)} modules is "
            "too large to solve exactly; resize to a rank or an energy share instead"
        )
    best = np.zeros(capacity + 1)
    choices = np.zeros((len(spectra), capacity + 1), dtype=np.int16)
    for module, (sigma, size) in enumerate(zip(spectra, sizes, strict=True)):
        gains = np.cumsum(sigma**2)
        improved = best.copy()
        for rank in range(1, min(len(sigma), capacity // size) + 1):
            used = rank * size
            candidate = best[: capacity + 1 - used] + gains[rank - 1]
            better = candidate > improved[used:]
            improved[used:][better] = candidate[better]
            choices[module, used:][better] = rank
        best = improved
    ranks, left = [0] * len(spectra), int(np.argmax(best))
    for module in range(len(spectra) - 1, -1, -1):
        ranks[module] = int(choices[module, left])
        left -= ranks[module] * sizes[module]
    return ranks
