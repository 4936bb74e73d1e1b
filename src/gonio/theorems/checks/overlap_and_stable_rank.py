"""Family A: stable rank, subspace overlap and its chance level, column gains."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import torch
from hypothesis import strategies as st

from gonio.linalg.chance import expected_gain_residual, expected_overlap, overlap_variance
from gonio.linalg.spectrum import numerical_rank, spectral_tolerance, stable_rank
from gonio.linalg.subspaces import subspace_overlap
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import (
    IntMatrix,
    IntVector,
    binary_exponents,
    generator,
    int_matrices,
    int_vectors,
    seeds,
    to_tensor,
)
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    bound_margin,
    close_margin,
    exact_margin,
    iff_margin,
    z_margin,
)

__all__ = ["CHECKS"]

_HAAR_SAMPLES = 200


# --- srank(cM) = srank(M) -------------------------------------------------------------------


@dataclass(frozen=True)
class _Rescaled:
    """``M`` and the factor ``numerator / denominator * 2**exponent``."""

    rows: IntMatrix
    numerator: int
    denominator: int
    exponent: int

    @property
    def factor(self) -> Fraction:
        return Fraction(self.numerator, self.denominator) * Fraction(2) ** self.exponent


_rescaled = st.builds(
    _Rescaled,
    int_matrices(nonzero=True),
    st.integers(-9, 9).filter(bool),
    st.integers(1, 9),
    binary_exponents,
)


def _smul_invariant(case: _Rescaled) -> float:
    before = exact.elementary_symmetric(exact.gram(case.rows))
    after = exact.elementary_symmetric(exact.gram(exact.scale(case.factor, case.rows)))
    squared = case.factor**2
    exactly = min(
        exact_margin(value, squared**k * before[k - 1]) for k, value in enumerate(after, start=1)
    )
    matrix = to_tensor(case.rows)
    sigma = torch.linalg.svdvals(matrix)
    rescaled = torch.linalg.svdvals(float(case.factor) * matrix)
    value = stable_rank(sigma).item()
    error = abs(stable_rank(rescaled).item() - value)
    tolerance = 4 * value * spectral_tolerance(1.0, sum(matrix.shape), torch.float64)
    return min(exactly, close_margin(error, tolerance))


def _ratio_without_square(case: _Rescaled) -> float:
    matrix = to_tensor(case.rows)
    sigma = torch.linalg.svdvals(matrix)
    before = (sigma.square().sum() / sigma[0]).item()
    sigma = float(case.factor) * sigma
    after = (sigma.square().sum() / sigma[0]).item()
    return close_margin(abs(after - before), 1e-9 * before)


# --- 1 <= srank(M) <= rank(M) ---------------------------------------------------------------


def _stable_rank_between(rows: IntMatrix, share: Fraction = Fraction(1)) -> float:
    """Margin of ``1 <= srank <= share * rank``: the verdict is exact, its size floating point."""
    energy, rank, gram = exact.frobenius_squared(rows), exact.rank(rows), exact.gram(rows)
    energy_identity = exact.scale(energy, exact.identity(len(gram)))
    # share * rank * lambda_max >= energy: then energy * I - share * rank * G is not positive.
    excess = exact.subtract(energy_identity, exact.scale(share * rank, gram))
    is_above = exact.is_nonnegative_definite(excess, strictly=True)
    is_below_one = not exact.is_nonnegative_definite(exact.subtract(energy_identity, gram))
    sigma = torch.linalg.svdvals(to_tensor(rows))
    value = stable_rank(sigma).item()
    slack = min(float(share * rank) - value, value - 1.0) / rank
    verdict = min(slack, -1e-9) if is_above or is_below_one else max(slack, 0.0)
    shape = (len(rows), len(rows[0]))
    ranks_agree = int(numerical_rank(sigma, shape, dtype=torch.float64)) == rank
    return min(verdict, iff_margin(ranks_agree, True))


# --- srank(AB) <= min(srank A, srank B) is false; rank(AB) <= min(rank A, rank B) -----------


@dataclass(frozen=True)
class _Product:
    """A pair to multiply, and the 0 < epsilon < 1 of ``diag(1, eps) diag(eps, 1)``."""

    left: IntMatrix
    right: IntMatrix
    numerator: int
    denominator: int

    @property
    def epsilon(self) -> Fraction:
        return Fraction(self.numerator, self.denominator)


@st.composite
def _products(draw: st.DrawFn) -> _Product:
    inner = draw(st.integers(1, 4))
    denominator = draw(st.integers(2, 1000))
    return _Product(
        draw(int_matrices(cols=inner)),
        draw(int_matrices(rows=inner)),
        draw(st.integers(1, denominator - 1)),
        denominator,
    )


def _diagonal_stable_rank(matrix: exact.Matrix) -> Fraction:
    squares = [matrix[i][i] ** 2 for i in range(len(matrix))]
    return Fraction(sum(squares), max(squares))


def _stable_ranks(epsilon: Fraction) -> tuple[Fraction, Fraction]:
    """min(srank A, srank B) and srank AB for the counterexample."""
    left: exact.Matrix = ((1, 0), (0, epsilon))
    right: exact.Matrix = ((epsilon, 0), (0, 1))
    smaller = min(_diagonal_stable_rank(left), _diagonal_stable_rank(right))
    product = exact.matmul(left, right)
    if product[0][1] or product[1][0]:
        raise ArithmeticError("a product of diagonal matrices is not diagonal")
    return smaller, _diagonal_stable_rank(product)


def _product_exceeds(case: _Product) -> float:
    smaller, product = _stable_ranks(case.epsilon)
    refutation = float((product - smaller) / product)
    ranks = exact.rank(case.left), exact.rank(case.right)
    rank = exact.rank(exact.matmul(case.left, case.right))
    return min(
        exact_margin(product, 2), refutation or -1.0, bound_margin(float(rank), float(min(ranks)))
    )


def _product_stays_below(case: _Product) -> float:
    smaller, product = _stable_ranks(case.epsilon)
    return float((smaller - product) / product)


# --- E overlap = max(k, l) / n --------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """Two rational frames (reflections' first columns), and the dimensions of a Haar draw."""

    normals_u: tuple[IntVector, IntVector]
    normals_w: tuple[IntVector, IntVector]
    dim_u: int
    dim_w: int
    haar_dims: tuple[int, int, int]  # k, l, n
    seed: int


@st.composite
def _frames(draw: st.DrawFn) -> _Frames:
    n = draw(st.integers(1, 4))
    pair = st.tuples(int_vectors(n, bound=2), int_vectors(n, bound=2))
    haar_n = draw(st.integers(1, 16))
    return _Frames(
        draw(pair),
        draw(pair),
        draw(st.integers(1, n)),
        draw(st.integers(1, n)),
        (draw(st.integers(1, haar_n)), draw(st.integers(1, haar_n)), haar_n),
        draw(seeds),
    )


def _integer_frame(normals: tuple[IntVector, IntVector], count: int) -> tuple[IntMatrix, int]:
    """First columns of a product of two reflections as integers over one denominator."""
    rotation = exact.matmul(exact.reflection(normals[0]), exact.reflection(normals[1]))
    frame = exact.columns(rotation, count)
    denominator = lcm(*(Fraction(x).denominator for row in frame for x in row))
    return tuple(tuple(int(x * denominator) for x in row) for row in frame), denominator


def _group_mean_overlap(case: _Frames) -> Fraction:
    u, u_denominator = _integer_frame(case.normals_u, case.dim_u)
    w, w_denominator = _integer_frame(case.normals_w, case.dim_w)
    u_columns = exact.transpose(u)
    total, count = 0, 0
    for element in exact.signed_shifts(len(u)):
        moved = tuple(tuple(sign * x for x in w[source]) for source, sign in element)
        total += int(exact.frobenius_squared(exact.matmul(u_columns, moved)))
        count += 1
    smaller = min(case.dim_u, case.dim_w)
    return Fraction(total, count * (u_denominator * w_denominator) ** 2 * smaller)


def _group_margin(case: _Frames, ambient: int) -> float:
    """Whether the mean over signed shifts is ``max(k, l) / ambient``."""
    expected = Fraction(max(case.dim_u, case.dim_w), ambient)
    return exact_margin(_group_mean_overlap(case), expected)


def _haar_margin(case: _Frames) -> float:
    """The simulated mean against the closed form, in units of the exact standard error."""
    k, other, n = case.haar_dims
    shape = (_HAAR_SAMPLES, n, other)
    gaussian = torch.randn(shape, dtype=torch.float64, generator=generator(case.seed))
    frames = torch.linalg.qr(gaussian).Q
    fixed = torch.eye(n, k, dtype=torch.float64).expand(_HAAR_SAMPLES, n, k)
    error = subspace_overlap(fixed, frames).mean().item() - expected_overlap(k, other, n)
    return z_margin(error, (overlap_variance(k, other, n) / _HAAR_SAMPLES) ** 0.5)


def _expected_overlap(case: _Frames) -> float:
    return min(_group_margin(case, len(case.normals_u[0])), _haar_margin(case))


# --- least-squares column gains and their chance level --------------------------------------


@dataclass(frozen=True)
class _Gain:
    """An update, a weight of the same shape, and other gains to try."""

    update: IntMatrix
    weight: IntMatrix
    other: IntVector


@st.composite
def _gains(draw: st.DrawFn) -> _Gain:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return _Gain(
        draw(int_matrices(rows=m, cols=n, nonzero=True)),
        draw(int_matrices(rows=m, cols=n)),
        draw(int_vectors(n)),
    )


def _residual(update: exact.Matrix, weight: exact.Matrix, gains: exact.Vector) -> exact.Number:
    scaled = tuple(tuple(x * g for x, g in zip(row, gains, strict=True)) for row in weight)
    return exact.frobenius_squared(exact.subtract(update, scaled))


def _captured(update: exact.Matrix, weight: exact.Matrix) -> Fraction:
    """``sum_j <D_j, W_j>^2 / |W_j|^2``; columns without weight capture nothing."""
    total = Fraction(0)
    for d, w in zip(exact.transpose(update), exact.transpose(weight), strict=True):
        if any(w):
            total += Fraction(exact.dot(d, w) ** 2, exact.dot(w, w))
    return total


def _gain_formula(case: _Gain) -> float:
    gains = tuple(
        Fraction(exact.dot(d, w), exact.dot(w, w)) if any(w) else Fraction(0)
        for d, w in zip(exact.transpose(case.update), exact.transpose(case.weight), strict=True)
    )
    energy = exact.frobenius_squared(case.update)
    best = _residual(case.update, case.weight, gains)
    others = tuple(g + h for g, h in zip(gains, case.other, strict=True))
    worse = _residual(case.update, case.weight, others)
    squares = (exact.dot(w, w) for w in exact.transpose(case.weight))
    excess = sum((h * h * s for h, s in zip(case.other, squares, strict=True)), 0)
    return min(
        exact_margin(best, energy - _captured(case.update, case.weight)),
        exact_margin(worse - best, excess),
    )


def _gain_null(case: _Gain, parts: int) -> float:
    """The mean over rotations of the rows loses ``1 / parts`` of the energy that meets a weight."""
    total, count = Fraction(0), 0
    for element in exact.signed_shifts(len(case.update)):
        moved = tuple(tuple(sign * x for x in case.update[source]) for source, sign in element)
        total += _captured(moved, case.weight)
        count += 1
    pairs = zip(exact.transpose(case.update), exact.transpose(case.weight), strict=True)
    met = sum((exact.dot(d, d) for d, w in pairs if any(w)), 0)
    return exact_margin(total / count, Fraction(met, parts))


def _column_gain(case: _Gain) -> float:
    m = len(case.update)
    twin = close_margin(abs(expected_gain_residual(m) - float(1 - Fraction(1, m))), 4e-16)
    return min(_gain_formula(case), _gain_null(case, m), twin)


CHECKS = (
    Check(
        name="stable_rank_ignores_scale",
        arithmetic="float64",
        tried="integer matrices up to 4 x 4 times rational factors of size up to 9 * 2**560",
        cases=_rescaled,
        margin=_smul_invariant,
        mutant=Mutant(
            "The ratio |M|_F^2 / |M|_2, with the spectral norm not squared, ignores scale.",
            _ratio_without_square,
        ),
    ),
    Check(
        name="stable_rank_at_most_rank",
        arithmetic="exact",
        tried="integer matrices up to 4 x 4; rank and inequality decided in rationals",
        cases=int_matrices(nonzero=True),
        margin=_stable_rank_between,
        mutant=Mutant(
            "The stable rank is at most 99 % of the rank.",
            lambda rows: _stable_rank_between(rows, Fraction(99, 100)),
        ),
    ),
    Check(
        name="stable_rank_of_product",
        arithmetic="exact",
        tried="diag(1, e) diag(e, 1) for rational 0 < e < 1; ranks of integer products",
        cases=_products(),
        margin=_product_exceeds,
        mutant=Mutant(
            "The printed inequality: srank(AB) <= min(srank A, srank B).", _product_stays_below
        ),
    ),
    Check(
        name="overlap_of_random_subspaces",
        arithmetic="simulation",
        tried="rational frames averaged over signed shifts; 200 Haar frames in up to R^16",
        cases=_frames(),
        margin=_expected_overlap,
        mutant=Mutant(
            "The expected overlap is max(k, l) / (n + 1).",
            lambda case: _group_margin(case, len(case.normals_u[0]) + 1),
        ),
    ),
    Check(
        name="column_gain_residual",
        arithmetic="exact",
        tried="integer updates and weights up to 4 x 4, rows averaged over signed shifts",
        cases=_gains(),
        margin=_column_gain,
        mutant=Mutant(
            "The chance level is 1 - 1/n with n the number of columns.",
            lambda case: _gain_null(case, len(case.update[0])),
        ),
    ),
)
