"""Gaussian rate-distortion theory: the fewest bits any code can spend for a mean squared error."""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.linalg.precision import upcast

__all__ = ["WaterFilling", "gaussian_distortion", "gaussian_rate", "reverse_water_filling"]

Variance = TypeVar("Variance", float, Tensor)


@dataclass(frozen=True, eq=False)
class WaterFilling:
    """The best split of a bit budget over independent Gaussian components."""

    level: Tensor  # water level: the distortion of every component that gets bits, shape (...)
    bits: Tensor  # bits of each component, shape (..., d)
    distortion: Tensor  # mean squared error of each component, min(level, variance), shape (..., d)


def gaussian_distortion(variance: Variance, bits: float) -> Variance:
    """Least mean squared error of a Gaussian source at a given rate.

    Args:
        variance: Variance of the source, at least 0; a number or a tensor.
        bits: Bits per sample, at least 0.

    Returns:
        ``variance * 2^(-2 bits)``, in the unit of the variance.

    Raises:
        SettingError: The bits are negative.

    Source: Shannon 1959; Cover and Thomas, Elements of Information Theory, theorem 10.3.2.
    """
    if not bits >= 0:
        raise SettingError(f"rate is {bits} bits, expected at least 0")
    return variance * math.pow(2.0, -2.0 * bits)


def gaussian_rate(variance: Tensor | float, distortion: Tensor | float) -> Tensor:
    """Fewest bits per sample that reach a mean squared error on a Gaussian source.

    Args:
        variance: Variance of the source, at least 0.
        distortion: Mean squared error allowed, above 0.

    Returns:
        ``max(0, log2(variance / distortion) / 2)`` in bits, broadcast shape; float64 for numbers.

    Raises:
        SettingError: A variance is negative, or a distortion not positive.

    Source: Cover and Thomas, Elements of Information Theory, theorem 10.3.2.
    """
    source = _as_tensor(variance, "variance")
    allowed = _as_tensor(distortion, "distortion")
    if not bool((source >= 0).all()) or not bool((allowed > 0).all()):
        raise SettingError("a rate needs variances of at least 0 and distortions above 0")
    return (0.5 * (source.log2() - allowed.log2())).clamp(min=0)


def reverse_water_filling(variances: Tensor, bits: float) -> WaterFilling:
    """Split a mean rate over independent Gaussian components at the least total error.

    Exact by sorting: component a joins once the budget exceeds the bits that bring all larger
    variances down to its own, and the level then follows in closed form.

    Args:
        variances: At least 0, shape ``(..., d)``; components of variance 0 get no bits.
        bits: Mean bits per component over all d, at least 0.

    Returns:
        Level, bits and distortion in the input dtype (float32 for narrower); the bits average to
        ``bits``. A population without variance has level 0 and no bits.

    Raises:
        SettingError: A variance is negative or not finite, or the bits are negative.
        ShapeError: There is no component.

    Source: Cover and Thomas, Elements of Information Theory, theorem 10.3.3.
    """
    dtype = upcast(variances, "variances").dtype
    exact = variances.double()
    if exact.ndim == 0 or exact.shape[-1] == 0:
        raise ShapeError(f"variances have shape {tuple(exact.shape)}, expected (..., d), d >= 1")
    if not bool((exact.isfinite() & (exact >= 0)).all()):
        raise SettingError("variances must be finite and at least 0; clamp rounding errors first")
    if not 0 <= bits < float("inf"):
        raise SettingError(f"mean rate is {bits} bits, expected a finite number of at least 0")
    budget = bits * exact.shape[-1]
    logs = exact.sort(dim=-1, descending=True).values.log2()
    positive = logs.isfinite()
    logs = torch.where(positive, logs, 0.0)
    counts = torch.arange(1, logs.shape[-1] + 1, device=logs.device)
    sums = logs.cumsum(dim=-1)
    active = positive & (0.5 * (sums - counts * logs) < budget)
    active[..., 0] = True
    last = active.sum(dim=-1, keepdim=True) - 1
    log_level = (sums.gather(-1, last) - 2.0 * budget) / (last + 1)
    log_level = torch.where(positive[..., :1], log_level, -torch.inf)
    level = log_level.exp2()
    shares = (0.5 * (exact.log2() - log_level)).nan_to_num(nan=0.0).clamp(min=0)
    return WaterFilling(
        level=level[..., 0].to(dtype),
        bits=shares.to(dtype),
        distortion=torch.minimum(exact, level).to(dtype),
    )


def _as_tensor(value: Tensor | float, name: str) -> Tensor:
    """A tensor fit for arithmetic; plain numbers become float64."""
    if isinstance(value, Tensor):
        return upcast(value, name)
    return torch.tensor(value, dtype=torch.float64)
