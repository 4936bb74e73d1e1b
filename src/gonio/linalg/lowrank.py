"""Products ``scaling * lora_b @ lora_a`` handled through their factors, never formed.

``lora_b`` has shape ``(..., m, r)`` and ``lora_a`` ``(..., r, n)``; r may exceed m and n. All
arithmetic is float64. With ``B = Q_b R_b`` and ``A^T = Q_a R_a`` the product is
``Q_b (R_b R_a^T) Q_a^T``, so its spectrum is that of a core of at most r by r.
"""

import math

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.precision import upcast

__all__ = [
    "factored_frobenius_norm",
    "factored_inner_product",
    "factored_singular_values",
    "factored_svd",
]

ABSENT = 1 << 20  # below any binary exponent: marks rank directions that are zero in a factor


def factored_svd(
    lora_b: Tensor, lora_a: Tensor, scaling: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition of ``scaling * lora_b @ lora_a``.

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
    _check_scaling(scaling)
    left, right, exponent = _balanced(lora_b, lora_a)
    basis_b, core_b = torch.linalg.qr(left)
    basis_a, core_a = torch.linalg.qr(right.mT)
    u, sigma, vh = torch.linalg.svd(core_b @ core_a.mT, full_matrices=False)
    sign = -1.0 if scaling < 0 else 1.0
    sigma = _shift(sigma * abs(scaling), exponent.unsqueeze(-1))
    return sign * (basis_b @ u), sigma, vh @ basis_a.mT


def factored_singular_values(lora_b: Tensor, lora_a: Tensor, scaling: float = 1.0) -> Tensor:
    """Singular values of ``scaling * lora_b @ lora_a``.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``.
        lora_a: Right factor, shape ``(..., r, n)``.
        scaling: Finite number, also zero or negative.

    Returns:
        Singular values, descending, shape ``(..., min(m, n, r))``, float64.

    Raises:
        ShapeError: The factors do not multiply, or a dimension is zero.
        SettingError: The factors or the scaling are not finite floating point.
    """
    _check_scaling(scaling)
    core, exponent = _core(lora_b, lora_a)
    return _shift(torch.linalg.svdvals(core) * abs(scaling), exponent.unsqueeze(-1))


def factored_frobenius_norm(lora_b: Tensor, lora_a: Tensor, scaling: float = 1.0) -> Tensor:
    """Frobenius norm of ``scaling * lora_b @ lora_a``.

    Taken from the core of the QR factors rather than from Gram matrices, which would square the
    rounding when the factors are ill-conditioned.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``.
        lora_a: Right factor, shape ``(..., r, n)``.
        scaling: Finite number, also zero or negative.

    Returns:
        Norm, shape ``(...)``, float64.

    Raises:
        ShapeError: The factors do not multiply, or a dimension is zero.
        SettingError: The factors or the scaling are not finite floating point.
    """
    _check_scaling(scaling)
    core, exponent = _core(lora_b, lora_a)
    return _shift(core.square().sum(dim=(-2, -1)).sqrt() * abs(scaling), exponent)


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
    left1, right1, exponent1 = _balanced(b1, a1)
    left2, right2, exponent2 = _balanced(b2, a2)
    shape1 = (left1.shape[-2], right1.shape[-1])
    shape2 = (left2.shape[-2], right2.shape[-1])
    if shape1 != shape2:
        raise ShapeError(f"inner product of products of shapes {shape1} and {shape2}")
    product = ((left1.mT @ left2) * (right1 @ right2.mT)).sum(dim=(-2, -1))
    return _shift(product, exponent1 + exponent2)


def _core(lora_b: Tensor, lora_a: Tensor) -> tuple[Tensor, Tensor]:
    """The small matrix with the product's spectrum, and the binary exponent ``(...)`` it lacks."""
    left, right, exponent = _balanced(lora_b, lora_a)
    core_b = torch.linalg.qr(left, mode="r").R
    core_a = torch.linalg.qr(right.mT, mode="r").R
    return core_b @ core_a.mT, exponent


def _balanced(lora_b: Tensor, lora_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors with entries of at most one and the binary exponent ``(...)`` their product lacks.

    Each column of B gives its size to its row of A, and the largest row then to the exponent:
    nothing overflows that the product itself does not. Only powers of two are moved, exactly.
    """
    _check_factors(lora_b, lora_a)
    left, right = upcast(lora_b, "lora_b").double(), upcast(lora_a, "lora_a").double()
    column_size, row_size = left.abs().amax(dim=-2), right.abs().amax(dim=-1)
    column_exponent, row_exponent = column_size.frexp().exponent, row_size.frexp().exponent
    present = (column_size > 0) & (row_size > 0)
    weight = torch.where(present, column_exponent + row_exponent, -ABSENT)
    top = weight.amax(dim=-1, keepdim=True)
    left = _shift(left, -column_exponent.unsqueeze(-2))
    right = _shift(right, -row_exponent.unsqueeze(-1))
    right = right * torch.where(present, (weight - top).double().exp2(), 0.0).unsqueeze(-1)
    return left, right, torch.where(top > -ABSENT, top, 0).squeeze(-1)


def _shift(values: Tensor, exponent: Tensor) -> Tensor:
    """``values * 2^exponent``, in two halves because either alone may leave float64."""
    half = exponent // 2
    return values * half.double().exp2() * (exponent - half).double().exp2()


def _check_scaling(scaling: float) -> None:
    """Refuse scalings that are not finite."""
    if not math.isfinite(scaling):
        raise SettingError(f"LoRA scaling is {scaling}, expected a finite number")


def _check_factors(lora_b: Tensor, lora_a: Tensor) -> None:
    """Refuse factors that do not multiply, empty ones and non-finite numbers."""
    shapes = f"lora_b {tuple(lora_b.shape)} and lora_a {tuple(lora_a.shape)}"
    if lora_b.ndim < 2 or lora_a.ndim < 2 or lora_b.shape[-1] != lora_a.shape[-2]:
        raise ShapeError(f"{shapes} do not multiply; expected (..., m, r) and (..., r, n)")
    if 0 in lora_b.shape[-2:] or 0 in lora_a.shape[-2:]:
        raise ShapeError(f"{shapes} have an empty dimension")
    if not bool(lora_b.isfinite().all()) or not bool(lora_a.isfinite().all()):
        raise SettingError(f"{shapes} hold NaN or infinite entries")
