"""Family I: what one rotation can do for the signs of many weights, alone and shared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.linalg.rotations import hadamard_matrix
from gonio.quant.sign import sign_cosine
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
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    bound_margin,
    exact_margin,
    mean_margin,
)

__all__ = ["CHECKS"]

_ROTATIONS = 200


# --- some rotation reaches the mean over all ------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """Rows, none of them zero, and the seed of random rotations."""

    rows: IntMatrix
    seed: int

    def tensor(self) -> torch.Tensor:
        """The rows; zero rows become the first unit vector."""
        rows = to_tensor(self.rows)
        rows[~rows.any(dim=-1), 0] = 1.0
        return rows


_weights = st.builds(_Weight, int_matrices(max_size=6), seeds)


def _mean_cosines(case: _Weight) -> torch.Tensor:
    """Mean 1-bit cosine of the rows under each of many Haar rotations."""
    rows = case.tensor()
    size = rows.shape[-1]
    normal = gaussian(_ROTATIONS, size, size, source=generator(case.seed))
    q, r = torch.linalg.qr(normal)
    rotations = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # Haar needs these signs
    return sign_cosine(rows @ rotations.mT).mean(dim=-1)


def _lift(case: _Weight, factor: float = 1.0) -> float:
    """The mean over rotations is c_d, so that the best one reaches it."""
    cosines = _mean_cosines(case)
    expected = factor * sign_cosine_of_random_direction(len(case.rows[0]))
    return min(
        mean_margin(cosines, expected),
        bound_margin(expected, cosines.max().item(), 1e-12),
    )


# --- a shared rotation can be as good as one each -------------------------------------------


@dataclass(frozen=True)
class _Experts:
    """As many experts as dimensions, each with multiples of one direction of a rational frame."""

    normals: tuple[IntVector, IntVector]
    factors: IntVector

    @property
    def size(self) -> int:
        return len(self.normals[0])


@st.composite
def _experts(draw: st.DrawFn) -> _Experts:
    size = draw(st.sampled_from((1, 2, 4, 8)))
    vectors = st.tuples(int_vectors(size, bound=2), int_vectors(size, bound=2))
    factors = draw(st.tuples(*[st.integers(-9, 9).filter(bool)] * size))
    return _Experts(draw(vectors), factors)


def _shared_cosines(case: _Experts) -> list[Fraction]:
    """Squared 1-bit cosine of each expert under the one rotation ``H O^T / sqrt(d)``."""
    frame = exact.rotation(case.normals)
    hadamard = _integer_hadamard(case.size)
    cosines = []
    for factor, direction in zip(case.factors, exact.transpose(frame), strict=True):
        weight = exact.transpose((tuple(factor * x for x in direction),))
        turned = exact.matmul(hadamard, exact.matmul(exact.transpose(frame), weight))
        entries = [row[0] for row in turned]
        cosines.append(exact.squared_sign_cosine(entries))
    return cosines


def _integer_hadamard(size: int) -> exact.Matrix:
    """Entries 1 and -1, orthogonal rows: checked, since the proof rests on it."""
    entries = (hadamard_matrix(size).to(torch.float64) * math.sqrt(size)).round().tolist()
    matrix = tuple(tuple(int(x) for x in row) for row in entries)
    if exact.matmul(matrix, exact.transpose(matrix)) != exact.scale(size, exact.identity(size)):
        raise ArithmeticError("the rows of the Hadamard matrix are not orthogonal")
    return matrix


def _no_gap(case: _Experts) -> float:
    """One rotation takes every expert to the lattice: cosine 1, which nothing exceeds."""
    return min(exact_margin(cosine, 1) for cosine in _shared_cosines(case))


def _printed_gap(case: _Experts) -> float:
    gap = 1 - min(_shared_cosines(case))
    return bound_margin(0.01, float(gap))


# --- max-min and min-max --------------------------------------------------------------------


def _best_shared(table: IntMatrix) -> int:
    """Rows are rotations, columns experts: the best of the worst."""
    return max(min(row) for row in table)


def _worst_own(table: IntMatrix) -> int:
    columns: list[IntVector] = list(zip(*table, strict=True))
    return min(max(column) for column in columns)


def _max_min(table: IntMatrix) -> float:
    """The shared choice never beats the own ones, compared without rounding."""
    shared, own = _best_shared(table), _worst_own(table)
    return 1.0 if shared <= own else float(own - shared)


CHECKS = (
    Check(
        name="some_rotation_reaches_the_mean",
        arithmetic="simulation",
        tried="integer weights of up to 6 nonzero rows in up to R^6, 200 Haar rotations each",
        cases=_weights,
        margin=_lift,
        mutant=Mutant(
            "The mean over rotations is 5 % above c_d.", lambda case: _lift(case, factor=1.05)
        ),
    ),
    Check(
        name="one_rotation_for_orthogonal_experts",
        arithmetic="exact",
        tried="1, 2, 4 or 8 experts along the directions of rational frames",
        cases=_experts(),
        margin=_no_gap,
        mutant=Mutant(
            "The printed claim, with a gap of 0.01: the shared rotation loses that much.",
            _printed_gap,
        ),
    ),
    Check(
        name="shared_is_at_most_own",
        arithmetic="exact",
        tried="tables of integer scores, up to 4 rotations by 4 experts",
        cases=int_matrices(),
        margin=_max_min,
        mutant=Mutant(
            "Both are always equal.",
            lambda table: exact_margin(_best_shared(table), _worst_own(table)),
        ),
    ),
)
