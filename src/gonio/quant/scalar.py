"""Optimal scalar quantizers (Lloyd-Max): of the normal law, of a random direction's coordinate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from scipy.special import betainc, betaincinv, betaln, ndtr, ndtri, xlog1py
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.precision import upcast

__all__ = ["Codebook", "decode", "encode", "gaussian_lloyd_max", "sphere_lloyd_max"]

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
    return _codebook(_level_count(bits, levels), None)


def sphere_lloyd_max(d: int, bits: int | None = None, *, levels: int | None = None) -> Codebook:
    """The quantizer of least mean squared error for one coordinate of a random direction.

    ``x = sqrt(d) u_1`` with u uniform on the unit sphere of R^d has variance 1 and the density
    proportional to ``(1 - x^2/d)^((d - 3)/2)``, a Beta law, which is log-concave for d >= 3 and
    tends to the normal law.

    Args:
        d: Dimension, at least 3.
        bits: Code width in [0, 8]; or
        levels: Number of levels in [1, 256].

    Returns:
        Codebook with levels in units of the standard deviation, symmetric about 0.

    Raises:
        SettingError: d is below 3, both or neither of bits and levels are given, or out of range.

    Source: Zandieh et al. 2025 (TurboQuant, arXiv:2504.19874), section 3.1.
    """
    if d < 3:
        raise SettingError(
            f"the coordinate of a direction in R^{d} has no log-concave law; expected d >= 3"
        )
    return _codebook(_level_count(bits, levels), d)


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


def _level_count(bits: int | None, levels: int | None) -> int:
    if (bits is None) == (levels is None):
        raise SettingError("give either bits or levels of the codebook, and not both")
    if bits is not None and not 0 <= bits <= 8:
        raise SettingError(f"codebook of {bits} bits asked for, expected 0 to 8")
    count = 2**bits if bits is not None else levels
    if count is None or not 1 <= count <= LARGEST_CODEBOOK:
        raise SettingError(f"codebook of {count} levels asked for, expected 1 to 256")
    return count


def _codebook(count: int, d: int | None) -> Codebook:
    values, edges, distortion = _lloyd_max(count, d)
    return Codebook(
        levels=torch.tensor(values, dtype=torch.float64),
        boundaries=torch.tensor(edges, dtype=torch.float64),
        distortion=distortion,
    )


@dataclass(frozen=True)
class _Law:
    """A symmetric law of variance 1 with a log-concave density."""

    density: Callable[[Floats], Floats]
    below: Callable[[Floats], Floats]  # probability of less than x
    moment: Callable[[Floats], Floats]  # integral of u f(u) from x on
    coarse: Callable[[Floats], Floats]  # quantiles of the law with density ~ f^(1/3)


@lru_cache(maxsize=LARGEST_CODEBOOK)
def _lloyd_max(count: int, d: int | None) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Levels, boundaries and distortion of the optimal quantizer with ``count`` levels."""
    law = _normal_law() if d is None else _sphere_law(d)
    # Start from the high-rate limit, whose levels have density proportional to f^(1/3).
    edges = law.coarse(np.arange(1, count) / count)
    for _ in range(NEWTON_STEPS):
        centroids, mass = _centroids(edges, law)
        residual = edges - 0.5 * (centroids[:-1] + centroids[1:])
        if not residual.size or np.abs(residual).max() < FIXED_POINT / 4:
            break
        edges = edges - _newton_step(edges, centroids, mass, residual, law.density(edges))
        edges = 0.5 * (edges - edges[::-1])
    else:
        raise SettingError(f"the quantizer with {count} levels did not converge")
    centroids, mass = _centroids(edges, law)
    centroids = 0.5 * (centroids - centroids[::-1])
    distortion = 1.0 - float(np.sum(mass * centroids**2))
    return tuple(centroids.tolist()), tuple(edges.tolist()), distortion


def _centroids(edges: Floats, law: _Law) -> tuple[Floats, Floats]:
    """Conditional mean and probability of each cell."""
    low = np.concatenate(([-np.inf], edges))
    high = np.concatenate((edges, [np.inf]))
    # Above zero the upper tails are subtracted, where the distribution function would cancel.
    mass = np.where(low > 0, law.below(-low) - law.below(-high), law.below(high) - law.below(low))
    return (law.moment(low) - law.moment(high)) / mass, mass


def _newton_step(
    edges: Floats, centroids: Floats, mass: Floats, residual: Floats, weight: Floats
) -> Floats:
    """Solve the tridiagonal Jacobian of ``edges - midpoints`` for one step."""
    down = 0.5 * weight * (centroids[1:] - edges) / mass[1:]  # upper centroid, by its lower edge
    up = 0.5 * weight * (edges - centroids[:-1]) / mass[:-1]  # lower centroid, by its upper edge
    bands = np.zeros((3, edges.size))
    bands[0, 1:] = -up[1:]
    bands[1] = 1.0 - up - down
    bands[2, :-1] = -down[:-1]
    step: Floats = solve_banded((1, 1), bands, residual)
    return step


def _normal_law() -> _Law:
    def density(x: Floats) -> Floats:
        found: Floats = np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)
        return found

    return _Law(density, ndtr, density, lambda p: np.sqrt(3.0) * ndtri(p))


def _sphere_law(d: int) -> _Law:
    """Law of ``sqrt(d) u_1`` for u uniform on the unit sphere of R^d."""
    half, radius = (d - 1) / 2, math.sqrt(d)
    constant = math.exp(-float(betaln(0.5, half))) / radius  # density at 0

    def power(x: Floats, exponent: float) -> Floats:
        """(1 - x^2/d)^exponent inside the radius, else 0; accurate also for large exponents."""
        found: Floats = np.exp(xlog1py(exponent, -np.minimum(np.square(x) / d, 1.0)))
        return found

    def below(x: Floats) -> Floats:
        found: Floats = betainc(half, half, np.clip(0.5 * (1.0 + x / radius), 0.0, 1.0))
        return found

    def coarse(p: Floats) -> Floats:
        found: Floats = radius * (2.0 * betaincinv((d + 3) / 6, (d + 3) / 6, p) - 1.0)
        return found

    return _Law(
        density=lambda x: constant * power(x, half - 1.0),
        below=below,
        moment=lambda x: constant * d / (d - 1) * power(x, half),
        coarse=coarse,
    )
