"""Family A, the groundwork: squared norms, their scaling, and ratios of quadratic forms."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.linalg.spectrum import frobenius_norm, spectral_norm, spectral_tolerance
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, int_matrices, to_tensor
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    bound_margin,
    close_margin,
    exact_margin,
    iff_margin,
)

__all__ = ["CHECKS"]


@dataclass(frozen=True)
class _Scaled:
    """A matrix and a factor, zero included."""

    rows: IntMatrix
    numerator: int
    denominator: int

    @property
    def factor(self) -> Fraction:
        return Fraction(self.numerator, self.denominator)

    @property
    def scaled(self) -> exact.Matrix:
        return exact.scale(self.factor, self.rows)


_scaled = st.builds(_Scaled, int_matrices(), st.integers(-9, 9), st.integers(1, 9))


def _nonnegative(rows: IntMatrix) -> float:
    """The sum of squares is the trace of M^T M, and at least 0."""
    energy = exact.frobenius_squared(rows)
    gram = exact.gram(rows)
    trace = sum((gram[i][i] for i in range(len(gram))), 0)
    return min(exact_margin(energy, trace), bound_margin(0.0, float(energy)))


def _zero_iff(rows: IntMatrix) -> float:
    is_zero = all(x == 0 for row in rows for x in row)
    twin = frobenius_norm(torch.linalg.svdvals(to_tensor(rows))).item() == 0.0
    energy = exact.frobenius_squared(rows)
    return min(iff_margin(energy == 0, is_zero), iff_margin(twin, is_zero))


def _frobenius_scaling(case: _Scaled, power: int = 2) -> float:
    energy = exact.frobenius_squared(case.rows)
    return exact_margin(exact.frobenius_squared(case.scaled), abs(case.factor) ** power * energy)


def _spectral_scaling(case: _Scaled, power: int = 2) -> float:
    """All squared singular values scale by c^2 (exactly, by their symmetric functions)."""
    before = exact.elementary_symmetric(exact.gram(case.rows))
    after = exact.elementary_symmetric(exact.gram(case.scaled))
    factor = abs(case.factor) ** power
    return min(
        exact_margin(value, factor**k * before[k - 1]) for k, value in enumerate(after, start=1)
    )


def _spectral_scaling_with_twin(case: _Scaled) -> float:
    matrix = to_tensor(case.rows)
    top = spectral_norm(torch.linalg.svdvals(matrix)).item()
    scaled = spectral_norm(torch.linalg.svdvals(float(case.factor) * matrix)).item()
    expected = abs(float(case.factor)) * top
    tolerance = spectral_tolerance(expected, sum(matrix.shape), torch.float64)
    return min(_spectral_scaling(case), close_margin(abs(scaled - expected), tolerance))


@dataclass(frozen=True)
class _Forms:
    """Two quadratic forms ``v^T F v`` and ``v^T G v``, a vector and a nonzero factor."""

    first: IntMatrix
    second: IntMatrix
    vector: tuple[int, ...]
    numerator: int
    denominator: int


@st.composite
def _forms(draw: st.DrawFn) -> _Forms:
    size = draw(st.integers(1, 4))
    return _Forms(
        draw(int_matrices(rows=size, cols=size)),
        draw(int_matrices(rows=size, cols=size)),
        draw(st.tuples(*[st.integers(-4, 4)] * size)),
        draw(st.integers(-9, 9).filter(bool)),
        draw(st.integers(1, 9)),
    )


def _ratio_invariant(case: _Forms, is_affine: bool = False) -> float:
    """``f(cv) / g(cv) = f(v) / g(v)``, cross-multiplied, so that g may vanish."""
    c = Fraction(case.numerator, case.denominator)
    scaled = tuple(c * x for x in case.vector)

    def form(matrix: exact.Matrix, vector: exact.Vector) -> exact.Number:
        image = exact.matmul(matrix, exact.transpose((vector,)))
        return exact.dot(vector, (row[0] for row in image)) + int(is_affine)

    before = form(case.first, case.vector), form(case.second, case.vector)
    after = form(case.first, scaled), form(case.second, scaled)
    return exact_margin(after[0] * before[1], before[0] * after[1])


CHECKS = (
    Check(
        name="frobenius_nonnegative",
        arithmetic="exact",
        tried="integer matrices up to 4 x 4, zero included",
        cases=int_matrices(),
        margin=_nonnegative,
        mutant=Mutant(
            "The squared norm is at least 1.",
            lambda rows: bound_margin(1.0, float(exact.frobenius_squared(rows))),
        ),
    ),
    Check(
        name="frobenius_zero_only_at_zero",
        arithmetic="exact",
        tried="integer matrices up to 4 x 4, zero included",
        cases=int_matrices(),
        margin=_zero_iff,
        mutant=Mutant(
            "It vanishes exactly when the sum of the entries does.",
            lambda rows: iff_margin(
                exact.frobenius_squared(rows) == 0, sum(x for row in rows for x in row) == 0
            ),
        ),
    ),
    Check(
        name="frobenius_scaling",
        arithmetic="exact",
        tried="integer matrices up to 4 x 4 times rational factors, zero included",
        cases=_scaled,
        margin=_frobenius_scaling,
        mutant=Mutant(
            "The squared norm scales by |c|.", lambda case: _frobenius_scaling(case, power=1)
        ),
    ),
    Check(
        name="spectral_scaling",
        arithmetic="float64",
        tried="integer matrices up to 4 x 4 times rational factors, zero included",
        cases=_scaled,
        margin=_spectral_scaling_with_twin,
        mutant=Mutant(
            "The squared norm scales by |c|.", lambda case: _spectral_scaling(case, power=1)
        ),
    ),
    Check(
        name="ratio_of_quadratic_forms",
        arithmetic="exact",
        tried="pairs of integer quadratic forms in up to 4 variables, rational factors",
        cases=_forms(),
        margin=_ratio_invariant,
        mutant=Mutant(
            "The same for quadratic forms plus a constant.",
            lambda case: _ratio_invariant(case, is_affine=True),
        ),
    ),
)
