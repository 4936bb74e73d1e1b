"""Family J: the Rademacher complexity of low-rank updates, by enumeration of all signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import product as cartesian

import torch
from hypothesis import strategies as st

from gonio.theorems.checks.cases import IntMatrix, int_matrices, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin

__all__ = ["CHECKS"]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class _Sample:
    """Examples, each a matrix X so that the update D predicts <D, X>; and a rank and a norm.

    Attributes:
        examples: Matrices of one shape.
        rank: Largest rank of the updates.
        norm: Largest spectral norm of the updates.
    """

    examples: tuple[IntMatrix, ...]
    rank: int
    norm: int

    def tensor(self) -> torch.Tensor:
        """The examples, shape ``(count, m, n)``."""
        return torch.stack([to_tensor(example) for example in self.examples])


@st.composite
def _samples(draw: st.DrawFn) -> _Sample:
    m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    count = draw(st.integers(1, 6))
    examples = tuple(draw(int_matrices(rows=m, cols=n)) for _ in range(count))
    return _Sample(examples, draw(st.integers(1, min(m, n))), draw(st.integers(1, 3)))


def _complexity(case: _Sample) -> float:
    """Mean over all signs of the largest mean of ``sign_i <D, X_i>``.

    Over updates of rank r and spectral norm a the largest ``<D, S>`` is a times the sum of the r
    largest singular values of S.
    """
    examples = case.tensor()
    signs = torch.tensor(list(cartesian((1.0, -1.0), repeat=len(examples))), dtype=torch.float64)
    sums = torch.einsum("si,imn->smn", signs, examples) / len(examples)
    largest = torch.linalg.svdvals(sums)[:, : case.rank].sum(dim=-1)
    return float(case.norm * largest.mean())


def _bounds(case: _Sample) -> tuple[float, float]:
    """``a R sqrt(r/N)`` above, and Khintchine's bound ``a |x|_2 / (sqrt 2 N)`` below."""
    examples, count = case.tensor(), len(case.examples)
    radius = examples.square().sum(dim=(1, 2)).sqrt().max().item()
    upper = case.norm * radius * math.sqrt(case.rank / count)
    entries = examples.square().sum(dim=0).sqrt().max().item()  # D = a times one unit matrix
    return upper, case.norm * entries / (math.sqrt(2.0) * count)


def _complexity_between(case: _Sample) -> float:
    value = _complexity(case)
    upper, lower = _bounds(case)
    rounding = _ROUNDING * (1.0 + upper)
    return min(bound_margin(value, upper, rounding), bound_margin(lower, value, rounding))


def _complexity_falls_as_count(case: _Sample) -> float:
    """The rate 1/N of the printed bound, with the same constants."""
    upper = _bounds(case)[0] / math.sqrt(len(case.examples))
    return bound_margin(_complexity(case), upper, _ROUNDING * (1.0 + upper))


# --- the printed bound ----------------------------------------------------------------------


def _scalar_complexity(count: int) -> Fraction:
    """Complexity of ``x -> w x`` with ``|w| <= 1`` on N inputs 1: ``E|sum of N signs| / N``."""
    heads = range(count + 1)
    total = sum(math.comb(count, h) * abs(2 * h - count) for h in heads)
    return Fraction(total, 2**count * count)


def _exceeds_printed(count: int) -> float:
    """M = n = r = alpha = 1: the complexity squared against ``2 log 2 / N^2``, in rationals."""
    if sum(Fraction(3**k, 4**k * math.factorial(k)) for k in range(3)) <= 2:
        raise ArithmeticError("exp(3/4) is not above 2")
    printed_squared = Fraction(3, 2) / count**2  # above 2 log 2 / N^2, since exp(3/4) > 2
    excess = _scalar_complexity(count) ** 2 - printed_squared
    return float(excess / printed_squared) or -1.0


def _stays_below_printed(count: int) -> float:
    printed = math.sqrt(2.0 * math.log(2.0)) / count
    return bound_margin(float(_scalar_complexity(count)), printed)


CHECKS = (
    Check(
        name="complexity_of_low_rank_updates",
        arithmetic="float64",
        tried="1 to 6 integer examples up to 3 x 3, every choice of signs, ranks 1 to 3",
        cases=_samples(),
        margin=_complexity_between,
        mutant=Mutant(
            "The complexity falls as 1/N, as in the printed bound.", _complexity_falls_as_count
        ),
    ),
    Check(
        name="printed_complexity_is_exceeded",
        arithmetic="exact",
        tried="one weight of size at most 1 on 3 to 200 inputs 1, signs counted exactly",
        cases=st.integers(3, 200),
        margin=_exceeds_printed,
        mutant=Mutant(
            "The printed bound: at most alpha sqrt(2 r log(2 m n)) / N.", _stays_below_printed
        ),
    ),
)
