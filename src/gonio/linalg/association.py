"""How two measured quantities go together, and how little a handful of points can say about it.

Studies of models have few points: five checkpoints, three widths, two seeds. The functions here
say beside every number what the number of points allows: the smallest p-value there is, and how
strong an association would have to be to be found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations as all_orders
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from gonio.errors import SettingError, ShapeError
from gonio.linalg.resampling import Floats, Interval, Sample

__all__ = [
    "Association",
    "association",
    "association_interval",
    "slope_interval",
    "student_interval",
    "what_points_can_say",
]

Statistic: TypeAlias = Literal["pearson", "spearman"]

_LARGEST_EXACT = 8  # 8! = 40,320 orders are enumerated
_LEAST_RESAMPLED = 4
_SLACK = 1e-12  # rounding must not tell equal statistics apart


@dataclass(frozen=True)
class Association:
    """A correlation beside its permutation null.

    Attributes:
        n: Points.
        value: The correlation, in [-1, 1]; NaN where one of the quantities does not vary.
        p_value: Two-sided permutation p-value, in (0, 1].
        smallest_p: The smallest p-value these points could have given.
        is_exact: Every order was counted; otherwise random ones, the observed order among them.
    """

    n: int
    value: float
    p_value: float
    smallest_p: float
    is_exact: bool


def association(
    x: Sample,
    y: Sample,
    statistic: Statistic = "pearson",
    *,
    permutations: int = 9999,
    seed: int = 0,
) -> Association:
    """Correlation of paired values and its p-value under permutation of one of them.

    The slope of a straight line through the points has the same p-value as Pearson's correlation,
    being a multiple of it. Two-sided: twice the smaller of the two tails, at most 1.

    Args:
        x: At least two finite numbers.
        y: As many.
        statistic: ``pearson`` or ``spearman``.
        permutations: Random orders where there are more than 8 points.
        seed: Seed of those orders.

    Raises:
        SettingError: Fewer than two points, a number that is not finite, or an unknown statistic.
        ShapeError: The samples differ in length.

    Source: Phipson and Smyth 2010 (doi:10.2202/1544-6115.1585).
    """
    if statistic not in ("pearson", "spearman"):
        raise SettingError(f"statistic is {statistic!r}, expected pearson or spearman")
    first, second = _paired(x, y)
    n = len(first)
    one, other = (
        _unit(v if statistic == "pearson" else stats.rankdata(v)) for v in (first, second)
    )
    if not one.any() or not other.any():
        return Association(n, math.nan, 1.0, 1.0, True)
    value = float(np.clip(one @ other, -1.0, 1.0))
    is_exact = n <= _LARGEST_EXACT
    if is_exact:
        orders = np.array(list(all_orders(range(n))))
    else:
        rng = np.random.default_rng(seed)
        orders = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(permutations))])
    null = other[orders] @ one
    p_value = _two_sided(null, value)
    smallest = 2 / len(orders)
    if is_exact:
        smallest = min(_two_sided(null, float(null.max())), _two_sided(null, float(null.min())))
    return Association(n, value, p_value, smallest, is_exact)


def association_interval(
    x: Sample,
    y: Sample,
    statistic: Statistic = "pearson",
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a correlation over points; None below four points.

    Resamples in which a quantity does not vary have no correlation and are left out; the method
    says which share that was. With few points the interval is too narrow.

    Raises:
        SettingError: As :func:`association`.
        ShapeError: The samples differ in length.
    """
    first, second = _paired(x, y)
    n = len(first)
    if n < _LEAST_RESAMPLED:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n, size=(resamples, n))
    one, other = first[drawn], second[drawn]
    if statistic == "spearman":
        one, other = stats.rankdata(one, axis=1), stats.rankdata(other, axis=1)
    one, other = _centered(one), _centered(other)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    defined = norms > 0
    if not defined.any():
        return None
    found = np.clip((one * other).sum(axis=1)[defined] / norms[defined], -1.0, 1.0)
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.quantile(found, [tail, 1 - tail]))
    left_out = float(1 - defined.mean())
    method = f"percentile ({n} points resampled, {left_out:.1%} of the resamples undefined)"
    return Interval(low, high, confidence, method)


def student_interval(values: Sample, confidence: float = 0.95) -> Interval | None:
    """Student's interval of a mean, for few values such as seeds; None for fewer than two.

    It takes the values to be normal, which two or three cannot show; it is as wide as so few
    values make it (with two, 12.7 standard errors to either side).

    Raises:
        SettingError: A value is not finite.
    """
    sample = _finite(values)
    if len(sample) < 2:
        return None
    half = float(stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * stats.sem(sample))
    mean = float(sample.mean())
    return Interval(mean - half, mean + half, confidence, f"Student t, {len(sample)} values")


def slope_interval(x: Sample, y: Sample, confidence: float = 0.95) -> tuple[float, Interval | None]:
    """Least-squares slope of y on x and Student's interval; no interval below three points.

    NaN where x does not vary.

    Raises:
        SettingError: As :func:`association`.
        ShapeError: The samples differ in length.
    """
    first, second = _paired(x, y)
    if not _unit(first).any():
        return math.nan, None
    fit = stats.linregress(first, second)
    slope, freedom = float(fit.slope), len(first) - 2
    if freedom < 1:
        return slope, None
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * fit.stderr)
    method = f"Student t of a least-squares slope, {freedom} degrees of freedom"
    return slope, Interval(slope - half, slope + half, confidence, method)


def what_points_can_say(n: int) -> str:
    """What a correlation over n points can and cannot show, as a sentence.

    Normal theory: the correlation that reaches p = 0.05 from Student's t, the one that is found
    with power 0.8 from Fisher's z.
    """
    if n < 3:
        return f"n = {n}: fewer than three points always lie on a line, so nothing can be said"
    smallest = 2 / math.factorial(n)
    t = float(stats.t.ppf(0.975, n - 2))
    needed = t / math.sqrt(t * t + n - 2)
    text = f"n = {n}: no permutation p-value below {smallest:.2g} exists"
    if smallest > 0.05:
        return f"{text}, so no association can be shown at the 5% level, however strong"
    found = math.tanh((1.959964 + 0.841621) / math.sqrt(n - 3))
    return (
        f"{text}; |r| must exceed {needed:.2f} for p < 0.05, and a true |r| below {found:.2f} is "
        "missed more than one time in five, so a small correlation here is no evidence of none"
    )


def _paired(x: Sample, y: Sample) -> tuple[Floats, Floats]:
    first, second = _finite(x), _finite(y)
    if len(first) != len(second):
        raise ShapeError(f"paired samples have {len(first)} and {len(second)} values")
    if len(first) < 2:
        raise SettingError(f"{len(first)} points, expected at least 2")
    return first, second


def _finite(values: Sample) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ShapeError(f"values of shape {sample.shape}, expected one dimension")
    if not np.isfinite(sample).all():
        raise SettingError("a sample holds NaN or infinite values")
    return sample


def _centered(rows: Floats) -> Floats:
    """Rows minus their means; exactly zero where all values of a row are equal."""
    constant = rows.max(axis=-1, keepdims=True) == rows.min(axis=-1, keepdims=True)
    centered: Floats = np.where(constant, 0.0, rows - rows.mean(axis=-1, keepdims=True))
    return centered


def _unit(values: Floats) -> Floats:
    """Mean 0 and norm 1; zeros where all values are equal."""
    centered = _centered(values)
    norm = float(np.linalg.norm(centered))
    unit: Floats = centered / norm if norm > 0 else centered
    return unit


def _two_sided(null: Floats, value: float) -> float:
    above = float(np.mean(null >= value - _SLACK))
    below = float(np.mean(null <= value + _SLACK))
    return min(1.0, 2 * min(above, below))
