"""Do updates of neighboring layers share directions, and over how many layers does that fade?

For each projection, ``C(L, L + d)`` is the overlap of the top subspaces of two layers' updates,
rescaled so that chance is 0 and equal subspaces give 1. A fitted decay ``c0 exp(-d / xi)`` stands
beside a null that permutes the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.decay import fit_decay
from gonio.adapters.measure import numerical_rank_of
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError, SettingError
from gonio.linalg.chance import expected_overlap, overlap_z_score
from gonio.linalg.resampling import bootstrap_interval
from gonio.linalg.spectrum import frobenius_norm, stable_rank

__all__ = ["ALL_PROJECTIONS", "LEAST_LAYERS", "DepthCorrelator", "depth_correlator"]

ALL_PROJECTIONS = "all"
LEAST_LAYERS = 3

_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class DepthCorrelator:
    """What :func:`depth_correlator` found.

    Attributes:
        pairs: One row per projection and pair of layers: ``projection, side, layer,
            other_layer, distance`` (layers)``, k, other_k, dimension, overlap, chance, z_score,
            correlation`` (``(overlap - chance) / (1 - chance)``; chance 0, at most 1)``, cosine``
            of the two updates as vectors (chance 0) with its ``cosine_z_score``.
        distances: One row per projection and distance, and for ``all``, the mean over the
            projections of every pair: ``projection, side, distance, pairs, correlation`` and
            ``cosine`` (means)``, low, high`` (95% bootstrap interval of the mean correlation over
            pairs, which share layers; NaN for fewer than two pairs).
        decays: One row per projection and for ``all``: ``projection, side, layers, strength``
            (c0)``, decay_length`` (xi, in layers)``, decay_low, decay_high`` (95% bootstrap
            interval over layers)``, reason`` (empty, or why there is no decay length: all three
            are NaN then)``, nearest`` (mean correlation of the closest pairs) with
            ``nearest_chance`` (mean over the permutations of the layers) and ``nearest_p_value``,
            ``rank_correlation`` (Spearman, of distance and C; chance 0) and its ``rank_p_value``.
            P-values are one-sided: nearer pairs share more.
        left_out: ``(projection or module, why)``.
    """

    pairs: pd.DataFrame
    distances: pd.DataFrame
    decays: pd.DataFrame
    left_out: tuple[tuple[str, str], ...]


def depth_correlator(
    adapter: Adapter,
    side: Literal["left", "right"] = "left",
    *,
    largest_k: int = 32,
    resamples: int = 1000,
    permutations: int = 1999,
    seed: int = 0,
) -> DepthCorrelator:
    """Shared directions of an adapter's updates as a function of their distance in depth.

    Every update takes part with its top k directions, k its rounded stable rank. Modules of one
    projection in one layer (experts) and modules outside the layers are left out.

    Args:
        adapter: A loaded adapter.
        side: ``left`` (what the updates write) or ``right`` (what they read).
        largest_k: Most directions of an update, at least 1.
        resamples: Bootstrap samples, at least 1.
        permutations: Random orders of the layers, at least 1.
        seed: Seed of both.

    Raises:
        AdapterError: No projection is changed in three layers or more.
        SettingError: A setting is out of range.
    """
    if side not in ("left", "right") or min(largest_k, resamples, permutations) < 1:
        raise SettingError(
            f"side is {side!r}, largest_k {largest_k}, resamples {resamples}, permutations "
            f"{permutations}; expected left or right and numbers of at least 1"
        )
    tables: list[pd.DataFrame] = []
    layered, left_out = _by_projection(adapter)
    for projection, layers in layered.items():
        stack, reasons = _stack(projection, layers, side, largest_k)
        left_out += reasons
        if stack:
            tables.append(_pair_table(stack, side))
    if not tables:
        found = "; ".join(f"{name}: {why}" for name, why in left_out[:3])
        raise AdapterError(
            f"no depth correlator of {adapter.path}: it needs at least {LEAST_LAYERS} layers that "
            f"change one projection\n  {found}"
        )
    groups = [(table["projection"].iloc[0], table) for table in tables]
    shared = _mean_over_projections(tables) if len(tables) > 1 else None
    if shared is not None:
        groups.append((ALL_PROJECTIONS, shared))
    distances, decays = [], []
    for name, table in groups:
        label = {"projection": name, "side": side}
        distances += [label | row for row in _distance_rows(table, resamples, seed)]
        correlation, positions = _square(table)
        decays.append(label | fit_decay(correlation, positions, resamples, permutations, seed))
    return DepthCorrelator(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(distances),
        pd.DataFrame(decays),
        tuple(left_out),
    )


@dataclass(frozen=True)
class _Layer:
    """The directions of one update and its thin decomposition, of unit Frobenius norm."""

    layer: int
    update: LoraUpdate
    basis: Tensor
    left: Tensor
    right: Tensor


_Layers = dict[int, list[LoraUpdate]]


def _by_projection(adapter: Adapter) -> tuple[dict[str, _Layers], list[tuple[str, str]]]:
    """The updates of each projection by layer, and those outside the layers with the reason."""
    projections: dict[str, _Layers] = {}
    left_out: list[tuple[str, str]] = []
    for update in adapter.updates.values():
        if update.layer is None:
            left_out.append((update.module, "outside the layers"))
        else:
            layers = projections.setdefault(update.projection, {})
            layers.setdefault(update.layer, []).append(update)
    return projections, left_out


def _stack(
    projection: str, layers: _Layers, side: str, largest_k: int
) -> tuple[list[_Layer], list[tuple[str, str]]]:
    """The layers of one projection in order, none where they are too few; what is left out."""
    stack: list[_Layer] = []
    left_out: list[tuple[str, str]] = []
    for layer, updates in sorted(layers.items()):
        shape = stack[0].update.shape if stack else updates[0].shape
        if len(updates) > 1:
            reason = f"{projection} is changed {len(updates)} times in its layer"
        elif updates[0].shape != shape:
            reason = f"shape {updates[0].shape} beside {shape} in an earlier layer"
        else:
            found = _layer(layer, updates[0], side, largest_k)
            if found:
                stack.append(found)
                continue
            reason = "zero update, or its top directions are all of the space"
        left_out += [(update.module, reason) for update in updates]
    if len(stack) >= LEAST_LAYERS:
        return stack, left_out
    few = f"needs at least {LEAST_LAYERS} layers, found {len(stack)}"
    return [], [*left_out, (projection, few)]


def _layer(layer: int, update: LoraUpdate, side: str, largest_k: int) -> _Layer | None:
    """None for a zero update and where no direction of the space is left out."""
    left, sigma, right = update.svd()
    rank = numerical_rank_of(update, sigma)
    if rank == 0:
        return None
    k = min(rank, largest_k, round(float(stable_rank(sigma))))
    basis = left[:, :k] if side == "left" else right[:k].mT
    if basis.shape[0] == k:
        return None
    return _Layer(layer, update, basis, left * (sigma / frobenius_norm(sigma)), right.mT)


def _pair_table(stack: Sequence[_Layer], side: str) -> pd.DataFrame:
    """Every pair of layers of one projection."""
    overlap = _block_sums([layer.basis for layer in stack])
    cosine = _cosines(stack)
    rows = []
    for i, one in enumerate(stack):
        for j, other in enumerate(stack[i + 1 :], start=i + 1):
            (n, k), other_k = one.basis.shape, other.basis.shape[1]
            value = min(1.0, float(overlap[i, j]) / min(k, other_k))
            chance = expected_overlap(k, other_k, n)
            rows.append(
                {
                    "projection": one.update.projection,
                    "side": side,
                    "layer": one.layer,
                    "other_layer": other.layer,
                    "distance": other.layer - one.layer,
                    "k": k,
                    "other_k": other_k,
                    "dimension": n,
                    "overlap": value,
                    "chance": chance,
                    "z_score": overlap_z_score(value, k, other_k, n),
                    "correlation": (value - chance) / (1 - chance),
                    "cosine": max(-1.0, min(1.0, float(cosine[i, j]))),
                    "cosine_z_score": float(cosine[i, j])
                    * (one.update.out_features * one.update.in_features) ** 0.5,
                }
            )
    return pd.DataFrame(rows)


def _cosines(stack: Sequence[_Layer]) -> Tensor:
    """Inner products of the updates, which have unit norm; shape ``(L, L)``."""
    m, n = stack[0].update.shape
    rank = max(layer.left.shape[1] for layer in stack)
    if rank * (m + n) < m * n:
        return _block_sums([layer.left for layer in stack], [layer.right for layer in stack])
    # Updates of full rank are smaller as matrices than as factors.
    flat = torch.stack([(layer.left @ layer.right.mT).flatten() for layer in stack])
    return flat @ flat.mT


def _block_sums(first: Sequence[Tensor], second: Sequence[Tensor] | None = None) -> Tensor:
    """``sum((P_i^T P_j) * (Q_i^T Q_j))`` for all i and j, with Q = P where there is no second.

    That is ``|P_i^T P_j|_F^2`` of one family of bases, and ``<P_i Q_i^T, P_j Q_j^T>`` of two.
    """
    wide = torch.cat(list(first), dim=1)
    gram = wide.mT @ wide
    if second is None:
        gram = gram.square()
    else:
        other = torch.cat(list(second), dim=1)
        gram = gram * (other.mT @ other)
    sizes = torch.tensor([part.shape[1] for part in first])
    owner = torch.repeat_interleave(torch.eye(len(first), dtype=gram.dtype), sizes, dim=0)
    sums: Tensor = owner.mT @ gram @ owner
    return sums


def _mean_over_projections(tables: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """Mean correlation and cosine of every pair that all projections have; None for too few."""
    joined = pd.concat(tables).groupby(["layer", "other_layer", "distance"], sort=True)
    means = joined.agg(
        correlation=("correlation", "mean"), cosine=("cosine", "mean"), count=("k", "size")
    )
    shared = means[means["count"] == len(tables)].reset_index()
    layers = set(shared["layer"]) | set(shared["other_layer"])
    return shared if len(layers) >= LEAST_LAYERS else None


def _distance_rows(table: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for distance, group in table.groupby("distance"):
        values = group["correlation"].tolist()
        low = high = float("nan")
        if len(values) > 1:
            interval = bootstrap_interval(values, resamples=resamples, seed=seed)
            low, high = interval.low, interval.high
        rows.append(
            {
                "distance": int(str(distance)),
                "pairs": len(values),
                "correlation": float(group["correlation"].mean()),
                "low": low,
                "high": high,
                "cosine": float(group["cosine"].mean()),
            }
        )
    return rows


def _square(table: pd.DataFrame) -> tuple[_Matrix, _Matrix]:
    """The correlations as a symmetric matrix (its diagonal is not used) and the layer indices."""
    layers = sorted(set(table["layer"]) | set(table["other_layer"]))
    position = {layer: i for i, layer in enumerate(layers)}
    square = np.zeros((len(layers), len(layers)))
    rows, columns = (table[name].map(position).to_numpy() for name in ("layer", "other_layer"))
    square[rows, columns] = square[columns, rows] = table["correlation"].to_numpy()
    return square, np.asarray(layers, dtype=np.float64)
