"""Factors of a product made safe to multiply: checked, and moved by exact powers of two."""

import math

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError

__all__ = ["balanced", "check_factors", "check_scaling", "shift"]

_ABSENT = 1 << 20  # below any binary exponent: marks rank directions that are zero in a factor


def balanced(lora_b: Tensor, lora_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 factors with entries of at most one, and the exponent their product lacks.

    Each column of B gives its size to its row of A, and the largest row then to the exponent:
    nothing overflows that the product itself does not. Only powers of two are moved, exactly.

    Args:
        lora_b: Left factor, shape ``(..., m, r)``.
        lora_a: Right factor, shape ``(..., r, n)``.

    Returns:
        The factors and the binary exponent, shape ``(...)``, for :func:`shift`.

    Raises:
        SettingError: The factors hold NaN or infinite entries.
    """
    _check_finite(lora_b, lora_a)
    left, right = lora_b.double(), lora_a.double()
    column_size, row_size = left.abs().amax(dim=-2), right.abs().amax(dim=-1)
    column_exponent, row_exponent = column_size.frexp().exponent, row_size.frexp().exponent
    present = (column_size > 0) & (row_size > 0)
    weight = torch.where(present, column_exponent + row_exponent, -_ABSENT)
    top = weight.amax(dim=-1, keepdim=True)
    left = shift(left, -column_exponent.unsqueeze(-2))
    right = shift(right, -row_exponent.unsqueeze(-1))
    right = right * torch.where(present, (weight - top).double().exp2(), 0.0).unsqueeze(-1)
    return left, right, torch.where(top > -_ABSENT, top, 0).squeeze(-1)


def shift(values: Tensor, exponent: Tensor) -> Tensor:
    """``values * 2^exponent``, in two halves because either alone may leave float64."""
    half = exponent // 2
    return values * half.double().exp2() * (exponent - half).double().exp2()


def check_scaling(scaling: float | Tensor) -> None:
    """Refuse scalings that are not finite.

    Raises:
        SettingError: A scaling is NaN or infinite.
    """
    finite = math.isfinite(scaling) if not isinstance(scaling, Tensor) else scaling.isfinite().all()
    if not finite:
        raise SettingError(f"LoRA scaling is {scaling}, expected a finite number")


def check_factors(lora_b: Tensor, lora_a: Tensor) -> None:
    """Refuse factors that do not multiply, empty ones and those without real floating numbers.

    Raises:
        ShapeError: The factors do not multiply, or a dimension is zero.
        SettingError: A factor is not real floating point.
    """
    if lora_b.ndim < 2 or lora_a.ndim < 2 or lora_b.shape[-1] != lora_a.shape[-2]:
        shapes = _shapes(lora_b, lora_a)
        raise ShapeError(f"{shapes} do not multiply; expected (..., m, r) and (..., r, n)")
    if 0 in lora_b.shape[-2:] or 0 in lora_a.shape[-2:]:
        raise ShapeError(f"{_shapes(lora_b, lora_a)} have an empty dimension")
    for name, factor in (("lora_b", lora_b), ("lora_a", lora_a)):
        if not factor.is_floating_point():
            raise SettingError(
                f"{name} has dtype {factor.dtype}, expected real floating point; convert it first"
            )


def _check_finite(lora_b: Tensor, lora_a: Tensor) -> None:
    if not bool(lora_b.isfinite().all()) or not bool(lora_a.isfinite().all()):
        raise SettingError(f"{_shapes(lora_b, lora_a)} hold NaN or infinite entries")


def _shapes(lora_b: Tensor, lora_a: Tensor) -> str:
    return f"lora_b {tuple(lora_b.shape)} and lora_a {tuple(lora_a.shape)}"
