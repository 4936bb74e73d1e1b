"""What chance alone gives: closed-form nulls to print beside every measurement."""

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from gonio.errors import SettingError, ShapeError

__all__ = [
    "c_infinity",
    "expected_gain_residual",
    "expected_overlap",
    "overlap_variance",
    "overlap_z_score",
    "random_lora_singular_values",
    "random_matrix_singular_values",
    "sign_cosine_of_random_direction",
]

c_infinity: float = math.sqrt(2.0 / math.pi)
"""Limit of the mean 1-bit cosine of a random direction as the dimension grows: 0.79788."""

Overlap = TypeVar("Overlap", float, Tensor)

_DRAWN = 1 << 18  # numbers drawn at a time: 2 MB, which stay in cache
SERIES_FROM = 256  # dimension from which five terms of the asymptotic series reach float64


def expected_overlap(k: int, l: int, n: int) -> float:  # noqa: E741 - k, l, n as in the formula
    """Mean subspace overlap of a fixed k-space and a uniformly random l-space of R^n.

    Args:
        k: Dimension of one space, in [1, n].
        l: Dimension of the other, in [1, n].
        n: Ambient dimension.

    Returns:
        ``max(k, l) / n``, in (0, 1], dimensionless.

    Raises:
        ShapeError: A dimension is out of range.

    Theorem: ``random_subspace_expected_overlap``.
    """
    _check_dimensions(k, l, n)
    return max(k, l) / n


def overlap_variance(k: int, l: int, n: int) -> float:  # noqa: E741
    """Exact variance of the subspace overlap under the uniform (Haar) law.

    ``tr(P Q)`` of a fixed projector of rank k and a uniformly random one of rank l has variance
    ``2 k l (n-k) (n-l) / (n^2 (n-1) (n+2))``; the overlap divides it by ``min(k, l)^2``.

    Args:
        k: Dimension of one space, in [1, n].
        l: Dimension of the other, in [1, n].
        n: Ambient dimension.

    Returns:
        Variance, dimensionless; 0 when either space is all of R^n.

    Raises:
        ShapeError: A dimension is out of range.

    Source: second moments of a Haar projector, from the fourth moments of the orthogonal group
    (Collins and Sniady 2006, arXiv:math-ph/0402073); l = 1 is the variance of Beta(k/2, (n-k)/2).
    """
    _check_dimensions(k, l, n)
    if n in (k, l):
        return 0.0
    trace = 2.0 * k * l * (n - k) * (n - l) / (n**2 * (n - 1.0) * (n + 2.0))
    return trace / min(k, l) ** 2


def overlap_z_score(overlap: Overlap, k: int, l: int, n: int) -> Overlap:  # noqa: E741
    """How many standard deviations an overlap lies above its chance level.

    Args:
        overlap: Measured overlap in [0, 1], a number or a tensor.
        k: Dimension of one space, in [1, n).
        l: Dimension of the other, in [1, n).
        n: Ambient dimension.

    Returns:
        ``(overlap - max(k, l)/n) / sd``, of the type and shape of ``overlap``.

    Raises:
        ShapeError: A dimension is out of range.
        SettingError: Either space is all of R^n: the overlap is constant and has no z-score.
    """
    variance = overlap_variance(k, l, n)
    if variance == 0.0:
        raise SettingError(
            f"no z-score: the overlap of a {k}- and a {l}-space of R^{n} is constant; "
            "compare proper subspaces"
        )
    return (overlap - expected_overlap(k, l, n)) / math.sqrt(variance)


def expected_gain_residual(m: int) -> float:
    """Mean share of an isotropic random update that no column gain of the base can explain.

    Args:
        m: Rows (out_features) of the weight, at least 1.

    Returns:
        ``1 - 1/m``, in [0, 1), dimensionless.

    Raises:
        ShapeError: m is below 1.

    Theorem: ``column_gain_residual``.
    """
    if m < 1:
        raise ShapeError(f"a weight with {m} rows has no column-gain residual; expected m >= 1")
    return 1.0 - 1.0 / m


def sign_cosine_of_random_direction(d: int) -> float:
    """Mean 1-bit cosine of a uniformly random direction of R^d.

    ``c_d = sqrt(d) Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))``: 1 at d = 1, then strictly decreasing
    to :data:`c_infinity`. Large d uses the asymptotic series, where log-gammas would cancel.

    Args:
        d: Dimension, at least 1.

    Returns:
        ``c_d`` in (0.7978, 1], dimensionless.

    Raises:
        ShapeError: d is below 1.

    Theorem: ``srht_achieves_isotropic_floor``, ``srht_floor_d_independent``.
    """
    if d < 1:
        raise ShapeError(f"no direction in R^{d}; expected d >= 1")
    if d < SERIES_FROM:
        log_ratio = math.lgamma(d / 2.0) - math.lgamma((d + 1) / 2.0)
        return math.sqrt(d / math.pi) * math.exp(log_ratio)
    x = 1.0 / d
    ratio = 1.0 - x / 4.0 + x**2 / 32.0 + 5.0 * x**3 / 128.0 - 21.0 * x**4 / 2048.0
    return c_infinity / ratio


def random_lora_singular_values(
    out_features: int, in_features: int, rank: int, *, samples: int, generator: torch.Generator
) -> Tensor:
    """Singular values of products B A of independent standard normal factors.

    Exact samples without the factors. A Gaussian B is ``U C V^T`` with a bidiagonal C of
    independent chi-distributed entries; ``V^T A`` is Gaussian again, and its transpose a frame
    times a triangle with chi-distributed diagonal and normal entries above it. So only C and one
    triangle are drawn.

    Args:
        out_features: Rows of B, at least 1.
        in_features: Columns of A, at least 1.
        rank: Columns of B and rows of A, at least 1.
        samples: Number of independent products, at least 1.
        generator: Source of randomness.

    Returns:
        Singular values, descending, shape ``(samples, q)``, ``q = min(out_features, in_features,
        rank)`` (the rank, unless it exceeds the shape); float64, on the generator's device.

    Raises:
        ShapeError: A count is below 1.

    Source: Bartlett 1933 (doi:10.1017/S0370164600016886) for the triangle; Silverstein 1985
    (doi:10.1214/aop/1176992819) for the bidiagonal form.
    """
    if min(out_features, in_features, rank, samples) < 1:
        raise ShapeError(
            f"{samples} samples of a rank-{rank} {out_features} x {in_features} product; "
            "expected every count >= 1"
        )
    # Torch draws no chi-square from a generator, so NumPy does, seeded by the generator.
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    chi_squares = np.random.default_rng(seed)
    height = min(out_features, rank)  # rows of V^T A that C does not send to zero
    parts = [
        _product_spectra(out_features, in_features, rank, count, generator, chi_squares)
        for count in _pieces(samples, max(1, _DRAWN // (height * min(in_features, height))))
    ]
    return torch.cat(parts)


def random_matrix_singular_values(
    out_features: int, in_features: int, *, samples: int, generator: torch.Generator
) -> Tensor:
    """Singular values of matrices of independent standard normal entries.

    Exact samples from the bidiagonal form, whose entries are independent and chi-distributed;
    its squared singular values are the eigenvalues of a tridiagonal matrix, so that one sample
    costs the square of the smaller side. Squaring costs half the digits of the least values.

    Args:
        out_features: Rows, at least 1.
        in_features: Columns, at least 1.
        samples: Number of independent matrices, at least 1.
        generator: Source of randomness.

    Returns:
        Singular values, descending, shape ``(samples, min(out_features, in_features))``, float64.

    Raises:
        ShapeError: A count is below 1.

    Source: Silverstein 1985 (doi:10.1214/aop/1176992819).
    """
    if min(out_features, in_features, samples) < 1:
        raise ShapeError(
            f"{samples} samples of a {out_features} x {in_features} matrix; "
            "expected every count >= 1"
        )
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    random = np.random.default_rng(seed)
    smaller, larger = sorted((out_features, in_features))
    spectra = np.empty((samples, smaller))
    for row in spectra:
        diagonal = random.chisquare(larger - np.arange(smaller))
        beside = random.chisquare(smaller - 1 - np.arange(smaller - 1))
        squares = diagonal.copy()
        squares[1:] += beside
        row[:] = eigvalsh_tridiagonal(squares, np.sqrt(diagonal[:-1] * beside))[::-1]
    return torch.from_numpy(np.sqrt(np.maximum(spectra, 0.0)))


def _product_spectra(
    out_features: int,
    in_features: int,
    rank: int,
    samples: int,
    generator: torch.Generator,
    chi_squares: np.random.Generator,
) -> Tensor:
    """Singular values of ``samples`` products, drawn as a bidiagonal and a triangular matrix."""
    height, length = min(out_features, rank), max(out_features, rank)
    width = min(in_features, height)
    shape = (samples, width, height)
    device, dtype = generator.device, torch.float64
    triangle = torch.randn(shape, generator=generator, device=device, dtype=dtype).triu(1)

    def chi(degrees: NDArray[np.int_]) -> Tensor:
        drawn = chi_squares.chisquare(degrees, size=(samples, len(degrees)))
        return torch.from_numpy(np.sqrt(drawn)).to(device)

    triangle.diagonal(dim1=-2, dim2=-1).copy_(chi(in_features - np.arange(width)))
    product = triangle * chi(length - np.arange(height)).unsqueeze(-2)
    if height > 1:
        beside = chi(height - 1 - np.arange(height - 1))
        product[..., :-1] += triangle[..., 1:] * beside.unsqueeze(-2)
    sigma: Tensor = torch.linalg.svdvals(product)
    return sigma


def _pieces(total: int, size: int) -> list[int]:
    """``total`` as a sum of numbers of at most ``size``."""
    return [min(size, total - start) for start in range(0, total, size)]


def _check_dimensions(k: int, l: int, n: int) -> None:  # noqa: E741
    """Refuse subspaces that do not fit in R^n."""
    if not (1 <= k <= n and 1 <= l <= n):
        raise ShapeError(f"subspaces of dimensions {k} and {l} in R^{n}; expected 1 <= k, l <= n")
