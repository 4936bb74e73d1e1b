"""Family A: the energy of scaled updates, projections, sums, and what a loss decrease costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.linalg.spectrum import stable_rank
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin, close_margin, exact_margin

__all__ = ["CHECKS"]


# --- alpha/r and alpha/sqrt(r) --------------------------------------------------------------


@dataclass(frozen=True)
class _Scaled:
    """Factors, alpha, and how much c exceeds the least one with ``|BA|^2 <= c r``."""

    lora_b: IntMatrix
    lora_a: IntMatrix
    numerator: int
    denominator: int
    slack: int

    @property
    def alpha(self) -> Fraction:
        return Fraction(self.numerator, self.denominator)

    @property
    def rank(self) -> int:
        return len(self.lora_a)

    @property
    def product(self) -> exact.Matrix:
        return exact.matmul(self.lora_b, self.lora_a)

    @property
    def c(self) -> Fraction:
        return Fraction(exact.frobenius_squared(self.product), self.rank) + self.slack


@st.composite
def _scaled(draw: st.DrawFn) -> _Scaled:
    rank = draw(st.integers(1, 4))
    return _Scaled(
        draw(int_matrices(cols=rank)),
        draw(int_matrices(rows=rank)),
        draw(st.integers(-32, 32)),
        draw(st.integers(1, 8)),
        draw(st.sampled_from((0, 0, 1, 100))),
    )


def _lora_energy(case: _Scaled, power: int = 1) -> float:
    """Margin of ``|(alpha/r) BA|^2 <= alpha^2 c / r ** power``."""
    energy = exact.frobenius_squared(exact.scale(case.alpha / case.rank, case.product))
    return bound_margin(float(energy), float(case.alpha**2 * case.c / case.rank**power))


def _rslora_energy(case: _Scaled) -> float:
    """``|(alpha/sqrt r) BA|^2 = (alpha^2/r) |BA|^2``, at most ``alpha^2 c``; also in float64."""
    energy = case.alpha**2 / case.rank * exact.frobenius_squared(case.product)
    update = float(case.alpha) / math.sqrt(case.rank) * to_tensor(case.product)
    error = abs(update.square().sum().item() - float(energy))
    return min(
        bound_margin(float(energy), float(case.alpha**2 * case.c)),
        close_margin(error, 1e-13 * float(energy)),
    )


def _unscaled_energy(case: _Scaled) -> float:
    energy = exact.frobenius_squared(exact.scale(case.alpha, case.product))
    return bound_margin(float(energy), float(case.alpha**2 * case.c))


# --- what a projection leaves ---------------------------------------------------------------


@dataclass(frozen=True)
class _Projected:
    """A vector and the first ``count`` columns of a rational rotation."""

    vector: IntVector
    normals: tuple[IntVector, IntVector]
    count: int


@st.composite
def _projected(draw: st.DrawFn) -> _Projected:
    n = draw(st.integers(1, 5))
    pair = st.tuples(int_vectors(n, bound=2), int_vectors(n, bound=2))
    return _Projected(draw(int_vectors(n)), draw(pair), draw(st.integers(1, n)))


def _complement(case: _Projected, length: int = 1) -> float:
    """``|x - U U^T x| <= |x|`` for columns of that length, and Pythagoras for length 1."""
    frame = exact.columns(exact.rotation(case.normals), case.count)
    frame = exact.scale(length, frame)
    column = exact.transpose((case.vector,))
    coordinates = exact.matmul(exact.transpose(frame), column)
    left = exact.subtract(column, exact.matmul(frame, coordinates))
    energy, remaining = exact.dot(case.vector, case.vector), exact.frobenius_squared(left)
    bound = bound_margin(float(remaining), float(energy))
    if length != 1:
        return bound
    return min(bound, exact_margin(remaining + exact.frobenius_squared(coordinates), energy))


# --- errors of a base and of an update ------------------------------------------------------


@dataclass(frozen=True)
class _Sum:
    """Two matrices of one shape, and a projection of their rows."""

    left: IntMatrix
    right: IntMatrix
    normals: tuple[IntVector, IntVector]
    count: int


@st.composite
def _sums(draw: st.DrawFn) -> _Sum:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    matrices = int_matrices(rows=m, cols=n)
    pair = st.tuples(int_vectors(n, bound=2), int_vectors(n, bound=2))
    return _Sum(draw(matrices), draw(matrices), draw(pair), draw(st.integers(1, n)))


def _triangle(whole: exact.Number, one: exact.Number, other: exact.Number) -> float:
    """``sqrt(whole) <= sqrt(one) + sqrt(other)``, decided in rationals."""
    excess = whole - one - other
    if excess <= 0:
        return 1.0
    return bound_margin(float(excess**2), float(4 * one * other))


def _sum_bounds(case: _Sum) -> float:
    """The triangle inequality, its squared form, and what a projection leaves of the sum."""
    one, other = (exact.frobenius_squared(rows) for rows in (case.left, case.right))
    together = exact.add(case.left, case.right)
    total = exact.frobenius_squared(together)
    difference = exact.frobenius_squared(exact.subtract(case.left, case.right))
    frame = exact.columns(exact.rotation(case.normals), case.count)
    projector = exact.matmul(frame, exact.transpose(frame))
    left_of_sum, left_of_base = (
        exact.frobenius_squared(exact.subtract(rows, exact.matmul(rows, projector)))
        for rows in (together, case.left)
    )
    return min(
        _triangle(total, one, other),
        exact_margin(total + difference, 2 * one + 2 * other),  # hence total <= 2 one + 2 other
        _triangle(left_of_sum, left_of_base, other),
    )


def _squares_add(case: _Sum) -> float:
    one, other = (exact.frobenius_squared(rows) for rows in (case.left, case.right))
    total = exact.frobenius_squared(exact.add(case.left, case.right))
    return bound_margin(float(total), float(one + other))


# --- what a decrease of the loss costs ------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """A gradient and an update of its shape, both nonzero."""

    gradient: IntMatrix
    update: IntMatrix


@st.composite
def _linears(draw: st.DrawFn) -> _Linear:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    matrices = int_matrices(rows=m, cols=n, nonzero=True)
    return _Linear(draw(matrices), draw(matrices))


def _linear_intent(case: _Linear, is_spectral: bool = False) -> float:
    """``srank(D) >= (delta / (|G| |D|_2))^2`` with ``delta = |<G, D>|``, the sharpest premise."""
    gradient, update = to_tensor(case.gradient), to_tensor(case.update)
    rows = zip(case.gradient, case.update, strict=True)
    delta = abs(sum(int(exact.dot(one, other)) for one, other in rows))
    sigma = torch.linalg.svdvals(update)
    order = 2 if is_spectral else "fro"
    norm = torch.linalg.matrix_norm(gradient, ord=order).item()
    needed = (delta / (norm * sigma[0].item())) ** 2
    return bound_margin(needed, stable_rank(sigma).item(), 1e-13 * needed)


@dataclass(frozen=True)
class _Quadratic:
    """The loss ``<C, W> + sum h_ij W_ij^2 / 2``, a weight and an update of it."""

    slopes: IntMatrix
    curvatures: IntMatrix
    weight: IntMatrix
    update: IntMatrix

    @property
    def smoothness(self) -> int:
        return max(abs(h) for row in self.curvatures for h in row)

    def entries(self) -> list[tuple[int, int, int, int]]:
        rows = zip(self.slopes, self.curvatures, self.weight, self.update, strict=True)
        return [entry for row in rows for entry in zip(*row, strict=True)]


@st.composite
def _quadratics(draw: st.DrawFn) -> _Quadratic:
    m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    matrices = int_matrices(rows=m, cols=n)
    return _Quadratic(*(draw(matrices) for _ in range(4)))


def _smooth_intent(case: _Quadratic, has_curvature: bool = True) -> float:
    """``delta <= |G| |D| + (L/2) |D|^2`` for the decrease delta of an L-smooth loss.

    Exact: either ``delta - (L/2) |D|^2`` is negative, or its square is at most ``|G|^2 |D|^2``.
    """
    entries = case.entries()
    gradient = [c + h * w for c, h, w, _ in entries]
    change = [d for *_, d in entries]
    decrease = -sum(
        Fraction(c * d) + Fraction(h * ((w + d) ** 2 - w**2), 2) for c, h, w, d in entries
    )
    energy = exact.dot(change, change)
    first_order = decrease - Fraction(case.smoothness * energy, 2) * int(has_curvature)
    if first_order <= 0:
        return 1.0
    return bound_margin(float(first_order**2), float(exact.dot(gradient, gradient) * energy))


@dataclass(frozen=True)
class _Intent:
    """A case of the linear and one of the smooth form."""

    linear: _Linear
    smooth: _Quadratic


CHECKS = (
    Check(
        name="energy_of_lora_update",
        arithmetic="exact",
        tried="integer factors of rank 1 to 4, rational alpha, the least c and larger ones",
        cases=_scaled(),
        margin=_lora_energy,
        mutant=Mutant(
            "The energy is at most alpha^2 c / r^2.", lambda case: _lora_energy(case, power=2)
        ),
    ),
    Check(
        name="energy_of_rslora_update",
        arithmetic="exact",
        tried="integer factors of rank 1 to 4, rational alpha, the least c and larger ones",
        cases=_scaled(),
        margin=_rslora_energy,
        mutant=Mutant("The same bound holds without dividing by sqrt(r).", _unscaled_energy),
    ),
    Check(
        name="projection_does_not_lengthen",
        arithmetic="exact",
        tried="integer vectors of 1 to 5 entries, rational orthonormal frames",
        cases=_projected(),
        margin=_complement,
        mutant=Mutant(
            "The same for orthogonal columns of length 2.", lambda case: _complement(case, 2)
        ),
    ),
    Check(
        name="norm_of_sum",
        arithmetic="exact",
        tried="pairs of integer matrices up to 4 x 4, projections on rational frames",
        cases=_sums(),
        margin=_sum_bounds,
        mutant=Mutant("The squared norm of a sum is at most the sum of squares.", _squares_add),
    ),
    Check(
        name="price_of_intent",
        arithmetic="float64",
        tried="integer gradients and updates up to 4 x 4; quadratic losses up to 3 x 3",
        cases=st.builds(_Intent, _linears(), _quadratics()),
        margin=lambda case: min(_linear_intent(case.linear), _smooth_intent(case.smooth)),
        mutant=Mutant(
            "The same with the spectral norm of the gradient.",
            lambda case: _linear_intent(case.linear, is_spectral=True),
        ),
    ),
)
