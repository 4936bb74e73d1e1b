"""Intervals and p-values by resampling."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.mean_bootstrap import mean_bootstrap_interval

__all__ = [
    "Interval",
    "bootstrap_interval",
    "cluster_bootstrap_interval",
    "paired_bootstrap_interval",
    "permutation_p_value",
]

Floats: TypeAlias = NDArray[np.float64]
Sample: TypeAlias = Sequence[float] | Floats | Tensor
Statistic: TypeAlias = Literal["mean", "median"]

STATISTICS: dict[str, Callable[..., Floats]] = {"mean": np.mean, "median": np.median}
LARGEST_BCA = 10_000  # BCa leaves out each value in turn: quadratic cost, no gain at such sizes
LEAST_COUNTED = 16  # a sample of fewer values may be drawn whole: its mean is that of all, or not
BATCH_ELEMENTS = 1 << 22  # numbers resampled at a time: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A confidence interval and how it was made."""

    low: float
    high: float
    confidence: float  # coverage aimed at, in (0, 1)
    method: str  # "BCa", or "percentile (...)" with the reason


def bootstrap_interval(
    values: Sample,
    statistic: Statistic = "mean",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of the mean or median of independent values.

    Bias-corrected and accelerated (BCa); the percentile interval where BCa is undefined (equal
    values, a resampling law without spread) or has more than 10,000 values to leave out in turn.

    Args:
        values: At least two finite numbers, one-dimensional.
        statistic: ``"mean"`` or ``"median"``.
        confidence: Coverage in (0, 1).
        resamples: Number of bootstrap samples, at least 1.
        seed: Seed of the resampling; the same call gives the same interval.

    Returns:
        Interval in the unit of the values; ``method`` says which kind it is.

    Raises:
        SettingError: Fewer than two values, a non-finite value or a setting out of range.
        ShapeError: The values are not one-dimensional.

    Source: Efron 1987 (doi:10.1080/01621459.1987.10478410).
    """
    sample = _checked_sample(values, "values", least=2)
    _check_settings(statistic, resamples)
    _check_confidence(confidence)
    counted = None
    if statistic == "mean":
        counted = _counted_interval(sample, np.ones_like(sample), confidence, resamples, seed)
    return counted or _interval((sample,), STATISTICS[statistic], confidence, resamples, seed)


def cluster_bootstrap_interval(
    values: Sample,
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of the mean of values that come in clusters.

    Whole clusters are drawn with replacement, each with all its values: what varies together is
    resampled together. With one value per cluster this is :func:`bootstrap_interval` of the mean;
    values that agree within their clusters give a wider interval than it does.

    Args:
        values: Finite numbers, one-dimensional.
        clusters: The cluster of each value, in the same order; at least two distinct ones.
        confidence: Coverage in (0, 1).
        resamples: Number of bootstrap samples of clusters, at least 1.
        seed: Seed of the resampling.

    Returns:
        Interval of the mean over all values, in their unit.

    Raises:
        SettingError: As :func:`bootstrap_interval`, or all values are in one cluster.
        ShapeError: Values and clusters differ in number, or values are not one-dimensional.

    Source: Davison and Hinkley 1997 (doi:10.1017/CBO9780511802843), section 3.8.
    """
    sample = _checked_sample(values, "values", least=2)
    _check_settings("mean", resamples)
    _check_confidence(confidence)
    if len(clusters) != sample.size:
        raise ShapeError(f"{sample.size} values belong to {len(clusters)} clusters")
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    if len(places) < 2:
        raise SettingError("all values are in one cluster, expected at least two clusters")
    codes = np.array([places[name] for name in clusters])
    sizes = np.bincount(codes).astype(np.float64)
    means = np.bincount(codes, weights=sample) / sizes

    def mean(means: Floats, sizes: Floats, axis: int) -> Floats:
        weighted: Floats = (means * sizes).sum(axis=axis) / sizes.sum(axis=axis)
        return weighted

    counted = _counted_interval(means, sizes, confidence, resamples, seed)
    return counted or _interval((means, sizes), mean, confidence, resamples, seed)


def paired_bootstrap_interval(
    a: Sample,
    b: Sample,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of ``mean(a - b)`` of values measured in pairs.

    Args:
        a: At least two finite numbers, one-dimensional.
        b: As many numbers, in the same order.
        confidence: Coverage in (0, 1).
        resamples: Number of bootstrap samples of pairs, at least 1.
        seed: Seed of the resampling.

    Returns:
        Interval of the mean difference, in the unit of the values.

    Raises:
        SettingError: As :func:`bootstrap_interval`.
        ShapeError: The samples differ in length or are not one-dimensional.
    """
    first = _checked_sample(a, "a", least=2)
    second = _checked_sample(b, "b", least=2)
    if first.size != second.size:
        raise ShapeError(f"paired samples have {first.size} and {second.size} values")
    return bootstrap_interval(first - second, "mean", confidence, resamples, seed)


def permutation_p_value(
    x: Sample,
    y: Sample,
    statistic: Statistic = "mean",
    *,
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """P-value of the difference of two independent samples under exchange of their labels.

    Exact when there are no more relabelings than ``resamples``, random (and never zero) otherwise.

    Args:
        x: Finite numbers, one-dimensional, at least one.
        y: Finite numbers, one-dimensional, at least one; at least three in all with x.
        statistic: What is compared, ``"mean"`` or ``"median"``: the statistic of x minus that of y.
        alternative: ``"greater"`` asks whether x is larger than y.
        resamples: Most relabelings drawn, at least 1.
        seed: Seed of the relabeling.

    Returns:
        P-value in (0, 1].

    Raises:
        SettingError: Too few values, a non-finite value or a setting out of range.
        ShapeError: A sample is not one-dimensional.

    Source: Phipson and Smyth 2010 (doi:10.2202/1544-6115.1585).
    """
    first, second = _checked_sample(x, "x", least=1), _checked_sample(y, "y", least=1)
    _check_settings(statistic, resamples)
    if first.size + second.size < 3:
        raise SettingError("a permutation test needs at least three values in all")
    if alternative not in ("two-sided", "less", "greater"):
        raise SettingError(f"alternative is {alternative!r}, expected two-sided, less or greater")
    summary = STATISTICS[statistic]

    def difference(one: Floats, two: Floats, axis: int) -> Floats:
        return summary(one, axis=axis) - summary(two, axis=axis)

    result = stats.permutation_test(
        (first, second),
        difference,
        permutation_type="independent",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // (first.size + second.size)),
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _counted_interval(
    values: Floats, sizes: Floats, confidence: float, resamples: int, seed: int
) -> Interval | None:
    """The BCa interval of a weighted mean by the quicker way, where that is open to it."""
    if values.size < LEAST_COUNTED:
        return None
    found = mean_bootstrap_interval(values, sizes, confidence, resamples, seed)
    if found is None or not np.isfinite(found).all():
        return None
    return Interval(*found, confidence, "BCa")


def _interval(
    data: tuple[Floats, ...],
    statistic: Callable[..., Floats],
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """The BCa interval of a statistic of paired columns, or the percentile one and why."""
    reason = "percentile (more than 10,000 values)"
    if data[0].size <= LARGEST_BCA:
        low, high = _bootstrap(data, statistic, confidence, resamples, seed, "BCa")
        if np.isfinite(low) and np.isfinite(high):
            return Interval(low, high, confidence, "BCa")
        reason = "percentile (BCa undefined for these values)"
    low, high = _bootstrap(data, statistic, confidence, resamples, seed, "percentile")
    return Interval(low, high, confidence, reason)


def _bootstrap(
    data: tuple[Floats, ...],
    statistic: Callable[..., Floats],
    confidence: float,
    resamples: int,
    seed: int,
    method: Literal["BCa", "percentile"],
) -> tuple[float, float]:
    """Both ends of one interval; NaN where the method is undefined."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The NaN says it, and the caller's fallback is recorded in the interval.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            data,
            statistic,
            paired=len(data) > 1,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BATCH_ELEMENTS // data[0].size),
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _check_settings(statistic: str, resamples: int) -> None:
    """Refuse unknown statistics and empty resampling."""
    if statistic not in STATISTICS:
        raise SettingError(f"statistic is {statistic!r}, expected one of {', '.join(STATISTICS)}")
    if resamples < 1:
        raise SettingError(f"{resamples} resamples asked for, expected at least 1")


def _check_confidence(confidence: float) -> None:
    """Refuse a coverage that no interval can have."""
    if not 0.0 < confidence < 1.0:
        raise SettingError(f"confidence is {confidence}, expected a number in (0, 1)")


def _checked_sample(values: Sample, name: str, *, least: int) -> Floats:
    """The sample as a float64 vector of at least ``least`` finite numbers."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ShapeError(f"{name} has shape {sample.shape}, expected one dimension")
    if sample.size < least:
        raise SettingError(f"{name} holds {sample.size} values, expected at least {least}")
    if not np.isfinite(sample).all():
        raise SettingError(f"{name} holds NaN or infinite values")
    return sample
