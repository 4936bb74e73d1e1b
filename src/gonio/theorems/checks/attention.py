"""Family H: how far attention weights move when scores move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from gonio.theorems.checks.cases import IntVector, int_vectors
from gonio.theorems.checks.check import Check, Mutant, bound_margin, close_margin

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
)
