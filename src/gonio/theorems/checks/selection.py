"""Family D: keeping the largest coordinates, and what a mean adds to the length."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from hypothesis import strategies as st

from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntVector, int_vectors
from gonio.theorems.checks.check import Check, Mutant, bound_margin, exact_margin, iff_margin

__all__ = ["CHECKS"]


@dataclass(frozen=True)
class _Errors:
    """Errors, and how many of them are stored exactly."""

    entries: IntVector
    k: int

    def remaining(self) -> list[int]:
        """Energy left by every choice of k entries; the k largest come first."""
        order = sorted(range(len(self.entries)), key=lambda i: -abs(self.entries[i]))
        squares = [self.entries[i] ** 2 for i in order]
        total = sum(squares)
        return [
            total - sum(squares[i] for i in kept)
            for kept in combinations(range(len(order)), self.k)
        ]

    @property
    def has_gap(self) -> bool:
        """Whether the k-th and the (k+1)-th size differ."""
        sizes = sorted((abs(x) for x in self.entries), reverse=True)
        return self.k in (0, len(sizes)) or sizes[self.k - 1] != sizes[self.k]


@st.composite
def _errors(draw: st.DrawFn) -> _Errors:
    size = draw(st.integers(1, 7))
    return _Errors(draw(int_vectors(size)), draw(st.integers(0, size)))


def _largest_is_best(case: _Errors) -> float:
    """No choice leaves less than the k largest; another leaves as little iff there is no gap."""
    largest, *others = case.remaining()
    bounds = (bound_margin(float(largest), float(other)) for other in others)
    return min(1.0, *bounds, iff_margin(largest not in others, case.has_gap))


@dataclass(frozen=True)
class _Shifted:
    """A vector to be centered, and a nonzero shift ``numerator / 4`` of every coordinate."""

    entries: IntVector
    numerator: int

    @property
    def centered(self) -> exact.Vector:
        mean = Fraction(sum(self.entries), len(self.entries))
        return tuple(x - mean for x in self.entries)


@st.composite
def _shifted(draw: st.DrawFn) -> _Shifted:
    size = draw(st.integers(1, 7))
    return _Shifted(draw(int_vectors(size)), draw(st.integers(-40, 40).filter(bool)))


def _gained(vector: exact.Vector, shift: Fraction) -> exact.Number:
    shifted = tuple(x + shift for x in vector)
    return exact.dot(shifted, shifted) - exact.dot(vector, vector)


def _longer(case: _Shifted) -> float:
    """The shift ``mu / sqrt(d)`` adds exactly ``mu^2`` to the squared length, more than nothing."""
    shift = Fraction(case.numerator, 4)
    gained = _gained(case.centered, shift)
    return min(exact_margin(gained, len(case.entries) * shift**2), 1.0 if gained > 0 else -1.0)


def _longer_uncentered(case: _Shifted) -> float:
    return 1.0 if _gained(case.entries, Fraction(case.numerator, 4)) > 0 else -1.0


CHECKS = (
    Check(
        name="keeping_the_largest_errors",
        arithmetic="exact",
        tried="integer vectors of 1 to 7 entries, every choice of k of them",
        cases=_errors(),
        margin=_largest_is_best,
        mutant=Mutant(
            "The printed claim: the choice is always unique.",
            lambda case: iff_margin(case.remaining()[0] not in case.remaining()[1:], True),
        ),
    ),
    Check(
        name="a_mean_adds_length",
        arithmetic="exact",
        tried="integer vectors of 1 to 7 entries, centered, and rational shifts",
        cases=_shifted(),
        margin=_longer,
        mutant=Mutant("The same for vectors that are not centered.", _longer_uncentered),
    ),
)
