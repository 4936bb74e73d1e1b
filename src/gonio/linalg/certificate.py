"""Leading singular subspaces with a bound on their error, whichever route found them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg.spectrum import numerical_rank

__all__ = [
    "LOST",
    "NOT_CONVERGED",
    "NO_GAP",
    "TopSubspaces",
    "check_rank",
    "check_tolerance",
    "residual_columns",
    "scaled_weight",
    "unscaled",
    "worst_residual",
]

NO_GAP = "k in no gap"
NOT_CONVERGED = "not converged"
LOST = "gap lost in rounding"
_LARGEST_SINE = 0.1  # in random trials a Krylov certificate at a sine of 0.2 was wrong


@dataclass(frozen=True)
class TopSubspaces:
    """Approximate leading singular triplets of a weight, and what is known of their error.

    The overlap of ``u`` (or ``v``) with any third subspace differs from that of the true one by at
    most the sine of the largest angle between the two, so by at most ``sine_bound``.

    Attributes:
        u: Orthonormal columns, float64, shape ``(m, k)``.
        sigma: Ritz values, descending, in the unit of the weight, float64, shape ``(k,)``.
        v: Orthonormal columns, float64, shape ``(n, k)``.
        residual: The larger of ``|W^T U - V S|_2`` and ``|W V - U S|_2``, in the unit of the
            weight. The smaller is rounding by construction and says nothing.
        gap: ``(sigma_k - bound on sigma_{k+1}) / sigma_k``, at most 1; 0 or below where the bound
            does not separate the two values.
        sine_bound: Largest sine of a principal angle to the true left or right subspace, bounded
            by ``residual / (sigma_k - bound on sigma_{k+1})`` with float64 rounding added; at most
            1, the value that says nothing.
        certified: Whether ``sine_bound`` is within the tolerance asked for.
        reason: Empty when certified, else ``k in no gap`` (the values on both sides of k cannot be
            told apart, so the subspace is arbitrary), ``gap lost in rounding`` (the space is
            exhausted and the products are too coarse for the gap: a float64 weight may do) or
            ``not converged``.
        iterations: Blocks in the Krylov space.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor
    residual: float
    gap: float
    sine_bound: float
    certified: bool
    reason: str
    iterations: int


def scaled_weight(weight: Tensor, ks: Sequence[int]) -> tuple[Tensor, float]:
    """The weight in float64 with largest entry 1, and that entry, after checking both.

    Args:
        weight: Shape ``(m, n)``, float32 or float64.
        ks: Numbers of directions wanted.

    Raises:
        ShapeError: The weight is not a matrix, or a k is outside ``[1, min(m, n)]``.
        ZeroMatrixError: The weight is zero.
        SettingError: There is no k, or the weight is not finite.
    """
    if not ks:
        raise SettingError("no k given; ask for at least one number of singular directions")
    for k in ks:
        if weight.ndim != 2 or not 1 <= k <= min(weight.shape):
            raise ShapeError(
                f"{k} singular directions asked of a weight of shape {tuple(weight.shape)}; "
                "expected a matrix (m, n) with 1 <= k <= min(m, n)"
            )
    size = float(weight.abs().max())
    if size == 0:
        raise ZeroMatrixError(f"a zero weight {tuple(weight.shape)} has no singular directions")
    if not math.isfinite(size):
        raise SettingError(
            f"the weight {tuple(weight.shape)} holds NaN or infinite entries; "
            "singular directions need finite ones"
        )
    return weight.double() / size, size


def check_tolerance(tolerance: float) -> None:
    """Refuse a sine outside (0, 0.1].

    Raises:
        SettingError: It is.
    """
    if not 0 < tolerance <= _LARGEST_SINE:
        raise SettingError(
            f"tolerance {tolerance} of a sine of an angle; expected one in (0, {_LARGEST_SINE}]"
        )


def check_rank(sigma: Tensor, shape: tuple[int, int], k: int, dtype: torch.dtype) -> None:
    """Refuse a k above the numerical rank in ``dtype``.

    Raises:
        ShapeError: The rank is below k.
    """
    rank = int(numerical_rank(sigma, shape, dtype=dtype))
    if rank < k:
        raise ShapeError(
            f"{k} singular directions asked of a {shape[0]} x {shape[1]} weight of numerical rank "
            f"{rank}; ask for at most {rank}"
        )


def residual_columns(tall: Tensor, u: Tensor, sigma: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``W^T U - V S`` and ``W V - U S``."""
    return tall.mT @ u - v * sigma, tall @ v - u * sigma


def worst_residual(columns: Sequence[Tensor], k: int) -> float:
    """The largest spectral norm of the first k columns."""
    return max(float(torch.linalg.matrix_norm(part[:, :k], 2)) for part in columns)


def unscaled(result: TopSubspaces, size: float, *, is_swapped: bool) -> TopSubspaces:
    """The result in the unit of the weight, with left and right put back."""
    u, v = (result.v, result.u) if is_swapped else (result.u, result.v)
    return replace(result, u=u, sigma=result.sigma * size, v=v, residual=result.residual * size)
