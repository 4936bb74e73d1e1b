"""Packed codes in blocks of 64 tokens, as the kernels read them.

Coordinates of 1 to 4 bits share nibbles (4, 3 + 1, 2 + 2, 2 + 1 + 1 or 1 + 1 + 1 + 1 bits), so that
one table of 16 numbers answers for a whole nibble; coordinates of 5 to 8 bits take a byte each and
those of none are constants. A block holds the heads in turn. Keys lie as 32-bit words of eight
nibbles, one word of 64 tokens after another; values as planes of 64 bytes of two nibbles. A block
that would fill whole pages of 4 KiB has 64 more bytes, which are zero.
``csrc/gonio_kernels.h`` says the same for the C side.

Source: André, Kermarrec and Le Scouarnec 2017 (arXiv:1704.07355) for tables in registers; the
layout is gonio's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.kernels.places import Places, find_places

__all__ = ["BLOCK", "CodePlan", "PlanKind", "make_plan", "share_nibbles"]

BLOCK = 64
SLOTS = 4  # coordinates that a nibble can hold
NARROW = 4  # largest width that goes into a nibble
LARGEST_WIDTH = 8
PAGE, LINE = 4096, 64  # bytes; whole pages apart, blocks would fight for the same lines of a cache

PlanKind = Literal["keys", "values"]


@dataclass(frozen=True, eq=False)
class CodePlan:
    """Where the code of each coordinate lies in a block, its levels and its cells.

    Attributes:
        kind: ``keys`` (words) or ``values`` (planes).
        head: Per head its first nibble, nibbles, first wide coordinate, wide coordinates and the
            byte in a block where it begins; int64 ``(heads, 5)``.
        dims: Coordinates of each nibble, -1 for none; int32 ``(nibbles, 4)``.
        shifts: Lowest bit of each of them in the nibble; int32 ``(nibbles, 4)``.
        levels: Their levels by the value of the nibble; float32 ``(nibbles, 4, 16)``.
        levels_int8: The same as whole numbers of units, four times in a row; ``(nibbles, 4, 64)``.
        wide_dims: Coordinates that take a byte, -1 for padding; int32 ``(wide,)``.
        wide_bits: Their widths; int32 ``(wide,)``.
        wide_levels: Their levels, zeros behind; float32 ``(wide, 256)``.
        wide_bf16: The same in bfloat16.
        units: Unit of each coordinate in ``levels_int8``; float32 ``(heads * dim,)``.
        widths: Bits of every coordinate; int32 ``(heads * dim,)``.
        edges: Borders between its cells, infinite behind; float32 ``(heads * dim, most)``.
        constants: The level of coordinates without bits, else zero; float32 ``(heads, dim)``.
    """

    kind: PlanKind
    head: Tensor
    dims: Tensor
    shifts: Tensor
    levels: Tensor
    levels_int8: Tensor
    wide_dims: Tensor
    wide_bits: Tensor
    wide_levels: Tensor
    wide_bf16: Tensor
    units: Tensor
    widths: Tensor
    edges: Tensor
    constants: Tensor

    @cached_property
    def heads(self) -> int:
        """Key-value heads."""
        return int(self.constants.shape[0])

    @cached_property
    def dim(self) -> int:
        """Coordinates of a head."""
        return int(self.constants.shape[1])

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of a block of 64 tokens, all heads; one line more where it would fill pages."""
        _, nibbles, _, wide, offset = self.head[-1].tolist()
        found = int(offset) + _head_bytes(nibbles, wide)
        return found + LINE if found and found % PAGE == 0 else found

    @cached_property
    def places(self) -> Places:
        """The same, coordinate by coordinate."""
        return find_places(self)

    @property
    def bits_per_element(self) -> float:
        """Stored bits per element, padding included."""
        return 8 * self.block_bytes / (BLOCK * self.heads * self.dim)

    @property
    def tensors(self) -> list[Tensor]:
        """What operators are given, in the order of the attributes."""
        return [
            *(self.head, self.dims, self.shifts, self.levels, self.levels_int8),
            *(self.wide_dims, self.wide_bits, self.wide_levels, self.wide_bf16, self.units),
            *(self.widths, self.edges, self.constants),
        ]

    @classmethod
    def from_tensors(cls, kind: PlanKind, tensors: list[Tensor]) -> CodePlan:
        """The plan with these :attr:`tensors`."""
        return cls(kind, *tensors)


def make_plan(kind: PlanKind, widths: Tensor, levels: Tensor, heads: int) -> CodePlan:
    """The plan of coordinates with these widths and codebooks.

    Args:
        kind: ``keys`` or ``values``.
        widths: Bits of each coordinate, 0 to 8, ``(heads * dim,)``.
        levels: Levels of every coordinate in turn, ascending, ``2^width`` each.
        heads: Key-value heads.

    Raises:
        ShapeError: Widths or levels do not fit.
        SettingError: A width is above 8.
    """
    widths = widths.cpu().long()
    counts = 1 << widths
    if heads < 1 or widths.numel() == 0 or widths.numel() % heads:
        raise ShapeError(f"{widths.numel()} widths do not fill {heads} heads")
    if int(widths.min()) < 0 or int(widths.max()) > LARGEST_WIDTH:
        raise SettingError(f"coordinates have 0 to 8 bits, found {int(widths.max())}")
    if levels.numel() != int(counts.sum()):
        raise ShapeError(f"{levels.numel()} levels do not fill the coordinates' codebooks")
    books = list(levels.cpu().float().split(counts.tolist()))
    builder = _Builder(kind)
    dim = widths.numel() // heads
    for head in range(heads):
        own = slice(head * dim, (head + 1) * dim)
        builder.add_head(widths[own].tolist(), books[own])
    constants = torch.stack([book[0] if len(book) == 1 else book.new_zeros(()) for book in books])
    return builder.plan(widths, _edges(books), constants.view(heads, dim))


def share_nibbles(widths: list[int]) -> list[list[int]]:
    """Coordinates of 1 to 4 bits grouped into nibbles, the fewest possible, wider ones first.

    Args:
        widths: Bits of each coordinate; those of 0 or more than 4 bits are left out.

    Returns:
        Of each nibble its coordinates, lowest bits first.
    """
    left = {w: [j for j, width in enumerate(widths) if width == w] for w in range(1, NARROW + 1)}
    nibbles: list[list[int]] = [[j] for j in left[4]]
    for wide in left[3]:
        nibbles.append([wide, *left[1][:1]])
        left[1] = left[1][1:]
    for at in range(0, len(left[2]), 2):
        pair = left[2][at : at + 2]
        room = 4 - 2 * len(pair)
        nibbles.append([*pair, *left[1][:room]])
        left[1] = left[1][room:]
    return nibbles + [left[1][at : at + SLOTS] for at in range(0, len(left[1]), SLOTS)]


class _Builder:
    """Collects the rows of a plan head by head."""

    def __init__(self, kind: PlanKind) -> None:
        self.kind: PlanKind = kind
        self.head: list[tuple[int, ...]] = []
        self.dims: list[list[int]] = []
        self.shifts: list[list[int]] = []
        self.levels: list[Tensor] = []
        self.wide: list[tuple[int, int]] = []
        self.wide_levels: list[Tensor] = []
        self.units: list[Tensor] = []
        self.offset = 0

    def add_head(self, widths: list[int], books: list[Tensor]) -> None:
        """Append one head of coordinates of these widths and levels."""
        first, first_wide = len(self.dims), len(self.wide)
        largest = torch.stack([book.abs().max() for book in books]) / 127
        narrow = (torch.tensor(widths) <= NARROW) & (largest > 0)
        self.units.append(torch.where(narrow, largest, 1.0))
        for members in share_nibbles(widths):
            self._add_nibble(members, widths, books)
        while (len(self.dims) - first) % (8 if self.kind == "keys" else 2):
            self._add_nibble([], widths, books)
        wide = sorted((w, j) for j, w in enumerate(widths) if w > NARROW)
        for width, j in wide:
            self._add_wide(j, width, books[j])
        while self.kind == "keys" and (len(self.wide) - first_wide) % 4:
            self._add_wide(-1, NARROW + 1, torch.zeros(0))
        nibbles, wides = len(self.dims) - first, len(self.wide) - first_wide
        self.head.append((first, nibbles, first_wide, wides, self.offset))
        self.offset += _head_bytes(nibbles, wides)

    def _add_nibble(self, members: list[int], widths: list[int], books: list[Tensor]) -> None:
        values, shift = torch.arange(16), 0
        dims, shifts, levels = [-1] * SLOTS, [0] * SLOTS, torch.zeros(SLOTS, 16)
        for slot, j in enumerate(members):
            dims[slot], shifts[slot] = j, shift
            levels[slot] = books[j][(values >> shift) & ((1 << widths[j]) - 1)]
            shift += widths[j]
        self.dims.append(dims)
        self.shifts.append(shifts)
        self.levels.append(levels)

    def _add_wide(self, j: int, width: int, book: Tensor) -> None:
        self.wide.append((j, width))
        self.wide_levels.append(torch.cat([book, torch.zeros(256 - len(book))]))

    def plan(self, widths: Tensor, edges: Tensor, constants: Tensor) -> CodePlan:
        """What was collected, as tensors."""
        levels = torch.stack(self.levels) if self.levels else torch.zeros(0, SLOTS, 16)
        wide = torch.tensor(self.wide, dtype=torch.int32).view(-1, 2)
        wide_levels = torch.stack(self.wide_levels) if self.wide else torch.zeros(0, 256)
        units = torch.cat(self.units)
        return CodePlan(
            kind=self.kind,
            head=torch.tensor(self.head, dtype=torch.int64),
            dims=torch.tensor(self.dims, dtype=torch.int32).view(-1, SLOTS),
            shifts=torch.tensor(self.shifts, dtype=torch.int32).view(-1, SLOTS),
            levels=levels,
            levels_int8=self._in_units(levels, units).to(torch.int8).repeat(1, 1, 4),
            wide_dims=wide[:, 0].contiguous(),
            wide_bits=wide[:, 1].contiguous(),
            wide_levels=wide_levels,
            wide_bf16=wide_levels.to(torch.bfloat16),
            units=units,
            widths=widths.to(torch.int32),
            edges=edges,
            constants=constants.contiguous(),
        )

    def _in_units(self, levels: Tensor, units: Tensor) -> Tensor:
        """Levels of each nibble's coordinates, rounded to whole units."""
        dims = torch.tensor(self.dims, dtype=torch.int64).view(-1, SLOTS)
        counts = torch.tensor([nibbles for _, nibbles, *_ in self.head])
        head = torch.arange(len(self.head)).repeat_interleave(counts)
        place = dims.clamp(min=0) + head[:, None] * (len(units) // len(self.head))
        return (levels / units[place][..., None]).round()


def _head_bytes(nibbles: int, wide: int) -> int:
    """Bytes of one head in a block: four per word of 8 nibbles and token, one per plane of 2."""
    return BLOCK * (nibbles // 2 + wide)


def _edges(books: list[Tensor]) -> Tensor:
    """Midpoints of levels, infinite after a coordinate's last, at least one column."""
    most = max(len(book) for book in books)
    edges = torch.full((len(books), max(most - 1, 1)), torch.inf)
    for j, book in enumerate(books):
        edges[j, : len(book) - 1] = (book[1:] + book[:-1]) / 2
    return edges
