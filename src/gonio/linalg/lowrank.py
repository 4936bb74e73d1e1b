"""Products ``scaling * lora_b @ lora_a`` handled through their factors, never formed.

``lora_b`` has shape ``(..., m, r)`` and ``lora_a`` ``(..., r, n)``; r may exceed m and n. All
arithmetic is float64, on cores of at most r by r (:mod:`gonio.linalg.cores`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.balance import balanced, check_factors, check_scaling, shift
from gonio.linalg.cores import Cores, FactorBatch, Factors, product_cores

__all__ = [
    "RELATIVE_ERROR",
    "FactoredSpectrum",
    "FactoredTruncation",
    "core_spectrum",
    "factored_frobenius_norm",
    "factored_inner_product",
    "factored_singular_values",
    "factored_spectrum",
    "factored_svd",
    "factored_truncation",
]

RELATIVE_ERROR = 1e-10
"""Relative error of each singular value up to which the Gram route is taken, unless given."""

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class FactoredSpectrum:
    """Singular values of a product and how far each may be off.

    Attributes:
        sigma: Singular values, descending, shape ``(..., min(m, n, r))``, float64.
        error: Bound on ``|sigma - exact|``, same shape and unit.
        by_gram: Whether the Gram route was taken rather than QR, shape ``(...)``.
    """

    sigma: Tensor
    error: Tensor
    by_gram: Tensor


@dataclass(frozen=True)
class FactoredTruncation:
    """The best approximation of a product by rank k, the singular values shared evenly.

    Attributes:
        lora_b: Left singular vectors times the roots of the singular values and the sign of the
            scaling, shape ``(..., m, k)``, float64.
        lora_a: Roots of the singular values times the right vectors, shape ``(..., k, n)``.
        spectrum: Every singular value of the product, not only the k kept.
    """

    lora_b: Tensor
    lora_a: Tensor
    spectrum: FactoredSpectrum


def factored_spectrum(
    lora_b: Factors,
    lora_a: Factors,
    scaling: float | Tensor = 1.0,
    *,
    relative_error: float = RELATIVE_ERROR,
) -> FactoredSpectrum:
    """Singular values of ``scaling * lora_b @ lora_a``, each with a bound on its error.

    Per matrix of a batch, the Gram route is taken where it moves no singular value by more than
    ``relative_error`` of itself, proved from the computed triangles. Either route adds what
    rounding leaves of the core, a multiple of eps times ``sum_k |scaling| |b_k| |a_k|``: QR
    ``max(m, n, r) + 4 r + 8``, Gram ``4 r + 8``.

    The bound of QR takes ``max(m, n, r)`` for Higham's worst case ``m r``, whose statistical
    value is its root. Bounds of Cholesky and of dot products are worst cases; that of the SVD of
    the core, LAPACK's "modest" p(r), is taken as 4 r.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``; or a sequence of matrices of one shape, which
            counts as one batch dimension and is not copied into a stack.
        lora_a: Right factor, shape ``(..., r, n)``, or as many matrices.
        scaling: Finite number, also zero or negative, or one per matrix of the batch.
        relative_error: In [0, 1); 0 takes the Gram route only where its bound is below QR's.

    Returns:
        The spectrum, its error and the route.

    Raises:
        ShapeError: The factors do not multiply or differ in shape, or a dimension is zero.
        SettingError: The factors or the scaling are not finite floating point, or the relative
            error is out of range.

    Source: Higham 2002 (doi:10.1137/1.9780898718027), theorems 10.3 and 19.4; Eisenstat and Ipsen
    1995 (doi:10.1137/0732088); Connolly and Higham 2023 (SIAM J. Matrix Anal. Appl. 44) for QR.
    """
    batch = FactorBatch.of(lora_b, lora_a, scaling)
    cores = product_cores(batch, relative_error)
    return core_spectrum(batch, cores, torch.linalg.svdvals(cores.core))


def factored_truncation(
    lora_b: Factors,
    lora_a: Factors,
    rank: int,
    scaling: float | Tensor = 1.0,
    *,
    relative_error: float = RELATIVE_ERROR,
) -> FactoredTruncation:
    """The best approximation of ``scaling * lora_b @ lora_a`` of a smaller rank, as factors.

    By the Gram route ``|U^T U - I|_2`` of the singular vectors is at most ``relative_error`` and
    the distance to the product exceeds the least possible by no more than that share of itself,
    both besides rounding; by QR there is only rounding.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``, or a sequence of matrices of one shape.
        lora_a: Right factor, shape ``(..., r, n)``, or as many matrices.
        rank: Directions to keep, at least 0; at most ``min(m, n, r)`` are.
        scaling: Finite number, also zero or negative, or one per matrix of the batch.
        relative_error: As in :func:`factored_spectrum`, above 0.

    Returns:
        Both factors and the whole spectrum.

    Raises:
        ShapeError: The factors do not multiply or differ in shape, or a dimension is zero.
        SettingError: Factors or scaling are not finite floating point, or the rank or the
            relative error is out of range.

    Source: Eckart and Young 1936 (doi:10.1007/BF02288367).
    """
    if rank < 0:
        raise SettingError(f"rank to keep is {rank}, expected at least 0")
    batch = FactorBatch.of(lora_b, lora_a, scaling)
    cores = product_cores(batch, relative_error)
    u, values, vh = torch.linalg.svd(cores.core, full_matrices=False)
    spectrum = core_spectrum(batch, cores, values)
    k = min(rank, values.shape[-1])
    roots = spectrum.sigma.reshape(values.shape)[:, :k].sqrt()
    left, right = _rooted_vectors(batch, cores, u[..., :k], roots, vh[..., :k, :])
    return FactoredTruncation(
        left.reshape(*batch.dims, *left.shape[1:]),
        right.reshape(*batch.dims, *right.shape[1:]),
        spectrum,
    )


def factored_svd(
    lora_b: Tensor, lora_a: Tensor, scaling: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition of ``scaling * lora_b @ lora_a``.

    Always by QR, so that the bases are orthonormal to rounding whatever the factors are;
    :func:`factored_truncation` is faster where a stated deviation will do.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``.
        lora_a: Right factor, shape ``(..., r, n)``.
        scaling: Finite number, also zero or negative.

    Returns:
        ``u`` ``(..., m, q)``, ``sigma`` ``(..., q)`` descending and ``vh`` ``(..., q, n)`` with
        ``q = min(m, n, r)``, float64. Directions of zero singular values complete the bases.

    Raises:
        ShapeError: The factors do not multiply, or a dimension is zero.
        SettingError: The factors or the scaling are not finite floating point.

    Cost: ``O((m + n) r^2 + r^3)``, memory ``O((m + n) r)``.
    """
    check_scaling(scaling)
    check_factors(lora_b, lora_a)
    left, right, exponent = balanced(lora_b, lora_a)
    basis_b, core_b = torch.linalg.qr(left)
    basis_a, core_a = torch.linalg.qr(right.mT)
    u, sigma, vh = torch.linalg.svd(core_b @ core_a.mT, full_matrices=False)
    sign = -1.0 if scaling < 0 else 1.0
    sigma = shift(sigma * abs(scaling), exponent.unsqueeze(-1))
    return sign * (basis_b @ u), sigma, vh @ basis_a.mT


def factored_singular_values(
    lora_b: Factors, lora_a: Factors, scaling: float | Tensor = 1.0
) -> Tensor:
    """Singular values of ``scaling * lora_b @ lora_a``, as accurate as QR makes them.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``, or a sequence of matrices of one shape.
        lora_a: Right factor, shape ``(..., r, n)``, or as many matrices.
        scaling: Finite number, also zero or negative, or one per matrix of the batch.

    Returns:
        Singular values, descending, shape ``(..., min(m, n, r))``, float64.

    Raises:
        ShapeError: The factors do not multiply, or a dimension is zero.
        SettingError: The factors or the scaling are not finite floating point.
    """
    return factored_spectrum(lora_b, lora_a, scaling, relative_error=0.0).sigma


def factored_frobenius_norm(
    lora_b: Factors, lora_a: Factors, scaling: float | Tensor = 1.0
) -> Tensor:
    """Frobenius norm of ``scaling * lora_b @ lora_a``.

    Taken from the core; its triangles come from Gram matrices only where the conditioning of the
    factors keeps them as accurate as QR.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``, or a sequence of matrices of one shape.
        lora_a: Right factor, shape ``(..., r, n)``, or as many matrices.
        scaling: Finite number, also zero or negative, or one per matrix of the batch.

    Returns:
        Norm, shape ``(...)``, float64.

    Raises:
        ShapeError: The factors do not multiply, or a dimension is zero.
        SettingError: The factors or the scaling are not finite floating point.
    """
    batch = FactorBatch.of(lora_b, lora_a, scaling)
    cores = product_cores(batch, 0.0)
    norms = torch.linalg.vector_norm(cores.core, dim=(-2, -1)) * batch.scaling.abs()
    return shift(norms, cores.exponent).reshape(batch.dims)


def factored_inner_product(b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> Tensor:
    """Frobenius inner product ``<b1 @ a1, b2 @ a2>`` of two factored matrices.

    Equals ``sum((b1^T b2) * (a1 a2^T))``; the ranks may differ, the outer shapes may not.

    Args:
        b1: Shape ``(..., m, r1)``.
        a1: Shape ``(..., r1, n)``.
        b2: Shape ``(..., m, r2)``.
        a2: Shape ``(..., r2, n)``.

    Returns:
        Inner product, shape ``(...)``, float64; its error is relative to the product of the norms.

    Raises:
        ShapeError: Factors do not multiply, or the two products differ in shape.
        SettingError: A factor is not finite floating point.
    """
    check_factors(b1, a1)
    check_factors(b2, a2)
    left1, right1, exponent1 = balanced(b1, a1)
    left2, right2, exponent2 = balanced(b2, a2)
    shape1 = (left1.shape[-2], right1.shape[-1])
    shape2 = (left2.shape[-2], right2.shape[-1])
    if shape1 != shape2:
        raise ShapeError(f"inner product of products of shapes {shape1} and {shape2}")
    product = ((left1.mT @ left2) * (right1 @ right2.mT)).sum(dim=(-2, -1))
    return shift(product, exponent1 + exponent2)


def core_spectrum(batch: FactorBatch, cores: Cores, values: Tensor) -> FactoredSpectrum:
    """The singular values of the cores, scaled, and their errors."""
    size, exponent = batch.scaling.abs().unsqueeze(-1), cores.exponent.unsqueeze(-1)
    sigma = shift(values * size, exponent)
    absolute = shift(cores.absolute.unsqueeze(-1) * size, exponent)
    error = cores.relative.unsqueeze(-1) * sigma + absolute + _TINY
    shape = (*batch.dims, values.shape[-1])
    return FactoredSpectrum(
        sigma.reshape(shape), error.reshape(shape), cores.by_gram.reshape(batch.dims)
    )


def _rooted_vectors(
    batch: FactorBatch, cores: Cores, u: Tensor, roots: Tensor, vh: Tensor
) -> tuple[Tensor, Tensor]:
    """Singular vectors times roots: ``(N, m, k)`` with the scaling's sign and ``(N, k, n)``.

    By the Gram route the products with B and A are the only large step.
    """
    (m, n, _), (count, k) = batch.shape, roots.shape
    signs = torch.where(batch.scaling < 0, -1.0, 1.0)
    mix_left, mix_right = cores.mixing(u, vh)
    mix_left = mix_left * (signs.unsqueeze(-1) * roots).unsqueeze(-2)
    mix_right = roots.unsqueeze(-1) * mix_right
    left, right = roots.new_empty((count, m, k)), roots.new_empty((count, k, n))
    for i, by_gram in enumerate(cores.by_gram.tolist()):
        lora_b, lora_a = batch.lora_b[i], batch.lora_a[i]
        if by_gram:
            torch.matmul(lora_b.double(), mix_left[i], out=left[i])
            torch.matmul(mix_right[i], lora_a.double(), out=right[i])
        else:
            basis_b, _, basis_a = factored_svd(lora_b, lora_a)
            left[i] = basis_b[:, :k] * (signs[i] * roots[i])
            right[i] = roots[i].unsqueeze(-1) * basis_a[:k]
    return left, right
