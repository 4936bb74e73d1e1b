"""Two controls: a codec that loses nothing and one that keeps nothing.

Every evaluation must rank them first and last; one in which the zeros score well reads keys that
were never encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.kvcache.encoded import EncodedTensor

__all__ = ["LosslessCodec", "ZeroCodec"]


@dataclass(frozen=True)
class LosslessCodec:
    """Stores keys or values as they are."""

    method: ClassVar[str] = "lossless"

    @property
    def block(self) -> int:
        """Every token is stored alone."""
        return 1

    def encode(self, x: Tensor) -> EncodedTensor:
        """A copy, which later changes of ``x`` leave alone."""
        return EncodedTensor({"raw": _copy(x)}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """What was encoded, bit for bit."""
        return encoded.tensors["raw"]

    @property
    def side_bytes(self) -> int:
        """None."""
        return 0

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing to store."""
        return {}, {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec."""
        return cls(**settings)


@dataclass(frozen=True)
class ZeroCodec:
    """Stores nothing and decodes zeros: attention becomes uniform over what it may see."""

    method: ClassVar[str] = "zeros"

    @property
    def block(self) -> int:
        """Every token is forgotten alone."""
        return 1

    def encode(self, x: Tensor) -> EncodedTensor:
        """An empty tensor that only knows batch, heads and tokens."""
        return EncodedTensor({"nothing": _copy(x[..., :0])}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """Zeros of the encoded shape."""
        nothing = encoded.tensors["nothing"]
        shape = (*nothing.shape[:-1], encoded.head_dim)
        return torch.zeros(shape, dtype=encoded.dtype, device=nothing.device)

    @property
    def side_bytes(self) -> int:
        """None."""
        return 0

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing to store."""
        return {}, {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec."""
        return cls(**settings)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)
