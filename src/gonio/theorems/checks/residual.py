"""Family F: the best correction of given rank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from hypothesis import strategies as st

from gonio.linalg.lowrank import factored_svd
from gonio.linalg.spectrum import spectral_tolerance
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin, close_margin, exact_margin

__all__ = ["CHECKS"]


@dataclass(frozen=True)
class _Spectrum:
    """``P diag(sigma) Q`` with reflections P and Q, a rank, and a competitor of that rank."""

    sigma: IntVector  # descending, zeros and repetitions allowed
    normal_left: IntVector
    normal_right: IntVector
    rank: int
    competitor_left: IntMatrix
    competitor_right: IntMatrix

    def matrix(self, kept: tuple[int, ...]) -> exact.Matrix:
        """The part of the matrix in the ``kept`` singular directions."""
        left, right = exact.reflection(self.normal_left), exact.reflection(self.normal_right)
        middle = tuple(
            tuple(
                self.sigma[i] if i == j and i in kept else 0 for j in range(len(self.normal_right))
            )
            for i in range(len(self.normal_left))
        )
        return exact.matmul(exact.matmul(left, middle), right)


@st.composite
def _spectra(draw: st.DrawFn) -> _Spectrum:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    values = draw(st.tuples(*[st.integers(0, 4)] * min(m, n)))
    rank = draw(st.integers(1, min(m, n)))
    return _Spectrum(
        tuple(sorted(values, reverse=True)),
        draw(int_vectors(m, bound=2)),
        draw(int_vectors(n, bound=2)),
        rank,
        draw(int_matrices(rows=m, cols=rank)),
        draw(int_matrices(rows=rank, cols=n)),
    )


def _errors(case: _Spectrum) -> tuple[exact.Number, list[exact.Number]]:
    """Squared error of the truncation, and of every competitor of the same rank."""
    whole = case.matrix(tuple(range(len(case.sigma))))
    subsets = list(combinations(range(len(case.sigma)), case.rank))
    competitors = [case.matrix(kept) for kept in subsets[1:]]
    competitors.append(exact.matmul(case.competitor_left, case.competitor_right))
    errors = [exact.frobenius_squared(exact.subtract(whole, other)) for other in competitors]
    best = exact.frobenius_squared(exact.subtract(whole, case.matrix(subsets[0])))
    return best, errors


def _eckart_young(case: _Spectrum) -> float:
    tail = sum(value**2 for value in case.sigma[case.rank :])
    best, errors = _errors(case)
    bounds = (bound_margin(float(best), float(error)) for error in errors)
    return min(exact_margin(best, tail), *bounds, _factored_tail(case, tail))


def _factored_tail(case: _Spectrum, tail: int) -> float:
    """The same tail from the factored decomposition the library uses, in float64."""
    whole = to_tensor(case.matrix(tuple(range(len(case.sigma)))))
    u, sigma, vh = factored_svd(whole, torch.eye(whole.shape[1], dtype=torch.float64))
    kept = (u[:, : case.rank] * sigma[: case.rank]) @ vh[: case.rank]
    tolerance = spectral_tolerance(max(case.sigma[0], 1), sum(whole.shape), torch.float64)
    error = (whole - kept).norm().item() - tail**0.5
    return close_margin(abs(error), 4 * tolerance)


def _unsquared_tail(case: _Spectrum) -> float:
    return exact_margin(_errors(case)[0], sum(case.sigma[case.rank :]))


CHECKS = (
    Check(
        name="best_rank_r_error",
        arithmetic="float64",
        tried="rational matrices up to 4 x 4 of known spectrum, against all subsets and products",
        cases=_spectra(),
        margin=_eckart_young,
        mutant=Mutant(
            "The squared error is the sum of the discarded singular values, not squared.",
            _unsquared_tail,
        ),
    ),
)
