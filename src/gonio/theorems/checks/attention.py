"""Family H: how far attention weights and outputs move when scores and values move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.theorems.checks.cases import IntMatrix, IntVector, int_matrices, int_vectors, to_tensor
from gonio.theorems.checks.check import Check, Mutant, bound_margin, close_margin, exact_margin

__all__ = ["CHECKS"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Scores:
    """Scores and their change, each with a power of two."""

    scores: IntVector
    change: IntVector
    scores_exponent: int
    change_exponent: int


@st.composite
def _scores(draw: st.DrawFn) -> _Scores:
    size = draw(st.integers(1, 6))
    return _Scores(
        draw(int_vectors(size)),
        draw(int_vectors(size)),
        draw(st.sampled_from((0, 1, 4, -4, 12, -30))),
        draw(st.sampled_from((0, 1, 4, -4, -12, -24))),
    )


def _distance(before: torch.Tensor, after: torch.Tensor) -> float:
    return (torch.softmax(after, dim=-1) - torch.softmax(before, dim=-1)).abs().sum().item()


def _lipschitz(case: _Scores, power: int = 1) -> float:
    """Margin of ``|softmax x - softmax y|_1 <= |x - y|_inf ** power``."""
    before = torch.tensor(case.scores, dtype=torch.float64) * 2.0**case.scores_exponent
    after = before + torch.tensor(case.change, dtype=torch.float64) * 2.0**case.change_exponent
    largest = (after - before).abs().max().item()
    return bound_margin(_distance(before, after), largest**power, 8 * len(before) * _EPS)


@dataclass(frozen=True)
class _Constant:
    """A Lipschitz constant ``1 - 1/denominator`` that is too small."""

    denominator: int

    @property
    def value(self) -> float:
        return 1.0 - 1.0 / self.denominator


def _extremal_pair(gap: float) -> tuple[float, float]:
    """The distance of the weights of ``(gap/2, -gap/2)`` and its negative; its closed form."""
    pair = torch.tensor([gap / 2.0, -gap / 2.0], dtype=torch.float64)
    return _distance(pair, -pair), 2.0 * math.tanh(gap / 2.0)


def _sharp(case: _Constant) -> float:
    """A pair a distance t = 1/sqrt(denominator) apart breaks the constant: 2 tanh(t/2) > c t."""
    gap = case.denominator**-0.5
    distance, closed_form = _extremal_pair(gap)
    exceeds = bound_margin(case.value * gap, distance)
    return min(close_margin(abs(distance - closed_form), 8 * _EPS), exceeds or -1.0)


def _sharp_far_apart(case: _Constant) -> float:
    distance, _ = _extremal_pair(2.0)
    return bound_margin(case.value * 2.0, distance)


@dataclass(frozen=True)
class _Head:
    """One query against keys and values (one per row), and changes of both, scaled down."""

    query: IntVector
    keys: IntMatrix
    key_changes: IntMatrix
    values: IntMatrix
    value_changes: IntMatrix
    exponents: tuple[int, int]


@st.composite
def _heads(draw: st.DrawFn) -> _Head:
    head_dim, tokens, value_dim = (draw(st.integers(1, 4)) for _ in range(3))
    keys, values = int_matrices(tokens, head_dim), int_matrices(tokens, value_dim)
    key_exponents, value_exponents = (
        st.sampled_from((0, -1, -4, -20)),
        st.sampled_from((0, -9, -40)),
    )
    return _Head(
        draw(int_vectors(head_dim)),
        draw(keys),
        draw(keys),
        draw(values),
        draw(values),
        (draw(key_exponents), draw(value_exponents)),
    )


def _output_distortion(case: _Head, share: float = 0.5) -> float:
    """Every output coordinate, the weights, and the scores, each against its bound."""
    query, keys, values = to_tensor(case.query), to_tensor(case.keys), to_tensor(case.values)
    key_error = to_tensor(case.key_changes) * 2.0 ** case.exponents[0]
    value_error = to_tensor(case.value_changes) * 2.0 ** case.exponents[1]
    scale = len(case.query) ** -0.5
    scores, moved = scale * keys @ query, scale * (keys + key_error) @ query
    before, after = torch.softmax(scores, dim=-1), torch.softmax(moved, dim=-1)
    shift = (moved - scores).abs().max().item()
    largest = (scale * query.norm() * key_error.norm(dim=-1)).max().item()
    turned = _distance(scores, moved)
    spread = values.amax(dim=0) - values.amin(dim=0)
    error = (after @ (values + value_error) - before @ values).abs()
    bounds = share * turned * spread + value_error.abs().amax(dim=0)
    rounding = 64 * _EPS * (1.0 + values.abs().max().item() + value_error.abs().max().item())
    pairs = zip(error.tolist(), bounds.tolist(), strict=True)
    return min(
        *(bound_margin(e, b, rounding) for e, b in pairs),
        bound_margin(turned, shift, 64 * _EPS),
        bound_margin(shift, largest, 64 * _EPS * (1.0 + scores.abs().max().item() + largest)),
    )


@dataclass(frozen=True)
class _Laws:
    """Two laws on the same tokens, as nonnegative weights to be normalized."""

    before: IntVector
    after: IntVector

    def normalized(self) -> tuple[list[Fraction], list[Fraction]]:
        before, after = (
            [Fraction(x, sum(weights)) for x in weights] for weights in (self.before, self.after)
        )
        return before, after


@st.composite
def _laws(draw: st.DrawFn) -> _Laws:
    weights = st.tuples(*[st.integers(0, 9)] * draw(st.integers(1, 5))).filter(any)
    return _Laws(draw(weights), draw(weights))


def _half_is_attained(case: _Laws, factor: Fraction = Fraction(1, 2)) -> float:
    """Values 1 where the weight fell and 0 elsewhere, of range at most 1, move by |dp|_1 / 2."""
    before, after = case.normalized()
    differences = [p - q for p, q in zip(before, after, strict=True)]
    moved = sum((d for d in differences if d > 0), Fraction(0))
    total = sum((abs(d) for d in differences), Fraction(0))
    return exact_margin(moved, factor * total)


CHECKS = (
    Check(
        name="softmax_is_one_lipschitz",
        arithmetic="float64",
        tried="1 to 6 scores at scales 2**-30 to 2**12, changed at scales 2**-24 to 2**4",
        cases=_scores(),
        margin=_lipschitz,
        mutant=Mutant(
            "The weights move by at most |x - y|_inf squared.",
            lambda case: _lipschitz(case, power=2),
        ),
    ),
    Check(
        name="softmax_constant_is_sharp",
        arithmetic="float64",
        tried="constants 1/2 to 1 - 1e-6, each against the extremal pair of two scores",
        cases=st.builds(_Constant, st.integers(2, 10**6)),
        margin=_sharp,
        mutant=Mutant(
            "Every constant below 1 is already exceeded by two scores that are 2 apart.",
            _sharp_far_apart,
        ),
    ),
    Check(
        name="attention_output_moves_little",
        arithmetic="float64",
        tried="up to 4 integer keys and values, changed at scales 2**-40 to 1",
        cases=_heads(),
        margin=_output_distortion,
        mutant=Mutant(
            "A quarter of the movement of the weights is enough.",
            lambda case: _output_distortion(case, share=0.25),
        ),
    ),
    Check(
        name="half_the_weight_is_attained",
        arithmetic="exact",
        tried="pairs of rational laws on 1 to 5 tokens",
        cases=_laws(),
        margin=_half_is_attained,
        mutant=Mutant(
            "The constant 1/2 could be 2/5.",
            lambda case: _half_is_attained(case, Fraction(2, 5)),
        ),
    ),
)
