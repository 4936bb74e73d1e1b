"""Summaries of a matrix that depend only on its singular values.

Every function takes ``sigma``: non-negative singular values, descending along the last
dimension, shape ``(..., r)`` with ``r >= 1``; leading dimensions are a batch.
"""

import math

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg.precision import upcast

__all__ = [
    "effective_rank",
    "energy_rank",
    "frobenius_norm",
    "numerical_rank",
    "spectral_norm",
    "spectral_tolerance",
    "stable_rank",
]


def spectral_norm(sigma: Tensor) -> Tensor:
    """The largest singular value.

    Args:
        sigma: Singular values, descending, shape ``(..., r)``.

    Returns:
        ``sigma_1``, in the unit of the matrix, shape ``(...)``.

    Raises:
        ShapeError: The spectrum is empty.
        SettingError: The values are not finite, non-negative and descending.
    """
    return _checked(sigma)[..., 0]


def frobenius_norm(sigma: Tensor) -> Tensor:
    """Square root of the sum of squared singular values, safe against overflow of the squares.

    Args:
        sigma: Singular values, descending, shape ``(..., r)``.

    Returns:
        ``sqrt(sum sigma_i^2)``, in the unit of the matrix, shape ``(...)``.

    Raises:
        ShapeError: The spectrum is empty.
        SettingError: The values are not finite, non-negative and descending.
    """
    sigma = _checked(sigma)
    return sigma[..., 0] * _relative(sigma).square().sum(dim=-1).sqrt()


def stable_rank(sigma: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm.

    Invariant under scaling, at least 1, at most the rank, and continuous where the rank is not.

    Args:
        sigma: Singular values, descending, shape ``(..., r)``.

    Returns:
        Stable rank in [1, r], dimensionless, shape ``(...)``.

    Raises:
        ZeroMatrixError: A matrix of the batch is zero.
        ShapeError: The spectrum is empty.
        SettingError: The values are not finite, non-negative and descending.

    Source: Rudelson and Vershynin 2007 (doi:10.1145/1255443.1255449).
    Theorem: ``stableRank_le_rank``, ``stableRank_smul_invariant``.
    """
    sigma = _nonzero(_checked(sigma), "stable rank")
    return _relative(sigma).square().sum(dim=-1)


def effective_rank(sigma: Tensor) -> Tensor:
    """Exponential of the entropy (nats) of the singular values normalised to sum 1.

    Args:
        sigma: Singular values, descending, shape ``(..., r)``.

    Returns:
        Effective rank in [1, r], dimensionless, shape ``(...)``.

    Raises:
        ZeroMatrixError: A matrix of the batch is zero.
        ShapeError: The spectrum is empty.
        SettingError: The values are not finite, non-negative and descending.

    Source: Roy and Vetterli 2007 (EUSIPCO, "The effective rank").
    """
    relative = _relative(_nonzero(_checked(sigma), "effective rank"))
    shares = relative / relative.sum(dim=-1, keepdim=True)
    return (-torch.xlogy(shares, shares)).sum(dim=-1).exp()


def numerical_rank(
    sigma: Tensor, shape: tuple[int, int], *, dtype: torch.dtype | None = None
) -> Tensor:
    """Number of singular values above ``max(m, n) * eps * sigma_1``.

    Args:
        sigma: Singular values, descending, shape ``(..., r)``.
        shape: ``(m, n)`` of the matrix they belong to.
        dtype: Precision the matrix was computed in, whose eps counts; the dtype of ``sigma``
            (float32 for narrower ones) when omitted.

    Returns:
        Rank in [0, r], int64, shape ``(...)``; 0 for a zero matrix.

    Raises:
        ShapeError: The spectrum is empty, or longer than ``min(m, n)``.
        SettingError: The values are not finite, non-negative and descending.
    """
    sigma = _checked(sigma)
    if sigma.shape[-1] > min(shape):
        raise ShapeError(
            f"{sigma.shape[-1]} singular values cannot belong to a matrix of shape {tuple(shape)}"
        )
    eps = torch.finfo(dtype or sigma.dtype).eps
    return (sigma > max(shape) * eps * sigma[..., :1]).sum(dim=-1)


def energy_rank(sigma: Tensor, fraction: float) -> Tensor:
    """Fewest directions that hold ``fraction`` of the squared energy (k90: 0.9, k99: 0.99).

    A shortfall below ``eps ** 0.75`` of the energy (2e-12 in float64, 7e-6 in float32) counts as
    rounding, so that ties such as 9 of 10 equal values at 0.9 do not depend on the last bit.

    Args:
        sigma: Singular values, descending, shape ``(..., r)``.
        fraction: Share of ``sum sigma_i^2`` asked for, in (0, 1].

    Returns:
        Number of directions in [1, r], int64, shape ``(...)``; 0 for a zero matrix.

    Raises:
        ShapeError: The spectrum is empty.
        SettingError: ``fraction`` is outside (0, 1], or the values are not finite, non-negative
            and descending.
    """
    if not 0.0 < fraction <= 1.0:
        raise SettingError(f"energy fraction is {fraction}, expected a share in (0, 1]")
    sigma = _checked(sigma)
    slack = torch.finfo(sigma.dtype).eps ** 0.75
    cumulative = _relative(sigma).double().square().cumsum(dim=-1)
    total = cumulative[..., -1:]
    missing = cumulative < (fraction - slack) * total
    return torch.where(total[..., 0] > 0, missing.sum(dim=-1) + 1, 0)


def spectral_tolerance(spectral_norm: float | Tensor, dim_sum: int, dtype: torch.dtype) -> float:
    """Absolute error to allow when two routes compute the same singular values.

    Args:
        spectral_norm: Largest singular value; the largest entry counts when a batch is given.
        dim_sum: ``m + n`` of the matrix.
        dtype: Precision of the less precise route.

    Returns:
        ``8 sqrt(dim_sum) eps sigma_1``, in the unit of the matrix.
    """
    top = float(torch.as_tensor(spectral_norm).max())
    return 8.0 * math.sqrt(dim_sum) * torch.finfo(dtype).eps * top


def _checked(sigma: Tensor) -> Tensor:
    """Sigma upcast, after refusing anything that is not a descending spectrum."""
    sigma = upcast(sigma, "sigma")
    if sigma.ndim == 0 or sigma.shape[-1] == 0:
        raise ShapeError(
            f"singular values have shape {tuple(sigma.shape)}, expected (..., r) with r >= 1"
        )
    if not bool((sigma.isfinite() & (sigma >= 0)).all()):
        raise SettingError("singular values must be finite and non-negative")
    if bool((sigma[..., 1:] > sigma[..., :-1]).any()):
        raise SettingError("singular values must descend along the last dimension; sort them first")
    return sigma


def _nonzero(sigma: Tensor, quantity: str) -> Tensor:
    """Sigma, after refusing zero matrices."""
    zero = int((sigma[..., 0] == 0).sum())
    if zero:
        raise ZeroMatrixError(
            f"{quantity} is undefined for a zero matrix; "
            f"{zero} of the {sigma[..., 0].numel()} given are zero"
        )
    return sigma


def _relative(sigma: Tensor) -> Tensor:
    """Singular values divided by the largest; zeros for a zero matrix."""
    top = sigma[..., :1]
    return sigma / torch.where(top > 0, top, 1)
