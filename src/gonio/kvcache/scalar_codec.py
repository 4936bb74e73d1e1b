"""Norm, random rotation and one optimal scalar quantizer for every coordinate (TurboQuant-like).

A vector is divided by its norm, which is stored in float16, and rotated. A uniformly random
rotation makes each coordinate that of a random direction, whatever the vector was, so one
Lloyd-Max codebook of that law serves all; it needs no calibration and is not stored. The cost is
the code width and one float16: 2.25 bits per element for 2 bits at head_dim 64.

Source: Zandieh et al. 2025 (TurboQuant, arXiv:2504.19874), section 3.1, the variant for mean
squared error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.frame import Frame, to_float16
from gonio.quant.accounting import tensor_bytes
from gonio.quant.packing import pack_bits, unpack_bits
from gonio.quant.scalar import Codebook, decode, encode, gaussian_lloyd_max, sphere_lloyd_max

__all__ = ["Law", "ScalarCodec"]

Law = Literal["sphere", "normal"]


@dataclass(frozen=True)
class ScalarCodec:
    """Codes of the coordinates of a direction, and the norm.

    Attributes:
        bits: Width of a code, 1 to 8.
        frame: Centering and rotation; without a rotation the codebook does not fit the data.
        law: The law the codebook is optimal for: ``sphere``, the exact one of a random
            direction's coordinate (head_dim >= 3), or ``normal``, its limit for large head_dim.
    """

    bits: int
    frame: Frame = field(default_factory=Frame)
    law: Law = "sphere"
    method: ClassVar[str] = "scalar"
    block: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SettingError(f"scalar codes have 1 to 8 bits, found {self.bits}")
        if self.law not in get_args(Law):
            raise SettingError(f"law must be one of {', '.join(get_args(Law))}, found {self.law!r}")

    def encode(self, x: Tensor) -> EncodedTensor:
        """Normalize, rotate, code.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``; a zero vector decodes to zero.

        Returns:
            ``codes`` uint8 ``(..., tokens, ceil(head_dim * bits / 8))`` and ``norm`` float16
            ``(..., tokens, 1)``; ``dc`` like ``norm`` when the frame centers by token.

        Raises:
            ShapeError: The vectors do not fit the frame.
            SettingError: The law is ``sphere`` and head_dim is below 3.
        """
        rotated, stored = self.frame.apply(x)
        norm = rotated.norm(dim=-1, keepdim=True)
        unit = rotated * (x.shape[3] ** 0.5 / norm.where(norm > 0, 1))
        codes = encode(unit, self._codebook(x.shape[3]))
        tensors = {"codes": pack_bits(codes, self.bits), "norm": to_float16(norm), **stored}
        return EncodedTensor(tensors, x.shape[2], x.shape[3], x.dtype, metadata=("norm", "dc"))

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """``norm * R^T levels``, ``(batch, num_kv_heads, tokens, head_dim)``."""
        stored, head_dim = encoded.tensors, encoded.head_dim
        codes = unpack_bits(stored["codes"], self.bits, head_dim)
        unit = decode(codes, self._codebook(head_dim)) / head_dim**0.5
        return self.frame.undo(unit * stored["norm"].float(), stored).to(encoded.dtype)

    @property
    def side_bytes(self) -> int:
        """Bytes of the rotations and means."""
        return tensor_bytes(*self.frame.state()[1].values())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        frame, tensors = self.frame.state()
        return {"bits": self.bits, "frame": frame, "law": self.law}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        frame = Frame.from_state(settings["frame"], tensors)
        return cls(settings["bits"], frame, settings["law"])

    def _codebook(self, head_dim: int) -> Codebook:
        if self.law == "normal":
            return gaussian_lloyd_max(self.bits)
        return sphere_lloyd_max(head_dim, self.bits)
