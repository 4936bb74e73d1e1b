"""Subspaces of R^n, given by bases of shape ``(..., n, k)``, and the angles between them."""

import math

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg.precision import upcast
from gonio.linalg.spectrum import numerical_rank

__all__ = [
    "orthonormal_basis",
    "principal_angles",
    "subspace_overlap",
    "top_singular_subspaces",
]


def orthonormal_basis(matrix: Tensor) -> Tensor:
    """Orthonormal columns spanning the column space of a matrix of full column rank.

    The rank is judged after scaling each column to length one: a short column still counts.

    Args:
        matrix: Shape ``(..., n, k)`` with ``k <= n``.

    Returns:
        Q with ``Q^T Q = I``, shape ``(..., n, k)``, in the input dtype (float32 for narrower).

    Raises:
        ZeroMatrixError: A matrix of the batch is zero.
        ShapeError: There are more columns than rows, or the columns are linearly dependent.
    """
    matrix = upcast(matrix, "matrix")
    if matrix.ndim < 2 or not 1 <= matrix.shape[-1] <= matrix.shape[-2]:
        raise ShapeError(
            f"no basis from a matrix of shape {tuple(matrix.shape)}; "
            "expected (..., n, k) with 1 <= k <= n"
        )
    size = matrix.abs().amax(dim=-2, keepdim=True)
    if bool((size == 0).all(dim=-1).any()):
        raise ZeroMatrixError("no basis: a zero matrix spans nothing")
    columns = matrix / torch.where(size > 0, size, 1)
    length = columns.square().sum(dim=-2, keepdim=True).sqrt()
    basis: Tensor
    basis, core = torch.linalg.qr(columns / torch.where(length > 0, length, 1))
    n, k = matrix.shape[-2:]
    rank = int(numerical_rank(torch.linalg.svdvals(core), (n, k)).min())
    if rank < k:
        raise ShapeError(
            f"the {k} columns span only {rank} dimensions; drop dependent columns, "
            "or take the leading singular vectors instead"
        )
    return basis


def principal_angles(basis_u: Tensor, basis_v: Tensor) -> Tensor:
    """Principal angles between two column spaces, accurate at both ends of the range.

    Angles under 45 degrees come from sines (singular values of the part of one basis outside the
    other space), the rest from cosines: either alone loses half the digits at its flat end.

    Args:
        basis_u: Orthonormal columns, shape ``(..., n, k)``.
        basis_v: Orthonormal columns, shape ``(..., n, l)``; same n, dtype and device.

    Returns:
        Radians, ascending, in [0, pi/2], shape ``(..., min(k, l))``.

    Raises:
        ShapeError: The ambient dimensions differ.
        SettingError: The columns are not orthonormal.

    Source: Bjorck and Golub 1973 (doi:10.1090/S0025-5718-1973-0348991-3).
    """
    wide, narrow = _checked_pair(basis_u, basis_v)
    if wide.shape[-1] < narrow.shape[-1]:
        wide, narrow = narrow, wide
    inner = wide.mT @ narrow
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(narrow - wide @ inner).clamp(max=1).flip(-1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


def subspace_overlap(basis_u: Tensor, basis_v: Tensor) -> Tensor:
    """Mean squared cosine of the principal angles between two column spaces.

    ``||U^T V||_F^2 / min(k, l)``: 1 when the smaller space lies inside the larger, 0 when
    orthogonal. Uniformly random spaces of R^n give ``max(k, l) / n`` on average
    (:func:`gonio.linalg.chance.expected_overlap`).

    Args:
        basis_u: Orthonormal columns, shape ``(..., n, k)``.
        basis_v: Orthonormal columns, shape ``(..., n, l)``; same n, dtype and device.

    Returns:
        Overlap in [0, 1], dimensionless, shape ``(...)``, in the input dtype.

    Raises:
        ShapeError: The ambient dimensions differ.
        SettingError: The columns are not orthonormal.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 7.2.
    Theorem: ``random_subspace_expected_overlap``.
    """
    basis_u, basis_v = _checked_pair(basis_u, basis_v)
    smaller = min(basis_u.shape[-1], basis_v.shape[-1])
    energy = (basis_u.mT @ basis_v).square().sum(dim=(-2, -1))
    return (energy / smaller).clamp(max=1)


def top_singular_subspaces(weight: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading singular triplets of a weight matrix.

    Eigenvectors of the smaller Gram matrix in float64, then a Rayleigh-Ritz step on the other
    side, which restores orthonormality and the digits the squaring lost. Where the k-th value lies
    so deep that the Gram matrix cannot resolve it, a full decomposition is taken instead.

    Args:
        weight: Shape ``(..., m, n)``.
        k: Number of directions, at most the numerical rank (in the dtype of ``weight``, float32
            for narrower ones).

    Returns:
        ``u`` ``(..., m, k)``, ``sigma`` ``(..., k)`` descending, ``v`` ``(..., n, k)``; float64.

    Raises:
        ShapeError: k is below 1, above ``min(m, n)`` or above the numerical rank: the directions
            past it are rounding noise.
        ZeroMatrixError: The weight is zero.
    """
    weight = upcast(weight, "weight")
    if weight.ndim < 2 or not 1 <= k <= min(weight.shape[-2:]):
        raise ShapeError(
            f"{k} singular directions asked of a weight of shape {tuple(weight.shape)}; "
            "expected 1 <= k <= min(m, n)"
        )
    size = weight.abs().amax(dim=(-2, -1), keepdim=True).double()
    if bool((size == 0).any()):
        raise ZeroMatrixError(f"a zero weight {tuple(weight.shape)} has no singular directions")
    m, n = weight.shape[-2:]
    scaled = weight.double() / size
    if m >= n:
        u, sigma, v = _gram_triplets(scaled, k)
    else:
        v, sigma, u = _gram_triplets(scaled.mT, k)
    resolved = 16 * math.sqrt(max(m, n) * torch.finfo(torch.float64).eps)
    if bool((sigma[..., -1] < resolved * sigma[..., 0]).any()):
        full_u, full_sigma, full_vh = torch.linalg.svd(scaled, full_matrices=False)
        u, sigma, v = full_u[..., :k], full_sigma[..., :k], full_vh[..., :k, :].mT
    rank = int(numerical_rank(sigma, (m, n), dtype=weight.dtype).min())
    if rank < k:
        raise ShapeError(
            f"{k} singular directions asked of a {m} x {n} weight of numerical rank {rank}; "
            f"ask for at most {rank}"
        )
    return u, sigma * size.squeeze(-1), v


def _gram_triplets(tall: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading triplets of a tall matrix ``(..., m, n)``, ``m >= n``, through ``tall^T tall``."""
    right = torch.linalg.eigh(tall.mT @ tall).eigenvectors[..., -k:]
    left, core = torch.linalg.qr(tall @ right)
    turn_left, sigma, turn_right = torch.linalg.svd(core)
    return left @ turn_left, sigma, right @ turn_right.mT


def _checked_pair(basis_u: Tensor, basis_v: Tensor) -> tuple[Tensor, Tensor]:
    """Both bases upcast, after checking shapes and orthonormality."""
    if basis_u.ndim < 2 or basis_v.ndim < 2:
        raise ShapeError(
            f"bases have shapes {tuple(basis_u.shape)} and {tuple(basis_v.shape)}, "
            "expected (..., n, k) and (..., n, l)"
        )
    if basis_u.shape[-2] != basis_v.shape[-2]:
        raise ShapeError(f"bases live in R^{basis_u.shape[-2]} and R^{basis_v.shape[-2]}")
    return _checked_basis(basis_u, "basis_u"), _checked_basis(basis_v, "basis_v")


def _checked_basis(basis: Tensor, name: str) -> Tensor:
    """The basis upcast; its columns must be orthonormal as far as its dtype can tell.

    Bases in float64 are often cast from float32, so float32 sets the finest tolerance.
    """
    eps = max(torch.finfo(basis.dtype).eps, torch.finfo(torch.float32).eps)
    columns = upcast(basis, name)
    k = columns.shape[-1]
    if not 1 <= k <= columns.shape[-2]:
        raise ShapeError(f"{name} has shape {tuple(basis.shape)}, expected 1 <= columns <= rows")
    identity = torch.eye(k, dtype=columns.dtype, device=columns.device)
    off = float((columns.mT @ columns - identity).abs().max())
    if not off <= math.sqrt(eps):
        raise SettingError(
            f"columns of {name} are not orthonormal (Gram matrix off by {off:.1e}); "
            "pass them through orthonormal_basis first"
        )
    return columns
