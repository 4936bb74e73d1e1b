"""Matrices of rationals: what the checks compute without rounding.

A matrix is a tuple of rows; entries are ``int`` or :class:`fractions.Fraction`. Sizes are at most
6, so clarity wins over speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import product as cartesian

__all__ = [
    "PI_HIGH",
    "PI_LOW",
    "Matrix",
    "Number",
    "Vector",
    "add",
    "columns",
    "dot",
    "elementary_symmetric",
    "frobenius_squared",
    "gram",
    "identity",
    "is_nonnegative_definite",
    "l1",
    "matmul",
    "outer",
    "rank",
    "reflection",
    "rotation",
    "scale",
    "signed_shifts",
    "squared_sign_cosine",
    "subtract",
    "transpose",
]

Number = Fraction | int
Vector = tuple[Number, ...]
Matrix = tuple[Vector, ...]

# 60 decimals of pi, rounded down and up.
_PI_DIGITS = 3141592653589793238462643383279502884197169399375105820974944
PI_LOW = Fraction(_PI_DIGITS, 10**60)
PI_HIGH = Fraction(_PI_DIGITS + 1, 10**60)


def dot(left: Iterable[Number], right: Iterable[Number]) -> Number:
    """Sum of products."""
    return sum((x * y for x, y in zip(left, right, strict=True)), 0)


def l1(vector: Iterable[Number]) -> Fraction:
    """Sum of absolute values."""
    return sum((Fraction(x if x >= 0 else -x) for x in vector), Fraction(0))


def squared_sign_cosine(vector: Sequence[Number]) -> Fraction:
    """Squared 1-bit cosine ``|k|_1^2 / (d |k|_2^2)`` of a nonzero vector."""
    return l1(vector) ** 2 / (len(vector) * dot(vector, vector))


def transpose(matrix: Matrix) -> Matrix:
    """Rows become columns."""
    return tuple(zip(*matrix, strict=True))


def matmul(left: Matrix, right: Matrix) -> Matrix:
    """Matrix product."""
    right_columns = transpose(right)
    return tuple(tuple(dot(row, column) for column in right_columns) for row in left)


def scale(factor: Number, matrix: Matrix) -> Matrix:
    """Every entry times ``factor``."""
    return tuple(tuple(factor * x for x in row) for row in matrix)


def add(left: Matrix, right: Matrix) -> Matrix:
    """Entrywise sum."""
    return subtract(left, scale(-1, right))


def outer(left: Vector, right: Vector) -> Matrix:
    """The matrix ``u v^T``."""
    return tuple(tuple(x * y for y in right) for x in left)


def subtract(left: Matrix, right: Matrix) -> Matrix:
    """Entrywise difference."""
    return tuple(
        tuple(x - y for x, y in zip(one, other, strict=True))
        for one, other in zip(left, right, strict=True)
    )


def identity(size: int) -> Matrix:
    """The identity matrix."""
    return tuple(tuple(int(i == j) for j in range(size)) for i in range(size))


def columns(matrix: Matrix, count: int) -> Matrix:
    """The first ``count`` columns."""
    return tuple(row[:count] for row in matrix)


def gram(matrix: Matrix) -> Matrix:
    """``M^T M``; its eigenvalues are the squared singular values."""
    return matmul(transpose(matrix), matrix)


def frobenius_squared(matrix: Matrix) -> Number:
    """Sum of squared entries."""
    return sum((x * x for row in matrix for x in row), 0)


def rank(matrix: Matrix) -> int:
    """Rank, by elimination over the rationals."""
    rows = [[Fraction(x) for x in row] for row in matrix]
    found = 0
    for column in range(len(matrix[0])):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        head = rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / head[column]
            if factor:
                rows[i] = [x - factor * y for x, y in zip(rows[i], head, strict=True)]
        found += 1
    return found


def elementary_symmetric(symmetric: Matrix) -> tuple[Number, ...]:
    """Elementary symmetric functions e_1 .. e_n of the eigenvalues (Faddeev and LeVerrier)."""
    size = len(symmetric)
    power: Matrix = identity(size)
    values: list[Number] = []
    sign = 1
    for k in range(1, size + 1):
        product = matmul(symmetric, power)
        trace = sum((product[i][i] for i in range(size)), 0)
        coefficient = Fraction(-trace, k)  # of x^(n-k) in det(xI - S)
        sign = -sign
        values.append(sign * coefficient)
        power = tuple(
            tuple(x + coefficient if i == j else x for j, x in enumerate(row))
            for i, row in enumerate(product)
        )
    return tuple(values)


def is_nonnegative_definite(symmetric: Matrix, *, strictly: bool = False) -> bool:
    """Whether all eigenvalues are >= 0 (> 0 if ``strictly``): the signs of e_1 .. e_n decide.

    All roots of ``det(xI + S)`` are real, so none is positive exactly when no coefficient is
    negative (Descartes' rule of signs).
    """
    values = elementary_symmetric(symmetric)
    return all(value > 0 for value in values) if strictly else all(value >= 0 for value in values)


def reflection(normal: Sequence[int]) -> Matrix:
    """Orthogonal matrix ``I - 2 v v^T / |v|^2`` of rationals; the identity for ``v = 0``."""
    squared = sum(x * x for x in normal)
    if squared == 0:
        return identity(len(normal))
    return tuple(
        tuple(int(i == j) - Fraction(2 * x * y, squared) for j, y in enumerate(normal))
        for i, x in enumerate(normal)
    )


def rotation(normals: tuple[Sequence[int], Sequence[int]]) -> Matrix:
    """The product of two reflections: an orthogonal matrix of rationals."""
    return matmul(reflection(normals[0]), reflection(normals[1]))


def signed_shifts(size: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Every cyclic shift with every choice of signs: a group of ``size * 2^size`` rotations.

    It is a subgroup of the signed permutations that already moves each coordinate to each place
    and flips each sign. An element is given as (source, sign) for each target coordinate.
    """
    for shift in range(size):
        for signs in cartesian((1, -1), repeat=size):
            yield tuple(((i + shift) % size, signs[i]) for i in range(size))
