"""Family E: turning away from the sign lattice, by the exponential of a skew matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from gonio.quant.sign import sign_cosine
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntVector, int_vectors, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin, exact_margin, iff_margin

__all__ = ["CHECKS"]

_ROUNDING = 1e-14  # of the exponential of a matrix of norm at most 1/2 and one cosine


@dataclass(frozen=True)
class _Turn:
    """A lattice point ``height * signs``, a skew matrix ``u v^T - v u^T + S``, and an angle.

    Attributes:
        signs: The vertex of the cube.
        height: Its distance from the origin in every coordinate.
        upper: Entries of S above the diagonal, row by row; empty for S = 0.
        u: First vector of the plane.
        v: Second vector of the plane.
        fraction: The angle as a share 1/fraction of the largest that flips no sign for sure.
    """

    signs: IntVector
    height: int
    upper: tuple[int, ...]
    u: IntVector
    v: IntVector
    fraction: int

    def skew(self) -> exact.Matrix:
        """The skew matrix."""
        size, entries = len(self.signs), iter(self.upper)
        rows = [[0] * size for _ in range(size)]
        for i in range(size):
            for j in range(i):
                rows[i][j] = self.u[i] * self.v[j] - self.v[i] * self.u[j] + next(entries, 0)
                rows[j][i] = -rows[i][j]
        return tuple(tuple(row) for row in rows)

    def image(self) -> exact.Vector:
        """``A s``."""
        return tuple(exact.dot(row, self.signs) for row in self.skew())

    def curvature(self) -> float:
        """``|A s|^2 / d``."""
        return float(exact.dot(self.image(), self.image())) / len(self.signs)

    def quartic(self) -> float:
        """``|A^2 s|^2 / (24 d)``, the coefficient of the next term."""
        twice = tuple(exact.dot(row, self.image()) for row in self.skew())
        return float(exact.dot(twice, twice)) / (24 * len(self.signs))

    def angle(self) -> float:
        """At most ``1 / (2 |A|_F sqrt(d))``: no coordinate moves by more than half its size."""
        norm = math.sqrt(exact.frobenius_squared(self.skew()))
        return 1.0 / (2.0 * self.fraction * max(norm, 1.0) * math.sqrt(len(self.signs)))

    def cosine_deficit(self, angle: float) -> float:
        """One minus the 1-bit cosine of ``exp(angle A) k``."""
        turned = torch.matrix_exp(angle * to_tensor(self.skew())) @ to_tensor(self.signs)
        return 1.0 - sign_cosine(self.height * turned).item()


@st.composite
def _turns(draw: st.DrawFn) -> _Turn:
    size = draw(st.integers(1, 6))
    signs = draw(st.tuples(*[st.sampled_from((1, -1))] * size))
    count = size * (size - 1) // 2
    upper = draw(st.one_of(st.just(()), st.tuples(*[st.integers(-3, 3)] * count)))
    u, v = draw(int_vectors(size, bound=2)), draw(int_vectors(size, bound=2))
    if size > 2 and draw(st.booleans()):  # a plane orthogonal to the signs: nothing turns
        u = (signs[0], -signs[1], *[0] * (size - 2))
        v = (0, signs[1], -signs[2], *[0] * (size - 3))
    return _Turn(signs, draw(st.integers(1, 9)), upper, u, v, draw(st.sampled_from((1, 2, 8))))


def _expansion(case: _Turn, factor: float = 0.5) -> float:
    """``1 - cos = (t^2/2) |As|^2/d`` up to ``t^4 |A^2 s|^2 / (24 d)``: odd terms vanish."""
    angle = case.angle()
    error = case.cosine_deficit(angle) - factor * angle**2 * case.curvature()
    return bound_margin(abs(error), case.quartic() * angle**4 + _ROUNDING)


def _hessian(case: _Turn) -> float:
    """``|As|^2 = -<s, A^2 s>``, and it is 0 exactly if A s = 0."""
    image = case.image()
    energy = exact.dot(image, image)
    twice = tuple(exact.dot(row, image) for row in case.skew())
    return min(
        exact_margin(energy, -exact.dot(case.signs, twice)),
        bound_margin(0.0, float(energy)),
        iff_margin(energy == 0, not any(image)),
    )


def _strictly_positive(case: _Turn) -> float:
    is_zero = exact.frobenius_squared(case.skew()) == 0
    return 1.0 if is_zero or any(case.image()) else -1.0


def _angle_needed(case: _Turn, factor: float = 2.0) -> float:
    """The angle ``sqrt(factor d e)/|As|`` leaves the cosine 1 - e, up to the quartic term."""
    curvature = case.curvature()
    if curvature == 0.0:  # no angle is enough: the cosine stays 1
        return bound_margin(abs(case.cosine_deficit(case.angle())), _ROUNDING)
    loss = case.angle() ** 2 * curvature / 2.0
    angle = math.sqrt(factor * loss / curvature)
    error = case.cosine_deficit(angle) - loss
    return bound_margin(abs(error), case.quartic() * angle**4 + _ROUNDING)


_TRIED = "lattice points of R^1 to R^6, integer skew matrices, angles that flip no sign"

CHECKS = (
    Check(
        name="cosine_near_the_lattice",
        arithmetic="float64",
        tried=_TRIED,
        cases=_turns(),
        margin=_expansion,
        mutant=Mutant(
            "The quadratic term is t^2 |As|^2/d, without the half.",
            lambda case: _expansion(case, factor=1.0),
        ),
    ),
    Check(
        name="curvature_at_the_lattice",
        arithmetic="exact",
        tried=_TRIED,
        cases=_turns(),
        margin=_hessian,
        mutant=Mutant("It is positive for every skew A other than 0.", _strictly_positive),
    ),
    Check(
        name="angle_for_the_last_mile",
        arithmetic="float64",
        tried=_TRIED,
        cases=_turns(),
        margin=_angle_needed,
        mutant=Mutant("The angle is sqrt(d e)/|As|.", lambda case: _angle_needed(case, factor=1.0)),
    ),
)
