"""Sharing a total of bits over units: the least sum of damages, exactly at the total.

A unit is the keys or the values of one layer. What it stores is counted in quanta, whole numbers
per unit (bits per token, or words per block of tokens), so that a total is met exactly. A policy
gives every unit its quanta: by the damage that a table says (:func:`allocate_quanta`), or in
proportion to sizes (:func:`equal_quanta`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gonio.errors import SettingError, ShapeError

__all__ = ["allocate_quanta", "equal_quanta", "lower_hull"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def allocate_quanta(
    damages: Sequence[Floats], total: int, least: Sequence[int] | None = None
) -> Counts:
    """Quanta of each unit, so that the sum of damages is least for a total.

    Greedy on the lower convex hull of each unit's damages, which is exact when they are convex:
    no other split of the total has a smaller sum (equal slopes, Everett 1963). Damages that are
    not convex are replaced by their hull.

    Args:
        damages: Of each unit, its damage at 0, 1, ... quanta, not ascending over all.
        total: Quanta to spend.
        least: Quanta that each unit must have; none unless given.

    Returns:
        Quanta of each unit, of sum ``total``.

    Raises:
        SettingError: The total is less than the least quanta or more than the tables hold.
        ShapeError: There is no unit, or not one least number per unit.

    Source: Everett 1963 (doi:10.1287/opre.11.3.399); Shoham and Gersho 1988
    (doi:10.1109/29.90373).
    """
    floor = np.zeros(len(damages), dtype=np.int64) if least is None else np.asarray(least)
    if len(damages) == 0 or len(floor) != len(damages):
        raise ShapeError(f"{len(damages)} tables of damages, {len(floor)} least numbers of quanta")
    most = np.array([len(table) - 1 for table in damages], dtype=np.int64)
    _check_total(total, floor, most)
    gains = [
        -np.diff(lower_hull(np.asarray(table[start:], dtype=np.float64)))
        for table, start in zip(damages, floor.tolist(), strict=True)
    ]
    owners = np.repeat(np.arange(len(gains)), [len(each) for each in gains])
    # Stable: a unit's gains descend, so its first quanta are always taken first.
    order = np.argsort(-np.concatenate(gains), kind="stable")[: total - int(floor.sum())]
    return floor + np.bincount(owners[order], minlength=len(gains)).astype(np.int64)


def equal_quanta(
    sizes: Sequence[float],
    total: int,
    least: Sequence[int] | None = None,
    most: Sequence[int] | None = None,
) -> Counts:
    """Quanta in proportion to sizes, by largest remainders, within each unit's limits.

    Args:
        sizes: Weight of each unit, above 0: its elements for equal bits per element.
        total: Quanta to spend.
        least: Quanta that each unit must have; none unless given.
        most: Quanta that each unit can take; no limit unless given.

    Returns:
        Quanta of each unit, of sum ``total``.

    Raises:
        SettingError: A size is not positive, or the total does not fit the limits.
    """
    weights = np.asarray(sizes, dtype=np.float64)
    if not bool((weights > 0).all()):
        raise SettingError("units share bits by sizes above 0")
    low = np.zeros(len(weights)) if least is None else np.asarray(least, dtype=np.float64)
    high = np.full(len(weights), float(total)) if most is None else np.asarray(most, np.float64)
    _check_total(total, low, high)
    # The level at which the clipped shares add up to the total, by bisection.
    under, over = 0.0, float((np.maximum(high, 1) / weights).max())
    for _ in range(200):
        level = (under + over) / 2
        spent = np.clip(level * weights, low, high).sum()
        under, over = (level, over) if spent < total else (under, level)
    ideal = np.clip(over * weights, low, high)
    whole = np.floor(ideal + 1e-9)
    order = np.argsort(-(ideal - whole), kind="stable")
    counts = whole.astype(np.int64)
    while (short := total - int(counts.sum())) != 0:
        step = 1 if short > 0 else -1
        free = counts < high if step > 0 else counts > low
        chosen = [unit for unit in (order if step > 0 else order[::-1]) if free[unit]]
        counts[chosen[: abs(short)]] += step
    return counts


def lower_hull(values: Floats) -> Floats:
    """The largest convex function below a table, at the same whole arguments.

    Args:
        values: At 0, 1, ..., finite, at least one.
    """
    corners: list[int] = []
    for place in range(len(values)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (values[b] - values[a]) * (place - a) < (values[place] - values[a]) * (b - a):
                break
            corners.pop()
        corners.append(place)
    hull: Floats = np.interp(np.arange(len(values)), corners, values[corners])
    return hull


def _check_total(
    total: int, least: NDArray[np.floating] | Counts, most: NDArray[np.floating] | Counts
) -> None:
    low, high = int(least.sum()), int(most.sum())
    if not low <= total <= high:
        raise SettingError(
            f"{total} quanta cannot be shared: the units take {low} at least and {high} at most"
        )
