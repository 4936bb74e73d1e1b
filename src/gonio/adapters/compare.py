"""An adapter beside its base model: which of the base's directions does the update use?

Every overlap stands beside its chance level k/n and a z-score from the exact variance under
uniformly random subspaces. No k exceeds the update's numerical rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.base import BaseWeights, WeightSource
from gonio.adapters.gain import column_gain_residual, row_gain_residual
from gonio.adapters.measure import numerical_rank_of
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError, GonioError, SettingError
from gonio.linalg.certificate import TopSubspaces
from gonio.linalg.certified import certified_subspaces
from gonio.linalg.chance import expected_overlap, overlap_z_score
from gonio.linalg.spectrum import frobenius_norm, stable_rank
from gonio.linalg.subspaces import subspace_overlap

__all__ = ["DEFAULT_KS", "BaseComparison", "check_ks", "compare_with_base", "overlap_columns"]

DEFAULT_KS = (5, 10, 20)


@dataclass(frozen=True)
class BaseComparison:
    """What :func:`compare_with_base` found.

    Attributes:
        overlaps: One row per module, side and k: ``module, layer, projection, side`` (``left``
            or ``right``)``, dimension`` (n of the null)``, k, k_from`` (``fixed`` or
            ``stable_rank``)``, overlap, chance, overlap_ratio, z_score, update_gap, base_gap,
            certified, certificate, base_sine_bound``. A gap is ``1 - sigma_{k+1} / sigma_k`` (of
            the base, a lower bound of it): near 0 the top-k subspace is arbitrary. The overlap
            differs from that with the exact top-k subspace of the base by at most
            ``base_sine_bound``; ``certified`` says that this is at most 1e-3 and k in a gap of
            the base, ``certificate`` why not (empty when certified).
        gains: One row per module: residuals of the best column and row gain, each with
            ``_chance`` and ``_z_score``, and the norms of the update as shares of the base's,
            ``relative_frobenius_norm`` and ``relative_spectral_norm``.
        left_out: ``(module, why)`` for updates that are zero, and for every k above the
            numerical rank of an update.
    """

    overlaps: pd.DataFrame
    gains: pd.DataFrame
    left_out: tuple[tuple[str, str], ...]


def compare_with_base(
    adapter: Adapter,
    weights: WeightSource,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> BaseComparison:
    """Overlap of every update's top directions with the base weight's, and gain residuals.

    Base weights are read one at a time. Beside the given k, the update's rounded stable rank is
    used. A k above the update's numerical rank is left out and named.

    Args:
        adapter: A loaded adapter.
        weights: The base model's tensors, for example :class:`gonio.models.WeightReader`.
        ks: Numbers of top directions, each at least 1.
        progress: Called as ``progress(what, done, total)``.

    Raises:
        AdapterError: The base lacks a module or a shape differs, or every update is zero.
        SettingError: A k is below 1.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 7. Theorem:
    ``random_subspace_expected_overlap``.
    """
    ks = check_ks(ks)
    base = BaseWeights(weights, fan_in_fan_out=adapter.settings.fan_in_fan_out)
    for module in adapter.updates:
        base.name(module)  # a missing module fails before minutes of work
    overlaps: list[dict[str, object]] = []
    gains: list[dict[str, object]] = []
    left_out: list[tuple[str, str]] = []
    for done, update in enumerate(adapter.updates.values(), start=1):
        weight = base.get(update)
        if not bool(torch.isfinite(weight).all()):
            raise AdapterError(f"the base weight of {update.module} holds NaN or infinite entries")
        rows, reasons = _module_rows(update, weight, ks)
        overlaps += rows.overlaps
        gains += rows.gains
        left_out += [(update.module, reason) for reason in reasons]
        if progress:
            progress(update.module, done, len(adapter.updates))
    if not overlaps:
        raise AdapterError(f"nothing to compare: every update of {adapter.path} is zero")
    return BaseComparison(_frame(overlaps), _frame(gains), tuple(left_out))


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """Sorted distinct k.

    Raises:
        SettingError: One is below 1.
    """
    if any(k < 1 for k in ks):
        raise SettingError(f"k must be at least 1, got {', '.join(map(str, ks))}")
    return tuple(sorted(set(ks)))


def overlap_columns(basis_u: Tensor, basis_v: Tensor) -> dict[str, float]:
    """Overlap of two subspaces of R^n with its chance level, ratio and z-score.

    Args:
        basis_u: Orthonormal columns, shape ``(n, k)``.
        basis_v: Orthonormal columns, shape ``(n, l)``.
    """
    (dimension, k), other = basis_u.shape, basis_v.shape[1]
    overlap = float(subspace_overlap(basis_u, basis_v))
    chance = float(expected_overlap(k, other, dimension))
    is_fixed = max(k, other) == dimension  # one space is all of R^n: the overlap cannot vary
    z_score = math.nan if is_fixed else float(overlap_z_score(overlap, k, other, dimension))
    return {
        "overlap": overlap,
        "chance": chance,
        "overlap_ratio": overlap / chance,
        "z_score": z_score,
    }


class _Rows(NamedTuple):
    overlaps: list[dict[str, object]]
    gains: list[dict[str, object]]


def _module_rows(update: LoraUpdate, weight: Tensor, ks: Sequence[int]) -> tuple[_Rows, list[str]]:
    """Rows of one module, and why a k or the whole module is left out."""
    left, sigma, right = update.svd()
    rank = numerical_rank_of(update, sigma)
    if rank == 0:
        return _Rows([], []), ["zero update"]
    chosen = [(k, "fixed") for k in ks if k <= rank]
    chosen.append((min(rank, round(float(stable_rank(sigma)))), "stable_rank"))
    reasons = [f"k = {k} exceeds the update's numerical rank {rank}" for k in ks if k > rank]
    base = _base_subspaces(update, weight, [k for k, _ in chosen])
    overlaps = _overlap_rows(update, (left, sigma, right.mT), base, chosen)
    return _Rows(overlaps, [_gain_row(update, weight, sigma, base)]), reasons


def _overlap_rows(
    update: LoraUpdate,
    factors: tuple[Tensor, Tensor, Tensor],
    base: Mapping[int, TopSubspaces],
    chosen: Sequence[tuple[int, str]],
) -> list[dict[str, object]]:
    left, sigma, right = factors
    rows: list[dict[str, object]] = []
    for k, source in chosen:
        found = base[k]
        for side, mine, theirs in (("left", left, found.u), ("right", right, found.v)):
            rows.append(
                {
                    "module": update.module,
                    "layer": update.layer,
                    "projection": update.projection,
                    "side": side,
                    "dimension": mine.shape[0],
                    "k": k,
                    "k_from": source,
                    **overlap_columns(mine[:, :k], theirs),
                    "update_gap": _gap(sigma, k),
                    "base_gap": max(0.0, found.gap),
                    "certified": found.certified,
                    "certificate": found.reason,
                    "base_sine_bound": found.sine_bound,
                }
            )
    return rows


def _base_subspaces(
    update: LoraUpdate, weight: Tensor, ks: Sequence[int]
) -> dict[int, TopSubspaces]:
    try:
        return certified_subspaces(weight, ks)
    except GonioError as error:
        raise AdapterError(
            f"the base weight of {update.module} has no top {max(ks)} directions: {error}"
        ) from error


def _gap(sigma: Tensor, k: int) -> float:
    following = float(sigma[k]) if k < len(sigma) else 0.0
    return 1.0 - following / float(sigma[k - 1])


def _gain_row(
    update: LoraUpdate, weight: Tensor, sigma: Tensor, base: Mapping[int, TopSubspaces]
) -> dict[str, object]:
    """Gain residuals and relative norms of one module.

    The base's spectral norm is a Ritz value, below the true one by no more than the residual.
    """
    column = column_gain_residual(update.lora_b, update.lora_a, weight, update.scaling)
    row = row_gain_residual(update.lora_b, update.lora_a, weight, update.scaling)
    base_norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    return {
        "module": update.module,
        "layer": update.layer,
        "projection": update.projection,
        "column_gain_residual": column.residual,
        "column_gain_residual_chance": column.chance,
        "column_gain_residual_z_score": column.z_score,
        "row_gain_residual": row.residual,
        "row_gain_residual_chance": row.chance,
        "row_gain_residual_z_score": row.z_score,
        "relative_frobenius_norm": float(frobenius_norm(sigma)) / base_norm,
        "relative_spectral_norm": float(sigma[0]) / max(float(b.sigma[0]) for b in base.values()),
    }


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"layer": "Int64"})
