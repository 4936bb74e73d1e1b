"""Power sums of the vectors of a layer's heads, added up window by window.

Memory is that of the sums, ``heads x head_dim x (head_dim + 6)`` doubles, whatever is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import ShapeError

__all__ = ["HeadMoments", "MomentSums"]


@dataclass(frozen=True, eq=False)
class HeadMoments:
    """Sums over the vectors of each head; ``second / count`` is the second moment, uncentered.

    Attributes:
        count: Tokens. Queries that share a key-value head are summed, not averaged: their sums
            hold ``group x count`` vectors.
        second: ``sum x x^T``, symmetric, float64 ``(heads, dim, dim)``.
        absolute: ``sum |x|``, float64 ``(heads, dim)``.
        powers: ``sum x^p`` for p = 1, 2, 3, 4, float64 ``(4, heads, dim)``.
    """

    count: int
    second: Tensor
    absolute: Tensor
    powers: Tensor

    @property
    def mean(self) -> Tensor:
        """``sum x / count``, ``(heads, dim)``."""
        return self.powers[0] / self.count

    @property
    def second_moment(self) -> Tensor:
        """``sum x x^T / count``, ``(heads, dim, dim)``."""
        return self.second / self.count


class MomentSums:
    """Adds up vectors; a window's outer products are float32, everything else is float64."""

    def __init__(self, heads: int, dim: int) -> None:
        self._count = 0
        self._second = torch.zeros((heads, dim, dim), dtype=torch.float64)
        self._absolute = torch.zeros((heads, dim), dtype=torch.float64)
        self._powers = torch.zeros((4, heads, dim), dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add the vectors of some tokens.

        Args:
            vectors: ``(heads, group, tokens, dim)``; ``group`` vectors of each token are summed
                under one head.

        Raises:
            ShapeError: They have another shape.
        """
        heads, dim = self._absolute.shape
        if vectors.ndim != 4 or (vectors.shape[0], vectors.shape[3]) != (heads, dim):
            raise ShapeError(
                f"vectors must be ({heads}, group, tokens, {dim}), found {tuple(vectors.shape)}"
            )
        rows = vectors.float().flatten(1, 2)
        self._second += (rows.mT @ rows).cpu()
        # Fourth powers about a mean far from zero cancel: float32 would leave nothing of them.
        wide = rows.double()
        squares = wide.square()
        self._absolute += wide.abs().sum(dim=1).cpu()
        sums = (wide, squares, squares * wide, squares.square())
        self._powers += torch.stack([each.sum(dim=1) for each in sums]).cpu()
        self._count += vectors.shape[2]

    def moments(self) -> HeadMoments:
        """The sums so far, made exactly symmetric."""
        second = (self._second + self._second.mT) / 2
        return HeadMoments(self._count, second, self._absolute.clone(), self._powers.clone())
