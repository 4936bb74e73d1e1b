"""Keys coded before rotary embedding, whose law is the same at every position.

The keys of a block are turned back by their positions, coded by any codec, and turned forward
after decoding. The turns are orthogonal: the error of a key is as large after them as before. Of a
block the position of its first token is stored, 32 bits; the others follow it one by one. Tokens
of which that is not true (padding before a sequence, position ids of a user's own) are turned by
the same wrong angles back and forth: they come back all the same, only less well compressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.entropy_codec import EntropyCodec
from gonio.kvcache.rotary import Rotary
from gonio.kvcache.stand_in import StandIn
from gonio.kvcache.transform_codec import TransformCodec
from gonio.quant.accounting import tensor_bytes

__all__ = ["PreRopeCodec", "bits_without_place", "place_bits"]

_BASES: dict[str, type[EntropyCodec] | type[TransformCodec]] = {
    EntropyCodec.method: EntropyCodec,
    TransformCodec.method: TransformCodec,
}
_PLACE_BITS = 32


@dataclass(frozen=True, eq=False)
class PreRopeCodec:
    """A codec of keys before RoPE, behind the interface of one after it.

    Attributes:
        base: Codes keys before RoPE: of method ``transform`` or ``entropy``, or a stand-in.
        rotary: The turns of the layer.
    """

    base: TensorCodec
    rotary: Rotary
    method: ClassVar[str] = "pre_rope"

    def __post_init__(self) -> None:
        if self.base.method not in (*_BASES, StandIn.method):
            raise CodecError(
                f"keys before RoPE cannot be coded by method {self.base.method!r}; "
                f"expected one of {', '.join(sorted(_BASES))}"
            )

    @property
    def block(self) -> int:
        """Tokens the base codec encodes together."""
        return self.base.block

    def encode(self, x: Tensor, last: Tensor | None = None) -> EncodedTensor:
        """The base's tensors and ``place``, int32 ``(batch, 1, blocks)``.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``, after RoPE; whole blocks.
            last: Position of the last token of each row, ``(batch,)``; as of a sequence that
                begins with these tokens unless given.

        Raises:
            ShapeError: The vectors do not fit, or are not whole blocks.
        """
        batch, _, tokens, _ = x.shape
        if last is None:
            last = torch.full((batch,), tokens - 1)
        starts = torch.arange(0, tokens, self.block, device=x.device) - (tokens - 1)
        place = (last.to(x.device)[:, None] + starts)[:, None].to(torch.int32)
        run = self.base.encode(self._turn(x.float(), place, back=True))
        tensors = {**run.tensors, "place": place}
        return replace(run, tensors=tensors, dtype=x.dtype, metadata=(*run.metadata, "place"))

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """What the base decodes, turned forward; ``(batch, num_kv_heads, tokens, head_dim)``."""
        tensors = dict(encoded.tensors)
        place = tensors.pop("place")
        found = self.base.decode(replace(encoded, tensors=tensors, dtype=torch.float32))
        return self._turn(found, place, back=False).to(encoded.dtype)

    @property
    def side_bytes(self) -> int:
        """Bytes of the base's side data and of pairs and frequencies."""
        return tensor_bytes(*self.state()[1].values())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        settings, tensors = self.base.state()
        named = {f"base.{name}": tensor for name, tensor in tensors.items()}
        named |= {"pairs": self.rotary.pairs, "frequencies": self.rotary.frequencies}
        return {"base": {"method": self.base.method, "settings": settings}}, named

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors.

        Raises:
            CodecError: The base method is unknown.
        """
        method = settings["base"]["method"]
        if method not in _BASES:
            raise CodecError(f"keys before RoPE are coded by {method!r}, unknown to this version")
        prefix = "base."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        base = _BASES[method].from_state(settings["base"]["settings"], own)
        return cls(base, Rotary(tensors["pairs"], tensors["frequencies"]))

    def _turn(self, x: Tensor, place: Tensor, *, back: bool) -> Tensor:
        """Vectors turned by the angles of the blocks' places, those within a block added."""
        phases = self.rotary.phases(place)[..., None, :] * self._within.to(x.device)
        phases = phases.flatten(2, 3)  # (batch, 1, tokens, pairs)
        return self.rotary.turn(x, phases.conj() if back else phases)

    @cached_property
    def _within(self) -> Tensor:
        """Phases of the places of one block, ``(block, pairs)``."""
        return self.rotary.phases(torch.arange(self.block))


def place_bits(method: str) -> float:
    """Bits per token that the positions of blocks of a base codec's method take in a layer."""
    return _PLACE_BITS / _BASES[method].block


def bits_without_place(method: str, bits: float, elements: int) -> float:
    """What is left of the bits per element when the positions of blocks are paid for.

    Args:
        method: Of the base codec.
        bits: Per element, all that grows with the sequence.
        elements: Of all heads of a layer, per token.

    Raises:
        SettingError: Nothing is left.
    """
    left = bits - place_bits(method) / elements
    if left <= 0:
        raise SettingError(f"{bits} bits per element do not pay for the positions of blocks")
    return left
