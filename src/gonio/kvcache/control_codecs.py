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

from gonio.kvcache.encoded import EncodedKeys

__all__ = ["LosslessCodec", "ZeroCodec"]


@dataclass(frozen=True)
class LosslessCodec:
    """Stores the keys as they are."""

    method: ClassVar[str] = "lossless"

    def encode(self, keys: Tensor) -> EncodedKeys:
        """The keys themselves."""
        return EncodedKeys({"keys": keys}, keys.shape[-1], keys.dtype)

    def decode(self, encoded: EncodedKeys) -> Tensor:
        """The keys, bit for bit."""
        return encoded.tensors["keys"]

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

    def encode(self, keys: Tensor) -> EncodedKeys:
        """An empty tensor that only knows how many tokens there were."""
        return EncodedKeys({"nothing": keys[..., :0].clone()}, keys.shape[-1], keys.dtype)

    def decode(self, encoded: EncodedKeys) -> Tensor:
        """Zeros of the keys' shape."""
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
