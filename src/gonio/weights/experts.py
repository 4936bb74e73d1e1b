"""One shared rotation for all experts of a layer against one per expert.

Rotations are fitted on half of each expert's rows and judged by beta on the other half. An own
rotation sees fewer rows than the shared one, so a gap is read beside that of a null: the rows of
all experts pooled and dealt at random into as many groups of the same size.

The gap is that of the rotations found. Where the dimension n has a Hadamard matrix H, n
populations along orthogonal directions u_i have no gap at all: ``R = H U^T`` sends every one of
them to the corners of the cube (:func:`shared_rotation_of_directions`), and the claim that
heterogeneous experts must leave a gap is false.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.linalg.hadamard import hadamard_matrix, has_hadamard
from gonio.linalg.precision import upcast
from gonio.linalg.rotations import haar_rotation, learned_sign_rotation
from gonio.quant import population_beta

__all__ = ["expert_gaps", "shared_rotation_of_directions"]


def expert_gaps(experts: Tensor, *, iterations: int = 20, seed: int = 0) -> pd.DataFrame:
    """Beta of each expert's rows under its own, the shared and the other experts' rotations.

    Args:
        experts: The same matrix of every expert, shape ``(num_experts, rows, n)``; at least two
            experts of at least two rows, none of them zero.
        iterations: Steps of every learned rotation, from one Hadamard (or Haar) start.
        seed: Seed of the split of the rows, of the null's deal and of a Haar start.

    Returns:
        One row per expert, all shares of energy on held-out rows unless named ``train``:
        ``expert``, ``beta_own``, ``beta_shared``, ``beta_others`` (mean over the rotations of
        the other experts), ``gap`` (own minus shared), ``gap_train``, and ``null_gap``,
        ``null_gap_train`` of the random deal (its group of that number).

    Raises:
        ShapeError: Fewer than two experts or rows.
        ZeroMatrixError: Half of an expert is zero.
    """
    if experts.ndim != 3 or min(experts.shape[:2]) < 2:
        raise ShapeError(
            f"experts have shape {tuple(experts.shape)}, expected (num_experts, rows, n) with at "
            "least two experts of two rows"
        )
    experts = upcast(experts, "experts")
    generator = torch.Generator().manual_seed(seed)
    count, rows, n = experts.shape
    order = torch.randperm(rows, generator=generator)
    deal = torch.randperm(count * rows, generator=generator)
    start = (hadamard_matrix(n) if has_hadamard(n) else haar_rotation(n, generator)).to(experts)
    real = _betas(experts[:, order], start, iterations)
    null = _betas(experts.flatten(0, 1)[deal].view_as(experts), start, iterations)
    return pd.DataFrame(
        {
            "expert": range(count),
            **real,
            "null_gap": null["gap"],
            "null_gap_train": null["gap_train"],
        }
    )


def shared_rotation_of_directions(directions: Tensor) -> Tensor:
    """The rotation that sends n orthonormal directions to corners of the cube, all at once.

    Args:
        directions: Orthonormal columns, shape ``(n, n)``, n a Hadamard order.

    Returns:
        ``H U^T``, shape ``(n, n)``: every multiple of every direction has 1-bit cosine 1 after it.

    Raises:
        ShapeError: No Hadamard matrix of order n is known here.

    Example:
        Twelve experts, each with rows along a direction of its own, and one rotation for all.

        >>> import torch
        >>> from gonio.linalg import haar_rotation
        >>> from gonio.quant import sign_cosine
        >>> directions = haar_rotation(12, torch.Generator().manual_seed(0))
        >>> rows = torch.tensor([1.0, -2.0, 0.5])[:, None] * directions.mT[:, None]
        >>> rotation = shared_rotation_of_directions(directions)
        >>> bool(((1 - sign_cosine(rows @ rotation.mT)).abs() < 1e-5).all())
        True
    """
    hadamard = hadamard_matrix(directions.shape[-1], dtype=directions.dtype)
    return hadamard @ directions.mT


def _betas(groups: Tensor, start: Tensor, iterations: int) -> dict[str, list[float]]:
    """Own, shared and crossed betas of groups ``(count, rows, n)`` split in halves."""
    count, rows = groups.shape[:2]
    train, held_out = groups[:, : rows // 2], groups[:, rows // 2 :]
    own, _ = learned_sign_rotation(
        train, iterations=iterations, initial=start.expand(count, -1, -1)
    )
    shared = _shared_rotation(train, start, iterations)
    crossed = torch.stack([population_beta(held_out @ rotation.mT) for rotation in own])
    beta_own = crossed.diagonal()
    beta_shared = population_beta(held_out @ shared.mT)
    gap_train = population_beta(train @ own.mT) - population_beta(train @ shared.mT)
    return {
        "beta_own": beta_own.tolist(),
        "beta_shared": beta_shared.tolist(),
        "beta_others": ((crossed.sum(dim=0) - beta_own) / (count - 1)).tolist(),
        "gap": (beta_own - beta_shared).tolist(),
        "gap_train": gap_train.tolist(),
    }


def _shared_rotation(train: Tensor, start: Tensor, iterations: int) -> Tensor:
    """The better, by its cosine on the fitted rows, of the fixed points from two starts.

    The second start turns the experts' main directions to the rows of the Hadamard matrix: from
    the first alone the fixed point misses the rotation that leaves no gap, where there is one.
    """
    starts = torch.stack([start, start @ _main_directions(train).mT])
    starts = starts if has_hadamard(train.shape[-1]) else starts[:1]
    rows = train.flatten(0, 1).expand(len(starts), -1, -1)
    rotations, trace = learned_sign_rotation(rows, iterations=iterations, initial=starts)
    return rotations[trace.amax(dim=0).argmax()]


def _main_directions(train: Tensor) -> Tensor:
    """Orthonormal columns ``(n, n)``: near the experts' top right singular vectors come first."""
    grams = train.double().mT @ train.double()
    tops = torch.linalg.eigh(grams).eigenvectors[..., -1]  # (num_experts, n)
    left, _, right = torch.linalg.svd(tops, full_matrices=True)
    count = min(tops.shape)
    nearest = left[:, :count] @ right[:count] if tops.shape[0] <= tops.shape[1] else right
    basis = torch.cat([nearest, right[nearest.shape[0] :]])
    return basis.mT.to(train.dtype)
