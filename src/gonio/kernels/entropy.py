"""Entropy-coded blocks of a layer, all blocks, heads and sequences in one call on one thread.

The words are exactly those of :mod:`gonio.quant.rans`, which computes where C cannot be compiled.
The decoder has 16 blocks in flight and keeps no tables between calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.kernels.native import compute_level, native_library, pointer
from gonio.quant.code_tables import CodeTables
from gonio.quant.rans import EncodedBlocks, decode_blocks, encode_blocks

__all__ = ["BlockWords", "decode_levels", "encode_streams"]

MOST_LANES = 8  # as in csrc/rans.c
_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p


@dataclass(frozen=True, eq=False)
class BlockWords:
    """Where the words of every block lie; blocks are whole.

    Attributes:
        words: Int16 or uint16 words, contiguous, any shape, on the CPU.
        starts: First word of each block, int64 ``(blocks, batch, groups)``.
        lengths: Words of each block, same shape and dtype.
        block: Tokens of a block, at least ``lanes``.
        lanes: Lanes of a block, 1 to 8.
    """

    words: Tensor
    starts: Tensor
    lengths: Tensor
    block: int
    lanes: int

    def __post_init__(self) -> None:
        if self.starts.ndim != 3 or self.starts.shape != self.lengths.shape:
            raise ShapeError(
                f"starts and lengths must be (blocks, batch, groups), found "
                f"{tuple(self.starts.shape)} and {tuple(self.lengths.shape)}"
            )
        if not 1 <= self.lanes <= min(MOST_LANES, self.block):
            raise ShapeError(
                f"{self.lanes} lanes for {self.block} tokens, expected 1 to {MOST_LANES}, and a "
                "token for each"
            )
        if self.starts.numel():
            ends = self.starts + self.lengths
            inside = min(self.starts.min(), self.lengths.min()) >= 0
            if not inside or ends.max() > self.words.numel():
                raise CodecError(
                    f"entropy-coded blocks lie outside their {self.words.numel()} words: the "
                    "stream is truncated or damaged"
                )


class _Blocks(ctypes.Structure):
    """``rans_blocks`` of csrc/rans.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("words", "starts", "ends")),
        *((name, _LONG) for name in ("blocks", "batch", "groups", "dim", "block", "lanes")),
    )


class _Tables(ctypes.Structure):
    """``rans_tables`` of csrc/rans.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("frequencies", "first", "radius", "index", "levels")),
        *((name, _LONG) for name in ("tables", "widest", "precision")),
    )


def decode_levels(
    coded: BlockWords, tables: CodeTables, levels: Tensor, scale: Tensor, *, level: str = "auto"
) -> Tensor:
    """Level times scale of every code; an escaped code is its own level.

    Args:
        coded: The blocks.
        tables: Tables of the coordinates, index ``(groups, dim)``.
        levels: Float32 ``(groups * dim, 2 * widest + 1)``: the levels of the codes from -widest to
            widest, the largest radius of the tables; of codes beyond a table's own the codes.
        scale: Float32 ``(batch, blocks)``.
        level: ``auto`` or ``reference``, or one that is compiled (all of these are alike here).

    Returns:
        Float32 ``(groups * dim, batch * tokens)``, tokens of a sequence side by side.

    Raises:
        CodecError: A block is damaged or was made with other tables.
        ShapeError: The shapes do not fit.
    """
    blocks, batch, groups = coded.starts.shape
    widest = int(tables.radius.max())
    dim = tables.dim
    if (
        tables.index.shape != (groups, dim)
        or levels.shape != (groups * dim, 2 * widest + 1)
        or scale.shape != (batch, blocks)
    ):
        raise ShapeError(
            f"tables {tuple(tables.index.shape)}, levels {tuple(levels.shape)} and scale "
            f"{tuple(scale.shape)} do not fit {blocks} blocks of {batch} sequences and {groups} "
            f"groups, codes up to {widest}"
        )
    if compute_level(level, coded.words) == "reference":
        return _reference(coded, tables, levels, scale)
    return _native(coded, tables, levels, scale)


def encode_streams(
    codes: Tensor, tables: CodeTables, block: int = 64, *, lanes: int = 2, level: str = "auto"
) -> EncodedBlocks:
    """Whole blocks of codes as words: what :func:`gonio.quant.rans.encode_blocks` makes of them.

    Args:
        codes: Int16 ``(batch * groups, tokens, dim)`` on the CPU.
        tables: Tables of the coordinates, index ``(groups, dim)``.
        block: Tokens coded together.
        lanes: Lanes of a block.
        level: As of :func:`decode_levels`.

    Raises:
        ShapeError: The codes do not fit the tables, or are not whole blocks.
    """
    streams, tokens, dim = codes.shape
    if tables.index.ndim != 2 or tokens % block or dim != tables.dim or streams % len(tables.index):
        raise ShapeError(
            f"codes {tuple(codes.shape)} do not fit tables {tuple(tables.index.shape)} and blocks "
            f"of {block} tokens"
        )
    if compute_level(level, codes) == "reference" or not 1 <= lanes <= min(MOST_LANES, block):
        return encode_blocks(codes, tables, block, lanes=lanes)
    codes = codes.to(torch.int16).contiguous()
    groups, blocks = len(tables.index), tokens // block
    room = 2 * (block * dim + lanes)
    words = torch.empty(blocks * streams * room, dtype=torch.int16)
    lengths = torch.empty((blocks, streams), dtype=torch.int64)
    sizes = (blocks, streams // groups, groups, dim, block, lanes)
    with _structures((None, None, None), sizes, tables, None) as structures:
        failed = _library().gonio_rans_encode(
            *structures,
            pointer(codes, torch.int16),
            pointer(words, torch.int16),
            pointer(lengths, torch.int64),
        )
    if failed:
        raise MemoryError("the encoder of entropy-coded blocks cannot allocate its tables")
    return EncodedBlocks(
        words=words[: int(lengths.sum())].clone().view(torch.uint16),
        lengths=lengths.T.to(torch.uint16).contiguous(),
        tokens=tokens,
        dim=dim,
        block=block,
        lanes=lanes,
    )


def _native(coded: BlockWords, tables: CodeTables, levels: Tensor, scale: Tensor) -> Tensor:
    blocks, batch, groups = coded.starts.shape
    rows = torch.empty((len(levels), batch * blocks * coded.block))
    starts = coded.starts.contiguous()
    spans = (coded.words.view(torch.int16).contiguous(), starts, starts + coded.lengths)
    sizes = (blocks, batch, groups, tables.dim, coded.block, coded.lanes)
    scale = scale.float().contiguous()
    with _structures(spans, sizes, tables, levels.contiguous()) as structures:
        failed = _library().gonio_rans_decode(
            *structures, pointer(scale, torch.float32), pointer(rows, torch.float32)
        )
    if failed < 0:
        raise MemoryError("the decoder of entropy-coded blocks cannot allocate its tables")
    if failed:
        raise CodecError(
            "an entropy-coded block does not end where it was begun: the stream is damaged or was "
            "made with other tables"
        )
    return rows


def _library() -> ctypes.CDLL:
    library = native_library()
    if library is None:
        raise SettingError("there are no compiled kernels")  # no level but the reference is
    return library


@contextmanager
def _structures(
    spans: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    tables: CodeTables,
    levels: Tensor | None,
) -> Iterator[tuple[Any, Any]]:
    """Blocks and tables as C sees them, valid inside the block."""
    symbols = 2 * tables.radius.long() + 2
    parts = (tables.frequencies, symbols.cumsum(0) - symbols, tables.radius, tables.index)
    kept = tuple(part.cpu().contiguous() for part in parts)
    addresses = [
        None if tensor is None else tensor.data_ptr() for tensor in (*spans, *kept, levels)
    ]
    widest = int(tables.radius.max())
    yield (
        ctypes.byref(_Blocks(*addresses[:3], *sizes)),
        ctypes.byref(_Tables(*addresses[3:], tables.num_tables, widest, tables.precision)),
    )


def _reference(coded: BlockWords, tables: CodeTables, levels: Tensor, scale: Tensor) -> Tensor:
    blocks, batch, groups = coded.starts.shape
    starts, lengths = coded.starts.flatten(), coded.lengths.flatten()
    ends = lengths.cumsum(0)
    places = torch.arange(int(lengths.sum())) + torch.repeat_interleave(
        starts - (ends - lengths), lengths
    )
    encoded = EncodedBlocks(
        words=coded.words.view(torch.int16).flatten()[places].view(torch.uint16),
        lengths=coded.lengths.permute(1, 2, 0).reshape(batch * groups, blocks).to(torch.uint16),
        tokens=blocks * coded.block,
        dim=tables.dim,
        block=coded.block,
        lanes=coded.lanes,
    )
    codes = decode_blocks(encoded, tables).unflatten(0, (batch, groups)).permute(1, 3, 0, 2)
    numbers = codes.reshape(len(levels), -1).long()
    widest = levels.shape[1] // 2
    values = levels.gather(1, (numbers + widest).clamp(0, 2 * widest))
    values = torch.where(numbers.abs() > widest, numbers.float(), values)
    scaled = values.view(len(levels), -1, coded.block) * scale.float().view(-1, 1)
    return scaled.flatten(1)
