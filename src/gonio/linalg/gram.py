"""Triangular factors from Gram matrices, each with the multiplicative error it brings.

Rows of lengths d give ``X X^T = D R^T R D`` with one product and a small Cholesky factorisation,
several times cheaper than a QR of ``X^T``, but the condition of ``D^-1 X`` enters squared.

What the rounding does: the computed R satisfies ``R^T R = D^-1 X X^T D^-1 + E`` with every entry
of E at most ``eta``, a sum of two classical bounds (dot products; Cholesky of a matrix with unit
diagonal). Hence the exact factor is ``(I - F)^(1/2) R`` up to a rotation, ``F = R^-T E R^-1`` and
``|F|_2 <= eta * |w|_2^2`` with w the column sums of ``|R^-1|``: this is ``deviation``. Such
factors on both sides of a core multiply each singular value by ``1 -+ max(deviation)``, and the
rows of ``R^-T D^-1 X`` are orthonormal up to ``|F|_2``. Below one, the bound also proves full rank.

Source: Higham 2002 (doi:10.1137/1.9780898718027), section 3.5 and theorem 10.3; Eisenstat and
Ipsen 1995 (doi:10.1137/0732088), multiplicative perturbations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GramTriangles", "gram_entry_error", "gram_triangles"]

_CHUNK = 768  # entries of a row summed at a time: keeps the bound short and the copies in cache
_STACKED = 1 << 17  # entries of matrices that are multiplied at a time: in cache as well
_UNIT = torch.finfo(torch.float64).eps / 2
_SAFE = 2.0**500  # squared lengths within 1/_SAFE and _SAFE cannot overflow or underflow in a core


@dataclass(frozen=True)
class GramTriangles:
    """``rows = (R D)^T Q^T`` for a batch of N matrices, without Q.

    Attributes:
        lengths: Euclidean lengths d of the rows, shape ``(N, r)``.
        triangles: Upper triangular R with columns of unit length, shape ``(N, r, r)``.
        inverses: ``R^-1``, shape ``(N, r, r)``.
        deviation: Bound on ``|R^-T D^-1 X X^T D^-1 R^-1 - I|_2``, shape ``(N,)``; infinite where
            rows are zero, dependent, or so large or small that squares leave float64.
    """

    lengths: Tensor
    triangles: Tensor
    inverses: Tensor
    deviation: Tensor


def gram_triangles(matrices: Sequence[Tensor]) -> GramTriangles:
    """Cholesky factors of the Gram matrices of the rows, in float64.

    Args:
        matrices: At least one, each of shape ``(r, n)`` and any real floating dtype; one shape
            and device. They are converted a piece at a time, never copied whole.

    Returns:
        The factors and their error. NaN or infinite entries give a length that is not finite.
    """
    rank, columns = matrices[0].shape
    gram = _gram_matrices(matrices)
    squares = gram.diagonal(dim1=-2, dim2=-1)
    usable = ((squares > 1 / _SAFE) & (squares < _SAFE)).all(dim=-1)
    lengths = squares.sqrt()
    identity = torch.eye(rank, dtype=torch.float64, device=gram.device)
    scaled = gram / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)
    scaled = torch.where(usable[:, None, None], scaled, identity)
    lower, failed = torch.linalg.cholesky_ex(scaled)
    usable &= failed == 0
    triangles = torch.where(usable[:, None, None], lower.mT, identity)
    inverses = torch.linalg.solve_triangular(triangles, identity.expand_as(gram), upper=True)
    column_sums = inverses.abs().sum(dim=-2)
    entry = gram_entry_error(rank, columns)
    deviation = torch.where(usable, entry * column_sums.square().sum(dim=-1), torch.inf)
    return GramTriangles(lengths, triangles, inverses, deviation)


def gram_entry_error(rank: int, columns: int) -> float:
    """Bound ``eta`` on an entry of E, for sums that begin anew at least every 768 terms.

    Args:
        rank: Rows r of the matrix.
        columns: Its columns n.
    """
    pieces = -(-columns // _CHUNK)
    # 8 for the lengths and divisions; 1% for the rounding of the inverse where the bound is below 1
    return 1.01 * _UNIT * (min(columns, _CHUNK) + pieces + rank + 8)


def _gram_matrices(matrices: Sequence[Tensor]) -> Tensor:
    """``X X^T`` of every matrix in float64, small ones in stacks, shape ``(N, r, r)``."""
    rank, columns = matrices[0].shape
    gram = torch.empty((len(matrices), rank, rank), dtype=torch.float64, device=matrices[0].device)
    size = max(1, _STACKED // (rank * columns))
    for first in range(0, len(matrices), size):
        members = matrices[first : first + size]
        stack = torch.stack(list(members)) if len(members) > 1 else members[0].unsqueeze(0)
        total = gram[first : first + size]
        for start in range(0, columns, _CHUNK):
            piece = stack[..., start : start + _CHUNK].double()
            torch.baddbmm(total, piece, piece.mT, beta=0 if start == 0 else 1, out=total)
    return gram
