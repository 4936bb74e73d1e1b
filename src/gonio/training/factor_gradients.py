"""Gradients of low-rank factors in closed form, and what they say before anything is trained.

A layer computes ``W x + s B A x``. With G the gradient of the loss in its full weight, m x n,

    grad_B = s G A^T  (m x r)        grad_A = s B^T G  (r x n)

so that ``B^T grad_B = grad_A A^T`` (r x r) at every step, whatever G is: both are ``s B^T G A^T``.
With B = 0 the gradient of A is exactly zero, and a step of gradient descent of length eta adds
``-eta s^2 G A^T A`` to the weight. Entries of A that are independent with mean 0 and variance v
give ``E |grad_B|^2 = s^2 r v |G|^2``: under s = alpha / r the gradient falls as r^(-1/2), under
alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732) it does not depend on r.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from gonio.errors import SettingError, ShapeError

__all__ = [
    "FactorGradients",
    "Scaling",
    "expected_gradient_ratio",
    "factor_gradients",
    "gradient_exponent",
    "imbalance",
    "lora_scaling",
]

Scaling = Literal["lora", "rslora"]


class FactorGradients(NamedTuple):
    """Gradients of both factors.

    Attributes:
        lora_a: Shape ``(rank, in_features)``.
        lora_b: Shape ``(out_features, rank)``.
    """

    lora_a: Tensor
    lora_b: Tensor


def lora_scaling(rule: Scaling, alpha: float, rank: int) -> float:
    """``alpha / r`` or, for ``rslora``, ``alpha / sqrt(r)``.

    Raises:
        SettingError: The rule is unknown or the rank below 1.
    """
    if rule not in ("lora", "rslora") or rank < 1:
        raise SettingError(f"no scaling {rule!r} at rank {rank}; there are lora and rslora")
    return alpha / rank if rule == "lora" else alpha / math.sqrt(rank)


def factor_gradients(
    weight_gradient: Tensor, lora_b: Tensor, lora_a: Tensor, scaling: float
) -> FactorGradients:
    """``s B^T G`` and ``s G A^T``.

    Args:
        weight_gradient: G, gradient of the loss in the full weight, ``(out_features,
            in_features)``.
        lora_b: Shape ``(out_features, rank)``.
        lora_a: Shape ``(rank, in_features)``.
        scaling: s.

    Raises:
        ShapeError: The shapes do not fit together.

    Theorem: ``lora_gradients``.
    """
    m, n = weight_gradient.shape
    if lora_b.shape[0] != m or lora_a.shape[1] != n or lora_b.shape[1] != lora_a.shape[0]:
        raise ShapeError(
            f"factors {tuple(lora_b.shape)} and {tuple(lora_a.shape)} are not those of a weight "
            f"{(m, n)}"
        )
    return FactorGradients(
        scaling * (lora_b.mT @ weight_gradient), scaling * (weight_gradient @ lora_a.mT)
    )


def imbalance(lora_b: Tensor, lora_a: Tensor, gradients: FactorGradients) -> float:
    """How far gradients are from ``B^T grad_B = grad_A A^T``, relative, in [0, 1].

    Zero up to rounding for gradients of any loss through ``B @ A``; 0 where both sides vanish.
    A wrong scaling cancels; a wrong factor, a weight decay in the gradient, or a loss on the
    factors themselves does not.

    Source: Arora et al. 2018 (arXiv:1802.06509), theorem 1: what gradient flow conserves.
    """
    left = lora_b.double().mT @ gradients.lora_b.double()
    right = gradients.lora_a.double() @ lora_a.double().mT
    size = float(left.norm() + right.norm())
    return float((left - right).norm()) / size if size > 0 else 0.0


def expected_gradient_ratio(scaling: float, rank: int, variance: float) -> float:
    """Root mean square of ``|grad_B| / |G|`` over random A, at the start where B = 0.

    ``s sqrt(r v)``. PEFT's default draws A uniformly with variance 1 / (3 n).

    Args:
        scaling: s.
        rank: r.
        variance: v of the independent entries of A, their mean 0.

    Raises:
        SettingError: The variance is negative or the rank below 1.
    """
    if variance < 0 or rank < 1:
        raise SettingError(f"variance {variance} at rank {rank}: expected >= 0 and >= 1")
    return abs(scaling) * math.sqrt(rank * variance)


def gradient_exponent(rule: Scaling) -> float:
    """Power of r with which ``|grad_B|`` grows at the start, alpha held fixed: -1/2 or 0."""
    return -0.5 if rule == "lora" else 0.0
