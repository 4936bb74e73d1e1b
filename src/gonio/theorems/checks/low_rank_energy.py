"""Family A: what a stable rank says of the energy of directions and of approximations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.linalg.spectrum import stable_rank
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors, to_tensor
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

_ROUNDING = 1e-13  # of sums of at most 25 squares and one root, with room


# --- energy d and squared spectral norm sqrt(d) ---------------------------------------------


@dataclass(frozen=True)
class _Acoustic:
    """Squared singular values ``root`` and ``extra`` equal others, ``root**2`` in all."""

    root: int
    extra: int

    @property
    def squares(self) -> tuple[Fraction, ...]:
        rest = self.root**2 - self.root
        return (Fraction(self.root), *[Fraction(rest, self.extra)] * self.extra)


@st.composite
def _acoustics(draw: st.DrawFn) -> _Acoustic:
    root = draw(st.integers(1, 12))
    return _Acoustic(root, draw(st.integers(max(1, root - 1), 24)))


def _acoustic(case: _Acoustic, power: float = 0.5) -> float:
    """Margin of ``srank = d ** power`` with d = root**2."""
    squares = case.squares
    hypotheses = min(
        exact_margin(sum(squares, Fraction(0)), case.root**2),
        exact_margin(max(squares), case.root),
    )
    sigma = torch.tensor([math.sqrt(x) for x in squares], dtype=torch.float64)
    expected = float(case.root) ** (2 * power)
    error = abs(stable_rank(sigma).item() - expected)
    return min(hypotheses, close_margin(error, _ROUNDING * case.root))


# --- the weakest direction of a frame -------------------------------------------------------


@dataclass(frozen=True)
class _Framed:
    """``M = C F^T`` with F the first columns of a rotation, and another frame of that span."""

    coefficients: IntMatrix
    outer: tuple[IntVector, IntVector]
    inner: tuple[IntVector, IntVector]

    def energies(self) -> list[exact.Number]:
        """``|M q|^2`` for each direction q of the frame."""
        count = len(self.coefficients[0])
        frame = exact.columns(exact.rotation(self.outer), count)
        matrix = exact.matmul(self.coefficients, exact.transpose(frame))
        images = exact.matmul(matrix, exact.matmul(frame, exact.rotation(self.inner)))
        return [exact.dot(column, column) for column in exact.transpose(images)]


@st.composite
def _framed(draw: st.DrawFn) -> _Framed:
    n = draw(st.integers(1, 4))
    r = draw(st.integers(1, n))
    pair = st.tuples(int_vectors(n, bound=2), int_vectors(n, bound=2))
    inner = st.tuples(int_vectors(r, bound=2), int_vectors(r, bound=2))
    return _Framed(draw(int_matrices(cols=r)), draw(pair), draw(inner))


def _dilution(case: _Framed) -> float:
    """The directions carry the whole energy, so the weakest carries at most its r-th part."""
    energies = case.energies()
    total = exact.frobenius_squared(case.coefficients)
    share = Fraction(total, len(energies))
    return min(exact_margin(sum(energies), total), bound_margin(float(min(energies)), float(share)))


def _every_direction_is_diluted(case: _Framed) -> float:
    energies = case.energies()
    share = Fraction(exact.frobenius_squared(case.coefficients), len(energies))
    return bound_margin(float(max(energies)), float(share))


# --- energy and stable rank are independent --------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """A matrix to rescale, an energy, and a stable rank ``numerator / 60`` to reach."""

    rows: IntMatrix
    energy: int
    numerator: int

    @property
    def stable_rank(self) -> Fraction:
        return Fraction(self.numerator, 60)


@st.composite
def _targets(draw: st.DrawFn) -> _Target:
    rows = draw(int_matrices(nonzero=True))
    return _Target(
        rows,
        draw(st.integers(1, 10**6)),
        draw(st.integers(60, 60 * min(len(rows), len(rows[0])))),
    )


def _squares_of(case: _Target) -> list[Fraction]:
    """Squared singular values: as many of the largest as fit, and the rest in one more."""
    top = case.energy / case.stable_rank
    whole = int(case.stable_rank)
    rest = (case.stable_rank - whole) * top
    return [top] * whole + ([rest] if rest else [])


def _reached(case: _Target, squares: list[Fraction]) -> float:
    """Whether a diagonal matrix of the shape at hand has the energy and the stable rank."""
    shape = len(case.rows), len(case.rows[0])
    diagonal = torch.zeros(shape, dtype=torch.float64)
    for i, square in enumerate(squares):
        diagonal[i, i] = math.sqrt(square)
    sigma = torch.linalg.svdvals(diagonal)
    error = abs(stable_rank(sigma).item() - float(case.stable_rank))
    return min(
        iff_margin(len(squares) <= min(shape), True),
        exact_margin(sum(squares, Fraction(0)), case.energy),
        exact_margin(sum(squares, Fraction(0)) / max(squares), case.stable_rank),
        close_margin(error, _ROUNDING * float(case.stable_rank)),
    )


def _disentangled(case: _Target) -> float:
    matrix = to_tensor(case.rows)
    factor = math.sqrt(case.energy / int(exact.frobenius_squared(case.rows)))
    before = stable_rank(torch.linalg.svdvals(matrix)).item()
    sigma = torch.linalg.svdvals(factor * matrix)
    return min(
        close_margin(abs(sigma.square().sum().item() / case.energy - 1.0), 64 * _ROUNDING),
        close_margin(abs(stable_rank(sigma).item() - before), 64 * _ROUNDING * before),
        _reached(case, _squares_of(case)),
    )


def _equal_directions(case: _Target) -> float:
    count = math.ceil(case.stable_rank)
    return _reached(case, [Fraction(case.energy, count)] * count)


# --- approximation of rank k ----------------------------------------------------------------


def _best_error(case: Spectrum) -> exact.Number:
    whole = case.matrix()
    return exact.frobenius_squared(exact.subtract(whole, case.truncated()))


def _low_dimensional(case: Spectrum) -> float:
    """Error, the next singular value, and the upper bound that a stable rank does not give."""
    total, k = case.energy(), case.rank
    after = case.sigma[k] ** 2 if k < len(case.sigma) else 0
    bound = Fraction(total, k + 1)
    shares = stable_rank(to_tensor(case.sigma)).item() * case.sigma[0] ** 2 / (k + 1)
    return min(
        exact_margin(_best_error(case), total - case.energy(stop=k)),
        bound_margin(float(after), float(bound)),
        close_margin(abs(shares - float(bound)), _ROUNDING * float(bound)),
    )


def _printed_error_bound(case: Spectrum) -> float:
    """``error <= |M|^2 (1 - k / srank) = |M|^2 - k sigma_1^2``, which is the lower bound."""
    printed = case.energy() - case.rank * case.sigma[0] ** 2
    return bound_margin(float(_best_error(case)), float(printed))


@dataclass(frozen=True)
class _ThreeDirections:
    """``diag(top, 1, 1)`` with ``top >= 2``, and a competitor of rank 2."""

    top: int
    left: IntMatrix
    right: IntMatrix

    @property
    def matrix(self) -> exact.Matrix:
        return ((self.top, 0, 0), (0, 1, 0), (0, 0, 1))

    @property
    def printed(self) -> Fraction:
        """``|M|^2 (1 - 2 / srank)``, with ``srank = (top^2 + 2) / top^2 <= 2``."""
        energy = self.top**2 + 2
        srank = Fraction(energy, self.top**2)
        if srank > 2:
            raise ArithmeticError("the stable rank exceeds 2")
        return energy * (1 - 2 / srank)


def _no_competitor_reaches(case: _ThreeDirections) -> float:
    competitor = exact.matmul(case.left, case.right)
    error = exact.frobenius_squared(exact.subtract(case.matrix, competitor))
    excess = float((error - case.printed) / (error - 2 * case.printed))
    return min(excess or -1.0, iff_margin(exact.rank(case.matrix) == 3, True))


def _truncation_reaches(case: _ThreeDirections) -> float:
    """The printed bound against the error 1 of the best approximation of rank 2."""
    return bound_margin(1.0, float(case.printed))


CHECKS = (
    Check(
        name="stable_rank_from_energy_and_norm",
        arithmetic="float64",
        tried="spectra of energy d = 1 to 144 with squared spectral norm sqrt(d)",
        cases=_acoustics(),
        margin=_acoustic,
        mutant=Mutant("The stable rank is 1/sqrt(d).", lambda case: _acoustic(case, power=-0.5)),
    ),
    Check(
        name="weakest_direction_of_a_frame",
        arithmetic="exact",
        tried="integer coefficients in rational frames of 1 to 4 directions",
        cases=_framed(),
        margin=_dilution,
        mutant=Mutant(
            "Every direction of the frame carries at most that.", _every_direction_is_diluted
        ),
    ),
    Check(
        name="energy_and_stable_rank_are_independent",
        arithmetic="float64",
        tried="integer matrices up to 4 x 4, energies to 10**6, stable ranks in steps of 1/60",
        cases=_targets(),
        margin=_disentangled,
        mutant=Mutant("As many equal directions as needed reach it.", _equal_directions),
    ),
    Check(
        name="energy_left_by_rank_k",
        arithmetic="float64",
        tried="rational matrices up to 4 x 4 of known spectrum, every k",
        cases=spectra(nonzero=True),
        margin=_low_dimensional,
        mutant=Mutant(
            "The printed bound: the best error is at most |M|^2 (1 - k/srank).",
            _printed_error_bound,
        ),
    ),
    Check(
        name="low_stable_rank_is_not_low_rank",
        arithmetic="exact",
        tried="diag(t, 1, 1) for integers t >= 2, against integer matrices of rank 2",
        cases=st.builds(
            _ThreeDirections,
            st.integers(2, 1000),
            int_matrices(rows=3, cols=2),
            int_matrices(rows=2, cols=3),
        ),
        margin=_no_competitor_reaches,
        mutant=Mutant("Truncation to rank 2 reaches the printed bound.", _truncation_reaches),
    ),
)
