"""Intruder dimensions: leading directions of the tuned weight that the base weight does not have.

A left singular vector of ``W + Delta`` among its top k is an intruder when its largest absolute
cosine with every left singular vector of W is below a threshold. Each count stands beside the
counts of random updates with the same singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.linalg import eigh
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.base import BaseWeights, WeightSource
from gonio.adapters.measure import numerical_rank_of
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError, SettingError

__all__ = ["IntruderCount", "intruder_table"]


@dataclass(frozen=True)
class IntruderCount:
    """What :func:`intruder_table` found.

    Attributes:
        modules: One row per module: ``module, layer, projection, k, threshold, intruders``, the
            null's mean count ``chance`` with ``chance_low`` and ``chance_high`` (2.5% and 97.5%
            quantiles of the draws), ``p_value`` (share of counts at least as large among the draws
            and the count itself), ``least_cosine`` (smallest of the k largest cosines) with its
            mean over the draws ``least_cosine_chance``, and ``draws``.
        left_out: ``(module, why)``.
    """

    modules: pd.DataFrame
    left_out: tuple[tuple[str, str], ...]


def intruder_table(
    adapter: Adapter,
    weights: WeightSource,
    k: int = 10,
    threshold: float = 0.6,
    *,
    draws: int = 20,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> IntruderCount:
    """Intruder dimensions of every module, with their number for random updates.

    Cosines are taken with every left singular vector of W whose value is above rounding (about
    1e-6 of the largest): those of zero values are arbitrary. The null keeps the singular values
    of the update and draws its left and right vectors uniformly (Haar). Base weights are read one
    at a time; each is decomposed whole, in float64, and every draw costs a few leading
    eigenvectors of the smaller Gram matrix.

    Args:
        adapter: A loaded adapter.
        weights: The base model's tensors, for example :class:`gonio.models.WeightReader`.
        k: Leading left singular vectors of ``W + Delta`` looked at, at least 1; no more than
            ``min(m, n)`` of a module.
        threshold: Cosine below which a vector is an intruder, in (0, 1).
        draws: Random updates per module, at least 1.
        seed: Seed of the draws.
        progress: Called as ``progress(what, done, total)``.

    Raises:
        AdapterError: The base lacks a module, a shape differs, a base weight is zero or not
            finite, or every update is zero.
        SettingError: k, threshold or draws out of range.

    Source: Shuttleworth et al. 2024 (arXiv:2410.21228), algorithm 1. The null is ours.
    """
    if k < 1 or draws < 1 or not 0.0 < threshold < 1.0:
        raise SettingError(
            f"k is {k}, draws {draws} and threshold {threshold}; "
            "expected k >= 1, draws >= 1 and a cosine in (0, 1)"
        )
    base = BaseWeights(weights, fan_in_fan_out=adapter.settings.fan_in_fan_out)
    for module in adapter.updates:
        base.name(module)  # a missing module fails before minutes of work
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, object]] = []
    left_out: list[tuple[str, str]] = []
    for done, update in enumerate(adapter.updates.values(), start=1):
        left, sigma, right = update.svd()
        rank = numerical_rank_of(update, sigma)
        if rank == 0:
            left_out.append((update.module, "zero update"))
        else:
            weight = _Base(update, base.get(update))
            count = min(k, *update.shape)
            cosines = weight.largest_cosines(left * sigma, right, count)
            null = [
                weight.largest_cosines(*_turned(sigma[:rank], update.shape, generator), count)
                for _ in range(draws)
            ]
            rows.append(_row(update, cosines, torch.stack(null), threshold))
        if progress:
            progress(update.module, done, len(adapter.updates))
    if not rows:
        raise AdapterError(f"nothing to compare: every update of {adapter.path} is zero")
    return IntruderCount(pd.DataFrame(rows).astype({"layer": "Int64"}), tuple(left_out))


class _Base:
    """A base weight with its left singular basis, ready for many low-rank updates."""

    def __init__(self, update: LoraUpdate, weight: Tensor) -> None:
        """Decompose the weight, shape ``(m, n)``."""
        size = float(weight.abs().max())
        if not 0.0 < size < float("inf"):
            raise AdapterError(
                f"the base weight of {update.module} is zero or holds NaN or infinite entries"
            )
        self.size = size
        self.weight = weight.double() / size
        m, n = self.weight.shape
        # The smaller Gram matrix; of a tall weight its eigenvectors are the right ones.
        self.is_tall = m > n
        self.gram = self.weight.mT @ self.weight if self.is_tall else self.weight @ self.weight.mT
        squares, vectors = torch.linalg.eigh(self.gram)
        kept = squares > max(m, n) * torch.finfo(torch.float64).eps * squares[-1]
        vectors = vectors[:, kept]
        self.left = self.weight @ (vectors / squares[kept].sqrt()) if self.is_tall else vectors

    def largest_cosines(self, left: Tensor, right: Tensor, k: int) -> Tensor:
        """Of the top k left singular vectors of ``W + left @ right``: shape ``(k,)``.

        Args:
            left: Shape ``(m, r)``.
            right: Shape ``(r, n)``.
            k: Number of vectors.
        """
        left = left / self.size
        near, far = (right.mT, left) if self.is_tall else (left, right.mT)
        weight = self.weight if self.is_tall else self.weight.mT  # (far side, near side)
        cross = near @ (far.mT @ weight)
        gram = self.gram + cross + cross.mT + near @ (far.mT @ far) @ near.mT
        n = gram.shape[0]
        vectors = eigh(gram.numpy(), subset_by_index=(n - k, n - 1), check_finite=False)[1]
        top = torch.from_numpy(vectors)
        if self.is_tall:
            top = self.weight @ top + left @ (right @ top)
            top = top / torch.linalg.vector_norm(top, dim=0)
        largest: Tensor = (self.left.mT @ top).abs().amax(dim=0).clamp(max=1.0)
        return largest


def _row(update: LoraUpdate, cosines: Tensor, null: Tensor, threshold: float) -> dict[str, object]:
    """One row from largest cosines ``(k,)`` and those of the draws ``(draws, k)``."""
    intruders = int((cosines < threshold).sum())
    counts = (null < threshold).sum(dim=1).double()
    low, high = torch.quantile(counts, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {
        "module": update.module,
        "layer": update.layer,
        "projection": update.projection,
        "k": len(cosines),
        "threshold": threshold,
        "intruders": intruders,
        "chance": float(counts.mean()),
        "chance_low": low,
        "chance_high": high,
        "p_value": (1 + int((counts >= intruders).sum())) / (1 + len(counts)),
        "least_cosine": float(cosines.min()),
        "least_cosine_chance": float(null.min(dim=1).values.mean()),
        "draws": len(counts),
    }


def _turned(
    sigma: Tensor, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Factors ``(m, r)`` and ``(r, n)`` of an update with these values, Haar frames around them."""
    left, right = (_haar_frame(side, len(sigma), generator) for side in shape)
    return left * sigma, right.mT


def _haar_frame(dimension: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniformly random orthonormal columns, shape ``(dimension, columns)``."""
    gaussian = torch.randn((dimension, columns), generator=generator, dtype=torch.float64)
    frame, triangle = torch.linalg.qr(gaussian)
    uniform: Tensor = frame * triangle.diagonal().sign()  # undo the sign convention of QR
    return uniform
