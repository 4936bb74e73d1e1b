"""One-bit quantization of vectors: signs and a scale. sgn(0) = +1 throughout.

The 1-bit cosine of k in R^d is ``|k|_1 / (sqrt(d) |k|_2)``, the cosine between k and its signs;
beta is its square, the share of the energy that signs and the best scale keep.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg.precision import upcast

__all__ = [
    "population_beta",
    "sign_beta",
    "sign_cosine",
    "sign_decode",
    "sign_encode",
]


def sign_cosine(vectors: Tensor, zero_value: float | None = None) -> Tensor:
    """1-bit cosine of each vector along the last dimension.

    Args:
        vectors: Shape ``(..., d)``.
        zero_value: Result for zero vectors, for which the cosine is undefined; an error if omitted.

    Returns:
        Cosine in [1/sqrt(d), 1], dimensionless, shape ``(...)``.

    Raises:
        ZeroMatrixError: A vector is zero and no ``zero_value`` is given.
        ShapeError: d is zero.

    Theorem: ``cos_sign_quant_formula``.
    """
    absolute, size = _absolute(vectors)
    zero = size[..., 0] == 0
    if zero_value is None and bool(zero.any()):
        raise ZeroMatrixError(
            f"the 1-bit cosine is undefined for a zero vector; {int(zero.sum())} of the "
            f"{zero.numel()} given are zero; drop them or pass zero_value"
        )
    length = absolute.square().sum(dim=-1).sqrt()
    cosine = absolute.sum(dim=-1) / torch.where(zero, 1, length) / math.sqrt(absolute.shape[-1])
    if zero_value is None:
        return cosine
    return torch.where(zero, zero_value, cosine)


def sign_beta(vectors: Tensor, zero_value: float | None = None) -> Tensor:
    """Share of each vector's energy kept by its signs and the least-squares scale.

    Args:
        vectors: Shape ``(..., d)``.
        zero_value: Result for zero vectors; an error if omitted.

    Returns:
        Squared 1-bit cosine in [1/d, 1], dimensionless, shape ``(...)``.

    Raises:
        ZeroMatrixError: A vector is zero and no ``zero_value`` is given.
        ShapeError: d is zero.

    Theorem: ``residual_energy_formula``.
    """
    if zero_value is None:
        return sign_cosine(vectors).square()
    cosine = sign_cosine(vectors, zero_value=-1.0)
    return torch.where(cosine < 0, zero_value, cosine.square())


def population_beta(vectors: Tensor) -> Tensor:
    """Share of a population's energy kept by signs and one least-squares scale per vector.

    ``1 - sum |k - k_hat|^2 / sum |k|^2``: the mean of :func:`sign_beta` weighted by energy.

    Args:
        vectors: Shape ``(..., N, d)``.

    Returns:
        Beta in [1/d, 1], dimensionless, shape ``(...)``.

    Raises:
        ZeroMatrixError: All vectors of a population are zero.
        ShapeError: There are fewer than two dimensions, or an empty one.
    """
    vectors = upcast(vectors, "vectors")
    if vectors.ndim < 2 or 0 in vectors.shape[-2:]:
        raise ShapeError(f"vectors have shape {tuple(vectors.shape)}, expected (..., N, d)")
    size = vectors.abs().amax(dim=(-2, -1), keepdim=True)
    if bool((size == 0).any()):
        raise ZeroMatrixError("beta is undefined for a population of zero vectors")
    absolute = vectors.abs() / size
    kept = absolute.sum(dim=-1).square().sum(dim=-1) / vectors.shape[-1]
    return kept / absolute.square().sum(dim=(-2, -1))


def sign_encode(
    vectors: Tensor, scale: Literal["least_squares", "unbiased"] = "least_squares"
) -> tuple[Tensor, Tensor]:
    """Signs and one scale per vector.

    Args:
        vectors: Shape ``(..., d)``.
        scale: ``"least_squares"`` is ``|k|_1 / d``, the smallest error; ``"unbiased"`` is
            ``|k|_2^2 / |k|_1``, which gives ``<k, k_hat> = |k|^2``. Zero vectors get scale 0.

    Returns:
        Signs (True for k_i >= 0), bool, shape ``(..., d)``, and the scale in the unit of the
        vectors, shape ``(..., 1)``, in the input dtype (float32 for narrower).

    Raises:
        SettingError: The scale is unknown.
        ShapeError: d is zero.

    Source: Rastegari et al. 2016 (arXiv:1603.05279), section 3.1, for the least-squares scale.
    """
    absolute, size = _absolute(vectors)
    total = absolute.sum(dim=-1, keepdim=True)
    if scale == "least_squares":
        factor = total / absolute.shape[-1]
    elif scale == "unbiased":
        energy = absolute.square().sum(dim=-1, keepdim=True)
        factor = energy / torch.where(total > 0, total, 1)
    else:
        raise SettingError(f"sign scale is {scale!r}, expected 'least_squares' or 'unbiased'")
    return vectors >= 0, factor * size


def sign_decode(signs: Tensor, scale: Tensor) -> Tensor:
    """Vectors ``+-scale`` from signs.

    Args:
        signs: bool, shape ``(..., d)``.
        scale: Shape ``(..., 1)``.

    Returns:
        Decoded vectors, shape ``(..., d)``, in the dtype of ``scale``.

    Raises:
        SettingError: The signs are not bool (0 and 1 would otherwise read as signs).
    """
    if signs.dtype != torch.bool:
        raise SettingError(f"signs have dtype {signs.dtype}, expected torch.bool")
    return torch.where(signs, scale, -scale)


def _absolute(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute entries over the largest of their vector, and that largest ``(..., 1)``."""
    vectors = upcast(vectors, "vectors")
    if vectors.ndim == 0 or vectors.shape[-1] == 0:
        raise ShapeError(f"vectors have shape {tuple(vectors.shape)}, expected (..., d), d >= 1")
    absolute = vectors.abs()
    size = absolute.amax(dim=-1, keepdim=True)
    return absolute / torch.where(size > 0, size, 1), size
