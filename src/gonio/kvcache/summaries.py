"""Scores of windows in one line per method: means, and intervals with windows as their unit.

Every method reads the same windows, so whatever is compared (a method with full precision, one
codec with another) is compared window by window: the paired bootstrap draws windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gonio.errors import SettingError
from gonio.kvcache.filling import FULL
from gonio.linalg.resampling import Interval, bootstrap_interval, paired_bootstrap_interval

__all__ = ["bounds", "compare_methods", "summarize_scores"]

_SCORES = ("nll", "logit_kl", "same_top1")
_NONE = float("nan")

Floats = NDArray[np.float64]


def summarize_scores(
    scores: pd.DataFrame, by: Sequence[str] = (), *, seed: int = 0
) -> pd.DataFrame:
    """One row per method, and per value of ``by``, over all windows.

    Args:
        scores: As :func:`gonio.kvcache.evaluate_codecs` gives them, with the columns ``by``.
        by: Columns that separate evaluations, for example ``protocol``.
        seed: Seed of the bootstrap.

    Returns:
        ``by``, ``method``, ``windows``, ``scored_tokens``; ``perplexity``, ``perplexity_ratio`` (to
        full precision on the same windows), ``logit_kl`` and ``same_top1``, each with ``_low`` and
        ``_high``: a 95 % interval, NaN where there are fewer than two windows.

    Raises:
        SettingError: An evaluation lacks full precision.
    """
    rows = []
    for key, group in _by_window(scores, by):
        full = _column(group, FULL, "nll")
        for method in dict.fromkeys(group["method"]):
            nll = _column(group, method, "nll")
            row = {
                **dict(zip(by, key, strict=True)),
                "method": method,
                "windows": nll.size,
                "scored_tokens": int(group.loc[group["method"] == method, "scored_tokens"].sum()),
                "perplexity": math.exp(nll.mean()),
                **bounds("perplexity", nll, seed, exponential=True),
                "perplexity_ratio": math.exp((nll - full).mean()),
                **bounds("perplexity_ratio", nll, seed, full, exponential=True),
            }
            for name in ("logit_kl", "same_top1"):
                values = _column(group, method, name)
                row |= {name: float(values.mean()), **bounds(name, values, seed)}
            rows.append(row)
    return pd.DataFrame(rows)


def compare_methods(
    scores: pd.DataFrame, methods: Sequence[str], by: Sequence[str] = (), *, seed: int = 0
) -> pd.DataFrame:
    """Every pair of methods on the same windows.

    Args:
        scores: As :func:`gonio.kvcache.evaluate_codecs` gives them, with the columns ``by``.
        methods: Names to compare.
        by: Columns that separate evaluations.
        seed: Seed of the bootstrap.

    Returns:
        ``by``, ``first``, ``second``, ``windows``; ``perplexity_ratio`` (first over second) and the
        differences ``logit_kl_difference`` (nats per token) and ``same_top1_difference``, first
        minus second, each with ``_low`` and ``_high``. No row for fewer than two methods.
    """
    rows = []
    for key, group in _by_window(scores, by):
        for first, second in combinations(methods, 2):
            one, two = (_column(group, name, "nll") for name in (first, second))
            row = {
                **dict(zip(by, key, strict=True)),
                "first": first,
                "second": second,
                "windows": one.size,
                "perplexity_ratio": math.exp((one - two).mean()),
                **bounds("perplexity_ratio", one, seed, two, exponential=True),
            }
            for name in ("logit_kl", "same_top1"):
                one, two = (_column(group, method, name) for method in (first, second))
                difference = f"{name}_difference"
                row |= {difference: float((one - two).mean()), **bounds(difference, one, seed, two)}
            rows.append(row)
    return pd.DataFrame(rows)


def bounds(
    name: str,
    values: Floats,
    seed: int,
    other: Floats | None = None,
    *,
    exponential: bool = False,
) -> dict[str, float]:
    """Columns ``<name>_low`` and ``<name>_high`` of the mean, or of the mean paired difference.

    Args:
        name: What the mean is called.
        values: One per window.
        seed: Seed of the bootstrap.
        other: Values that are taken off, in the same order.
        exponential: The interval is of the exponential of the mean.
    """
    low = high = _NONE
    if values.size > 1:
        found: Interval = (
            bootstrap_interval(values, seed=seed)
            if other is None
            else paired_bootstrap_interval(values, other, seed=seed)
        )
        low, high = found.low, found.high
    if exponential:
        low, high = math.exp(low), math.exp(high)
    return {f"{name}_low": low, f"{name}_high": high}


def _by_window(
    scores: pd.DataFrame, by: Sequence[str]
) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    """Evaluations apart, in order; buckets of a window joined, weighted by their tokens."""
    keys = [*by, "method", "window"]
    weighted = scores[[*keys, "scored_tokens"]].copy()
    for name in _SCORES:
        weighted[name] = scores[name] * scores["scored_tokens"]
    joined = weighted.groupby(keys, sort=False, as_index=False).sum()
    for name in _SCORES:
        joined[name] /= joined["scored_tokens"]
    if not by:
        return [((), joined)]
    return list(joined.groupby(list(by), sort=False))


def _column(group: pd.DataFrame, method: str, name: str) -> Floats:
    """A score of one method, by window."""
    mine = group[group["method"] == method].sort_values("window")
    if mine.empty:
        raise SettingError(
            f"no scores of {method!r}; found {', '.join(dict.fromkeys(group['method']))}"
        )
    return mine[name].to_numpy(dtype=np.float64)
