"""A stand-in for a codec while its bits are still being shared: its errors without its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import CodecError
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.weighted_basis import WeightedBasis

__all__ = ["StandIn"]


@dataclass(frozen=True, eq=False)
class StandIn:
    """Coordinates rounded to levels; what is kept are the rounded vectors themselves.

    Attributes:
        basis: The coordinates.
        levels: Of each coordinate, ascending, ``(coordinates, L)``; infinite where it has fewer.
        edges: Borders between them, ``(coordinates, L - 1)``.
        shrink: Factor of each coordinate's errors.
    """

    basis: WeightedBasis
    levels: Tensor
    edges: Tensor
    shrink: Tensor
    method: ClassVar[str] = "stand-in"
    block: ClassVar[int] = 1
    side_bytes: ClassVar[int] = 0

    def encode(self, x: Tensor) -> EncodedTensor:
        """What decoding gives."""
        rows = self.basis.apply(x.cpu()).contiguous()
        found = self.levels.gather(1, torch.searchsorted(self.edges, rows))
        rows = rows + self.shrink[:, None] * (found - rows)
        decoded = self.basis.undo(rows, len(x)).to(x.device, x.dtype)
        return EncodedTensor({"decoded": decoded}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """What was rounded."""
        return encoded.tensors["decoded"]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing: a stand-in is not kept."""
        return {}, {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Not possible.

        Raises:
            CodecError: Always.
        """
        raise CodecError("a stand-in stores no codes and cannot be read from a file")
