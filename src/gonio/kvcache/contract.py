"""The contract of a key codec: frozen settings, two pure methods, and its side data.

A codec knows tensors, not models. Keys are ``(batch, num_kv_heads, seq_len, head_dim)`` after
rotary embedding, in any floating dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from gonio.kvcache.encoded import EncodedKeys

__all__ = ["KeyCodec"]


@runtime_checkable
class KeyCodec(Protocol):
    """One layer's codec."""

    method: ClassVar[str]

    def encode(self, keys: Tensor) -> EncodedKeys:
        """Everything stored for ``keys``."""
        ...

    def decode(self, encoded: EncodedKeys) -> Tensor:
        """Approximate keys, in the dtype they had."""
        ...

    @property
    def side_bytes(self) -> int:
        """Bytes of this layer's fixed side data (rotations, means), whatever the length."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings (JSON types) and tensors from which :meth:`from_state` makes an equal codec."""
        ...

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        ...
