"""Transform codec with entropy coding: one step for all coordinates, a fixed budget per block.

Each coordinate of a :class:`WeightedBasis` is quantized with the same step, entropy-coded with a
static table of its own (rANS), and decoded to the conditional mean of its cell. Cells are those of
least ``error^2 + dead_zone * bits``: rare codes give way to frequent ones. A block of tokens has a
fixed number of words; the block's gain, a multiple of the step, is the least that fits. So what a
sequence takes depends on its length alone, blocks are read at random, and text unlike the
calibration text costs quality and never memory. The distortion is convex in the rate: blocks
whose needs differ by 0.1 bit per element lose 1 % to the fixed budget.

Sources: Chou, Lookabaugh and Gray 1989 (doi:10.1109/29.17498) for the cells; Duda 2013
(arXiv:1311.2540) for rANS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.kernels.cells import BIT, Cells, block_codes, block_costs
from gonio.kernels.entropy import BlockWords, decode_levels, encode_streams
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.quantizer_design import cell_edges
from gonio.kvcache.weighted_basis import WeightedBasis
from gonio.quant.accounting import tensor_bytes
from gonio.quant.code_tables import ESCAPED_BITS, LARGEST_RADIUS, CodeTables

__all__ = ["BLOCK", "LANES", "EntropyCodec", "overhead_bits"]

BLOCK, LANES = 64, 2
OCTAVE = 64  # gains per factor of two: one finer changes a block by at most 1/64 bit per element
LOWEST, HIGHEST = -4 * OCTAVE, 28 * OCTAVE
LANE_BITS = 32  # a lane's final state, at most
FULL_ENOUGH = 0.995  # of a block's room used: the search ends
NEWTON_TRIALS = 6


@dataclass(frozen=True, eq=False)
class EntropyCodec:
    """Entropy-coded coordinates of a weighted basis whose unit is the step.

    Attributes:
        basis: The coordinates, in units of the step.
        tables: A table for each coordinate, index ``(num_kv_heads, dim)``.
        levels: Of each table the levels of its codes ascending, escape left out, float16.
        words: 16-bit words of a block of all heads.
        dead_zone: Weight of a bit against a squared error, in squared steps.
    """

    basis: WeightedBasis
    tables: CodeTables
    levels: Tensor
    words: int
    dead_zone: float = 0.15
    method: ClassVar[str] = "entropy"
    block: ClassVar[int] = BLOCK

    def __post_init__(self) -> None:
        heads, dim = self.basis.heads, self.basis.dim
        if self.tables.index.shape != (heads, dim):
            raise ShapeError(
                f"tables for {tuple(self.tables.index.shape)} coordinates, basis of {(heads, dim)}"
            )
        if self.levels.numel() != self.tables.frequencies.numel() - self.tables.num_tables:
            raise ShapeError(f"{self.levels.numel()} levels do not fit the codes of the tables")
        if self.dead_zone < 0:
            raise SettingError(f"dead_zone must be >= 0, found {self.dead_zone}")
        room = 16 * self.words - heads * LANES * LANE_BITS
        if room < self._lengths.amin(dim=1).sum().item() * BLOCK:
            raise SettingError(
                f"{self.words} words do not hold a block of the most frequent codes\n"
                "Give more bits."
            )

    def encode(self, x: Tensor) -> EncodedTensor:
        """Words of whole blocks of 64 tokens.

        Returns:
            ``words`` int16 ``(batch, 1, blocks, words)``: the heads' streams one after another,
            zeros behind; ``lengths`` int16 ``(batch, 1, blocks, num_kv_heads)``; ``gain`` int16
            ``(batch, 1, blocks, 1)``, in 64ths of an octave.

        Raises:
            ShapeError: The vectors do not fit, or are not whole blocks.
        """
        batch, heads, tokens, dim = x.shape
        if tokens % BLOCK:
            raise ShapeError(f"{tokens} tokens are not whole blocks of {BLOCK}")
        rows = self.basis.apply(x.cpu()).nan_to_num().view(heads * dim, -1, BLOCK)
        gain = self._search(rows)
        while True:
            codes = block_codes(rows, self._cells, _scale(gain))
            streams = codes.view(heads, dim, batch, tokens).permute(2, 0, 3, 1).flatten(0, 1)
            coded = encode_streams(streams.contiguous(), self.tables, BLOCK, lanes=LANES)
            lengths = coded.lengths.view(torch.int16).view(batch, heads, -1).mT.contiguous()
            total = lengths.long().sum(dim=-1)  # of each block, below 2^15 by __post_init__
            over = (total > self.words).flatten()
            if not bool(over.any()):
                break
            gain = torch.where(over, gain + 1, gain)
        words = torch.zeros((tokens // BLOCK, batch, self.words), dtype=torch.int16)
        words[torch.arange(self.words) < total.mT[..., None]] = coded.words.view(torch.int16)
        stored = {
            "words": words.transpose(0, 1)[:, None].contiguous(),
            "lengths": lengths[:, None],
            "gain": gain.view(batch, 1, -1, 1).to(torch.int16),
        }
        return EncodedTensor(
            {name: tensor.to(x.device) for name, tensor in stored.items()},
            tokens,
            heads * dim,
            x.dtype,
            BLOCK,
            metadata=("lengths", "gain"),
        )

    def decode(self, encoded: EncodedTensor) -> Tensor:
        """The approximation, ``(batch, num_kv_heads, tokens, dim)``."""
        stored = {name: tensor.cpu() for name, tensor in encoded.tensors.items()}
        lengths = stored["lengths"][:, 0].transpose(0, 1).long()  # (blocks, batch, heads)
        blocks, batch, _ = lengths.shape
        rooms = torch.arange(batch) * blocks + torch.arange(blocks)[:, None]  # one of each block
        starts = rooms[..., None] * self.words + lengths.cumsum(dim=-1) - lengths
        coded = BlockWords(stored["words"], starts, lengths, BLOCK, LANES)
        gain = stored["gain"].view(batch, blocks)
        scale = torch.exp2(gain / OCTAVE).where(gain < HIGHEST, 0.0)
        rows = decode_levels(coded, self.tables, self._levels, scale)
        device = encoded.tensors["words"].device
        return self.basis.undo(rows.to(device), batch).to(encoded.dtype)

    @property
    def bits_per_element(self) -> float:
        """Stored bits per element of whole blocks: words, lengths and gain."""
        heads = self.basis.heads
        return 16 * (self.words + heads + 1) / (BLOCK * heads * self.basis.dim)

    @property
    def side_bytes(self) -> int:
        """Bytes of the basis, the tables and the levels."""
        return tensor_bytes(*self.state()[1].values())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this codec."""
        tensors = {**self.basis.state(), **self.tables.state(), "levels": self.levels}
        return {"words": self.words, "dead_zone": self.dead_zone}, tensors

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The codec with these settings and tensors."""
        basis, tables = WeightedBasis.from_state(tensors), CodeTables.from_state(tensors)
        return cls(basis, tables, tensors["levels"], **settings)

    def _search(self, rows: Tensor) -> Tensor:
        """The least gain of each block whose ideal bits fit, int64 ``(blocks,)``."""
        room = 16 * self.words - self.basis.heads * LANES * LANE_BITS
        low = torch.full((rows.shape[1],), LOWEST)
        high = torch.full_like(low, HIGHEST)  # always fits: see _scale
        gain, open_ = torch.zeros_like(low), torch.ones_like(low, dtype=torch.bool)
        bits = torch.zeros_like(low, dtype=torch.float64)
        trial = 0
        while bool(open_.any()):
            which = open_.nonzero()[:, 0]
            costs = block_costs(rows, self._cells, _scale(gain[which]), which)
            bits[which] = costs.double() / BIT
            fits = bits <= room
            low = torch.where(open_ & ~fits, gain, low)
            high = torch.where(open_ & fits, gain, high)
            open_ &= ~(fits & (bits >= FULL_ENOUGH * room)) & (high - low > 1)
            middle = (low + high) // 2
            if trial < NEWTON_TRIALS:  # an octave takes about two thirds of the bits
                aim = bits - (1 + FULL_ENOUGH) / 2 * room
                near = gain + (OCTAVE * aim / (0.65 * bits).clamp(min=1)).round().long()
                middle = torch.minimum(torch.maximum(near, low + 1), high - 1)
            gain = torch.where(open_, middle, gain)
            trial += 1
        return high

    @cached_property
    def _radius(self) -> int:
        """Largest code of any table."""
        return int(self.tables.radius.max())

    @cached_property
    def _levels(self) -> Tensor:
        """Level of each code -radius..radius; an escaped code is its own level."""
        radius = self._radius
        grid = torch.arange(-radius, radius + 1).float()
        table = grid.repeat(self.tables.num_tables, 1)
        inside = grid.abs() <= self.tables.radius.cpu().float()[:, None]
        table[inside] = self.levels.cpu().float()
        return table[self.tables.index.cpu().long().flatten()].contiguous()

    @cached_property
    def _lengths(self) -> Tensor:
        """Bits of each code -radius..radius."""
        radius, counts = self._radius, torch.from_numpy(self.tables.by_symbol)
        bits = self.tables.precision - counts.clamp(min=1).float().log2()
        bits = torch.where(counts > 0, bits, bits[:, -1:] + ESCAPED_BITS)
        table = bits[:, LARGEST_RADIUS - radius : LARGEST_RADIUS + radius + 1]
        return table[self.tables.index.cpu().long().flatten()].contiguous()

    @cached_property
    def _escaped(self) -> Tensor:
        """Bits of a code beyond every table."""
        counts = torch.from_numpy(self.tables.by_symbol)[:, -1].clamp(min=1).float()
        bits = self.tables.precision - counts.log2() + ESCAPED_BITS
        return bits[self.tables.index.cpu().long().flatten()]

    @cached_property
    def _cells(self) -> Cells:
        """Cells of the coordinates; costs in whole parts of a bit."""
        costs, escaped = ((each * BIT).round().int() for each in (self._lengths, self._escaped))
        return Cells(cell_edges(self._levels, self._lengths, self.dead_zone), costs, escaped)


def _scale(gain: Tensor) -> Tensor:
    """Factor of the values of a block; 0 at the highest gain, where the block is lost.

    It takes its cheapest codes then, and decodes to the mean.
    """
    return torch.exp2(-gain / OCTAVE).where(gain < HIGHEST, 0.0)


def overhead_bits(heads: int, dim: int) -> float:
    """Bits per element of a block beside the ideal bits of its codes, at most."""
    return (heads * LANES * LANE_BITS + 16 * (heads + 1)) / (BLOCK * heads * dim)
