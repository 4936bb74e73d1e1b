"""Family C: mean absolute value against mean square, and what signs keep of independent entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from hypothesis import strategies as st
from scipy.integrate import quad

from gonio.quant.sign import sign_beta
from gonio.theorems.checks.cases import gaussian, generator, seeds
from gonio.theorems.checks.check import Check, Mutant, close_margin, mean_margin, z_margin

__all__ = ["CHECKS"]

_DRAWS = 1000
Law = Literal["gaussian", "uniform", "laplace"]


@dataclass(frozen=True)
class _Law:
    """A law symmetric about 0, of scale 1.

    Attributes:
        density: Density at a nonnegative point.
        top: End of the range of integration; beyond it the density is below the least double.
        moments: E|X|^k for k = 1 to 4.
        sample: Draws of a shape.
    """

    density: Callable[[float], float]
    top: float
    moments: tuple[float, float, float, float]
    sample: Callable[[tuple[int, ...], torch.Generator], torch.Tensor]

    @property
    def ratio(self) -> float:
        """``(E|X|)^2 / E X^2``."""
        return self.moments[0] ** 2 / self.moments[1]


def _laplace(shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    """Differences of independent exponential draws."""
    uniform = torch.rand(2, *shape, dtype=torch.float64, generator=source)
    return torch.log1p(-uniform[0]) - torch.log1p(-uniform[1])


_LAWS: dict[Law, _Law] = {
    "gaussian": _Law(
        lambda x: math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi),
        40.0,
        (math.sqrt(2.0 / math.pi), 1.0, 2.0 * math.sqrt(2.0 / math.pi), 3.0),
        lambda shape, source: gaussian(*shape, source=source),
    ),
    "uniform": _Law(
        lambda x: 0.5,
        1.0,
        (1 / 2, 1 / 3, 1 / 4, 1 / 5),
        lambda shape, source: 2.0 * torch.rand(shape, dtype=torch.float64, generator=source) - 1.0,
    ),
    "laplace": _Law(lambda x: 0.5 * math.exp(-x), 700.0, (1.0, 2.0, 6.0, 24.0), _laplace),
}


# --- the moments of one entry ---------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Scale ``numerator / 8``, vectors of ``size`` such entries, and a seed."""

    numerator: int
    size: int
    seed: int

    @property
    def scale(self) -> float:
        return self.numerator / 8


_entries = st.builds(_Entry, st.integers(1, 64), st.integers(1, 64), seeds)


def _integrated_ratio(law: _Law, scale: float) -> tuple[float, float]:
    """``(E|X|)^2 / E X^2`` by integrating the density, and its error bound."""

    def moment(k: int) -> tuple[float, float]:
        # Split where the mass ends, so that the quadrature does not step over it.
        ends = (0.0, min(8.0, law.top) * scale, law.top * scale)
        parts = [
            quad(
                lambda x: 2.0 * x**k * law.density(x / scale) / scale,
                low,
                high,
                epsabs=0.0,
                epsrel=1e-12,
            )
            for low, high in pairwise(ends)
            if low < high
        ]
        return sum(p[0] for p in parts), sum(p[1] for p in parts)

    (first, first_error), (second, second_error) = moment(1), moment(2)
    ratio = first**2 / second
    return ratio, ratio * (2.0 * first_error / first + second_error / second) + 1e-14


def _ratio_is(case: _Entry, name: Law, value: float) -> float:
    ratio, error = _integrated_ratio(_LAWS[name], case.scale)
    return close_margin(abs(ratio - value), error)


def _moments_agree(case: _Entry, name: Law, value: float) -> float:
    """The density integrated, and both moments simulated with their exact standard errors."""
    law = _LAWS[name]
    sample = law.sample((_DRAWS * 8,), generator(case.seed)).abs()
    first, second, _, fourth = law.moments
    count = len(sample)
    return min(
        _ratio_is(case, name, value),
        close_margin(abs(law.ratio - value), 1e-15),
        z_margin(sample.mean().item() - first, ((second - first**2) / count) ** 0.5),
        z_margin(sample.square().mean().item() - second, ((fourth - second**2) / count) ** 0.5),
    )


def _gaussian_ratio(case: _Entry) -> float:
    """Also the energy kept of d entries, known exactly for a Gaussian."""
    normal = _LAWS["gaussian"].sample((_DRAWS, case.size), generator(case.seed))
    beta = sign_beta(case.scale * normal)
    # Of d Gaussian entries the energy kept is 2/pi + (1 - 2/pi)/d on average: the ratio, for d
    # large, and exactly 1 for d = 1.
    expected = 2.0 / math.pi + (1.0 - 2.0 / math.pi) / case.size
    return min(
        _moments_agree(case, "gaussian", 2.0 / math.pi),
        mean_margin(beta, expected),
    )


# --- many independent entries ---------------------------------------------------------------


@dataclass(frozen=True)
class _Many:
    """A law, a dimension and a seed."""

    law: Law
    size: int
    seed: int


_many = st.builds(
    _Many, st.sampled_from(("gaussian", "uniform", "laplace")), st.sampled_from((256, 1024)), seeds
)
_VECTORS = 400


def _asymptotic_deviation(law: _Law) -> float:
    """Limit of the standard deviation of ``sqrt(d) (cos^2 - beta)``, by the delta method."""
    first, second, third, fourth = law.moments
    a, b = 2.0 * first / second, (first / second) ** 2
    variance = (
        a * a * (second - first**2)
        + b * b * (fourth - second**2)
        - 2.0 * a * b * (third - first * second)
    )
    return math.sqrt(variance)


def _convergence(case: _Many, rate: float = 0.5) -> float:
    """Root mean square of ``cos^2 - beta`` times ``d ** rate``, over its limit, against 1."""
    law = _LAWS[case.law]
    vectors = law.sample((_VECTORS, case.size), generator(case.seed))
    spread = (sign_beta(vectors) - law.ratio).square().mean().sqrt().item()
    relative = spread * case.size**rate / _asymptotic_deviation(law)
    # Six standard errors of a root mean square, and a term of the next order in 1/sqrt(d).
    return close_margin(abs(relative - 1.0), 6.0 / math.sqrt(2.0 * _VECTORS) + 2.0 / case.size**0.5)


_TRIED = "densities of scale 1/8 to 8 integrated; 8000 entries simulated"

CHECKS = (
    Check(
        name="gaussian_moment_ratio",
        arithmetic="simulation",
        tried=_TRIED + "; 1000 vectors of 1 to 64 entries",
        cases=_entries,
        margin=_gaussian_ratio,
        mutant=Mutant(
            "The ratio is 7/11 (pi rounded to 22/7).",
            lambda case: _ratio_is(case, "gaussian", 7.0 / 11.0),
        ),
    ),
    Check(
        name="uniform_moment_ratio",
        arithmetic="simulation",
        tried=_TRIED,
        cases=_entries,
        margin=partial(_moments_agree, name="uniform", value=3 / 4),
        mutant=Mutant(
            "The ratio is 2/pi, as for a Gaussian.",
            lambda case: _ratio_is(case, "uniform", 2.0 / math.pi),
        ),
    ),
    Check(
        name="laplace_moment_ratio",
        arithmetic="simulation",
        tried=_TRIED,
        cases=_entries,
        margin=partial(_moments_agree, name="laplace", value=1 / 2),
        mutant=Mutant(
            "The ratio is 2/pi, as for a Gaussian.",
            lambda case: _ratio_is(case, "laplace", 2.0 / math.pi),
        ),
    ),
    Check(
        name="convergence_of_independent_entries",
        arithmetic="simulation",
        tried="400 vectors of 256 or 1024 Gaussian, uniform or Laplace entries",
        cases=_many,
        margin=_convergence,
        mutant=Mutant("The error falls as 1/d.", lambda case: _convergence(case, rate=1.0)),
    ),
)
