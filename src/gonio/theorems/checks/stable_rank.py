"""Family A: the stable rank, its scale, its bounds, and products."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.linalg.spectrum import numerical_rank, spectral_tolerance, stable_rank
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, binary_exponents, int_matrices, to_tensor
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    bound_margin,
    close_margin,
    exact_margin,
    iff_margin,
)
from gonio.theorems.checks.spectra import Spectrum, spectra

__all__ = ["CHECKS"]


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


# --- the norm is attained, and is the largest singular value ---------------------------------


def _length_of_image(case: Spectrum, index: int) -> exact.Number:
    """``|M v|^2`` for the right singular direction of that index, a rational unit vector."""
    direction = exact.reflection(case.normal_right)[index]
    return exact.frobenius_squared(exact.matmul(case.matrix(), exact.transpose((direction,))))


def _attained(case: Spectrum, index: int = 0) -> float:
    """``|M v|^2 = sigma_1^2`` at one unit vector; every vector stays below, by a definite form."""
    square = case.sigma[0] ** 2
    gram = exact.gram(case.matrix())
    slack = exact.subtract(exact.scale(square, exact.identity(len(gram))), gram)
    return min(
        exact_margin(_length_of_image(case, min(index, len(case.sigma) - 1)), square),
        iff_margin(exact.is_nonnegative_definite(slack), True),
    )


def _from_singular_values(case: Spectrum, power: int = 2) -> float:
    """``srank = sum sigma^power / sigma_1^power``, from the norms themselves and the library."""
    ratio = Fraction(sum(s**power for s in case.sigma), case.sigma[0] ** power)
    energy, top = exact.frobenius_squared(case.matrix()), _length_of_image(case, 0)
    value = stable_rank(torch.linalg.svdvals(to_tensor(case.matrix()))).item()
    return min(
        exact_margin(Fraction(energy) / top, ratio),
        close_margin(abs(value - float(ratio)), 1e-13 * float(ratio)),
    )


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
        name="spectral_norm_is_attained",
        arithmetic="exact",
        tried="rational matrices up to 4 x 4 of known spectrum",
        cases=spectra(),
        margin=_attained,
        mutant=Mutant(
            "The second singular direction attains it.", lambda case: _attained(case, index=1)
        ),
    ),
    Check(
        name="stable_rank_from_singular_values",
        arithmetic="float64",
        tried="nonzero rational matrices up to 4 x 4 of known spectrum",
        cases=spectra(nonzero=True),
        margin=_from_singular_values,
        mutant=Mutant(
            "It is the sum of the singular values over the largest.",
            lambda case: _from_singular_values(case, power=1),
        ),
    ),
)
