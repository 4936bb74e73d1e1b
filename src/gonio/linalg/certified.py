"""Leading singular subspaces with certificates, by the cheaper of two routes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk
from torch import Tensor

from gonio.linalg.certificate import (
    LOST,
    NO_GAP,
    TopSubspaces,
    check_rank,
    check_tolerance,
    residual_columns,
    scaled_weight,
    unscaled,
    worst_residual,
)
from gonio.linalg.krylov import krylov_subspaces
from gonio.linalg.precision import upcast
from gonio.linalg.spectrum import spectral_tolerance

__all__ = ["certified_subspaces", "dense_subspaces"]

# At this smaller side both routes take the same time on one core where 10 Krylov blocks do, as
# with gaps of 1% (benchmarks/base_subspaces.py); real weights need 10 to 20.
_DENSE_SIDE = 1024


def certified_subspaces(
    weight: Tensor,
    ks: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> dict[int, TopSubspaces]:
    """Leading singular triplets of a weight for every k, each with a bound on its error.

    A weight with a side of at most 1,024 is decomposed by :func:`dense_subspaces`; a larger one is
    searched by :func:`gonio.linalg.krylov.krylov_subspaces`, again in float64 for every k whose
    gap float32 products are too coarse for.

    On both routes a k is in no gap, too, where ``sigma_k - sigma_{k+1}`` is no larger than what
    the rounding of the stored entries adds to the weight in spectral norm: Wedin's theorem then
    bounds no angle by which another rounding would have turned the subspace. That is cautious, a
    random rounding turns it by less. The norm is estimated for independent roundings by
    ``eps / sqrt(12)`` times the largest row norm plus the largest column norm.

    Args:
        weight: Shape ``(m, n)``, in the dtype it is stored in.
        ks: Numbers of directions, each at most the numerical rank (in float32 for narrower
            dtypes).
        generator: Source of the starting block of a search; one seeded with 0 when omitted.
        max_iterations: Blocks of a search at most.
        tolerance: Sine at which the subspaces count as certified, in (0, 0.1].

    Returns:
        For every k its triplets and their certificate, whether or not it is within the tolerance.

    Raises:
        ShapeError: The weight is not a matrix, a k is below 1, above ``min(m, n)`` or above the
            numerical rank.
        ZeroMatrixError: The weight is zero.
        SettingError: There is no k, a setting is out of range, or the weight is not finite.

    Source: Wedin 1972 (doi:10.1007/BF01932678); Bandeira and van Handel 2016 (arXiv:1408.6185)
    for the norm of a matrix of independent entries.
    """
    if weight.ndim == 2 and min(weight.shape) <= _DENSE_SIDE:
        return dense_subspaces(weight, ks, tolerance=tolerance)
    search = partial(
        krylov_subspaces, generator=generator, max_iterations=max_iterations, tolerance=tolerance
    )
    found = search(weight, ks)
    lost = [k for k, result in found.items() if result.reason == LOST]
    if lost and weight.dtype != torch.float64:
        found |= search(weight.double(), lost)
    scaled, size = scaled_weight(weight, ks)
    noise = size * _storage_noise(scaled, weight.dtype)
    return {k: _told_apart(result, noise) for k, result in found.items()}


def dense_subspaces(
    weight: Tensor, ks: Sequence[int], *, tolerance: float = 1e-3
) -> dict[int, TopSubspaces]:
    """Leading singular triplets from the whole spectrum, in float64 on the CPU.

    The leading eigenvectors of the smaller Gram matrix, then a Rayleigh-Ritz step. The following
    value is bounded by its eigenvalue plus ``(m + n) eps |W|_F^2`` for the rounding of the Gram
    matrix and its eigenvalues: nothing rests on chance, unlike in a Krylov search. Where that
    certifies too little, a singular value decomposition follows. Arguments, returns and errors as
    for :func:`certified_subspaces`; ``iterations`` is 0.
    """
    scaled, size = scaled_weight(upcast(weight, "weight"), ks)
    check_tolerance(tolerance)
    m, n = scaled.shape
    scaled = scaled.cpu()
    tall = scaled if m >= n else scaled.mT
    noise = _storage_noise(scaled, weight.dtype)
    most = max(ks)
    for route in (_by_gram, _by_svd):
        triplets, bounds = route(tall, min(most + 1, tall.shape[1]))
        columns = residual_columns(tall, *triplets)
        found = {
            k: _told_apart(_certificate(tall, triplets, columns, bounds, k, tolerance), noise)
            for k in sorted(set(ks))
        }
        sigma = triplets[1]
        # A missing gap is settled as well where the bound is far sharper than the noise.
        if all(
            result.certified or (k < len(sigma) and bounds[k] - float(sigma[k]) <= 0.1 * noise)
            for k, result in found.items()
        ):
            break
    working = torch.float64 if weight.dtype == torch.float64 else torch.float32
    check_rank(sigma, (m, n), most, working)
    moved = {
        k: replace(result, u=result.u.to(weight.device), v=result.v.to(weight.device))
        for k, result in found.items()
    }
    return {k: unscaled(result, size, is_swapped=m < n) for k, result in moved.items()}


_Triplets = tuple[Tensor, Tensor, Tensor]


def _by_gram(tall: Tensor, count: int) -> tuple[_Triplets, list[float]]:
    """Triplets, and an upper bound on each of as many leading singular values."""
    array, n = tall.numpy(), tall.shape[1]
    # LAPACK wants columns: this way round neither layout is copied.
    is_rowwise = array.flags.c_contiguous
    gram = dsyrk(1.0, array.T if is_rowwise else array, trans=not is_rowwise, lower=1)
    rounding = sum(tall.shape) * torch.finfo(torch.float64).eps * float(gram.trace())
    values, vectors = eigh(
        gram, lower=True, subset_by_index=(n - count, n - 1), overwrite_a=True, check_finite=False
    )
    right = torch.from_numpy(vectors[:, ::-1].copy())
    left, triangle = torch.linalg.qr(tall @ right)
    turn_left, sigma, turn_right = torch.linalg.svd(triangle)
    bounds = [math.sqrt(max(0.0, float(value)) + rounding) for value in values[::-1]]
    return (left @ turn_left, sigma, right @ turn_right.mT), bounds


def _by_svd(tall: Tensor, count: int) -> tuple[_Triplets, list[float]]:
    """The same from a singular value decomposition."""
    u, sigma, vh = torch.linalg.svd(tall, full_matrices=False)
    rounding = sum(tall.shape) * torch.finfo(torch.float64).eps * float(sigma[0])
    bounds = [float(value) + rounding for value in sigma[:count]]
    return (u[:, :count], sigma[:count], vh[:count].mT), bounds


def _certificate(
    tall: Tensor,
    triplets: _Triplets,
    columns: tuple[Tensor, Tensor],
    bounds: Sequence[float],
    k: int,
    tolerance: float,
) -> TopSubspaces:
    u, sigma, v = triplets
    rounding = spectral_tolerance(sigma, sum(tall.shape), torch.float64)
    residual = worst_residual(columns, k)
    following = bounds[k] if k < tall.shape[1] else 0.0
    last = float(sigma[k - 1])
    apart = last - following
    sine_bound = min(1.0, (residual + rounding) / apart) if apart > 0 else 1.0
    certified = sine_bound <= tolerance
    reason = "" if certified else LOST if apart > 0 else NO_GAP
    gap = apart / last if last > 0 else 0.0
    return TopSubspaces(
        u[:, :k], sigma[:k], v[:, :k], residual, gap, sine_bound, certified, reason, 0
    )


def _storage_noise(scaled: Tensor, dtype: torch.dtype) -> float:
    """Spectral norm, about, of what rounding to the stored dtype changed in a scaled weight."""
    squares = scaled.square()
    rows, columns = (math.sqrt(float(squares.sum(dim=d).max())) for d in (1, 0))
    return torch.finfo(dtype).eps / math.sqrt(12) * (rows + columns)


def _told_apart(result: TopSubspaces, noise: float) -> TopSubspaces:
    """The result, not certified where its gap is within the noise (in the unit of the result)."""
    if result.gap * float(result.sigma[-1]) > noise:
        return result
    return replace(result, certified=False, reason=NO_GAP)
