"""The contract of a codec: frozen settings, two pure methods, and its side data.

A codec knows tensors, not models. It serves the keys (after rotary embedding) or the values of one
layer: ``(batch, num_kv_heads, tokens, head_dim)`` in any floating dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from gonio.kvcache.encoded import EncodedTensor

__all__ = ["Part", "TensorCodec"]

Part = Literal["keys", "values"]


@runtime_checkable
class TensorCodec(Protocol):
    """One layer's codec, for its keys or for its values."""

    method: ClassVar[str]

    @property
    def block(self) -> int:
        """Tokens that are encoded together: 1, or the group size of scales shared along tokens.

        A block is encoded from its own tokens alone, so that what is stored never changes.
        """
        ...

    def encode(self, x: Tensor) -> EncodedTensor:
        """Everything stored for ``x``.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``; tokens is a positive multiple of
                :attr:`block`.

        Returns:
            Tensors that share no storage with ``x``, their size set by the shape and dtype alone.
        """
        ...

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """The approximation of ``x``: its shape and dtype."""
        ...

    @property
    def side_bytes(self) -> int:
        """Bytes of this layer's fixed side data (rotations, means), whatever the length."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings (JSON types) and tensors from which :meth:`from_state` makes an equal codec.

        The tensors are the codec's own, not copies: those that layers share are stored once.
        """
        ...

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        ...
