"""BCa intervals of weighted means, of many small samples that are resampled alike.

Which values a bootstrap sample holds depends on their number and the seed only. It is drawn once
and kept as counts; the means of all samples are then one matrix-vector product. The draws, the
formulas and so the intervals are those of ``scipy.stats.bootstrap``, up to rounding.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

__all__ = ["mean_bootstrap_interval"]

_MOST_COUNTS = 1 << 20  # counts of one number of values: 8 MiB; the last four are kept


def mean_bootstrap_interval(
    values: NDArray[np.float64],
    sizes: NDArray[np.float64],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    """Both ends of the BCa interval of ``sum(values * sizes) / sum(sizes)``.

    Args:
        values: Finite, shape ``(n,)``, n at least 2.
        sizes: Positive weights, same shape; a value is drawn with its weight.
        confidence: Coverage in (0, 1).
        resamples: Number of bootstrap samples, at least 1.
        seed: Seed of the draws.

    Returns:
        NaN where the method is undefined; None where the counts would take too much memory.

    Source: Efron 1987 (doi:10.1080/01621459.1987.10478410).
    """
    if len(values) * resamples > _MOST_COUNTS:
        return None
    counts = _counts(len(values), resamples, seed)
    totals = values * sizes
    found = (counts @ totals) / (counts @ sizes)
    total, size = totals.sum(), sizes.sum()
    mean = total / size
    percentile = ((found < mean).mean() + (found <= mean).mean()) / 2
    without = (total - totals) / (size - sizes)
    moved = without.mean() - without
    alpha = (1 - confidence) / 2
    with np.errstate(all="ignore"):  # undefined where all values are equal: NaN
        skew = (moved**3).sum() / (moved**2).sum() ** 1.5 / 6
        offset = ndtri(percentile)
        ends = offset + ndtri([alpha, 1 - alpha])
        shares = ndtr(offset + ends / (1 - skew * ends))
    if not np.isfinite(shares).all():
        return float("nan"), float("nan")
    low, high = np.quantile(found, shares)
    return float(low), float(high)


@lru_cache(maxsize=4)
def _counts(n: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each bootstrap sample holds each of n values, shape ``(resamples, n)``."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    drawn += n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * n)
    return counts.astype(np.float64).reshape(resamples, n)
