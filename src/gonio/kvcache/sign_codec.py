"""One bit per coordinate in a rotated frame, and one scale per token.

``x -> R^T (scale * sgn(R x))``. The stored cost is 1 bit per coordinate (padded to whole bytes
per token and head) plus a scale: in float16 1.25 bits per element at head_dim 64, in float32 1.5.
Centering by token adds a float16.

Source: moe-gauge, parts A-C; scales after RaBitQ (Gao & Long 2024, arXiv:2405.12497).
Theorems: ``cos_sign_quant_formula``, ``residual_energy_formula`` and
``attention_score_gauge_invariance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.frame import Frame, to_float16
from gonio.quant.accounting import tensor_bytes
from gonio.quant.packing import pack_bits, unpack_bits
from gonio.quant.sign import sign_decode, sign_encode

__all__ = ["ScaleDtype", "ScaleKind", "SignCodec"]

ScaleDtype = Literal["float16", "float32"]
ScaleKind = Literal["least_squares", "unbiased"]


@dataclass(frozen=True)
class SignCodec:
    """Signs in a frame with one scale per token.

    Attributes:
        frame: Centering and rotation.
        scale_kind: ``least_squares`` minimises the error of the vector; ``unbiased`` keeps the
            inner product of the decoded vector with the vector itself (both centered).
        scale_dtype: ``float16``, or ``float32`` for scales that are not rounded, at 16 bits more
            a token.
    """

    frame: Frame = field(default_factory=Frame)
    scale_kind: ScaleKind = "least_squares"
    scale_dtype: ScaleDtype = "float16"
    method: ClassVar[str] = "sign"
    block: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name, kind in (("scale_kind", ScaleKind), ("scale_dtype", ScaleDtype)):
            if getattr(self, name) not in get_args(kind):
                raise SettingError(
                    f"{name} must be one of {', '.join(get_args(kind))}, "
                    f"found {getattr(self, name)!r}"
                )

    def encode(self, x: Tensor) -> EncodedTensor:
        """Rotate, keep signs and a scale.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``; a zero vector gets scale 0.

        Returns:
            ``codes`` uint8 ``(..., tokens, ceil(head_dim / 8))`` and ``scale`` of
            ``scale_dtype`` ``(..., tokens, 1)``; ``dc`` float16 of the same shape when the frame
            centers by token.

        Raises:
            ShapeError: The vectors do not fit the frame.
        """
        rotated, stored = self.frame.apply(x)
        signs, scale = sign_encode(rotated, self.scale_kind)
        kept = scale.to(torch.float32) if self.scale_dtype == "float32" else to_float16(scale)
        tensors = {"codes": pack_bits(signs.byte(), 1), "scale": kept, **stored}
        return EncodedTensor(tensors, x.shape[2], x.shape[3], x.dtype, metadata=("scale", "dc"))

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """Vectors ``(batch, num_kv_heads, tokens, head_dim)`` from codes and scales."""
        stored = encoded.tensors
        signs = unpack_bits(stored["codes"], 1, encoded.head_dim).bool()
        return self.frame.undo(sign_decode(signs, stored["scale"].float()), stored).to(
            encoded.dtype
        )

    @property
    def side_bytes(self) -> int:
        """Bytes of the rotations and means."""
        return tensor_bytes(*self.frame.state()[1].values())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        frame, tensors = self.frame.state()
        settings: dict[str, Any] = {"frame": frame, "scale_kind": self.scale_kind}
        if self.scale_dtype != "float16":  # absent where it is, as in files from before the choice
            settings["scale_dtype"] = self.scale_dtype
        return settings, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        return cls(
            Frame.from_state(settings["frame"], tensors),
            settings["scale_kind"],
            settings.get("scale_dtype", "float16"),
        )
