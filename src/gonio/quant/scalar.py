"""Optimal scalar quantizers of the normal law (Lloyd-Max)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from scipy.special import ndtr, ndtri
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.precision import upcast

__all__ = ["Codebook", "decode", "encode", "gaussian_lloyd_max"]

Floats: TypeAlias = NDArray[np.float64]

LARGEST_CODEBOOK = 256  # codes are one byte
FIXED_POINT = 1e-12  # largest distance of a boundary from the midpoint of its two centroids
NEWTON_STEPS = 100


@dataclass(frozen=True, eq=False)
class Codebook:
    """A scalar quantizer: code i stands for ``levels[i]`` and covers one interval."""

    levels: Tensor  # float64, ascending, shape (L,)
    boundaries: Tensor  # float64, ascending, shape (L - 1,); a boundary belongs to the code above
    distortion: float  # mean squared error on the law it was made for, in units of its variance

    def __post_init__(self) -> None:
        count = self.levels.numel()
        if not 1 <= count <= LARGEST_CODEBOOK or self.levels.ndim != 1:
            raise ShapeError(
                f"levels have shape {tuple(self.levels.shape)}, expected (L,) with 1 <= L <= 256"
            )
        if self.boundaries.shape != (count - 1,):
            raise ShapeError(
                f"boundaries have shape {tuple(self.boundaries.shape)}, expected ({count - 1},)"
            )
        if bool((self.levels.diff() <= 0).any()) or bool((self.boundaries.diff() <= 0).any()):
            raise SettingError("levels and boundaries of a codebook must ascend strictly")


def gaussian_lloyd_max(bits: int | None = None, *, levels: int | None = None) -> Codebook:
    """The quantizer of least mean squared error for the standard normal law.

    The law is log-concave, so the only stationary point is the optimum. Newton's method on the
    boundaries finds it: each boundary is the midpoint of two neighboring centroids, to 1e-12.

    Args:
        bits: Code width in [0, 8]; or
        levels: Number of levels in [1, 256], not necessarily a power of two.

    Returns:
        Codebook with levels in units of the standard deviation, symmetric about 0.

    Raises:
        SettingError: Both or neither are given, or the number is out of range.

    Source: Max 1960 (doi:10.1109/TIT.1960.1057548), Lloyd 1982 (doi:10.1109/TIT.1982.1056489).
    """
    if (bits is None) == (levels is None):
        raise SettingError("give either bits or levels of the codebook, and not both")
    if bits is not None and not 0 <= bits <= 8:
        raise SettingError(f"codebook of {bits} bits asked for, expected 0 to 8")
    count = 2**bits if bits is not None else levels
    if count is None or not 1 <= count <= LARGEST_CODEBOOK:
        raise SettingError(f"codebook of {count} levels asked for, expected 1 to 256")
    values, edges, distortion = _lloyd_max(count)
    return Codebook(
        levels=torch.tensor(values, dtype=torch.float64),
        boundaries=torch.tensor(edges, dtype=torch.float64),
        distortion=distortion,
    )


def encode(x: Tensor, codebook: Codebook) -> Tensor:
    """Code of the interval each number falls in.

    Args:
        x: Any shape, in the unit of the codebook; infinities fall in the outer intervals.
        codebook: The quantizer.

    Returns:
        Codes in [0, L), uint8, same shape and device.

    Raises:
        SettingError: x is not floating point.
    """
    x = upcast(x, "x")
    boundaries = codebook.boundaries.to(x)
    return torch.bucketize(x.contiguous(), boundaries, out_int32=True, right=True).to(torch.uint8)


def decode(codes: Tensor, codebook: Codebook, dtype: torch.dtype = torch.float32) -> Tensor:
    """The level each code stands for.

    Args:
        codes: Codes in [0, L), uint8, any shape.
        codebook: The quantizer.
        dtype: Floating dtype of the result.

    Returns:
        Levels, same shape and device as ``codes``.

    Raises:
        SettingError: The codes are not uint8, or one is not in the codebook.
    """
    if codes.dtype != torch.uint8:
        raise SettingError(f"codes have dtype {codes.dtype}, expected torch.uint8")
    count = codebook.levels.numel()
    if count < LARGEST_CODEBOOK and codes.numel() and int(codes.max()) >= count:
        raise SettingError(f"code {int(codes.max())} found in a codebook of {count} levels")
    levels = codebook.levels.to(dtype=dtype, device=codes.device)
    return levels[codes.int()]


@lru_cache(maxsize=LARGEST_CODEBOOK)
def _lloyd_max(count: int) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Levels, boundaries and distortion of the optimal quantizer with ``count`` levels."""
    # Start from the high-rate limit, whose levels have density proportional to phi^(1/3).
    edges = np.sqrt(3.0) * ndtri(np.arange(1, count) / count)
    for _ in range(NEWTON_STEPS):
        centroids, mass = _centroids(edges)
        residual = edges - 0.5 * (centroids[:-1] + centroids[1:])
        if not residual.size or np.abs(residual).max() < FIXED_POINT / 4:
            break
        edges = edges - _newton_step(edges, centroids, mass, residual)
        edges = 0.5 * (edges - edges[::-1])
    else:
        raise SettingError(f"the quantizer with {count} levels did not converge")
    centroids, mass = _centroids(edges)
    centroids = 0.5 * (centroids - centroids[::-1])
    distortion = 1.0 - float(np.sum(mass * centroids**2))
    return tuple(centroids.tolist()), tuple(edges.tolist()), distortion


def _centroids(edges: Floats) -> tuple[Floats, Floats]:
    """Conditional mean and probability of each cell of the standard normal law."""
    low = np.concatenate(([-np.inf], edges))
    high = np.concatenate((edges, [np.inf]))
    # Above zero the upper tails are subtracted, where the distribution function would cancel.
    mass = np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return (_density(low) - _density(high)) / mass, mass


def _newton_step(edges: Floats, centroids: Floats, mass: Floats, residual: Floats) -> Floats:
    """Solve the tridiagonal Jacobian of ``edges - midpoints`` for one step."""
    weight = _density(edges)
    down = 0.5 * weight * (centroids[1:] - edges) / mass[1:]  # upper centroid, by its lower edge
    up = 0.5 * weight * (edges - centroids[:-1]) / mass[:-1]  # lower centroid, by its upper edge
    bands = np.zeros((3, edges.size))
    bands[0, 1:] = -up[1:]
    bands[1] = 1.0 - up - down
    bands[2, :-1] = -down[:-1]
    step: Floats = solve_banded((1, 1), bands, residual)
    return step


def _density(x: Floats) -> Floats:
    """Standard normal density; 0 at the infinities."""
    density: Floats = np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)
    return density
