"""The decay of a correlation with distance: a fitted length and a null that permutes the order."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

__all__ = ["NO_DECAY", "fit_decay"]

NO_DECAY = "no decay seen"

_SHORTEST = 0.2  # in steps: c0 exp(-d / xi) then vanishes at d = 2 and nothing shorter differs
_LARGEST_TIMES_DEPTH = 10.0  # a length of ten depths is a constant
_GRID = 200
_SIGNIFICANT = 0.05

_Array = NDArray[np.float64]


def fit_decay(
    correlation: _Array, positions: _Array, resamples: int, permutations: int, seed: int
) -> dict[str, object]:
    """Fit ``c0 exp(-d / xi)`` to the correlations of all pairs; compare with permuted positions.

    Least squares over pairs, with c0 solved for and xi searched on a logarithmic grid and refined.
    The interval of xi resamples the positions, not the pairs, which share them. The length counts
    as identified when the interval and the estimate stay inside the grid, c0 is positive in 95%
    of the resamples and the rank correlation has a p-value of at most 0.05.

    Args:
        correlation: Symmetric, shape ``(L, L)``, L at least 3; the diagonal is not used.
        positions: Ascending, shape ``(L,)``.
        resamples: Bootstrap samples.
        permutations: Random orders of the positions.
        seed: Seed of both.

    Returns:
        ``layers, strength, decay_length, decay_low, decay_high, reason, nearest, nearest_chance,
        nearest_p_value, rank_correlation, rank_p_value``.
    """
    rng = np.random.default_rng(seed)
    null = _permutation_null(correlation, positions, permutations, rng)
    rows, columns = np.triu_indices(len(positions), 1)
    values = correlation[rows, columns]
    distances, which = np.unique(positions[columns] - positions[rows], return_inverse=True)
    member = np.eye(len(distances))[which]  # (pairs, distances)
    lengths = np.geomspace(_SHORTEST, _LARGEST_TIMES_DEPTH * float(np.ptp(positions)), _GRID)
    best, strength = _refined(values @ member, member.sum(axis=0), distances, lengths)

    drawn = rng.multinomial(len(positions), np.full(len(positions), 1 / len(positions)), resamples)
    weights = (drawn[:, rows] * drawn[:, columns]).astype(np.float64)
    resampled, strengths = _fit((weights * values) @ member, weights @ member, distances, lengths)
    low, high = (float(q) for q in np.quantile(resampled, [0.025, 0.975]))
    if null["rank_p_value"] > _SIGNIFICANT:
        reason = f"{NO_DECAY}: the rank correlation is within chance"
    elif strength <= 0 or float(np.mean(strengths > 0)) < 0.95:
        reason = f"{NO_DECAY}: the strength is not positive"
    elif min(best, low) <= lengths[0] or max(best, high) >= lengths[-1]:
        reason = f"{NO_DECAY}: the interval of the length reaches the end of the search"
    else:
        reason = ""
    if reason:
        strength = best = low = high = math.nan
    return {
        "layers": len(positions),
        "strength": strength,
        "decay_length": best,
        "decay_low": low,
        "decay_high": high,
        "reason": reason,
        **null,
    }


def _fit(sums: _Array, counts: _Array, values: _Array, lengths: _Array) -> tuple[_Array, _Array]:
    """Best length on the grid and its strength, for rows of sums and counts per distance.

    The sum of squares that a length explains with its best strength is ``inner^2 / norm``.
    """
    decay = np.exp(-values[:, None] / lengths[None, :])  # (distances, lengths)
    inner, norm = sums @ decay, counts @ decay**2
    strength = np.divide(inner, norm, out=np.zeros_like(inner), where=norm > 0)
    best = (inner * strength).argmax(axis=1)
    return lengths[best], strength[np.arange(len(best)), best]


def _refined(sums: _Array, counts: _Array, values: _Array, lengths: _Array) -> tuple[float, float]:
    """Least-squares length and strength of one sample, between the neighbors on the grid."""

    def at(length: float) -> tuple[float, float]:
        decay = np.exp(-values / length)
        inner, norm = float(sums @ decay), float(counts @ decay**2)
        return -(inner**2) / norm, inner / norm

    length = float(_fit(sums[None], counts[None], values, lengths)[0][0])
    if lengths[0] < length < lengths[-1]:
        step = math.log(lengths[1] / lengths[0])
        bounds = math.log(length) - step, math.log(length) + step
        found = minimize_scalar(lambda log: at(math.exp(log))[0], bounds=bounds, method="bounded")
        length = math.exp(float(found.x))
    return length, at(length)[1]


def _permutation_null(
    correlation: _Array, positions: _Array, permutations: int, rng: np.random.Generator
) -> dict[str, float]:
    """The mean of the nearest pairs and Spearman's correlation, beside permuted positions.

    Source: Phipson and Smyth 2010 (doi:10.2202/1544-6115.1585) for p-values that are never zero.
    """
    rows, columns = np.triu_indices(len(positions), 1)
    values = correlation[rows, columns]
    ranks = _standardized(rankdata(values))
    distance = np.abs(positions[:, None] - positions[None, :])
    distance_rank = np.zeros_like(distance)
    distance_rank[rows, columns] = _standardized(rankdata(distance[rows, columns]))
    distance_rank += distance_rank.T
    is_nearest = distance == distance[rows, columns].min()
    count = len(positions)
    if math.factorial(count) <= permutations + 1:  # all orders, the observed one first
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        drawn = (rng.permutation(count) for _ in range(permutations))
        orders = np.stack([np.arange(count), *drawn])
    near = np.empty(len(orders))
    rank = np.empty(len(orders))
    for i, order in enumerate(orders):
        moved = order[rows], order[columns]
        near[i] = values[is_nearest[moved]].mean()
        rank[i] = distance_rank[moved] @ ranks
    slack = 1e-12  # rounding must not tell equal statistics apart
    return {
        "nearest": float(near[0]),
        "nearest_chance": float(values.mean()),
        "nearest_p_value": float(np.mean(near >= near[0] - slack)),
        "rank_correlation": float(rank[0]),
        "rank_p_value": float(np.mean(rank <= rank[0] + slack)),
    }


def _standardized(values: _Array) -> _Array:
    """Mean 0 and norm 1; zeros where all are equal."""
    centered = values - values.mean()
    norm = float(np.linalg.norm(centered))
    unit: _Array = centered / norm if norm > 0 else centered
    return unit
