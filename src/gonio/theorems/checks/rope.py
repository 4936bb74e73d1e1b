"""Family D: the matrices that commute with rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import strategies as st

from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, int_matrices
from gonio.theorems.checks.check import Check, Mutant, exact_margin, iff_margin

__all__ = ["CHECKS"]

# Cosine and sine of rotations by rational points of the circle; no two turn at the same speed.
_TURNS = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (20, 21, 29))


@dataclass(frozen=True)
class _Rotary:
    """One turn per plane, and a matrix to try.

    Attributes:
        turns: Index of the turn of each plane.
        scaled: Entries (a, b) of the scaled rotation of each plane.
        other: A matrix added to those blocks.
        is_plain: Leave the addition out.
    """

    turns: tuple[int, ...]
    scaled: tuple[tuple[int, int], ...]
    other: IntMatrix
    is_plain: bool

    @property
    def candidate(self) -> exact.Matrix:
        blocks = _blocks(self.scaled)
        return blocks if self.is_plain else exact.add(blocks, self.other)


@st.composite
def _rotaries(draw: st.DrawFn) -> _Rotary:
    planes = draw(st.integers(1, 3))
    turns = draw(st.permutations(range(len(_TURNS))))[:planes]
    pair = st.tuples(st.integers(-3, 3), st.integers(-3, 3))
    size = 2 * planes
    sparse = st.builds(
        lambda i, j, x: tuple(
            tuple(x if (row, col) == (i, j) else 0 for col in range(size)) for row in range(size)
        ),
        st.integers(0, size - 1),
        st.integers(0, size - 1),
        st.integers(-2, 2),
    )
    other = draw(st.one_of(sparse, int_matrices(rows=size, cols=size)))
    return _Rotary(tuple(turns), draw(st.tuples(*[pair] * planes)), other, draw(st.booleans()))


def _blocks(entries: Sequence[tuple[exact.Number, exact.Number]]) -> exact.Matrix:
    """Block-diagonal matrix of blocks ``[[a, -b], [b, a]]``."""
    rows: list[exact.Vector] = []
    for plane, (a, b) in enumerate(entries):
        before: exact.Vector = (0, 0) * plane
        after: exact.Vector = (0, 0) * (len(entries) - plane - 1)
        rows += [(*before, a, -b, *after), (*before, b, a, *after)]
    return tuple(rows)


def _rotation(turns: Sequence[int]) -> exact.Matrix:
    """One step of the embedding: each plane turned by its own rational angle."""
    triples = [_TURNS[turn] for turn in turns]
    return _blocks([(Fraction(c, h), Fraction(s, h)) for c, s, h in triples])


def _commutes(matrix: exact.Matrix, rotation: exact.Matrix) -> bool:
    return exact.matmul(matrix, rotation) == exact.matmul(rotation, matrix)


def _is_block_form(matrix: exact.Matrix) -> bool:
    """Whether it is block-diagonal with one scaled rotation per plane."""
    starts = range(0, len(matrix), 2)
    return matrix == _blocks([(matrix[i][i], matrix[i + 1][i]) for i in starts])


def _commutant(case: _Rotary) -> float:
    """Commuting with one step decides block form; steps back and several at once follow."""
    rotation = _rotation(case.turns)
    commutes = _commutes(case.candidate, rotation)
    twice = _commutes(case.candidate, exact.matmul(rotation, rotation))
    return min(
        iff_margin(commutes, _is_block_form(case.candidate)),
        iff_margin(twice or not commutes, True),
    )


def _free_dimensions(case: _Rotary) -> float:
    """The commuting matrices form a space of dimension d, two per plane: rank d^2 - d elsewhere."""
    planes = min(2, len(case.turns))
    rotation = _rotation(case.turns[:planes])
    size = 2 * planes
    rows = []
    for i in range(size):
        for j in range(size):
            unit = tuple(tuple(int((r, c) == (i, j)) for c in range(size)) for r in range(size))
            bracket = exact.subtract(exact.matmul(rotation, unit), exact.matmul(unit, rotation))
            rows.append(tuple(x for row in bracket for x in row))
    return exact_margin(exact.rank(tuple(rows)), size**2 - size)


def _commutant_at_one_speed(case: _Rotary) -> float:
    """All planes turn at one speed: matrices that mix them commute as well."""
    rotation = _rotation([case.turns[0]] * len(case.turns))
    size = len(rotation)
    swap = tuple(tuple(int(j == (i + 2) % size) for j in range(size)) for i in range(size))
    return iff_margin(_commutes(swap, rotation), _is_block_form(swap))


CHECKS = (
    Check(
        name="commuting_with_rotary_embedding",
        arithmetic="exact",
        tried="1 to 3 planes turned by distinct rational angles; block, sparse and full matrices",
        cases=_rotaries(),
        margin=lambda case: min(_commutant(case), _free_dimensions(case)),
        mutant=Mutant("The same when several planes turn at one speed.", _commutant_at_one_speed),
    ),
)
