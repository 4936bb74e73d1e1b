"""Family C: what the 1-bit cosine of random directions is on average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import product as cartesian

import torch
from hypothesis import strategies as st

from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.rotations import haar_rotation, hadamard_matrix, has_hadamard
from gonio.quant.sign import sign_cosine
from gonio.theorems.checks.cases import gaussian, generator, seeds
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    bound_margin,
    close_margin,
    exact_margin,
    z_margin,
)
from gonio.theorems.checks.exact import PI_HIGH, PI_LOW, squared_sign_cosine

__all__ = ["CHECKS"]

_DRAWS = 1000
_C_INFINITY = math.sqrt(2.0 / math.pi)


# --- E cos(Rk) = c_d for a spherically symmetric k ------------------------------------------


@dataclass(frozen=True)
class _Direction:
    """Dimension, rotation and seed of a simulation."""

    size: int
    rotation: str
    seed: int


_ROTATIONS = ("identity", "haar", "hadamard")

_directions = st.builds(_Direction, st.integers(1, 64), st.sampled_from(_ROTATIONS), seeds)


def _rotation(case: _Direction, source: torch.Generator) -> torch.Tensor:
    if case.rotation == "haar":
        return haar_rotation(case.size, source, dtype=torch.float64)
    if case.rotation == "hadamard" and has_hadamard(case.size):
        return hadamard_matrix(case.size).to(torch.float64)
    return torch.eye(case.size, dtype=torch.float64)


def _mean_cosine_margin(case: _Direction, vectors: torch.Tensor, rotation: torch.Tensor) -> float:
    """z-score of the mean 1-bit cosine against c_d, with the exact variance of one draw."""
    c_d = float(sign_cosine_of_random_direction(case.size))
    second_moment = 2.0 / math.pi + (1.0 - 2.0 / math.pi) / case.size
    variance = max(0.0, second_moment - c_d**2)
    mean = sign_cosine(vectors @ rotation.mT).mean().item()
    return z_margin(mean - c_d, math.sqrt(variance / len(vectors)))


def _isotropic_floor(case: _Direction) -> float:
    source = generator(case.seed)
    normal = gaussian(_DRAWS, case.size, source=source)
    # A heavy-tailed radius leaves the law spherically symmetric, and the cosine must not notice.
    radius = torch.rand(_DRAWS, 1, dtype=torch.float64, generator=source).clamp_min(1e-3) ** -3
    return _mean_cosine_margin(case, radius * normal, _rotation(case, source))


def _floor_of_cube_vertices(case: _Direction) -> float:
    """Uniform signs are isotropic (covariance I), yet they are the sign lattice itself."""
    bits = torch.randint(0, 2, (_DRAWS, case.size), generator=generator(case.seed))
    vertices = 2.0 * bits.to(torch.float64) - 1.0
    return _mean_cosine_margin(case, vertices, torch.eye(case.size, dtype=torch.float64))


# --- covariance I is not enough -------------------------------------------------------------


def _vertices(size: int) -> list[tuple[int, ...]]:
    """The vertices {-1, 1}^d, each as likely as any other."""
    return list(cartesian((1, -1), repeat=size))


def _vertices_are_isotropic(size: int) -> float:
    """Mean 0, covariance I, and squared 1-bit cosine 1 at every vertex: not c_d^2 < 1."""
    vertices = _vertices(size)
    products = [
        (Fraction(sum(v[i] * v[j] for v in vertices), len(vertices)), int(i == j))
        for i in range(size)
        for j in range(size)
    ]
    means = [Fraction(sum(v[i] for v in vertices), len(vertices)) for i in range(size)]
    return min(
        *(exact_margin(value, expected) for value, expected in products),
        *(exact_margin(value, 0) for value in means),
        *(exact_margin(squared_sign_cosine(v), 1) for v in vertices),
        float(1 - _square_bounds(size)[1]) or -1.0,
    )


def _vertices_reach_the_floor(size: int) -> float:
    """The printed claim for this law and R = I: the mean cosine is c_d."""
    vertices = _vertices(size)
    mean = sum((squared_sign_cosine(v) for v in vertices), Fraction(0)) / len(vertices)
    return bound_margin(float(mean), float(_square_bounds(size)[1]))


# --- the floor is not 0 ---------------------------------------------------------------------


def _floor_is_positive(size: int, least: Fraction = Fraction(0)) -> float:
    """Signs of d Gaussian entries lose ``(1 - 2/pi) (1 - 1/d)`` of their mean squared cosine.

    Whatever d, the limit ``1 - 2/pi`` stays above ``least``; c_d^2 is at most the mean of the
    squared cosine, so that loss is at least what is lost here.
    """
    limit = 1 - 2 / PI_LOW  # a lower bound, since PI_LOW < pi
    lost = limit * (1 - Fraction(1, size))
    jensen = bound_margin(float(_square_bounds(size)[0]), float(1 - lost), 1e-15)
    return min(float(limit - least) or -1.0, jensen)


# --- c_d decreases strictly to sqrt(2 / pi) -------------------------------------------------


def _even_and_odd_squares(size: int) -> Fraction:
    """``c_d^2`` for odd d, ``c_d^2 pi^2 / 8`` for even d: rational, by recursion in steps of two.

    ``c_1 = 1``, ``c_2^2 = 8 / pi^2`` and ``c_{d+2}^2 = c_d^2 (1 - 1/(d+1)^2)``, from
    Gamma(x + 1) = x Gamma(x).
    """
    square = Fraction(1)
    for d in range(2 - size % 2, size, 2):
        square *= 1 - Fraction(1, (d + 1) ** 2)
    return square


def _square_bounds(size: int) -> tuple[Fraction, Fraction]:
    """Rational bounds on ``c_d^2``, relatively 1e-59 apart."""
    square = _even_and_odd_squares(size)
    if size % 2:
        return square, square
    return 8 * square / PI_HIGH**2, 8 * square / PI_LOW**2


def _decreasing_to_limit(size: int) -> float:
    low, _ = _square_bounds(size)
    next_low, next_high = _square_bounds(size + 1)
    wallis = Fraction(size + 1, size)
    # c_d c_{d+1} = (2/pi) sqrt(1 + 1/d), hence c_{d+1}^2 < (2/pi) sqrt(1 + 1/d) < c_d^2: strictly
    # decreasing, and squeezed to 2/pi at rate 1/d.
    gap = size**2 * min(low / next_high - 1, low**2 * PI_LOW**2 / (4 * wallis) - 1)
    above = size * (low * PI_LOW / 2 - 1)
    squeeze = size**2 * (1 - next_high**2 * PI_HIGH**2 / (4 * wallis))
    recursion_error = abs(low * next_low * PI_LOW**2 / (4 * wallis) - 1)
    value = float(sign_cosine_of_random_direction(size))
    return min(
        float(min(gap, above, squeeze)),
        close_margin(float(recursion_error), 1e-50),
        # Log-gammas of up to 500, exact to a few units in the last place, are subtracted.
        close_margin(abs(value**2 / float(low) - 1.0), 2e-12),
    )


def _constant_floor(size: int) -> float:
    return close_margin(abs(float(sign_cosine_of_random_direction(size)) - _C_INFINITY), 1e-9)


def _odd_start() -> float:
    """c_1 = 1 anchors the recursion: a direction in R^1 is always on the sign lattice."""
    return exact_margin(_even_and_odd_squares(1), 1)


CHECKS = (
    Check(
        name="isotropic_floor",
        arithmetic="simulation",
        tried="1000 heavy-tailed directions in R^1 to R^64; identity, Haar, Hadamard rotations",
        cases=_directions,
        margin=_isotropic_floor,
        mutant=Mutant(
            "The same for every law with covariance I, under the identity rotation.",
            _floor_of_cube_vertices,
        ),
    ),
    Check(
        name="isotropy_is_not_enough",
        arithmetic="exact",
        tried="the uniform law on the vertices of the cube in R^2 to R^7, enumerated",
        cases=st.integers(2, 7),
        margin=_vertices_are_isotropic,
        mutant=Mutant(
            "The printed claim: a law of covariance I has mean cosine c_d under R = I.",
            _vertices_reach_the_floor,
        ),
    ),
    Check(
        name="isotropic_floor_is_positive",
        arithmetic="exact",
        tried="rational bounds of pi, and c_d^2 in dimensions 1 to 400",
        cases=st.integers(1, 400),
        margin=_floor_is_positive,
        mutant=Mutant(
            "The limit is at least 0.37.",
            lambda size: _floor_is_positive(size, least=Fraction(37, 100)),
        ),
    ),
    Check(
        name="floor_decreases_to_limit",
        arithmetic="exact",
        tried="dimensions 1 to 400, c_d^2 as a rational (times 8/pi^2 for even d)",
        cases=st.integers(1, 400),
        margin=lambda size: min(_decreasing_to_limit(size), _odd_start()),
        mutant=Mutant("c_d is sqrt(2/pi) for every d.", _constant_floor),
    ),
)
