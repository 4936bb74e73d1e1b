"""Is an update a rescaling of the base weight's columns or rows? The gain residual and its null.

The best column gain ``W diag(g)`` leaves ``1 - sum_j <D_j, W_j>^2 / |W_j|^2 / |D|^2`` of the
energy of the update D. A residual near one says little by itself: a random update of m rows
leaves ``1 - 1/m``. The null here keeps the singular values and the right vectors of D and turns
its left vectors uniformly (Haar); its mean and variance are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import ShapeError, ZeroMatrixError
from gonio.linalg.lowrank import factored_frobenius_norm
from gonio.linalg.precision import upcast

__all__ = ["GainResidual", "column_gain_residual", "row_gain_residual"]

_BLOCK = 256  # columns of a Gram matrix held at once


@dataclass(frozen=True)
class GainResidual:
    """Energy of an update outside all gains of the base weight, beside its null.

    Attributes:
        residual: In [0, 1]; 0 when the update is exactly a gain.
        chance: Its mean under the null, ``1 - 1/m`` for columns and ``1 - 1/n`` for rows where
            no column or row of the base is zero.
        z_score: ``(residual - chance)`` in standard deviations of the null; negative when the
            update is closer to a gain than chance. NaN where the null does not vary.
    """

    residual: float
    chance: float
    z_score: float


def column_gain_residual(
    lora_b: Tensor, lora_a: Tensor, weight: Tensor, scaling: float = 1.0
) -> GainResidual:
    """Least-squares residual of ``scaling * B @ A ~ W diag(g)``, from the factors.

    ``<D_j, W_j> = scaling * (B^T W)_j . A_j`` and ``|D_j|^2`` comes from the Gram matrix of B.

    Args:
        lora_b: Shape ``(m, r)``.
        lora_a: Shape ``(r, n)``.
        weight: The base weight W, shape ``(m, n)``.
        scaling: Scaling of the update; it cancels, and only its being zero matters.

    Raises:
        ShapeError: The shapes do not fit.
        ZeroMatrixError: The update is zero.

    Theorem: ``column_gain_residual``.
    """
    if weight.shape != (lora_b.shape[0], lora_a.shape[1]):
        raise ShapeError(
            f"update of shape {(lora_b.shape[0], lora_a.shape[1])} "
            f"beside a weight of shape {tuple(weight.shape)}"
        )
    lora_b, lora_a, weight = lora_b.double(), lora_a.double(), upcast(weight, "weight")
    norm = float(factored_frobenius_norm(lora_b, lora_a, scaling))
    if norm == 0.0:
        raise ZeroMatrixError("the gain residual of a zero update is not defined")
    lora_b = lora_b * (scaling / norm)  # unit Frobenius norm from here on
    column_norms = torch.linalg.vector_norm(weight, dim=0, dtype=torch.float64)
    safe_norms = column_norms.clamp_min(torch.finfo(weight.dtype).tiny)
    inner = ((lora_b.mT @ weight.double()) * lora_a).sum(dim=0) / safe_norms
    residual = min(1.0, max(0.0, 1.0 - float(inner.square().sum())))
    unit = weight / safe_norms.to(weight.dtype)
    chance, variance = _null_moments(lora_b, lora_a, unit, column_norms > 0)
    z_score = (residual - chance) / math.sqrt(variance) if variance > 0 else math.nan
    return GainResidual(residual, chance, z_score)


def row_gain_residual(
    lora_b: Tensor, lora_a: Tensor, weight: Tensor, scaling: float = 1.0
) -> GainResidual:
    """Least-squares residual of ``scaling * B @ A ~ diag(g) W``, from the factors.

    The column residual of the transposed problem; arguments and errors as there.
    """
    return column_gain_residual(lora_a.mT, lora_b.mT, weight.mT, scaling)


def _null_moments(
    lora_b: Tensor, lora_a: Tensor, unit: Tensor, is_nonzero: Tensor
) -> tuple[float, float]:
    """Mean and variance of the residual when the left singular vectors are a Haar frame.

    With D of unit norm, w_j the unit columns of W, G = (w_i . w_j)^2 and H = (D^T D)^2 entrywise
    over the nonzero columns, F = sum_j |D_j|^2, X = sum G H, R = sum_ij G_ij |D_i|^2 |D_j|^2 and
    P = sum H, the fourth moments of a Haar frame of R^m give
    ``E f^2 = ((m + 1)(F^2 + 2 X) - 2 (P + R + X)) / (m (m - 1)(m + 2))`` for the kept energy f,
    whose mean is F / m.

    Source: Collins and Sniady 2006 (arXiv:math-ph/0402073), orthogonal Weingarten function.
    """
    rows = lora_b.shape[0]
    core = torch.linalg.qr(lora_b).R @ lora_a
    if not bool(is_nonzero.all()):
        core, unit = core[:, is_nonzero], unit[:, is_nonzero]
    energy = core.square().sum(dim=0)
    kept = float(energy.sum())
    mean = kept / rows
    if rows < 2:
        return 1.0 - mean, 0.0
    total_gram = float((core @ core.mT).square().sum())  # of the small side: the sum is the same
    gain_gram, cross = _gram_sums(unit.float(), core.float(), energy.float())
    second = (rows + 1) * (kept**2 + 2 * cross) - 2 * (total_gram + gain_gram + cross)
    return 1.0 - mean, second / (rows * (rows - 1) * (rows + 2)) - mean**2


def _gram_sums(unit: Tensor, core: Tensor, energy: Tensor) -> tuple[float, float]:
    """R and X of :func:`_null_moments`, from the upper triangle in blocks of rows.

    In float32: half the digits suffice for a standard deviation, and these products dominate.
    """
    gain_gram = cross = 0.0
    for start in range(0, core.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        base = (unit[:, block].mT @ unit[:, start:]).square_()
        update = (core[:, block].mT @ core[:, start:]).square_()
        twice = torch.full_like(energy[start:], 2.0)  # entries right of the block stand for two
        twice[:_BLOCK] = 1.0
        gain_gram += float((energy[block] @ base).double() @ (energy[start:] * twice).double())
        cross += float(base.mul_(update).sum(dim=0).double() @ twice.double())
    return gain_gram, cross
