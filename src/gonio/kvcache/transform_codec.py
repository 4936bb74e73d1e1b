"""Transform codec at a fixed rate: weighted coordinates, each with its own width and codebook.

Coordinates of a :class:`WeightedBasis` differ in variance by orders of magnitude; each gets a
whole number of bits, none for the least, and a codebook of its own. With a trellis
(:mod:`gonio.quant.trellis`) the codes of a token are chosen together from codebooks of twice the
size, which takes 0.7 dB off the error at 1 bit and 1.3 dB from 2 bits on; without one they are
those of scalar quantizers. Eight tokens are stored together so that a coordinate of b bits fills b
bytes: nothing is padded, and what is stored is read coordinate by coordinate.

Source: Huang and Schultheiss 1963 (doi:10.1109/TCOM.1963.1088759), blocks of scalar quantizers
after a linear transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.weighted_basis import WeightedBasis
from gonio.quant.accounting import tensor_bytes
from gonio.quant.packing import pack_bits, unpack_bits
from gonio.quant.trellis import STATES, level_numbers, trellis_codes

__all__ = ["TransformCodec"]


@dataclass(frozen=True, eq=False)
class TransformCodec:
    """Codes of whole bits for the coordinates of a weighted basis.

    Attributes:
        basis: The coordinates.
        widths: Bits of each coordinate, 0 to 8, uint8 ``(num_kv_heads * dim,)``.
        levels: Levels of every coordinate in turn, float16: ``2^width`` each, ascending; with a
            trellis ``2^(width + 1)``, ascending in each of its subsets, and 1 where it is 0.
        states: Of the trellis; 1 for none.
    """

    basis: WeightedBasis
    widths: Tensor
    levels: Tensor
    states: int = 1
    method: ClassVar[str] = "transform"
    block: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.widths.shape != (self.basis.heads * self.basis.dim,):
            raise ShapeError(f"widths have shape {tuple(self.widths.shape)}, one per coordinate")
        if int(self.widths.max()) > 8:
            raise SettingError(f"coordinates have 0 to 8 bits, found {int(self.widths.max())}")
        if self.states not in STATES:
            raise SettingError(f"a trellis has {STATES} states, found {self.states}")
        if self.levels.numel() != int(self._counts.sum()):
            raise ShapeError(f"{self.levels.numel()} levels do not fill the coordinates' codebooks")

    def encode(self, x: Tensor) -> EncodedTensor:
        """Codes of whole blocks of 8 tokens.

        Returns:
            ``codes`` uint8 ``(batch, 1, tokens / 8, sum of widths)``: by width ascending, by
            coordinate, the codes of 8 tokens in ``width`` bytes.

        Raises:
            ShapeError: The vectors do not fit, or are not whole blocks.
        """
        batch, heads, tokens, dim = x.shape
        if tokens % self.block:
            raise ShapeError(f"{tokens} tokens are not whole blocks of {self.block}")
        codes = self._codes(self.basis.apply(x))
        blocks = codes.view(heads * dim, batch, tokens // self.block, self.block)
        parts = [
            pack_bits(blocks[where.to(x.device)], width).permute(1, 2, 0, 3).flatten(2)
            for width, where in self._groups
        ]
        empty = torch.empty((batch, blocks.shape[2], 0), dtype=torch.uint8, device=x.device)
        packed = torch.cat([empty, *parts], dim=2)[:, None].contiguous()
        return EncodedTensor({"codes": packed}, tokens, heads * dim, x.dtype, self.block)

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """The approximation, ``(batch, num_kv_heads, tokens, dim)``."""
        packed = encoded.tensors["codes"][:, 0]
        batch, blocks, _ = packed.shape
        table = self._table.to(packed.device)
        codes = torch.zeros(
            (len(table), batch, blocks, self.block), dtype=torch.long, device=packed.device
        )
        at = 0
        for width, where in self._groups:
            size = len(where) * width
            part = packed[:, :, at : at + size].unflatten(2, (-1, width)).permute(2, 0, 1, 3)
            codes[where.to(packed.device)] = unpack_bits(
                part.contiguous(), width, self.block
            ).long()
            at += size
        codes = codes.flatten(1)
        if self.states > 1:
            coded = self._coded.to(packed.device)
            codes[coded] = level_numbers(codes[coded], self.states)
        rows = table.gather(1, codes)
        return self.basis.undo(rows, batch).to(encoded.dtype)

    @property
    def is_readable(self) -> bool:
        """Whether attention can read the codes as they lie: scalar ones, each head by itself."""
        return self.states == 1 and self.basis.span == "head"

    @property
    def bits_per_element(self) -> float:
        """Bits of codes per element; there is nothing else per token."""
        return float(self.widths.double().mean())

    @property
    def side_bytes(self) -> int:
        """Bytes of the basis, the widths and the levels."""
        return tensor_bytes(*self.state()[1].values())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        tensors = {**self.basis.state(), "widths": self.widths, "levels": self.levels}
        return {"token_bits": int(self.widths.sum()), "states": self.states}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        basis = WeightedBasis.from_state(tensors)
        codec = cls(basis, tensors["widths"], tensors["levels"], int(settings.get("states", 1)))
        if codec.state()[0] != dict(settings):
            raise CodecError(f"widths of {int(codec.widths.sum())} bits, expected {settings}")
        return codec

    def _codes(self, rows: Tensor) -> Tensor:
        """Codes of coordinates, uint8 ``(coordinates, tokens)``."""
        if self.states == 1:
            edges = self._edges.to(rows.device)
            return torch.searchsorted(edges, rows.contiguous(), right=True).to(torch.uint8)
        coded = self._coded.to(rows.device)
        codes = torch.zeros(rows.shape, dtype=torch.uint8, device=rows.device)
        found = (
            rows[coded],
            self._table.to(rows.device)[coded],
            self.widths.to(rows.device)[coded],
        )
        codes[coded] = trellis_codes(*found, self.states)
        return codes

    @property
    def _counts(self) -> Tensor:
        """Levels of each coordinate."""
        widths = self.widths.cpu().long()
        return (1 << widths) if self.states == 1 else (1 << widths + (widths > 0))

    @cached_property
    def _coded(self) -> Tensor:
        """Coordinates of at least one bit."""
        return self.widths.cpu().nonzero()[:, 0]

    @cached_property
    def _groups(self) -> list[tuple[int, Tensor]]:
        """Coordinates of each width above zero."""
        widths = self.widths.cpu()
        return [(w, (widths == w).nonzero()[:, 0]) for w in range(1, 9) if (widths == w).any()]

    @cached_property
    def _table(self) -> Tensor:
        """Levels, ``(coordinates, largest count)``; the last one repeated, so that it ascends."""
        counts = self._counts
        places = torch.arange(int(counts.max())).clamp(max=counts[:, None] - 1)
        return self.levels.cpu().float()[places + (counts.cumsum(0) - counts)[:, None]]

    @cached_property
    def _edges(self) -> Tensor:
        """Midpoints of levels; infinite after a coordinate's last."""
        table, counts = self._table, self._counts
        edges = (table[:, 1:] + table[:, :-1]) / 2
        unused = torch.arange(1, table.shape[1]) >= counts[:, None]
        return edges.masked_fill(unused, torch.inf).contiguous()
