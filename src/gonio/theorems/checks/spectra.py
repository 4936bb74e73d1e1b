"""Rational matrices whose singular values are known, to judge approximations without rounding."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors

__all__ = ["Spectrum", "spectra"]


@dataclass(frozen=True)
class Spectrum:
    """``P diag(sigma) Q`` with reflections P and Q, a rank, and a competitor of that rank."""

    sigma: IntVector  # descending, zeros and repetitions allowed
    normal_left: IntVector
    normal_right: IntVector
    rank: int
    competitor_left: IntMatrix
    competitor_right: IntMatrix

    def matrix(self, kept: tuple[int, ...] | None = None) -> exact.Matrix:
        """The matrix, or its part in the ``kept`` singular directions."""
        left, right = exact.reflection(self.normal_left), exact.reflection(self.normal_right)
        middle = tuple(
            tuple(
                self.sigma[i] if i == j and (kept is None or i in kept) else 0
                for j in range(len(self.normal_right))
            )
            for i in range(len(self.normal_left))
        )
        return exact.matmul(exact.matmul(left, middle), right)

    def truncated(self) -> exact.Matrix:
        """The part in the first ``rank`` singular directions."""
        return self.matrix(tuple(range(self.rank)))

    def competitor(self) -> exact.Matrix:
        """Another matrix of at most that rank."""
        return exact.matmul(self.competitor_left, self.competitor_right)

    def energy(self, start: int = 0, stop: int | None = None) -> int:
        """Sum of the squared singular values from ``start`` to ``stop``."""
        return sum(value**2 for value in self.sigma[start:stop])


@st.composite
def spectra(draw: st.DrawFn, *, nonzero: bool = False) -> Spectrum:
    """Matrices up to 4 x 4 with integer singular values 0 to 4."""
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    values = draw(st.tuples(*[st.integers(0, 4)] * min(m, n)))
    if nonzero and not any(values):
        values = (1, *values[1:])
    rank = draw(st.integers(1, min(m, n)))
    return Spectrum(
        tuple(sorted(values, reverse=True)),
        draw(int_vectors(m, bound=2)),
        draw(int_vectors(n, bound=2)),
        rank,
        draw(int_matrices(rows=m, cols=rank)),
        draw(int_matrices(rows=rank, cols=n)),
    )
