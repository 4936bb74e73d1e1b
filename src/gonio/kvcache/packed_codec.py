"""A transform codec that stores its codes as the attention kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import CodecError, ShapeError
from gonio.kernels import BLOCK, CodePlan, decode, encode, make_plan
from gonio.kvcache.contract import Part
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.transform_codec import TransformCodec

__all__ = ["PackedTransformCodec"]


@dataclass(frozen=True, eq=False)
class PackedTransformCodec:
    """The same codes and levels as a transform codec's, in blocks of 64 tokens.

    Attributes:
        codec: A transform codec without a trellis.
        part: ``keys`` or ``values``: the kernels read them differently.
    """

    codec: TransformCodec
    part: Part
    method: ClassVar[str] = TransformCodec.method
    block: ClassVar[int] = BLOCK

    def __post_init__(self) -> None:
        if self.codec.states > 1:
            raise CodecError(
                "codes of a trellis depend on one another and cannot be read one by one; "
                "calibrate with states=1"
            )
        if not self.codec.is_readable:
            raise CodecError(
                "codes of one basis for all heads cannot be read head by head; "
                "calibrate with span='head'"
            )

    @cached_property
    def plan(self) -> CodePlan:
        """Where each code lies."""
        return make_plan(self.part, self.codec.widths, self.codec.levels, self.codec.basis.heads)

    def encode(self, x: Tensor) -> EncodedTensor:
        """Codes of whole blocks of 64 tokens.

        Returns:
            ``codes`` uint8 ``(batch, 1, tokens / 64, bytes of a block)``.

        Raises:
            ShapeError: The vectors do not fit, or are not whole blocks.
        """
        batch, heads, tokens, dim = x.shape
        if tokens % BLOCK:
            raise ShapeError(f"{tokens} tokens are not whole blocks of {BLOCK}")
        rows, plan = self.codec.basis.apply(x), self.plan
        is_keys = self.part == "keys"
        codes = encode(rows, plan.tensors, is_keys, batch, 0, plan.block_bytes, "auto")
        return EncodedTensor({"codes": codes[:, None]}, tokens, heads * dim, x.dtype, BLOCK)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """The approximation, ``(batch, num_kv_heads, tokens, dim)``."""
        data = encoded.tensors["codes"][:, 0].contiguous()
        rows = decode(data, self.plan.tensors, self.part == "keys", encoded.tokens, "auto")
        return self.codec.basis.undo(rows, len(data)).to(encoded.dtype)

    @cached_property
    def synthesis(self) -> Tensor:
        """From coordinates to vectors, float32 ``(num_kv_heads, dim, dim)``."""
        return self.codec.basis.synthesis.float()

    @cached_property
    def offset(self) -> Tensor:
        """What every vector has in common: the mean, and the coordinates without bits."""
        constant: Tensor = torch.einsum("hij,hj->hi", self.synthesis, self.plan.constants)
        return constant + self.codec.basis.mean.float()

    @property
    def side_bytes(self) -> int:
        """Bytes of the basis, the widths and the levels."""
        return self.codec.side_bytes

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        settings, tensors = self.codec.state()
        return {**settings, "part": self.part}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        own = {name: value for name, value in settings.items() if name != "part"}
        return cls(TransformCodec.from_state(own, tensors), settings["part"])
