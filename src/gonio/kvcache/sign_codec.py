"""One bit per key coordinate after a rotation, and one scale per token.

``k -> R^T (scale * sgn(R k))``. The stored cost is 1 bit per coordinate (padded to whole bytes
per key) plus a float16 scale per key: 1.25 bits per element at head_dim 64.

Source: moe-gauge, parts A-C; scales after RaBitQ (Gao & Long 2024, arXiv:2405.12497).
Theorems: ``cos_sign_quant_formula``, ``residual_energy_formula`` and
``attention_score_gauge_invariance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.kvcache.encoded import EncodedKeys
from gonio.quant.accounting import tensor_bytes
from gonio.quant.packing import pack_bits, unpack_bits
from gonio.quant.sign import sign_decode, sign_encode

__all__ = ["ScaleKind", "SignCodec"]

ScaleKind = Literal["least_squares", "unbiased"]


@dataclass(frozen=True)
class SignCodec:
    """Signs of rotated keys with one scale per key.

    Attributes:
        rotation: Orthogonal matrices ``(num_kv_heads or 1, head_dim, head_dim)`` applied to each
            key as ``R k``; None for no rotation.
        scale_kind: ``least_squares`` minimises the error of the key; ``unbiased`` keeps the
            inner product of the decoded key with the key itself.
    """

    rotation: Tensor | None = None
    scale_kind: ScaleKind = "least_squares"
    method: ClassVar[str] = "sign"

    def __post_init__(self) -> None:
        if self.scale_kind not in get_args(ScaleKind):
            raise SettingError(
                f"scale_kind must be one of {', '.join(get_args(ScaleKind))}, "
                f"found {self.scale_kind!r}"
            )
        rotation = self.rotation
        if rotation is None:
            return
        if rotation.ndim != 3 or rotation.shape[-1] != rotation.shape[-2]:
            raise ShapeError(
                f"rotation must be (heads, head_dim, head_dim), found {tuple(rotation.shape)}"
            )
        defect = rotation @ rotation.mT - torch.eye(rotation.shape[-1], device=rotation.device)
        if not defect.abs().max().item() < 1e-3:  # 64 x the float32 rounding of a 128-d product
            raise CodecError("a rotation of the sign codec is not orthogonal")

    def encode(self, keys: Tensor) -> EncodedKeys:
        """Rotate, keep signs and a scale.

        Args:
            keys: ``(batch, num_kv_heads, seq_len, head_dim)``; a zero key gets scale 0.

        Returns:
            ``codes`` uint8 ``(..., seq_len, ceil(head_dim / 8))`` and ``scale`` float16
            ``(..., seq_len, 1)``.

        Raises:
            ShapeError: The keys do not fit the rotation.
        """
        self._check(keys)
        rotated = keys.float()
        if self.rotation is not None:
            rotated = rotated @ self.rotation.to(keys.device).mT
        signs, scale = sign_encode(rotated, self.scale_kind)
        limit = torch.finfo(torch.float16).max
        tensors = {
            "codes": pack_bits(signs.to(torch.uint8), 1),
            "scale": scale.clamp(-limit, limit).to(torch.float16),
        }
        return EncodedKeys(tensors, keys.shape[-1], keys.dtype)

    def decode(self, encoded: EncodedKeys) -> Tensor:
        """Keys ``(batch, num_kv_heads, seq_len, head_dim)`` from codes and scales."""
        signs = unpack_bits(encoded.tensors["codes"], 1, encoded.head_dim).bool()
        decoded = sign_decode(signs, encoded.tensors["scale"].float())
        if self.rotation is not None:
            decoded = decoded @ self.rotation.to(decoded.device)
        return decoded.to(encoded.dtype)

    @property
    def side_bytes(self) -> int:
        """Bytes of the rotations."""
        return 0 if self.rotation is None else tensor_bytes(self.rotation)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        tensors = {} if self.rotation is None else {"rotation": self.rotation}
        return {"scale_kind": self.scale_kind}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        return cls(rotation=tensors.get("rotation"), **settings)

    def _check(self, keys: Tensor) -> None:
        if keys.ndim != 4:
            raise ShapeError(
                f"keys must be (batch, num_kv_heads, seq_len, head_dim), found {tuple(keys.shape)}"
            )
        if self.rotation is None:
            return
        heads, head_dim = self.rotation.shape[0], self.rotation.shape[-1]
        if heads not in (1, keys.shape[1]) or head_dim != keys.shape[-1]:
            raise ShapeError(
                f"the codec rotates {heads} heads of {head_dim}, "
                f"found {keys.shape[1]} heads of {keys.shape[-1]}"
            )
