"""Family A: how much of an update a rescaling of the base explains, by best fit and by chance."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.linalg.chance import expected_gain_residual
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import (
    IntMatrix,
    IntVector,
    gaussian,
    generator,
    int_matrices,
    int_vectors,
    seeds,
)
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    bound_margin,
    close_margin,
    exact_margin,
    mean_margin,
)

__all__ = ["CHECKS"]

_SAMPLES = 400


# --- least-squares column gains and their chance level --------------------------------------


@dataclass(frozen=True)
class _Gain:
    """An update, a weight of the same shape, and other gains to try."""

    update: IntMatrix
    weight: IntMatrix
    other: IntVector


@st.composite
def _gains(draw: st.DrawFn) -> _Gain:
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return _Gain(
        draw(int_matrices(rows=m, cols=n, nonzero=True)),
        draw(int_matrices(rows=m, cols=n)),
        draw(int_vectors(n)),
    )


def _residual(update: exact.Matrix, weight: exact.Matrix, gains: exact.Vector) -> exact.Number:
    scaled = tuple(tuple(x * g for x, g in zip(row, gains, strict=True)) for row in weight)
    return exact.frobenius_squared(exact.subtract(update, scaled))


def _captured(update: exact.Matrix, weight: exact.Matrix) -> Fraction:
    """``sum_j <D_j, W_j>^2 / |W_j|^2``; columns without weight capture nothing."""
    total = Fraction(0)
    for d, w in zip(exact.transpose(update), exact.transpose(weight), strict=True):
        if any(w):
            total += Fraction(exact.dot(d, w) ** 2, exact.dot(w, w))
    return total


def _gain_formula(case: _Gain) -> float:
    gains = tuple(
        Fraction(exact.dot(d, w), exact.dot(w, w)) if any(w) else Fraction(0)
        for d, w in zip(exact.transpose(case.update), exact.transpose(case.weight), strict=True)
    )
    energy = exact.frobenius_squared(case.update)
    best = _residual(case.update, case.weight, gains)
    others = tuple(g + h for g, h in zip(gains, case.other, strict=True))
    worse = _residual(case.update, case.weight, others)
    squares = (exact.dot(w, w) for w in exact.transpose(case.weight))
    excess = sum((h * h * s for h, s in zip(case.other, squares, strict=True)), 0)
    return min(
        exact_margin(best, energy - _captured(case.update, case.weight)),
        exact_margin(worse - best, excess),
    )


def _gain_null(case: _Gain, parts: int) -> float:
    """The mean over rotations of the rows loses ``1 / parts`` of the energy that meets a weight."""
    total, count = Fraction(0), 0
    for element in exact.signed_shifts(len(case.update)):
        moved = tuple(tuple(sign * x for x in case.update[source]) for source, sign in element)
        total += _captured(moved, case.weight)
        count += 1
    pairs = zip(exact.transpose(case.update), exact.transpose(case.weight), strict=True)
    met = sum((exact.dot(d, d) for d, w in pairs if any(w)), 0)
    return exact_margin(total / count, Fraction(met, parts))


def _column_gain(case: _Gain) -> float:
    m = len(case.update)
    twin = close_margin(abs(expected_gain_residual(m) - float(1 - Fraction(1, m))), 4e-16)
    return min(_gain_formula(case), _gain_null(case, m), twin)


# --- a residual is read beside its chance level ---------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """A weight of ``rows x cols`` and the seed of it and of random updates."""

    rows: int
    cols: int
    seed: int


_shapes = st.builds(
    _Shape, st.sampled_from((1, 2, 3, 7, 16, 64)), st.sampled_from((1, 2, 5, 12)), seeds
)


def _residuals(updates: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Share of each update that no column gain of the weight explains."""
    inner = (updates * weight).sum(dim=-2).square() / weight.square().sum(dim=-2)
    return 1.0 - inner.sum(dim=-1) / updates.square().sum(dim=(-2, -1))


def _chance_margin(case: _Shape, unexplained: float) -> float:
    source = generator(case.seed)
    weight = gaussian(case.rows, case.cols, source=source)
    shares = _residuals(gaussian(_SAMPLES, case.rows, case.cols, source=source), weight)
    return mean_margin(shares, unexplained)


def _separation(case: _Shape) -> float:
    """Unrelated updates leave 1 - 1/m, a rescaled base leaves nothing."""
    source = generator(case.seed)
    weight = gaussian(case.rows, case.cols, source=source)
    gains = gaussian(case.cols, source=source)
    planted = _residuals(weight * gains, weight).item()
    chance = expected_gain_residual(case.rows)
    return min(_chance_margin(case, chance), close_margin(abs(planted), 1e-12))


# --- a gain on the left does move the right singular vectors --------------------------------


@dataclass(frozen=True)
class _LeftGain:
    """``W = diag(top, 1)`` with ``top > 1``, and ``D = diag(1, gain)`` with ``gain > top``."""

    top: int
    excess: int

    @property
    def gain(self) -> int:
        return self.top + self.excess


def _top_right_overlap(case: _LeftGain) -> Fraction:
    """Squared cosine between the first right singular vectors of W and of D W."""
    weight: exact.Matrix = ((case.top, 0), (0, 1))
    scaled = exact.matmul(((1, 0), (0, case.gain)), weight)
    vectors = []
    for matrix in (weight, scaled):
        gram = exact.gram(matrix)
        if gram[0][1] or gram[0][0] == gram[1][1]:
            raise ArithmeticError("the first right singular vector is not a coordinate axis")
        vectors.append((1, 0) if gram[0][0] > gram[1][1] else (0, 1))
    return Fraction(exact.dot(*vectors) ** 2)


CHECKS = (
    Check(
        name="column_gain_residual",
        arithmetic="exact",
        tried="integer updates and weights up to 4 x 4, rows averaged over signed shifts",
        cases=_gains(),
        margin=_column_gain,
        mutant=Mutant(
            "The chance level is 1 - 1/n with n the number of columns.",
            lambda case: _gain_null(case, len(case.update[0])),
        ),
    ),
    Check(
        name="gain_residual_beside_chance",
        arithmetic="simulation",
        tried="400 random updates of weights of 1 to 64 rows; rescaled weights",
        cases=_shapes,
        margin=_separation,
        mutant=Mutant(
            "Unrelated updates leave 1 - 2/m unexplained on average.",
            lambda case: _chance_margin(case, 1.0 - 2.0 / case.rows),
        ),
    ),
    Check(
        name="left_gain_moves_right_vectors",
        arithmetic="exact",
        tried="W = diag(a, 1) and D = diag(1, b) for integers b > a > 1",
        cases=st.builds(_LeftGain, st.integers(2, 1000), st.integers(1, 1000)),
        margin=lambda case: exact_margin(_top_right_overlap(case), 0),
        mutant=Mutant(
            "The printed claim: W and D W have the same first right singular vector.",
            lambda case: bound_margin(1.0, float(_top_right_overlap(case))),
        ),
    ),
)
