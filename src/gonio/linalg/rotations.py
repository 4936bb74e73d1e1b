"""Orthogonal matrices: random, structured and learned.

A rotation R acts on a column vector as ``R k``; on vectors stored as rows, ``keys @ R.mT``.
"""

import math

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg.hadamard import (
    hadamard_matrix,
    hadamard_transform,
    has_hadamard,
    randomized_hadamard,
)
from gonio.linalg.precision import upcast

__all__ = [
    "haar_rotation",
    "hadamard_matrix",
    "hadamard_transform",
    "has_hadamard",
    "householder_reflection",
    "learned_sign_rotation",
    "procrustes_rotation",
    "randomized_hadamard",
]

# Of the learned rotation. Any of 0.2 to 0.5, 0.85 to 0.95 and 0.1 to 0.4 reached within 0.0004
# of the same mean cosine of keys.
SOFTNESS = 0.3  # of a sign: below this share of a row's root mean square it is linear
MOMENTUM = 0.9
LEAST_WEIGHT = 0.2  # over the mean; directions without energy would turn without bound


def haar_rotation(
    d: int,
    generator: torch.Generator,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniformly random orthogonal matrices.

    The Q of a Gaussian matrix's QR, columns flipped so that R has a positive diagonal; without
    the flips the law would depend on the QR algorithm.

    Args:
        d: Dimension, at least 1.
        generator: Source of randomness; the result lies on its device.
        batch: Leading dimensions, independent draws.
        dtype: Floating dtype of the result; the draw is float64.

    Returns:
        Orthogonal matrices of either determinant, shape ``(*batch, d, d)``.

    Raises:
        ShapeError: d is below 1.

    Source: Mezzadri 2007 (arXiv:math-ph/0609050).
    """
    if d < 1:
        raise ShapeError(f"no rotation of R^{d}; expected d >= 1")
    gaussian = torch.randn(
        (*batch, d, d), generator=generator, device=generator.device, dtype=torch.float64
    )
    basis: Tensor
    basis, core = torch.linalg.qr(gaussian)
    signs = _signs(core.diagonal(dim1=-2, dim2=-1))
    return (basis * signs.unsqueeze(-2)).to(dtype)


def householder_reflection(source: Tensor, target: Tensor) -> Tensor:
    """Symmetric orthogonal matrix that sends one direction to another.

    ``I - 2 v v^T / |v|^2`` with v the difference of the unit vectors; the identity when they are
    equal. For nearly equal ones v is made orthogonal to their sum, which it is in exact
    arithmetic, so that rounding in v cannot spoil the map.

    Args:
        source: Nonzero vectors, shape ``(..., d)``.
        target: Nonzero vectors, same shape up to broadcasting of leading dimensions.

    Returns:
        H with ``H = H^T``, ``H H = I`` and ``H source/|source| = target/|target|``,
        shape ``(..., d, d)``, in the promoted input dtype.

    Raises:
        ShapeError: The vectors differ in dimension.
        ZeroMatrixError: A vector is zero.

    Theorem: ``dc_centering_lifts_rotational_ceiling``.
    """
    source, target = upcast(source, "source"), upcast(target, "target")
    if source.ndim == 0 or target.ndim == 0 or source.shape[-1] != target.shape[-1]:
        raise ShapeError(
            f"source {tuple(source.shape)} and target {tuple(target.shape)} "
            "must share their last dimension"
        )
    dtype = torch.promote_types(source.dtype, target.dtype)
    start, end = _unit(source, "source"), _unit(target, "target")
    middle, normal = start + end, start - end
    middle_squared = middle.square().sum(dim=-1, keepdim=True)
    along = (middle * normal).sum(dim=-1, keepdim=True)
    close = middle_squared > normal.square().sum(dim=-1, keepdim=True)
    shift = torch.where(close, along / torch.where(close, middle_squared, 1.0), 0.0)
    normal = normal - shift * middle
    # Normalise before squaring: the square of a tiny normal would underflow.
    size = normal.abs().amax(dim=-1, keepdim=True)
    normal = normal / torch.where(size > 0, size, 1.0)
    length_squared = normal.square().sum(dim=-1, keepdim=True)
    normal = normal / torch.where(size > 0, length_squared, 1.0).sqrt()
    identity = torch.eye(start.shape[-1], dtype=torch.float64, device=start.device)
    return (identity - 2.0 * normal.unsqueeze(-1) * normal.unsqueeze(-2)).to(dtype)


def procrustes_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Orthogonal R that best turns one set of row vectors into another.

    Minimises ``||source @ R.mT - target||_F``: the polar factor of ``target^T source``.

    Args:
        source: Row vectors, shape ``(..., N, d)``.
        target: Row vectors in the same order, shape ``(..., N, d)``.

    Returns:
        R, of either determinant, shape ``(..., d, d)``, in the promoted input dtype; one of many
        when ``target^T source`` is singular.

    Raises:
        ShapeError: The shapes differ.

    Source: Schonemann 1966 (doi:10.1007/BF02289451).
    """
    source, target = upcast(source, "source"), upcast(target, "target")
    if source.ndim < 2 or source.shape[-2:] != target.shape[-2:]:
        raise ShapeError(
            f"source {tuple(source.shape)} and target {tuple(target.shape)} "
            "must both be (..., N, d)"
        )
    dtype = torch.promote_types(source.dtype, target.dtype)
    return _polar(target.double().mT @ source.double()).to(dtype)


def learned_sign_rotation(
    vectors: Tensor,
    *,
    iterations: int = 50,
    initial: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotation that turns a population of vectors towards the corners of the cube.

    Climbs ``sum |R k|_1``, the mean 1-bit cosine weighted by length, on the vectors as given (not
    centered). The last step is the alternation ``R <- polar(sum_k sgn(R k) k^T)`` from the best
    iterate, which cannot lower that sum; on vectors of equal length it cannot lower the cosine
    either. The steps before it approximate the same map and are accelerated by momentum, so the
    cosine may also fall on the way. The iterate with the highest one is returned. The maximum
    found is a local one.

    Args:
        vectors: Rows, shape ``(..., N, d)``; zero rows are ignored. Leading dims are independent.
        iterations: Number of steps, at least 0.
        initial: First rotation, shape ``(..., d, d)``; when omitted, a Haar rotation drawn from
            ``generator``, or the identity without one.
        generator: Source of the first rotation when ``initial`` is omitted.

    Returns:
        The best rotation, shape ``(..., d, d)``, in the input dtype, and the mean 1-bit cosine
        after 0, 1, ... steps, shape ``(iterations + 1, ...)``.

    Raises:
        ShapeError: The vectors or the first rotation have the wrong shape.
        SettingError: ``iterations`` is negative.
        ZeroMatrixError: All vectors of a population are zero.

    Source: the alternation of Gong and Lazebnik 2011 (iterative quantization,
    doi:10.1109/CVPR.2011.5995432); a diagonal metric for steps among rotations after Ablin,
    Cardoso and Gramfort 2018 (arXiv:1711.10873).
    """
    rows = upcast(vectors, "vectors")
    if rows.ndim < 2 or 0 in rows.shape[-2:]:
        raise ShapeError(f"vectors have shape {tuple(rows.shape)}, expected (..., N, d)")
    if iterations < 0:
        raise SettingError(f"{iterations} iterations asked for, expected at least 0")
    rows = _divide_safely(rows, rows.abs().amax(dim=(-2, -1), keepdim=True))
    weight, slope = _weights(rows)
    first = _first_rotation(rows, initial, generator)
    axes = torch.linalg.eigh((rows.mT @ rows).double())[1]  # the metric of a step is diagonal here
    rotation = best = (first.double() @ axes).to(rows.dtype)
    rows = rows @ axes.to(rows.dtype)
    velocity = torch.zeros_like(rotation)
    trace, highest = [], torch.full(rows.shape[:-2], -1.0, dtype=rows.dtype, device=rows.device)
    before = highest
    for step in range(iterations + 1):
        turned = rows @ rotation.mT
        lengths = turned.abs().sum(dim=-1)
        cosine, total = (lengths * weight).sum(dim=-1), lengths.sum(dim=-1)
        trace.append(cosine)
        better = cosine >= highest  # of equals the later, nearer the fixed point
        best = torch.where(better[..., None, None], rotation, best)
        highest = torch.where(better, cosine, highest)
        if step == iterations - 1:
            signs = _signs(rows @ best.mT)
            rotation = _polar((signs.mT @ rows).double()).to(rows.dtype)
        elif step < iterations:
            velocity = torch.where((total < before)[..., None, None], 0.0, velocity)
            soft_signs = turned.mul_(slope).clamp_(-1.0, 1.0)
            rotation, velocity = _climb(rotation, rotation.mT @ (soft_signs.mT @ rows), velocity)
            before = total
    return (best.double() @ axes.mT).to(rows.dtype), torch.stack(trace)


def _climb(rotation: Tensor, pull: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """One accelerated step, given the gradient ``pull`` in the axes that the rotation acts on.

    With ``S`` the symmetric part of the pull, its polar factor is ``I + turn`` to first order,
    where ``S turn + turn S = pull - pull^T``. In the principal axes of the vectors S is nearly
    diagonal, which solves for the turn entry by entry. Nesterov's momentum adds the turns before.
    """
    weight = pull.diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
    weight = weight.unsqueeze(-1) + weight.unsqueeze(-2)
    least = LEAST_WEIGHT * weight.mean(dim=(-2, -1), keepdim=True)
    turn = (pull - pull.mT) / torch.maximum(weight, least)
    velocity = MOMENTUM * velocity + turn
    half = (turn + MOMENTUM * velocity) / 2.0
    identity = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
    rotation = rotation @ torch.linalg.solve(identity - half, identity + half)  # Cayley
    # A Newton-Schulz step keeps rounding from adding up over the steps.
    rotation = 1.5 * rotation - 0.5 * rotation @ (rotation.mT @ rotation)
    return rotation, velocity


def _weights(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What turns L1 norms into the mean 1-bit cosine, ``(..., N)``, and slopes of soft signs.

    The slopes, ``(..., N, 1)``, make a coordinate of ``SOFTNESS`` times the root mean square of
    its row the first that counts as a full sign. Both are 0 for zero rows.
    """
    size = rows.abs().amax(dim=-1, keepdim=True)
    length = _divide_safely(rows, size).square().sum(dim=-1).sqrt() * size[..., 0]
    present = length > 0
    count = present.sum(dim=-1, keepdim=True)
    if bool((count == 0).any()):
        raise ZeroMatrixError("no rotation to learn: all vectors of a population are zero")
    inverse = torch.where(present, 1.0 / torch.where(present, length, 1.0), 0.0)
    root = math.sqrt(rows.shape[-1])
    return inverse / count / root, (inverse * root / SOFTNESS).unsqueeze(-1)


def _first_rotation(
    rows: Tensor, initial: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The starting point of the alternation, shape ``(..., d, d)``."""
    batch, d = rows.shape[:-2], rows.shape[-1]
    if initial is None and generator is not None:
        initial = haar_rotation(d, generator, batch=tuple(batch), dtype=torch.float64)
    if initial is None:
        initial = torch.eye(d)
    if initial.shape[-2:] != (d, d):
        raise ShapeError(
            f"first rotation has shape {tuple(initial.shape)}, expected (..., {d}, {d})"
        )
    return initial.to(rows).expand(*batch, d, d)


def _polar(matrix: Tensor) -> Tensor:
    """Orthogonal polar factor ``U V^T`` of ``U S V^T``."""
    u, _, vh = torch.linalg.svd(matrix)
    rotation: Tensor = u @ vh
    return rotation


def _signs(x: Tensor) -> Tensor:
    """Signs with sgn(0) = +1, in the dtype of x."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _unit(vectors: Tensor, name: str) -> Tensor:
    """Float64 unit vectors; zero vectors are refused."""
    vectors = vectors.double()
    size = vectors.abs().amax(dim=-1, keepdim=True)
    if bool((size == 0).any()):
        raise ZeroMatrixError(f"{name} holds a zero vector, which has no direction")
    vectors = vectors / size
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()


def _divide_safely(values: Tensor, size: Tensor) -> Tensor:
    """Values over their size, where the size is not zero."""
    return values / torch.where(size > 0, size, 1)
