"""Rademacher complexity of norm-bounded low-rank linear maps on given inputs.

Of a class of matrices D, m x n, on inputs x_1 .. x_N in R^n, with independent signs for every
example and output,

    complexity = E_S sup_D (1/N) sum_i <s_i, D x_i> = E_S sup_D <D, S^T X> / N,

S the N x m signs and X the N x n inputs. With rank(D) <= r the supremum is exact, from the singular
values z_1 >= z_2 >= ... of S^T X:

    spectral    ||D||_2 <= b:            b (z_1 + .. + z_r)
    frobenius   ||D||_F <= b:            b sqrt(z_1^2 + .. + z_r^2)
    factors     ||B||_F ||A||_F <= b:    b z_1, for D = B A of any r >= 1

so only the mean over signs is left: by Monte Carlo, or bounded in closed form by
``E sqrt(sum z^2) <= sqrt(m) ||X||_F`` (Jensen; signs are uncorrelated) and
``E z_1 <= sqrt(2 max(||X||_F^2, m ||X||_2^2) log(m + n))`` (Tropp 2015, arXiv:1501.01571, theorem
4.1.1). A loss that is L-Lipschitz in the m outputs has complexity at most sqrt(2) L times this
(Maurer 2016, arXiv:1605.00251, corollary 4), and with probability 1 - delta no member of a class
fixed before seeing the data has a mean loss in [0, 1] that exceeds its loss on the sample by more
than twice that plus 3 sqrt(log(2 / delta) / 2N) (Mohri et al. 2018, theorem 3.3).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError

__all__ = [
    "MatrixClass",
    "complexity_bound",
    "printed_full_bound",
    "printed_lora_bound",
    "sampled_complexity",
    "supremum",
]

MatrixClass = Literal["spectral", "frobenius", "factors"]
_CLASSES = ("spectral", "frobenius", "factors")


def supremum(kind: MatrixClass, correlations: Tensor, rank: int, radius: float) -> Tensor:
    """``sup <D, Z>`` over the matrices of a class, exactly.

    Args:
        kind: Which norm is bounded, see the module.
        correlations: Z, shape ``(..., m, n)``.
        rank: Largest rank of D, at least 1.
        radius: Bound on the norm, at least 0.

    Returns:
        Shape ``(...)``, float64, in the unit of radius times Z.

    Raises:
        SettingError: The class is unknown, the rank below 1 or the radius negative.

    Source: von Neumann's trace inequality; Fan 1951 (doi:10.1073/pnas.37.11.760).
    Theorem: ``svd_topk_maximizes_gammaR``.
    """
    _check(kind, rank, radius)
    sigma: Tensor = torch.linalg.svdvals(correlations.double())[..., :rank]
    if kind == "spectral":
        size = sigma.sum(dim=-1)
    elif kind == "frobenius":
        size = sigma.square().sum(dim=-1).sqrt()
    else:
        size = sigma[..., 0]
    return radius * size


def sampled_complexity(
    kind: MatrixClass,
    inputs: Tensor,
    outputs: int,
    rank: int,
    radius: float,
    *,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws of ``sup <D, S^T X> / N`` over random signs; their mean estimates the complexity.

    Args:
        kind: Which norm is bounded.
        inputs: X, one input per row, shape ``(N, n)``.
        outputs: m, the rows of D.
        rank: Largest rank of D.
        radius: Bound on the norm.
        draws: Sign matrices drawn, at least 1.
        generator: Source of the signs, on the CPU.

    Returns:
        ``(draws,)``, float64, in the unit of radius times an input.

    Raises:
        ShapeError: ``inputs`` is no matrix, or empty.
        SettingError: As :func:`supremum`, or ``draws`` or ``outputs`` is below 1.
    """
    if inputs.ndim != 2 or inputs.numel() == 0:
        raise ShapeError(f"inputs must be (examples, in_features), found {tuple(inputs.shape)}")
    if draws < 1 or outputs < 1:
        raise SettingError(f"draws and outputs must be at least 1, found {draws} and {outputs}")
    x = inputs.double()
    found = []
    for _ in range(draws):
        signs = torch.randint(2, (len(x), outputs), generator=generator).to(x) * 2 - 1
        found.append(supremum(kind, signs.mT @ x, rank, radius) / len(x))
    return torch.stack(found)


def complexity_bound(
    kind: MatrixClass,
    examples: int,
    shape: tuple[int, int],
    rank: int,
    radius: float,
    *,
    frobenius_norm: float,
    spectral_norm: float | None = None,
) -> float:
    """Closed-form upper bound on the empirical Rademacher complexity.

    Args:
        kind: Which norm is bounded.
        examples: N.
        shape: ``(m, n)``.
        rank: Largest rank of D.
        radius: Bound on the norm.
        frobenius_norm: ``||X||_F``, or a bound: sqrt(N) times the largest length of an input.
        spectral_norm: ``||X||_2``; ``frobenius_norm`` unless given, which it never exceeds.

    Returns:
        In the unit of radius times an input; the smaller of the two bounds the module states.

    Raises:
        SettingError: As :func:`supremum`, or ``examples`` is below 1.
    """
    _check(kind, rank, radius)
    if examples < 1:
        raise SettingError(f"examples must be at least 1, found {examples}")
    m, n = shape
    top = frobenius_norm if spectral_norm is None else min(spectral_norm, frobenius_norm)
    length = math.sqrt(m) * frobenius_norm  # bounds E sqrt(sum z^2)
    largest = math.sqrt(2 * max(frobenius_norm**2, m * top**2) * math.log(m + n))
    largest = min(length, largest)  # bounds E z_1
    terms = min(rank, m, n, examples)
    if kind == "spectral":
        total = min(math.sqrt(terms) * length, terms * largest)
    elif kind == "frobenius":
        total = min(length, math.sqrt(terms) * largest)
    else:
        total = largest
    return radius * total / examples


def printed_lora_bound(alpha: float, rank: int, shape: tuple[int, int], examples: int) -> float:
    """``alpha sqrt(2 r log(2 m n)) / N``, as the LoRA essay prints it; **not a valid bound**.

    It bounds neither the factors nor the inputs, without which the complexity is infinite, and it
    falls as 1/N where no class with two different members can fall faster than 1/sqrt(N): one
    weight in [-1, 1] on three inputs equal to 1 has complexity 1/2, above its 0.39. Its unit is
    that of alpha.

    Args:
        alpha: LoRA alpha.
        rank: r.
        shape: ``(m, n)``; the essay writes n also for the number of examples.
        examples: N.

    Raises:
        SettingError: Rank or examples below 1.

    Theorem: ``rademacher_bounds_counterexample``.
    """
    if rank < 1 or examples < 1:
        raise SettingError(f"rank and examples must be at least 1, found {rank} and {examples}")
    return alpha * math.sqrt(2 * rank * math.log(2 * shape[0] * shape[1])) / examples


def printed_full_bound(shape: tuple[int, int], examples: int) -> float:
    """``sqrt(m n / N)``, the essay's O(sqrt(mn/n)) for full training; its constant is not printed.

    Args:
        shape: ``(m, n)``.
        examples: N.

    Raises:
        SettingError: ``examples`` is below 1.
    """
    if examples < 1:
        raise SettingError(f"examples must be at least 1, found {examples}")
    return math.sqrt(shape[0] * shape[1] / examples)


def _check(kind: str, rank: int, radius: float) -> None:
    if kind not in _CLASSES:
        raise SettingError(f"no class {kind!r}; there are {', '.join(_CLASSES)}")
    if rank < 1 or not 0.0 <= radius < math.inf:
        raise SettingError(
            f"rank must be at least 1 and radius finite and not negative, found {rank}, {radius}"
        )
