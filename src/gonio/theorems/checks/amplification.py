"""Family G: how much a matrix lengthens a random direction."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hypothesis import strategies as st

from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import (
    IntMatrix,
    IntVector,
    gaussian,
    generator,
    int_matrices,
    int_vectors,
    seeds,
    to_tensor,
)
from gonio.theorems.checks.check import Check, Mutant, exact_margin, mean_margin

__all__ = ["CHECKS"]

_DIRECTIONS = 2000


@dataclass(frozen=True)
class _Amplified:
    """A matrix, a nonzero input, and the seed of random directions."""

    rows: IntMatrix
    vector: IntVector
    seed: int


@st.composite
def _amplified(draw: st.DrawFn) -> _Amplified:
    rows = draw(int_matrices())
    return _Amplified(rows, draw(int_vectors(len(rows[0]), nonzero=True)), draw(seeds))


def _group_mean(case: _Amplified, parts: int) -> float:
    """Averaged over signed shifts of the input, ``|Wx|^2`` is ``|W|^2 |x|^2 / parts``."""
    total, count = 0, 0
    for element in exact.signed_shifts(len(case.vector)):
        moved = tuple((sign * case.vector[source],) for source, sign in element)
        total += int(exact.frobenius_squared(exact.matmul(case.rows, moved)))
        count += 1
    energy = exact.frobenius_squared(case.rows) * exact.dot(case.vector, case.vector)
    return exact_margin(Fraction(total, count), Fraction(energy, parts))


def _mean_amplification(case: _Amplified) -> float:
    """The same for uniformly random directions, simulated."""
    size = len(case.vector)
    normal = gaussian(_DIRECTIONS, size, source=generator(case.seed))
    directions = normal / normal.norm(dim=-1, keepdim=True)
    squares = (directions @ to_tensor(case.rows).mT).square().sum(dim=-1)
    expected = float(Fraction(exact.frobenius_squared(case.rows), size))
    simulated = mean_margin(squares, expected, 1e-12 * (1 + expected))
    return min(_group_mean(case, size), simulated)


CHECKS = (
    Check(
        name="mean_amplification",
        arithmetic="simulation",
        tried="integer matrices up to 4 x 4; inputs averaged over signed shifts, 2000 directions",
        cases=_amplified(),
        margin=_mean_amplification,
        mutant=Mutant(
            "The mean square is |W|_F^2 over the output dimension.",
            lambda case: _group_mean(case, len(case.rows)),
        ),
    ),
)
