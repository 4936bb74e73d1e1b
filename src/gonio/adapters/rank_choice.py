"""Which rank is enough: means over pairs and seeds, intervals of their curve, a recommendation.

A sweep is an array of gains over the base model, rank x seed x unit (a held-out pair or a window of
text). Units are the same at every rank, so they are resampled together; seeds too. What varies in
common then cancels from the differences between ranks, which is what a choice of rank is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gonio.adapters.adapter import Adapter
from gonio.adapters.batches import spectra_of
from gonio.adapters.update import LoraUpdate
from gonio.errors import SettingError, ShapeError
from gonio.linalg.curves import FORMULAS, CurveForm, fit_curve, num_parameters, refit_curves

__all__ = [
    "RankChoice",
    "curve_table",
    "eckart_young_table",
    "rank_table",
    "recommend_rank",
    "resampled_means",
]

Floats = NDArray[np.float64]
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class RankChoice:
    """The smallest rank that is good enough.

    Attributes:
        rank: Smallest rank whose mean gain is at least ``(1 - tolerance)`` times the best mean
            gain; None where no rank gains anything over the base model.
        tolerance: Share of the best gain that may be given up, in [0, 1).
        low: Lower end of the central 95 % of that rank over bootstrap samples; None without any.
        high: Upper end.
        shares: Share of the bootstrap samples that choose each rank.
        nothing_gained: Share of the bootstrap samples in which no rank gains anything.
    """

    rank: int | None
    tolerance: float
    low: int | None
    high: int | None
    shares: dict[int, float]
    nothing_gained: float


def resampled_means(gains: Floats, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Mean gain of every rank in bootstrap samples of seeds and units, both drawn for all ranks.

    Args:
        gains: ``(ranks, seeds, units)``, finite.
        resamples: Bootstrap samples, at least 1.
        seed: Seed of the resampling.

    Returns:
        ``(resamples, ranks)``, in the unit of the gains.

    Raises:
        ShapeError: The array has another shape, or is empty.
        SettingError: A gain is not finite, or ``resamples`` is below 1.
    """
    if gains.ndim != 3 or gains.size == 0:
        raise ShapeError(f"gains must be (ranks, seeds, units), found {gains.shape}")
    if not np.isfinite(gains).all() or resamples < 1:
        raise SettingError("gains must be finite, and resamples at least 1")
    generator = np.random.default_rng(seed)
    _, seeds, units = gains.shape
    means = np.empty((resamples, gains.shape[0]))
    for i in range(resamples):  # multiplicities: one product instead of a copy of the array
        by_seed = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds) / seeds
        by_unit = np.bincount(generator.integers(units, size=units), minlength=units) / units
        means[i] = (gains @ by_unit) @ by_seed
    return means


def rank_table(ranks: Sequence[int], gains: Floats, means: Floats) -> pd.DataFrame:
    """One row per rank: ``rank, gain, gain_low, gain_high, standard_error, seeds, units``.

    Intervals are the central 95 % of the bootstrap means (:func:`resampled_means`); they and the
    standard error are NaN for a single seed and unit.
    """
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    is_single = gains.shape[1:] == (1, 1)
    nothing = np.full(len(ranks), np.nan)
    return pd.DataFrame(
        {
            "rank": list(ranks),
            "gain": gains.mean(axis=(1, 2)),
            "gain_low": nothing if is_single else low,
            "gain_high": nothing if is_single else high,
            "standard_error": nothing if is_single else means.std(axis=0),
            "seeds": gains.shape[1],
            "units": gains.shape[2],
        }
    )


def curve_table(ranks: Sequence[int], table: pd.DataFrame, means: Floats) -> pd.DataFrame:
    """Every form fitted to the mean gains, with percentile intervals over refits.

    Weighted by one over the squared standard error where all are above zero.

    Args:
        ranks: The ranks.
        table: As :func:`rank_table` returns it.
        means: As :func:`resampled_means` returns it.

    Returns:
        One row per form that has enough ranks: ``form, formula, ranks`` (number fitted to)``,
        limit, limit_low, limit_high, amplitude, amplitude_low, amplitude_high, shape, shape_low,
        shape_high`` (NaN for ``log``)``, residual, aicc, left_out_error, is_shape_at_edge``.
        AICc compares rows with the same number of ranks only.
    """
    errors = table["standard_error"].to_numpy()
    weights = errors**-2.0 if bool((errors > 0).all()) else None
    rows = []
    for form in get_args(CurveForm):
        usable = [rank for rank in ranks if form != "log" or rank > 1]
        if len(usable) < num_parameters(form):
            continue
        fit = fit_curve(form, ranks, table["gain"].to_numpy(), weights=weights)
        refits = refit_curves(form, ranks, means, weights=weights)
        low, high = np.percentile(refits, [2.5, 97.5], axis=0)
        row: dict[str, object] = {"form": form, "formula": FORMULAS[form], "ranks": len(usable)}
        found = (fit.limit, fit.amplitude, np.nan if fit.shape is None else fit.shape)
        for i, name in enumerate(("limit", "amplitude", "shape")):
            row[name] = found[i]
            row[f"{name}_low"] = low[i] if weights is not None else np.nan
            row[f"{name}_high"] = high[i] if weights is not None else np.nan
        row |= {
            "residual": fit.residual,
            "aicc": np.nan if fit.aicc is None else fit.aicc,
            "left_out_error": np.nan if fit.left_out_error is None else fit.left_out_error,
            "is_shape_at_edge": fit.is_shape_at_edge,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def recommend_rank(
    ranks: Sequence[int],
    gains: Floats,
    means: Floats | None = None,
    *,
    tolerance: float = 0.05,
) -> RankChoice:
    """The smallest rank within a tolerance of the best, and how sure the data are of it.

    Args:
        ranks: Distinct ranks.
        gains: ``(ranks, seeds, units)``; a base model gains 0.
        means: As :func:`resampled_means` returns it for these gains; made unless given.
        tolerance: Share of the best mean gain that may be given up, in [0, 1).

    Raises:
        SettingError: ``tolerance`` is out of range, a rank repeats, or a gain is not finite.
        ShapeError: The gains are of another number of ranks, or of another shape.

    Example:
        >>> gains = np.array([0.5, 0.97, 1.0])[:, None, None]  # three ranks, one seed, one unit
        >>> recommend_rank([1, 4, 16], gains).rank
        4
    """
    if not 0.0 <= tolerance < 1.0:
        raise SettingError(f"tolerance must be in [0, 1), found {tolerance}")
    if len(set(ranks)) != len(ranks):
        raise SettingError(f"ranks repeat: {', '.join(map(str, ranks))}")
    if means is None:
        means = resampled_means(gains)
    if len(ranks) != gains.shape[0] or means.shape[-1] != len(ranks):
        raise ShapeError(f"{len(ranks)} ranks, but gains {gains.shape} and means {means.shape}")
    order = np.argsort(ranks)
    sorted_ranks = np.asarray(ranks)[order]
    chosen = _smallest(sorted_ranks, gains.mean(axis=(1, 2))[order][None], tolerance)[0]
    drawn = _smallest(sorted_ranks, means[:, order], tolerance)
    kept = drawn[drawn > 0]
    low = high = None
    if kept.size and gains.shape[1:] != (1, 1):
        low, high = (
            int(np.quantile(kept, share, method="inverted_cdf")) for share in (0.025, 0.975)
        )
    return RankChoice(
        int(chosen) if chosen > 0 else None,
        tolerance,
        low,
        high,
        {int(rank): float((drawn == rank).mean()) for rank in sorted_ranks},
        float((drawn == 0).mean()),
    )


def eckart_young_table(adapter: Adapter | Sequence[LoraUpdate]) -> pd.DataFrame:
    """What the best approximation of every rank leaves out, over all modules of an adapter.

    The error of the best rank-k approximation is ``sqrt(sum_{i > k} sigma_i^2)`` in the Frobenius
    norm. The plain sum ``sum_{i > k} sigma_i``, which is sometimes printed in its place, is the
    error in the nuclear norm and never smaller; it is in the table to compare with.

    Args:
        adapter: An adapter, or updates of distinct modules.

    Returns:
        One row per rank from 0 to the largest: ``rank, frobenius_error`` (root of the sum of
        squares over modules)``, relative_error`` (over the norm of the adapter; NaN if that is
        zero)``, plain_sum`` (summed over modules)``, parameters`` (of both factors).

    Theorem: ``residual_topk_eckart_young``.
    """
    updates = tuple(adapter.updates.values()) if isinstance(adapter, Adapter) else tuple(adapter)
    largest = max((min(update.rank, *update.shape) for update in updates), default=0)
    squares, plain = np.zeros(largest + 1), np.zeros(largest + 1)
    parameters = np.zeros(largest + 1, dtype=np.int64)
    for i, spectrum in spectra_of(updates):
        sigma = spectrum.sigma.to(torch.float64).numpy()
        squares[: sigma.size] += np.cumsum(sigma[::-1] ** 2)[::-1]  # small ones first
        plain[: sigma.size] += np.cumsum(sigma[::-1])[::-1]
        parameters += np.minimum(np.arange(largest + 1), sigma.size) * sum(updates[i].shape)
    total = squares[0]
    relative = np.sqrt(squares / total) if total > 0 else np.full(largest + 1, np.nan)
    return pd.DataFrame(
        {
            "rank": np.arange(largest + 1),
            "frobenius_error": np.sqrt(squares),
            "relative_error": relative,
            "plain_sum": plain,
            "parameters": parameters,
        }
    )


def _smallest(ranks: NDArray[np.int64], means: Floats, tolerance: float) -> NDArray[np.int64]:
    """Smallest good rank of every row of means, 0 where nothing is gained; ranks ascend."""
    best = means.max(axis=1, keepdims=True)
    is_good = (means >= (1 - tolerance) * best) & (best > 0)
    return np.where(is_good.any(axis=1), ranks[is_good.argmax(axis=1)], 0)
