"""The lanes of rANS: many short streams of symbols coded side by side, one array operation each.

All blocks of a call have equal length and ``lanes`` lanes; lane l takes the tokens l, l + lanes,
..., and of each token the coordinates in order. At every step all lanes stand at one coordinate.

A state x lies in ``[2^16, 2^32)``. With P the precision, a symbol of frequency f and first slot s
turns x into ``(x // f) 2^P + x mod f + s``; before that x loses its low 16 bits as a word if the
result would leave the range. Decoding undoes it: the slot ``x mod 2^P`` names the symbol, x becomes
``f (x // 2^P) + slot - s``, and takes a word if it fell below ``2^16``. One word always suffices,
because P is at most 12.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gonio.errors import CodecError
from gonio.quant.code_tables import CodeTables

__all__ = ["decode_lanes", "encode_lanes", "ranges"]

Codes: TypeAlias = NDArray[np.int16]
Indices: TypeAlias = NDArray[np.intp]
States: TypeAlias = NDArray[np.uint32]
Words: TypeAlias = NDArray[np.uint16]

LOWEST_STATE = 1 << 16
ESCAPED = -128  # stands for an escaped code in one byte; -127 to 127 for themselves


def encode_lanes(
    codes: Codes, tables: CodeTables, streams: Indices, lanes: int
) -> tuple[Words, Indices]:
    """Words of some blocks of equal length, one after another, and how many each has.

    The last symbols are coded first; words fill a row of a buffer from its end.
    """
    blocks, length, dim = codes.shape
    index = _index(tables, streams)  # (dim, blocks or 1)
    radius = tables.radius.cpu().numpy().astype(np.int16)[index].T[:, None, :]
    escaped = (codes > radius) | (codes < -radius)
    symbols = np.where(escaped, np.int16(ESCAPED), codes).astype(np.int8).view(np.uint8)
    capacity = length * dim  # a symbol moves at most one word out
    buffer = np.empty(blocks * capacity, np.uint16)
    ends = (np.arange(blocks, dtype=np.intp) + 1) * capacity
    fronts = ends.copy()
    states = np.full((blocks, lanes), LOWEST_STATE, np.uint32)
    for first in reversed(range(0, length, lanes)):
        width = min(lanes, length - first)
        x = states[:, :width].flatten()
        columns = symbols[:, first : first + width].transpose(2, 0, 1).reshape(dim, x.size)
        for j in reversed(range(dim)):
            entry = np.empty_like(x)
            _look_up(tables.encoder_entries, index[j], columns[j].astype(np.intp), width, entry)
            _push(x, entry, tables.precision, buffer, fronts, width)
        states[:, :width] = x.reshape(blocks, width)
    heads = np.stack((states & 0xFFFF, states >> 16), axis=2).astype(np.uint16)
    taken = ends - fronts
    return _join(
        (heads.ravel(), buffer[ranges(fronts, taken)], codes[escaped].view(np.uint16)),
        (np.full(blocks, 2 * lanes), taken, escaped.sum(axis=(1, 2))),
    )


def _join(parts: tuple[Words, ...], counts: tuple[Indices, ...]) -> tuple[Words, Indices]:
    """Of each block its first part, its second, ...; the words and how many each block has."""
    lengths = np.stack(counts).sum(axis=0)
    words = np.empty(int(lengths.sum()), np.uint16)
    place = np.cumsum(lengths) - lengths
    for part, count in zip(parts, counts, strict=True):
        words[ranges(place, count)] = part
        place = place + count
    return words, lengths


def _push(
    x: States, entry: States, precision: int, buffer: Words, fronts: Indices, width: int
) -> None:
    """Code one symbol in each lane: states ``x`` and word positions ``fronts`` change in place."""
    frequency = entry >> 16
    full = (x >= frequency << (32 - precision)).nonzero()[0][::-1]
    if full.size:
        owner = full // width
        place = fronts[owner] - 1 - _rank(owner)
        buffer[place] = x[full] & 0xFFFF
        fronts[owner] = place
        x[full] >>= 16
    # Exact: below 2^32 the true quotient is further from the next integer than float64 rounds.
    quotient = np.divide(x, frequency, dtype=np.float64).astype(np.uint32)
    x -= quotient * frequency
    x += entry & 0xFFFF
    x += quotient << precision


def decode_lanes(
    words: Words,
    span: tuple[Indices, Indices],
    tables: CodeTables,
    streams: Indices,
    shape: tuple[int, int],
) -> Codes:
    """Codes of some blocks, each of ``shape`` (length, lanes), from their spans of the words.

    Raises CodecError when a block's states or number of words are not what encoding leaves.
    """
    (length, lanes), (starts, ends) = shape, span
    blocks, dim = starts.size, tables.dim
    if bool((ends - starts < 2 * lanes).any()):
        raise _damaged("is shorter than its states")
    index = _index(tables, streams)
    heads = words[starts[:, None] + np.arange(2 * lanes)].astype(np.uint32)
    states = heads[:, ::2] | heads[:, 1::2] << 16
    fronts = starts + 2 * lanes
    codes = np.empty((blocks, length, dim), np.int16)
    for first in range(0, length, lanes):
        width = min(lanes, length - first)
        x = states[:, :width].flatten()
        columns, slots = np.empty((dim, x.size), np.uint8), np.empty(x.size, np.intp)
        entry, factor = np.empty_like(x), np.empty_like(x)
        for j in range(dim):
            np.bitwise_and(x, (1 << tables.precision) - 1, out=slots, casting="unsafe")
            _look_up(tables.decoder_entries, index[j], slots, width, entry)
            np.right_shift(entry, 24, out=columns[j], casting="unsafe")
            np.right_shift(entry, 12, out=factor)
            factor &= 0xFFF
            entry &= 0xFFF
            x >>= tables.precision
            x *= factor
            x += entry
            _refill(x, words, fronts, width)
        states[:, :width] = x.reshape(blocks, width)
        found = columns.view(np.int8).reshape(dim, blocks, width)
        codes[:, first : first + width] = found.transpose(1, 2, 0)
    escaped = np.flatnonzero(codes == ESCAPED)
    counts = np.bincount(escaped // (length * dim), minlength=blocks)
    if bool((states != LOWEST_STATE).any()) or bool((fronts + counts != ends).any()):
        raise _damaged("does not end where it was begun")
    codes.reshape(-1)[escaped] = words[ranges(fronts, counts)].view(np.int16)
    return codes


def _refill(x: States, words: Words, fronts: Indices, width: int) -> None:
    """Take a word into each state below the range: ``x`` and ``fronts`` change in place."""
    low = (x < LOWEST_STATE).nonzero()[0]
    if low.size:
        owner = low // width
        place = fronts[owner] + _rank(owner)
        fronts[owner] = place + 1  # the last of equal owners remains
        # A damaged stream may ask for words beyond the end; the check of the states finds it.
        x[low] = x[low] << 16 | words.take(place, mode="clip")


def _look_up(entries: States, index: Indices, places: Indices, width: int, found: States) -> None:
    """Entry of each lane in the table of its block; all blocks share the table if one is given."""
    if index.size == 1:
        entries[index[0]].take(places, mode="wrap", out=found)
        return
    places += np.repeat(index * entries.shape[1], width)
    entries.ravel().take(places, mode="wrap", out=found)


def _rank(owner: Indices) -> Indices:
    """Place of each entry among equal ones, which are next to one another."""
    number = np.arange(owner.size)
    fresh = np.zeros(owner.size, np.intp)
    fresh[1:] = number[1:] * (owner[1:] != owner[:-1])
    rank: Indices = number - np.maximum.accumulate(fresh)
    return rank


def ranges(starts: Indices, counts: Indices) -> Indices:
    """``starts[i], ..., starts[i] + counts[i] - 1`` for each i, one after another."""
    ends = np.cumsum(counts)
    shift: Indices = np.repeat(starts - (ends - counts), counts)
    return shift + np.arange(shift.size)


def _index(tables: CodeTables, streams: Indices) -> Indices:
    """Table of each coordinate and block, shape (dim, blocks), or (dim, 1) if blocks share it."""
    index = tables.index.cpu().numpy().astype(np.intp)
    return index[:, None] if index.ndim == 1 else index[streams % len(index)].T


def _damaged(what: str) -> CodecError:
    return CodecError(
        f"an entropy-coded block {what}: the stream is damaged or was made with other tables"
    )
