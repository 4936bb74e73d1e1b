"""Cases the checks draw: awkward shapes, ranks, spectra and scales, with small integers.

Small integers shrink to readable counterexamples, are exact in rationals and in float64, and meet
every degenerate case: single rows, zero rows, repeated singular values, deficient rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from gonio.theorems.checks.exact import Matrix, Vector, identity, matmul, scale

__all__ = [
    "IntMatrix",
    "IntVector",
    "Key",
    "binary_exponents",
    "gaussian",
    "generator",
    "int_matrices",
    "int_vectors",
    "keys",
    "seeds",
    "to_tensor",
]

IntVector = tuple[int, ...]
IntMatrix = tuple[IntVector, ...]

seeds = st.integers(0, 2**31 - 1)
# Powers of two are exact in float64, and the squares of the last two leave its range.
binary_exponents = st.sampled_from((0, 1, -1, 60, -60, 560, -560))


@dataclass(frozen=True)
class Key:
    """The vector ``entries * 2**exponent``."""

    entries: IntVector
    exponent: int = 0

    def tensor(self) -> Tensor:
        """The vector in float64, shape ``(d,)``."""
        return torch.tensor(self.entries, dtype=torch.float64) * 2.0**self.exponent


@st.composite
def int_vectors(draw: st.DrawFn, size: int, *, bound: int = 4, nonzero: bool = False) -> IntVector:
    """Integer vectors: generic, all entries of one size, nearly so, or a single nonzero entry."""
    entry = st.integers(-bound, bound)
    kind = draw(st.sampled_from(("generic", "lattice", "near", "single")))
    if kind == "generic":
        vector = draw(st.tuples(*[entry] * size))
    elif kind == "single":
        place, value = draw(st.integers(0, size - 1)), draw(entry)
        vector = tuple(value if i == place else 0 for i in range(size))
    else:
        height = draw(st.integers(1, bound))
        signs = draw(st.tuples(*[st.sampled_from((1, -1))] * size))
        vector = tuple(height * sign for sign in signs)
        if kind == "near":
            vector = (vector[0] + draw(st.sampled_from((1, -1))), *vector[1:])
    if nonzero and not any(vector):
        vector = (1,) * size
    return vector


@st.composite
def keys(draw: st.DrawFn, max_size: int = 7) -> Key:
    """Nonzero vectors of 1 to ``max_size`` entries at ordinary, huge and tiny scales."""
    size = draw(st.integers(1, max_size))
    return Key(draw(int_vectors(size, nonzero=True)), draw(binary_exponents))


@st.composite
def int_matrices(
    draw: st.DrawFn,
    rows: int | None = None,
    cols: int | None = None,
    *,
    max_size: int = 4,
    nonzero: bool = False,
) -> IntMatrix:
    """Integer matrices: generic, of deficient rank, with repeated singular values, or zero rows.

    Args:
        draw: Given by Hypothesis.
        rows: Number of rows, 1 to ``max_size`` unless given.
        cols: Number of columns, likewise.
        max_size: Largest number of rows and columns drawn.
        nonzero: Replace the zero matrix by one with a single nonzero entry.
    """
    m = rows or draw(st.integers(1, max_size))
    n = cols or draw(st.integers(1, max_size))
    kind = draw(st.sampled_from(("generic", "thin", "repeated")))
    matrix: Matrix
    if kind == "repeated":
        matrix = scale(draw(st.integers(1, 3)), tuple(row[:n] for row in identity(max(m, n))[:m]))
    elif kind == "thin":
        inner = draw(st.integers(1, min(m, n)))
        matrix = matmul(_generic(draw, m, inner, 2), _generic(draw, inner, n, 2))
    else:
        matrix = _generic(draw, m, n, 3)
    integers = tuple(tuple(int(x) for x in row) for row in matrix)
    if nonzero and not any(any(row) for row in integers):
        integers = ((1, *integers[0][1:]), *integers[1:])
    return integers


def _generic(draw: st.DrawFn, rows: int, cols: int, bound: int) -> IntMatrix:
    row = st.tuples(*[st.integers(-bound, bound)] * cols)
    return draw(st.tuples(*[row] * rows))


def to_tensor(matrix: Matrix | Vector) -> Tensor:
    """Rationals as float64."""
    if matrix and isinstance(matrix[0], tuple):
        rows = [[float(x) for x in row] for row in matrix if isinstance(row, tuple)]
        return torch.tensor(rows, dtype=torch.float64)
    return torch.tensor([float(x) for x in matrix if not isinstance(x, tuple)], dtype=torch.float64)


def gaussian(*shape: int, source: torch.Generator) -> Tensor:
    """Independent standard normal entries in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=source)


def generator(seed: int) -> torch.Generator:
    """A CPU generator with that seed."""
    return torch.Generator().manual_seed(seed)
