"""Uniform codes between the smallest and largest number of a group (KIVI-like).

Groups run along tokens in each channel (``axis="channel"``, for keys, whose outliers sit in
channels) or along channels in each token (``axis="token"``, for values). Each group stores a
float16 scale and offset: with groups of 32 this is one bit per element on top of the code width.

Source: Liu et al. 2024 (KIVI, arXiv:2402.02750), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor
from torch.nn.functional import pad

from gonio.errors import SettingError, ShapeError
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.frame import to_float16
from gonio.quant.packing import pack_bits, unpack_bits

__all__ = ["AffineCodec", "Axis"]

Axis = Literal["channel", "token"]


@dataclass(frozen=True)
class AffineCodec:
    """Scale, offset and uniform codes per group.

    Attributes:
        bits: Width of a code, 1 to 8.
        axis: ``channel``: a group is ``group`` tokens of one channel; ``token``: a group is
            ``group`` channels of one token (fewer in the last one).
        group: Numbers per group.
    """

    bits: int = 2
    axis: Axis = "channel"
    group: int = 32
    method: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SettingError(f"affine codes have 1 to 8 bits, found {self.bits}")
        if self.axis not in get_args(Axis):
            raise SettingError(
                f"axis must be one of {', '.join(get_args(Axis))}, found {self.axis!r}"
            )
        if self.group < 1:
            raise SettingError(f"a group holds at least 1 number, found {self.group}")

    @property
    def block(self) -> int:
        """Tokens that share scales."""
        return self.group if self.axis == "channel" else 1

    def encode(self, x: Tensor) -> EncodedTensor:
        """Codes by group.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``, tokens a multiple of :attr:`block`.

        Returns:
            ``codes`` uint8 ``(..., tokens, ceil(head_dim * bits / 8))``, ``scale`` and ``offset``
            float16, ``(..., tokens / group, head_dim)`` for channels and
            ``(..., tokens, ceil(head_dim / group))`` for tokens.

        Raises:
            ShapeError: The tokens are not whole groups.
        """
        if x.ndim != 4 or x.shape[2] % self.block:
            raise ShapeError(
                "keys and values must be (batch, num_kv_heads, tokens, head_dim) with tokens a "
                f"multiple of {self.block}, found {tuple(x.shape)}"
            )
        groups, along = self._grouped(x.float())
        low, high = groups.amin(dim=along), groups.amax(dim=along)
        offset = to_float16(low)
        scale = to_float16((high - offset.float()).clamp(min=0) / (2**self.bits - 1))
        step, start = scale.float().unsqueeze(along), offset.float().unsqueeze(along)
        codes = ((groups - start) / step.where(step > 0, 1)).round()
        codes = codes.clamp(0, 2**self.bits - 1).byte()
        tensors = {
            "codes": pack_bits(self._flat(codes, x.shape[3]), self.bits),
            "scale": scale,
            "offset": offset,
        }
        return EncodedTensor(tensors, x.shape[2], x.shape[3], x.dtype, self.block)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """``offset + code * scale``, ``(batch, num_kv_heads, tokens, head_dim)``."""
        codes = unpack_bits(encoded.tensors["codes"], self.bits, encoded.head_dim)
        groups, along = self._grouped(codes.float())
        scale = encoded.tensors["scale"].float().unsqueeze(along)
        offset = encoded.tensors["offset"].float().unsqueeze(along)
        return self._flat(offset + groups * scale, encoded.head_dim).to(encoded.dtype)

    @property
    def side_bytes(self) -> int:
        """None."""
        return 0

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The settings; there are no tensors."""
        return asdict(self), {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings."""
        return cls(**settings)

    def _grouped(self, x: Tensor) -> tuple[Tensor, int]:
        """Groups of ``(batch, heads, tokens, head_dim)``, and the axis that runs along a group."""
        if self.axis == "channel":
            return x.unflatten(2, (x.shape[2] // self.group, self.group)), 3
        short = -x.shape[3] % self.group
        if short:  # repeat the last channel, which changes neither end of its group
            x = pad(x.flatten(0, 1), (0, short), mode="replicate").unflatten(0, x.shape[:2])
        return x.unflatten(3, (x.shape[3] // self.group, self.group)), 4

    def _flat(self, groups: Tensor, head_dim: int) -> Tensor:
        """The inverse of :meth:`_grouped`."""
        if self.axis == "channel":
            return groups.flatten(2, 3)
        return groups.flatten(3, 4)[..., :head_dim]
