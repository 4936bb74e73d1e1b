"""Families A and J: ranks of outer products, sums and products, and the rows of a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from hypothesis import strategies as st

from gonio.linalg.lowrank import factored_singular_values
from gonio.linalg.spectrum import spectral_tolerance
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin, close_margin, iff_margin

__all__ = ["CHECKS"]


# --- outer products -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outer:
    """The vectors of ``u v^T``."""

    u: IntVector
    v: IntVector


@st.composite
def _outers(draw: st.DrawFn) -> _Outer:
    sizes = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return _Outer(draw(int_vectors(sizes[0])), draw(int_vectors(sizes[1])))


def _is_column_times_row(case: _Outer, u: IntVector, v: IntVector) -> float:
    """Entry (i, j) is ``u_i v_j``: the column u times the row v."""
    entries = tuple(tuple(x * y for y in case.v) for x in case.u)
    column = tuple((x,) for x in u)
    return iff_margin(entries == exact.matmul(column, (v,)), True)


def _outer_rank(case: _Outer) -> float:
    """At most 1, and 0 only where u or v vanishes."""
    rank = exact.rank(exact.outer(case.u, case.v))
    is_zero = not any(case.u) or not any(case.v)
    return min(bound_margin(float(rank), 1.0), iff_margin(rank == 0, is_zero))


@dataclass(frozen=True)
class _Steps:
    """Gradient steps ``sum_t delta_t x_t^T``; one row of each matrix per step."""

    deltas: IntMatrix
    inputs: IntMatrix

    def sum(self) -> exact.Matrix:
        """The sum, outputs x inputs."""
        return exact.matmul(exact.transpose(self.deltas), self.inputs)


@st.composite
def _steps(draw: st.DrawFn) -> _Steps:
    count = draw(st.integers(1, 4))
    return _Steps(draw(int_matrices(rows=count)), draw(int_matrices(rows=count)))


def _sum_rank(case: _Steps, fewer: int = 0) -> float:
    terms = [exact.outer(d, x) for d, x in zip(case.deltas, case.inputs, strict=True)]
    total = reduce(exact.add, terms)
    bound = max(1, len(terms) - fewer)
    return min(
        bound_margin(float(exact.rank(total)), float(bound)), iff_margin(total == case.sum(), True)
    )


def _rows_in_span(case: _Steps, inputs: IntMatrix) -> float:
    """Adding the rows of the gradient to the inputs does not raise their rank."""
    rank = exact.rank(inputs) if inputs else 0
    return iff_margin(exact.rank((*inputs, *case.sum())) == rank, True)


def _gradient_rows(case: _Steps) -> float:
    """The same, and the gradient that automatic differentiation gives is that sum."""
    inputs, deltas = to_tensor(case.inputs), to_tensor(case.deltas)
    weight = torch.zeros(deltas.shape[1], inputs.shape[1], dtype=torch.float64).requires_grad_()
    loss = (torch.sin(inputs @ weight.mT) * deltas).sum()  # slope delta_t at the outputs, 0
    (gradient,) = torch.autograd.grad(loss, weight)
    error = (gradient - to_tensor(case.sum())).abs().max().item()
    return min(_rows_in_span(case, case.inputs), close_margin(error, 1e-12))


# --- sums and products ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """Two matrices of one shape."""

    left: IntMatrix
    right: IntMatrix


@st.composite
def _pairs(draw: st.DrawFn) -> _Pair:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return _Pair(draw(int_matrices(rows=m, cols=n)), draw(int_matrices(rows=m, cols=n)))


def _subadditive(case: _Pair) -> float:
    ranks = exact.rank(case.left) + exact.rank(case.right)
    return bound_margin(float(exact.rank(exact.add(case.left, case.right))), float(ranks))


def _at_most_larger(case: _Pair) -> float:
    larger = max(exact.rank(case.left), exact.rank(case.right))
    return bound_margin(float(exact.rank(exact.add(case.left, case.right))), float(larger))


@dataclass(frozen=True)
class _Factors:
    """Factors of a low-rank product."""

    lora_b: IntMatrix
    lora_a: IntMatrix


@st.composite
def _factor_pairs(draw: st.DrawFn) -> _Factors:
    inner = draw(st.integers(1, 3))
    return _Factors(draw(int_matrices(cols=inner)), draw(int_matrices(rows=inner)))


def _product_rank(case: _Factors, slack: int = 0) -> float:
    """``rank(BA) <= min(rank B, rank A) - slack`` in rationals."""
    bound = min(exact.rank(case.lora_b), exact.rank(case.lora_a)) - slack
    product = exact.rank(exact.matmul(case.lora_b, case.lora_a))
    return bound_margin(float(product), float(bound))


def _product_rank_with_twin(case: _Factors) -> float:
    b, a = to_tensor(case.lora_b), to_tensor(case.lora_a)
    # Rounding of a product is relative to its factors: B A may cancel to nothing but rounding, of
    # which a rank relative to its own largest singular value would be made up.
    largest = (b.norm() * a.norm()).item()
    rounding = spectral_tolerance(largest, sum(b.shape) + sum(a.shape), torch.float64)
    rank = int((factored_singular_values(b, a) > rounding).sum())
    exactly = exact.rank(exact.matmul(case.lora_b, case.lora_a))
    inner = bound_margin(float(exactly), float(len(case.lora_a)))
    return min(_product_rank(case), inner, iff_margin(rank == exactly, True))


@dataclass(frozen=True)
class _Composition:
    """Several pairs of factors of one outer shape."""

    factors: tuple[_Factors, ...]


@st.composite
def _compositions(draw: st.DrawFn) -> _Composition:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    factors = []
    for _ in range(draw(st.integers(1, 3))):
        rank = draw(st.integers(1, 2))
        pair = draw(int_matrices(rows=m, cols=rank)), draw(int_matrices(rows=rank, cols=n))
        factors.append(_Factors(*pair))
    return _Composition(tuple(factors))


def _composed(case: _Composition) -> exact.Matrix:
    return reduce(exact.add, (exact.matmul(f.lora_b, f.lora_a) for f in case.factors))


def _composition_rank(case: _Composition) -> float:
    """The rank is at most sum r_k; stacking the factors gives the same update; numbers stored."""
    total = _composed(case)
    ranks = [len(f.lora_a) for f in case.factors]
    stacked_b = tuple(
        tuple(x for part in rows for x in part)
        for rows in zip(*(f.lora_b for f in case.factors), strict=True)
    )
    stacked_a = tuple(row for f in case.factors for row in f.lora_a)
    stored = sum(len(rows) * len(rows[0]) for f in case.factors for rows in (f.lora_b, f.lora_a))
    return min(
        bound_margin(float(exact.rank(total)), float(sum(ranks))),
        iff_margin(exact.matmul(stacked_b, stacked_a) == total, True),
        iff_margin(stored == sum(ranks) * (len(total) + len(total[0])), True),
    )


def _at_most_largest_rank(case: _Composition) -> float:
    largest = max(len(f.lora_a) for f in case.factors)
    return bound_margin(float(exact.rank(_composed(case))), float(largest))


CHECKS = (
    Check(
        name="outer_product_is_column_times_row",
        arithmetic="exact",
        tried="pairs of integer vectors of 1 to 5 entries, zero included",
        cases=_outers(),
        margin=lambda case: _is_column_times_row(case, case.u, case.v),
        mutant=Mutant(
            "It is the column v times the row u.",
            lambda case: _is_column_times_row(case, case.v, case.u),
        ),
    ),
    Check(
        name="rank_of_outer_product",
        arithmetic="exact",
        tried="pairs of integer vectors of 1 to 5 entries, zero included",
        cases=_outers(),
        margin=_outer_rank,
        mutant=Mutant(
            "The rank is always 1.",
            lambda case: iff_margin(exact.rank(exact.outer(case.u, case.v)) == 1, True),
        ),
    ),
    Check(
        name="rank_of_sum",
        arithmetic="exact",
        tried="pairs of integer matrices up to 4 x 4, rank by elimination in rationals",
        cases=_pairs(),
        margin=_subadditive,
        mutant=Mutant("The rank of a sum is at most the larger rank.", _at_most_larger),
    ),
    Check(
        name="rank_of_sum_of_outer_products",
        arithmetic="exact",
        tried="sums of 1 to 4 integer outer products",
        cases=_steps(),
        margin=_sum_rank,
        mutant=Mutant(
            "From two terms on the rank is below their number.",
            lambda case: _sum_rank(case, fewer=1),
        ),
    ),
    Check(
        name="gradient_rows_lie_in_inputs",
        arithmetic="exact",
        tried="gradients of 1 to 4 integer inputs, also by automatic differentiation",
        cases=_steps(),
        margin=_gradient_rows,
        mutant=Mutant(
            "They lie in the span of all inputs but the last.",
            lambda case: _rows_in_span(case, case.inputs[:-1]),
        ),
    ),
    Check(
        name="rank_of_product",
        arithmetic="exact",
        tried="integer factors of inner dimension 1 to 3, rank by elimination in rationals",
        cases=_factor_pairs(),
        margin=_product_rank_with_twin,
        mutant=Mutant(
            "The rank of the product is below both ranks.",
            lambda case: _product_rank(case, slack=1),
        ),
    ),
    Check(
        name="rank_of_composition",
        arithmetic="exact",
        tried="sums of 1 to 3 updates B_k A_k of rank 1 or 2, up to 4 x 4",
        cases=_compositions(),
        margin=_composition_rank,
        mutant=Mutant("The rank of the sum is at most the largest r_k.", _at_most_largest_rank),
    ),
)
