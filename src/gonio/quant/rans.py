"""Interleaved rANS: integer codes as entropy-coded blocks of tokens, decoded block by block.

A block of tokens of one stream (one head of one sequence) is coded by a few lanes; lane l takes the
tokens l, l + lanes, ..., each coordinate by its own static table. At every step all lanes of all
blocks and streams stand at the same coordinate, so a step is a handful of array operations and the
Python loop runs over the tokens of a lane and their coordinates only.

A block stores, as 16-bit words:

    the state of each lane, 32 bits, low word first;
    the words in the order in which the decoder takes them: by step, then by lane;
    the escaped codes, by token, then by coordinate.

Blocks follow one another by number, then by stream, so that later blocks are appended and a range
of blocks is one slice. Every lane starts at state ``2^16`` when encoding and must return there when
decoding, which, with the number of words, exposes damaged streams; an escaped code is stored as it
is, and damage to it shows only in its value. All results are exact integers: the words are the same
on every machine.

Source: Duda 2013 (arXiv:1311.2540); Giesen 2014 (arXiv:1402.3392) for interleaved lanes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.quant.accounting import tensor_bytes
from gonio.quant.code_tables import CodeTables, check_codes
from gonio.quant.lanes import decode_lanes, encode_lanes, ranges

__all__ = ["EncodedBlocks", "decode_blocks", "encode_blocks"]

Indices: TypeAlias = NDArray[np.intp]

LANES_AT_ONCE = 1 << 14  # their states, entries and words stay in a second-level cache
LONGEST_BLOCK = (1 << 16) - 1  # words, so that a length takes 16 bits


@dataclass(frozen=True, eq=False)
class EncodedBlocks:
    """Entropy-coded codes of several streams; the words and their lengths are the whole cost."""

    words: Tensor  # uint16, flat: block by block, within a block stream by stream
    lengths: Tensor  # uint16, words of each block, shape (streams, blocks)
    tokens: int  # of each stream; the last block may be short
    dim: int  # codes of one token
    block: int  # tokens of a block
    lanes: int  # of a block of at least that many tokens; a shorter one has a lane for each token

    def __post_init__(self) -> None:
        _check_settings(self.dim, self.block, self.lanes)
        if self.words.dtype != torch.uint16 or self.lengths.dtype != torch.uint16:
            raise SettingError(
                f"words and lengths have dtypes {self.words.dtype} and {self.lengths.dtype}, "
                "expected torch.uint16"
            )
        blocks = -(-self.tokens // self.block)
        if self.tokens < 0 or self.lengths.ndim != 2 or self.lengths.shape[1] != blocks:
            raise ShapeError(
                f"lengths have shape {tuple(self.lengths.shape)}, expected (streams, {blocks}) "
                f"for {self.tokens} tokens in blocks of {self.block}"
            )
        announced = int(self.lengths.cpu().to(torch.int64).sum())
        if self.words.ndim != 1 or self.words.numel() != announced:
            raise CodecError(
                f"entropy-coded blocks hold words of shape {tuple(self.words.shape)}, "
                f"their lengths announce {announced}: the stream is truncated or damaged"
            )

    @property
    def streams(self) -> int:
        """Streams coded side by side."""
        return int(self.lengths.shape[0])

    @property
    def blocks(self) -> int:
        """Blocks of each stream."""
        return int(self.lengths.shape[1])

    @property
    def stored_bytes(self) -> int:
        """Bytes of all words, states and escaped codes among them, and of the lengths."""
        return tensor_bytes(self.words, self.lengths)

    def extended(self, later: "EncodedBlocks") -> "EncodedBlocks":
        """These tokens followed by those of ``later``, nothing coded again.

        Args:
            later: Same streams and settings.

        Returns:
            New blocks on the device of these.

        Raises:
            ShapeError: The settings differ, or the last block here is short.
        """
        here = (self.streams, self.dim, self.block, self.lanes)
        there = (later.streams, later.dim, later.block, later.lanes)
        if here != there or self.tokens % self.block:
            raise ShapeError(
                f"blocks of (streams, dim, block, lanes) {there} cannot follow {self.tokens} "
                f"tokens of {here}; expected equal settings and whole blocks before"
            )
        device = self.words.device
        return replace(
            self,
            words=torch.cat((self.words, later.words.to(device))),
            lengths=torch.cat((self.lengths, later.lengths.to(device)), dim=1),
            tokens=self.tokens + later.tokens,
        )

    def first_blocks(self, blocks: int) -> "EncodedBlocks":
        """The first blocks alone, copied.

        Args:
            blocks: How many, in [0, blocks].

        Returns:
            Blocks of the same streams and settings.

        Raises:
            SettingError: There are fewer blocks.
        """
        if not 0 <= blocks <= self.blocks:
            raise SettingError(f"{blocks} blocks asked for, expected 0 to {self.blocks}")
        lengths = self.lengths[:, :blocks].clone()
        return replace(
            self,
            words=self.words[: int(lengths.to(torch.int64).sum())].clone(),
            lengths=lengths,
            tokens=min(self.tokens, blocks * self.block),
        )

    def selected_streams(self, streams: Tensor) -> "EncodedBlocks":
        """Streams picked by number, in any order and as often as asked for.

        Args:
            streams: Integers in [0, streams), shape ``(chosen,)``. With tables of several groups
                a stream must keep its place modulo the groups.

        Returns:
            Blocks of the chosen streams on the device of these.

        Raises:
            SettingError: A stream is not there.
        """
        chosen = streams.cpu().to(torch.int64).numpy()
        if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.streams:
            raise SettingError(f"streams asked for are not all in [0, {self.streams})")
        starts, ends = (border[:, chosen].ravel() for border in self.borders())
        words = self.words.cpu().numpy()[ranges(starts, ends - starts)]
        lengths = self.lengths.cpu().numpy()[chosen]
        return replace(
            self,
            words=torch.from_numpy(words).to(self.words.device),
            lengths=torch.from_numpy(lengths).to(self.lengths.device),
        )

    def borders(self) -> tuple[Indices, Indices]:
        """First word of each block and the one after its last, each of shape (blocks, streams)."""
        lengths = self.lengths.cpu().numpy().T.astype(np.intp)
        ends = lengths.cumsum().reshape(lengths.shape)
        return ends - lengths, ends


def encode_blocks(
    codes: Tensor, tables: CodeTables, block: int = 64, *, lanes: int = 4
) -> EncodedBlocks:
    """Entropy-code integer codes; any int16 codes come back exactly.

    Beyond the ideal bits of the tables a lane costs 16 to 32 bits, 24 on average, and a block 16
    for its length: 2% of a block of 64 tokens, 64 coordinates and 1.5 bits each with 4 lanes.

    Args:
        codes: Integers in the range of int16, shape ``(streams, tokens, dim)``, on any device.
        tables: Tables for ``dim`` coordinates. With an index of groups stream s uses row
            ``s % groups``, as heads do when the streams are (batch, head).
        block: Tokens coded together, at least 1; what is read at random is a block.
        lanes: Lanes of a block, at least 1. Fewer store less; more are faster while blocks times
            lanes of a call are fewer than about 10,000.

    Returns:
        The stored words and lengths, on the device of the codes.

    Raises:
        ShapeError: The codes are not three-dimensional or do not match the tables.
        SettingError: The codes are not int16 integers, or a block could take over 65,535 words.
    """
    if codes.ndim != 3:
        raise ShapeError(f"codes have shape {tuple(codes.shape)}, expected (streams, tokens, dim)")
    check_codes(codes)
    streams, tokens, dim = codes.shape
    _check_settings(dim, block, lanes)
    _check_tables(tables, dim, streams)
    values = codes.detach().cpu().to(torch.int16).numpy()
    words, lengths = [np.empty(0, np.uint16)], [np.empty(0, np.intp)]
    for first, number, length in _runs(0, -(-tokens // block), tokens, block):
        part = values[:, first * block : first * block + number * length]
        part = part.reshape(streams, number, length, dim)
        for pairs in _chunks(number * streams, min(lanes, length)):
            column = pairs % streams
            found = encode_lanes(part[column, pairs // streams], tables, column, min(lanes, length))
            words.append(found[0])
            lengths.append(found[1])
    counts = np.concatenate(lengths).reshape(-(-tokens // block), streams).T
    return EncodedBlocks(
        words=torch.from_numpy(np.concatenate(words)).to(codes.device),
        lengths=torch.from_numpy(counts.astype(np.uint16)).to(codes.device),
        tokens=tokens,
        dim=dim,
        block=block,
        lanes=lanes,
    )


def decode_blocks(
    encoded: EncodedBlocks, tables: CodeTables, first_block: int = 0, last_block: int | None = None
) -> Tensor:
    """Codes of all blocks or of a range; the inverse of :func:`encode_blocks`.

    Args:
        encoded: What is stored.
        tables: The tables it was encoded with.
        first_block: First block of the range.
        last_block: The block after the range; by default all blocks are read.

    Returns:
        Codes, int16, shape ``(streams, tokens of the range, dim)``, on the device of the words.

    Raises:
        CodecError: The stream is damaged or was made with other tables.
        SettingError: The range is not within the blocks.
        ShapeError: The tables do not match.
    """
    last_block = encoded.blocks if last_block is None else last_block
    if not 0 <= first_block <= last_block <= encoded.blocks:
        raise SettingError(
            f"blocks {first_block} to {last_block} asked for, expected a range in "
            f"[0, {encoded.blocks}]"
        )
    _check_tables(tables, encoded.dim, encoded.streams)
    streams, block, dim = encoded.streams, encoded.block, encoded.dim
    words = encoded.words.cpu().numpy()
    starts, ends = encoded.borders()
    start, stop = (min(b * block, encoded.tokens) for b in (first_block, last_block))
    codes = np.empty((streams, stop - start, dim), dtype=np.int16)
    for first, number, length in _runs(first_block, last_block, encoded.tokens, block):
        place = first * block - start
        part = codes[:, place : place + number * length]
        part = part.reshape(streams, number, length, dim)  # splits an axis: a view of codes
        lanes = min(encoded.lanes, length)
        for pairs in _chunks(number * streams, lanes):
            row, column = pairs // streams, pairs % streams
            span = (starts[first + row, column], ends[first + row, column])
            part[column, row] = decode_lanes(words, span, tables, column, (length, lanes))
    return torch.from_numpy(codes).to(encoded.words.device)


def _runs(first: int, last: int, tokens: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Runs of equal blocks: the first block, how many and their tokens; a short block is last."""
    whole = min(last, tokens // block)
    if whole > first:
        yield first, whole - first, block
    if last > max(first, whole):
        yield whole, 1, tokens - whole * block


def _chunks(blocks: int, lanes: int) -> list[Indices]:
    """Numbers of the blocks to be worked on at the same time."""
    step = max(1, LANES_AT_ONCE // lanes)
    return [np.arange(at, min(at + step, blocks)) for at in range(0, blocks, step)]


def _check_settings(dim: int, block: int, lanes: int) -> None:
    if dim < 1 or block < 1 or lanes < 1:
        raise SettingError(
            f"coordinates, tokens of a block and lanes are {dim}, {block} and {lanes}; "
            "expected at least 1 each"
        )
    most = 2 * (block * dim + lanes)  # each code may take a word and be escaped
    if most > LONGEST_BLOCK:
        raise SettingError(
            f"a block of {block} tokens, {dim} coordinates and {lanes} lanes could take {most} "
            f"words, expected at most {LONGEST_BLOCK}; choose shorter blocks"
        )


def _check_tables(tables: CodeTables, dim: int, streams: int) -> None:
    if tables.dim != dim:
        raise ShapeError(f"tables of {tables.dim} coordinates, codes of {dim}")
    groups = tables.index.shape[0] if tables.index.ndim == 2 else 1
    if streams % groups:
        raise ShapeError(f"tables of {groups} groups for {streams} streams, expected a divisor")
