"""What a rank-r correction of a residual keeps, and what it keeps of noise."""

from __future__ import annotations

import math

import torch
from scipy import integrate, optimize
from torch import Tensor

from gonio.errors import SettingError, ZeroMatrixError

__all__ = ["random_top_share", "top_energy_share"]


def top_energy_share(matrix: Tensor, rank: int) -> float:
    """Share of the energy in the r largest singular directions, gamma_r.

    Squared singular values are the eigenvalues of the Gram matrix of the shorter side; the share
    of the largest is accurate to rounding. After a sign code that keeps beta, the best rank-r
    correction of its residual keeps ``1 - (1 - beta)(1 - gamma_r)`` in all.

    Args:
        matrix: Shape (m, n).
        rank: r, in [1, min(m, n)].

    Returns:
        In [r / min(m, n), 1], dimensionless; 1 for a zero matrix, of which nothing is lost.

    Raises:
        SettingError: The rank is out of range.

    Theorem: ``residual_topk_eckart_young``.
    """
    _check_rank(matrix.shape[0], matrix.shape[1], rank)
    largest = matrix.abs().max()
    if largest == 0:
        return 1.0
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).double() / largest
    energies = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0)
    return float(energies[-rank:].sum() / energies.sum())


def random_top_share(rows: int, columns: int, rank: int) -> float:
    """Gamma_r of a large matrix of independent entries: the null of a rank-r correction.

    From the Marchenko-Pastur law with aspect ``y = min/max``. With eigenvalue
    ``1 + y + 2 sqrt(y) cos t`` the energy above angle t is ``(t - sin t cos t)/pi``; t is where
    the share of eigenvalues above it is r / min. Exact as the sides grow.

    Args:
        rows: m, at least 1.
        columns: n, at least 1.
        rank: r, in [1, min(m, n)].

    Returns:
        In (0, 1], dimensionless.

    Raises:
        SettingError: The rank is out of range.

    Source: Marchenko and Pastur 1967 (doi:10.1070/SM1967v001n04ABEH001994).
    """
    _check_rank(rows, columns, rank)
    short, long = sorted((rows, columns))
    if rank == short:
        return 1.0
    y = short / long

    def count_above(angle: float) -> float:
        def density(t: float) -> float:
            below = 1.0 + y + 2.0 * math.sqrt(y) * math.cos(t)
            return 2.0 / math.pi * math.sin(t) ** 2 / below if below > 0.0 else 0.0

        return float(integrate.quad(density, 0.0, angle)[0])

    angle = optimize.brentq(lambda t: count_above(t) - rank / short, 0.0, math.pi)
    return float((angle - math.sin(angle) * math.cos(angle)) / math.pi)


def _check_rank(rows: int, columns: int, rank: int) -> None:
    if min(rows, columns) == 0:
        raise ZeroMatrixError(f"a {rows} x {columns} matrix has no singular directions")
    if not 1 <= rank <= min(rows, columns):
        raise SettingError(f"rank {rank} of a {rows} x {columns} matrix, expected 1 to the shorter")
