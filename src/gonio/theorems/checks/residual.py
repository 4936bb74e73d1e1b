"""Families F and I: the best correction of given rank, and what signs and a correction leave."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import torch
from hypothesis import strategies as st

from gonio.linalg.lowrank import factored_svd
from gonio.linalg.spectrum import spectral_tolerance
from gonio.quant.sign import population_beta
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin, close_margin, exact_margin
from gonio.theorems.checks.spectra import Spectrum, spectra

__all__ = ["CHECKS"]


# --- Eckart and Young -----------------------------------------------------------------------


def _errors(case: Spectrum) -> tuple[exact.Number, list[exact.Number]]:
    """Squared error of the truncation, and of every competitor of the same rank."""
    whole = case.matrix()
    subsets = list(combinations(range(len(case.sigma)), case.rank))
    competitors = [case.matrix(kept) for kept in subsets[1:]] + [case.competitor()]
    errors = [exact.frobenius_squared(exact.subtract(whole, other)) for other in competitors]
    best = exact.frobenius_squared(exact.subtract(whole, case.truncated()))
    return best, errors


def _eckart_young(case: Spectrum) -> float:
    tail = case.energy(start=case.rank)
    best, errors = _errors(case)
    bounds = (bound_margin(float(best), float(error)) for error in errors)
    return min(exact_margin(best, tail), *bounds, _factored_tail(case, tail))


def _factored_tail(case: Spectrum, tail: int) -> float:
    """The same tail from the factored decomposition the library uses, in float64."""
    whole = to_tensor(case.matrix())
    u, sigma, vh = factored_svd(whole, torch.eye(whole.shape[1], dtype=torch.float64))
    kept = (u[:, : case.rank] * sigma[: case.rank]) @ vh[: case.rank]
    tolerance = spectral_tolerance(max(case.sigma[0], 1), sum(whole.shape), torch.float64)
    error = (whole - kept).norm().item() - tail**0.5
    return close_margin(abs(error), 4 * tolerance)


def _unsquared_tail(case: Spectrum) -> float:
    return exact_margin(_errors(case)[0], sum(case.sigma[case.rank :]))


# --- Ky Fan ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Captured:
    """A matrix of known spectrum and a rational frame of as many directions as its rank."""

    spectrum: Spectrum
    normals: tuple[IntVector, IntVector]

    def energies(self) -> tuple[exact.Number, exact.Number]:
        """Energy of ``M U`` for the top right singular directions, and for the other frame."""
        spectrum, matrix = self.spectrum, self.spectrum.matrix()
        right = exact.transpose(exact.reflection(spectrum.normal_right))
        frames = exact.columns(right, spectrum.rank), self.frame
        best, other = (exact.frobenius_squared(exact.matmul(matrix, frame)) for frame in frames)
        return best, other

    @property
    def frame(self) -> exact.Matrix:
        return exact.columns(exact.rotation(self.normals), self.spectrum.rank)


@st.composite
def _captured(draw: st.DrawFn) -> _Captured:
    spectrum = draw(spectra())
    n = len(spectrum.normal_right)
    return _Captured(spectrum, draw(st.tuples(int_vectors(n, bound=2), int_vectors(n, bound=2))))


def _ky_fan(case: _Captured) -> float:
    """No r orthonormal directions capture more than the top r, which capture their sigma^2."""
    best, other = case.energies()
    top = case.spectrum.energy(stop=case.spectrum.rank)
    return min(exact_margin(best, top), bound_margin(float(other), float(best)))


def _fair_share(case: _Captured) -> float:
    _, other = case.energies()
    spectrum = case.spectrum
    share = Fraction(spectrum.energy() * spectrum.rank, len(spectrum.normal_right))
    return bound_margin(float(other), float(share))


# --- signs, then a correction of rank r ------------------------------------------------------


@dataclass(frozen=True)
class _Corrected:
    """Vectors (rows), a rotation of them, and an orthonormal frame for the correction."""

    rows: IntMatrix
    turn: tuple[IntVector, IntVector]
    normals: tuple[IntVector, IntVector]
    rank: int

    @property
    def turned(self) -> exact.Matrix:
        return exact.matmul(self.rows, exact.transpose(exact.rotation(self.turn)))


@st.composite
def _corrected(draw: st.DrawFn) -> _Corrected:
    d = draw(st.integers(1, 5))
    pair = st.tuples(int_vectors(d, bound=2), int_vectors(d, bound=2))
    rows = draw(int_matrices(cols=d, nonzero=True))
    return _Corrected(rows, draw(pair), draw(pair), draw(st.integers(1, d)))


def _signs_of(rows: exact.Matrix) -> exact.Matrix:
    """Each row by its signs and the mean of its absolute values; zeros count as positive."""
    return tuple(
        tuple(exact.l1(row) / len(row) * (1 if x >= 0 else -1) for x in row) for row in rows
    )


@dataclass(frozen=True)
class _Shares:
    """Energy before, share kept by signs, share of their error captured, and energy left."""

    energy: exact.Number
    beta: Fraction
    gamma: Fraction
    approximation: exact.Matrix
    remaining: exact.Number


def _shares(rows: exact.Matrix, case: _Corrected) -> _Shares:
    frame = exact.columns(exact.rotation(case.normals), case.rank)
    approximation = _signs_of(rows)
    error = exact.subtract(rows, approximation)
    captured = exact.matmul(exact.matmul(error, frame), exact.transpose(frame))
    energy, lost = exact.frobenius_squared(rows), exact.frobenius_squared(error)
    corrected = exact.add(approximation, captured)
    return _Shares(
        energy,
        1 - Fraction(lost, energy),
        Fraction(exact.frobenius_squared(captured), lost) if lost else Fraction(1),
        corrected,
        exact.frobenius_squared(exact.subtract(rows, corrected)),
    )


def _effective(case: _Corrected) -> float:
    """What is left is ``(1 - beta)(1 - gamma)`` of the energy, beta also by the library."""
    found = _shares(case.rows, case)
    left = (1 - found.beta) * (1 - found.gamma) * found.energy
    twin = population_beta(to_tensor(case.rows)).item()
    return min(
        exact_margin(found.remaining, left), close_margin(abs(twin - float(found.beta)), 1e-13)
    )


def _shares_add_up(case: _Corrected) -> float:
    found = _shares(case.rows, case)
    return exact_margin(found.remaining, (1 - found.beta - found.gamma) * found.energy)


def _per_matrix(case: _Corrected, turns_back: bool = True) -> float:
    """The same for rows under a rotation of their own, compared after turning them back."""
    found = _shares(case.turned, case)
    decoded = found.approximation
    if turns_back:
        decoded = exact.matmul(decoded, exact.rotation(case.turn))
    error = exact.frobenius_squared(exact.subtract(case.rows, decoded))
    left = (1 - found.beta) * (1 - found.gamma) * exact.frobenius_squared(case.rows)
    return exact_margin(error, left)


CHECKS = (
    Check(
        name="best_rank_r_error",
        arithmetic="float64",
        tried="rational matrices up to 4 x 4 of known spectrum, against all subsets and products",
        cases=spectra(),
        margin=_eckart_young,
        mutant=Mutant(
            "The squared error is the sum of the discarded singular values, not squared.",
            _unsquared_tail,
        ),
    ),
    Check(
        name="energy_of_top_directions",
        arithmetic="exact",
        tried="rational matrices up to 4 x 4 of known spectrum, against rational frames",
        cases=_captured(),
        margin=_ky_fan,
        mutant=Mutant("No r directions of n capture more than the share r/n.", _fair_share),
    ),
    Check(
        name="signs_and_correction",
        arithmetic="exact",
        tried="1 to 4 integer vectors of 1 to 5 entries, corrections in rational frames",
        cases=_corrected(),
        margin=_effective,
        mutant=Mutant("The shares add: beta + gamma of the energy is kept.", _shares_add_up),
    ),
    Check(
        name="correction_per_matrix",
        arithmetic="exact",
        tried="integer matrices with rows of 1 to 5 entries under rational rotations of their own",
        cases=_corrected(),
        margin=_per_matrix,
        mutant=Mutant(
            "The decoded matrix need not be turned back.",
            lambda case: _per_matrix(case, turns_back=False),
        ),
    ),
)
