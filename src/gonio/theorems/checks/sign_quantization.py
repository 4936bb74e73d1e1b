"""Family B: keeping only the signs of one vector, and one scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from hypothesis import strategies as st

from gonio.quant.sign import sign_beta, sign_cosine, sign_decode, sign_encode
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import IntVector, Key, keys
from gonio.theorems.checks.check import (
    Check,
    Mutant,
    close_margin,
    exact_margin,
    iff_margin,
)

__all__ = ["CHECKS"]

_EPS = torch.finfo(torch.float64).eps


def _signs(entries: IntVector, at_zero: int = 1) -> IntVector:
    return tuple((x > 0) - (x < 0) or at_zero for x in entries)


def _rounding(entries: IntVector) -> float:
    """Relative rounding of sums of d terms, their quotient and root."""
    return 4 * (len(entries) + 4) * _EPS


# --- the cosine -----------------------------------------------------------------------------


def _squared_cosine_matches(entries: IntVector, at_zero: int) -> float:
    signs = _signs(entries, at_zero)
    energy = exact.dot(entries, entries)
    inner, sign_energy = exact.dot(entries, signs), exact.dot(signs, signs)
    if inner < 0 or sign_energy == 0:
        return -1.0
    return exact_margin(
        Fraction(inner**2, energy * sign_energy), exact.squared_sign_cosine(entries)
    )


def _cosine_formula(key: Key) -> float:
    signs, _ = sign_encode(key.tensor())
    same_signs = signs.tolist() == [sign > 0 for sign in _signs(key.entries)]
    error = abs(
        sign_cosine(key.tensor()).item() - math.sqrt(exact.squared_sign_cosine(key.entries))
    )
    return min(
        _squared_cosine_matches(key.entries, at_zero=1),
        iff_margin(same_signs, True),
        close_margin(error, _rounding(key.entries)),
    )


def _moment_ratio(key: Key, bound: Fraction | int = 1) -> float:
    """``(E|X|)^2 <= bound * E X^2`` for X uniform on the entries."""
    count = len(key.entries)
    mean = Fraction(exact.l1(key.entries), count)
    second_moment = Fraction(exact.dot(key.entries, key.entries), count)
    return float((bound * second_moment - mean**2) / second_moment)


# --- when it is 1 ---------------------------------------------------------------------------


def _lattice_identity(entries: IntVector) -> float:
    """Lagrange: ``d |k|^2 - |k|_1^2 = sum_{i<j} (|k_i| - |k_j|)^2``."""
    sizes = [abs(x) for x in entries]
    spread = sum((a - b) ** 2 for i, a in enumerate(sizes) for b in sizes[:i])
    energy = int(exact.dot(entries, entries))
    return exact_margin(len(entries) * energy - exact.l1(entries) ** 2, spread)


def _one_iff_lattice(key: Key) -> float:
    is_lattice = len({abs(x) for x in key.entries}) == 1
    rounding = _rounding(key.entries)
    is_one = abs(sign_cosine(key.tensor()).item() - 1.0) <= rounding
    return min(
        iff_margin(exact.squared_sign_cosine(key.entries) == 1, is_lattice),
        iff_margin(is_one, is_lattice),
        _lattice_identity(key.entries),
    )


def _one_iff_nonzero_sizes_agree(key: Key) -> float:
    agree = len({abs(x) for x in key.entries if x}) == 1
    return iff_margin(exact.squared_sign_cosine(key.entries) == 1, agree)


# --- what is lost ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quantized:
    """A key, and another scale and sign pattern to compare with."""

    key: Key
    numerator: int
    denominator: int
    flips: int

    @property
    def other_scale(self) -> Fraction:
        return Fraction(self.numerator, self.denominator)

    @property
    def other_signs(self) -> IntVector:
        signs = _signs(self.key.entries)
        return tuple(-s if self.flips >> i & 1 else s for i, s in enumerate(signs))


_quantized = st.builds(
    _Quantized, keys(), st.integers(-12, 12), st.integers(1, 5), st.integers(0, 127)
)


def _residual(entries: IntVector, scale: Fraction, signs: IntVector) -> Fraction:
    return sum(((x - scale * s) ** 2 for x, s in zip(entries, signs, strict=True)), Fraction(0))


def _residual_formula(case: _Quantized, scale: Fraction) -> float:
    entries = case.key.entries
    energy = exact.dot(entries, entries)
    lost = _residual(entries, scale, _signs(entries)) / energy
    return exact_margin(lost, 1 - exact.squared_sign_cosine(entries))


def _residual_energy(case: _Quantized) -> float:
    entries, d = case.key.entries, len(case.key.entries)
    best_scale = Fraction(exact.l1(entries), d)
    best = _residual(entries, best_scale, _signs(entries))
    same_signs = _residual(entries, case.other_scale, _signs(entries)) - best
    is_best = _residual(entries, case.other_scale, case.other_signs) >= best
    key = case.key.tensor()
    decoded = sign_decode(*sign_encode(key, scale="least_squares"))
    kept = 1.0 - ((key - decoded) / key.abs().max()).square().sum().item() / (
        (key / key.abs().max()).square().sum().item()
    )
    beta, rounding = float(exact.squared_sign_cosine(entries)), _rounding(entries)
    return min(
        _residual_formula(case, best_scale),
        exact_margin(same_signs, d * (case.other_scale - best_scale) ** 2),
        iff_margin(is_best, True),
        close_margin(abs(sign_beta(key).item() - beta), rounding),
        close_margin(abs(kept - beta), rounding),
    )


def _residual_of_unbiased_scale(case: _Quantized) -> float:
    entries = case.key.entries
    return _residual_formula(case, Fraction(exact.dot(entries, entries), exact.l1(entries)))


_TRIED = "integer keys of 1 to 7 entries (generic, sparse, near and on the sign lattice), scaled"

CHECKS = (
    Check(
        name="moment_ratio_at_most_one",
        arithmetic="exact",
        tried="finite laws of 1 to 7 integer values, each equally likely",
        cases=keys(),
        margin=_moment_ratio,
        mutant=Mutant(
            "The ratio is at most 0.99 as soon as there are two values.",
            lambda key: _moment_ratio(key, Fraction(99, 100) if len(key.entries) > 1 else 1),
        ),
    ),
    Check(
        name="sign_cosine_formula",
        arithmetic="float64",
        tried=_TRIED,
        cases=keys(),
        margin=_cosine_formula,
        mutant=Mutant(
            "The formula holds with sgn(0) = 0.",
            lambda key: _squared_cosine_matches(key.entries, at_zero=0),
        ),
    ),
    Check(
        name="sign_cosine_is_one_on_lattice",
        arithmetic="float64",
        tried=_TRIED,
        cases=keys(),
        margin=_one_iff_lattice,
        mutant=Mutant(
            "The cosine is 1 as soon as all nonzero entries have one size.",
            _one_iff_nonzero_sizes_agree,
        ),
    ),
    Check(
        name="sign_residual_energy",
        arithmetic="float64",
        tried=_TRIED + "; other scales and sign patterns",
        cases=_quantized,
        margin=_residual_energy,
        mutant=Mutant(
            "The same residual is left by the unbiased scale |k|_2^2 / |k|_1.",
            _residual_of_unbiased_scale,
        ),
    ),
)
