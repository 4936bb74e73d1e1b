"""What an executable check is: cases to try, a margin, and a mutant it must reject.

A margin says how far a case is from breaking the statement; it is dimensionless, and the case
breaks the statement exactly when its margin is negative. The helpers below build margins of four
kinds: exact equality (1 or negative), equality up to rounding (the share of the tolerance left),
inequality (relative slack, 0 at equality) and simulation (the share of the allowed z-score left).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Literal, TypeVar

from hypothesis.strategies import SearchStrategy
from torch import Tensor

__all__ = [
    "Z_BOUND",
    "Arithmetic",
    "Check",
    "Mutant",
    "bound_margin",
    "close_margin",
    "exact_margin",
    "iff_margin",
    "mean_margin",
    "z_margin",
]

T = TypeVar("T")
Number = Fraction | int
Arithmetic = Literal["exact", "float64", "simulation"]

Z_BOUND = 6.0  # a true statement exceeds it once in 5e8 normal draws, a run makes some hundreds


@dataclass(frozen=True)
class Mutant(Generic[T]):
    """A slightly wrong statement, to show that the check can fail.

    Attributes:
        sentence: The wrong statement in plain English.
        margin: Its margin on the same cases.
    """

    sentence: str
    margin: Callable[[T], float]


@dataclass(frozen=True)
class Check(Generic[T]):
    """An executable check of one statement.

    Attributes:
        name: Name of the check; catalogue entries refer to it.
        arithmetic: The weakest arithmetic the verdict rests on: ``exact`` (rationals),
            ``float64`` with stated tolerances, or ``simulation`` with a z-score bound.
        tried: What a case is, in a few words, for the report.
        cases: Cases to draw from, awkward ones included.
        margin: Margin of a case; negative means the case is a counterexample.
        mutant: What the same search must reject.
    """

    name: str
    arithmetic: Arithmetic
    tried: str
    cases: SearchStrategy[T]
    margin: Callable[[T], float]
    mutant: Mutant[T]


def exact_margin(left: Number, right: Number) -> float:
    """1 if two rationals are equal, else minus their relative difference."""
    if left == right:
        return 1.0
    one, other = Fraction(left), Fraction(right)
    return -float(abs(one - other) / max(abs(one), abs(other)))


def iff_margin(one: bool, other: bool) -> float:
    """1 if two truth values agree, else -1."""
    return 1.0 if one == other else -1.0


def close_margin(error: float, tolerance: float) -> float:
    """Share of the tolerance left: 1 at no error, 0 at the tolerance; NaN errors are infinite."""
    if error == 0.0:
        return 1.0
    if not error <= tolerance:  # also NaN
        return -1.0 if not error < float("inf") else max(-1e6, 1.0 - error / max(tolerance, 1e-300))
    return 1.0 - error / tolerance


def bound_margin(small: float, large: float, tolerance: float = 0.0) -> float:
    """Relative slack of ``small <= large``; an excess within the absolute tolerance counts as 0."""
    slack = large - small
    if -tolerance <= slack < 0.0:
        return 0.0
    scale = max(abs(small), abs(large))
    return slack / scale if scale > 0.0 else 0.0


def z_margin(error: float, standard_error: float, rounding: float = 1e-12) -> float:
    """Share of the allowed z-score left: ``1 - |error| / (Z_BOUND * standard_error + rounding)``.

    Args:
        error: Simulated mean minus the closed form.
        standard_error: Standard deviation of the simulated mean, known or estimated.
        rounding: Absolute error that floating point may add, for laws without variance.
    """
    return close_margin(abs(error), Z_BOUND * standard_error + rounding)


def mean_margin(sample: Tensor, expected: float, rounding: float = 1e-12) -> float:
    """:func:`z_margin` of the mean of a sample, its standard error estimated from the sample."""
    standard_error = sample.std().item() / math.sqrt(len(sample))
    return z_margin(sample.mean().item() - expected, standard_error, rounding)
