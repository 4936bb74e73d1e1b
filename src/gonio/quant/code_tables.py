"""Static frequency tables for entropy coding of signed integer codes.

A table gives a whole frequency to each code in ``-radius..radius`` and to one escape, which stands
for every larger magnitude and is followed by the code itself in 16 bits. So any int16 code can be
stored, whatever data the table was made from. The frequencies of a table are at least 1 and add up
to ``2^precision``; a symbol of frequency f costs ``precision - log2 f`` bits.

Given the counts and the radius the frequencies are those of least cross-entropy: the cost is convex
and separable in them, so the optimum is where no unit moved from one symbol to another would help.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gonio.errors import SettingError, ShapeError

__all__ = ["CodeTables", "count_codes", "entropy_bits", "fit_tables", "tables_from_counts"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Entries: TypeAlias = NDArray[np.uint32]

LARGEST_RADIUS = 127  # a code or the escape is one byte of a decoder's entry
SYMBOLS = 2 * LARGEST_RADIUS + 2  # codes -127..127, then all larger magnitudes
ESCAPE = SYMBOLS - 1
BYTES = (np.arange(SYMBOLS) - LARGEST_RADIUS) & 0xFF  # two's complement; -128 for the escape
BYTES[ESCAPE] = 0x80
ESCAPED_BITS = 16
PRECISIONS = range(8, 13)  # 256 symbols need 8 bits; byte, frequency and offset share 32 bits
BISECTIONS = 60
CHUNK = 1 << 20  # codes counted at once


@dataclass(frozen=True, eq=False)
class CodeTables:
    """Tables and which coordinate uses which; all that a decoder needs besides the stream."""

    frequencies: Tensor  # uint16, flat; of each table the codes ascending, then the escape
    radius: Tensor  # uint8, largest magnitude of each table's codes, shape (T,)
    index: Tensor  # int16, table of each coordinate, shape (dim,) or (groups, dim)

    def __post_init__(self) -> None:
        expected = (torch.uint16, torch.uint8, torch.int16)
        found = (self.frequencies.dtype, self.radius.dtype, self.index.dtype)
        if found != expected:
            raise SettingError(f"dtypes of code tables are {found}, expected {expected}")
        if self.frequencies.ndim != 1 or self.radius.ndim != 1 or self.index.ndim not in (1, 2):
            raise ShapeError(
                "code tables must be frequencies (F,), radius (T,) and index (dim,) or "
                f"(groups, dim); found {tuple(self.frequencies.shape)}, "
                f"{tuple(self.radius.shape)}, {tuple(self.index.shape)}"
            )
        sizes = self._sizes
        if not sizes.size or int(sizes.sum()) != self.frequencies.numel():
            raise ShapeError(
                f"{self.frequencies.numel()} frequencies do not fill {sizes.size} tables "
                f"of together {int(sizes.sum())} symbols"
            )
        frequencies = self.frequencies.cpu().numpy().astype(np.int64)
        sums = np.add.reduceat(frequencies, np.cumsum(sizes) - sizes)
        totals = [1 << bits for bits in PRECISIONS]
        if int(frequencies.min()) < 1 or sums[0] not in totals or bool((sums != sums[0]).any()):
            raise SettingError(
                "the frequencies of every table must be at least 1 and add up to one power of two "
                f"in {totals}; sums found: {int(sums.min())} to {int(sums.max())}"
            )
        used = self.index
        if used.numel() == 0 or int(used.min()) < 0 or int(used.max()) >= sizes.size:
            raise SettingError(f"the table index must name tables 0 to {sizes.size - 1}")

    @property
    def dim(self) -> int:
        """Coordinates of one token."""
        return int(self.index.shape[-1])

    @property
    def num_tables(self) -> int:
        """Tables T."""
        return self.radius.numel()

    @cached_property
    def precision(self) -> int:
        """Bits of the sum of a table's frequencies."""
        first = self.frequencies[: int(self._sizes[0])].to(torch.int64)
        return int(first.sum()).bit_length() - 1

    def state(self) -> dict[str, Tensor]:
        """The stored tensors by name; :meth:`from_state` reads them back."""
        return {"frequencies": self.frequencies, "radius": self.radius, "index": self.index}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> "CodeTables":
        """Tables from what :meth:`state` returned.

        Raises:
            SettingError: A tensor is missing or its values are no tables.
            ShapeError: The tensors do not belong together.
        """
        names = ("frequencies", "radius", "index")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise SettingError(f"code tables lack {', '.join(missing)}; found {sorted(tensors)}")
        return cls(*(tensors[name] for name in names))

    @cached_property
    def by_symbol(self) -> Integers:
        """Frequency of each code -127..127 and of the escape, 0 outside the radius, (T, 256)."""
        table = np.zeros((self.num_tables, SYMBOLS), dtype=np.int64)
        table[_inside(self.radius.cpu().numpy())] = self.frequencies.cpu().numpy()
        return table

    @cached_property
    def _bits(self) -> Floats:
        """Bits of each code -127..127 and of larger ones, those of escaped codes included."""
        table = self.by_symbol
        bits = self.precision - np.log2(np.maximum(table, 1))
        escaped = bits[:, ESCAPE, None] + ESCAPED_BITS
        bits[:, ESCAPE] = escaped[:, 0]
        found: Floats = np.where(table > 0, bits, escaped)
        return found

    @cached_property
    def encoder_entries(self) -> Entries:
        """By table and byte of the code: frequency << 16 | first slot, shape (T, 256).

        The byte of a code is its two's complement, that of the escape is -128.
        """
        table = self.by_symbol
        first = np.cumsum(table, axis=1) - table
        entries: Entries = np.empty(table.shape, dtype=np.uint32)
        entries[:, BYTES] = table << 16 | first
        return entries

    @cached_property
    def decoder_entries(self) -> Entries:
        """By table and slot: byte << 24 | frequency << 12 | slot in the symbol's range.

        Shape (T, 2^precision): 16 KiB of working memory for each table of 12 bits.
        """
        table = self.by_symbol
        slots = np.arange(1 << self.precision)
        names = np.tile(np.arange(SYMBOLS), self.num_tables)
        whose = np.repeat(names, table.ravel()).reshape(self.num_tables, slots.size)
        within = slots - np.take_along_axis(np.cumsum(table, axis=1) - table, whose, axis=1)
        frequency = np.take_along_axis(table, whose, axis=1)
        return (BYTES[whose] << 24 | frequency << 12 | within).astype(np.uint32)

    def expected_bits(self, counts: Tensor) -> Tensor:
        """Bits per code when codes follow the given counts.

        Args:
            counts: As :func:`count_codes` returns, shape ``(dim, 256)`` or ``(groups, dim, 256)``,
                matching the index.

        Returns:
            Mean ideal bits per code, float64, the shape of the index; 0 where nothing is counted.

        Raises:
            ShapeError: The counts do not match the index.
        """
        total = counts.sum(dim=-1).clamp(min=1)
        return self._total_bits(counts) / total

    def ideal_bits(self, codes: Tensor) -> Tensor:
        """Bits that an ideal coder with these tables spends on codes, escaped codes included.

        Args:
            codes: Integers in the range of int16, shape ``(..., dim)``; with an index of groups
                ``(streams, ..., dim)``, where stream s uses row ``s % groups``.

        Returns:
            Total bits by coordinate, float64, the shape of the index.

        Raises:
            ShapeError: The codes do not match the index.
            SettingError: The codes are not integers in the range of int16.
        """
        groups = self.index.shape[0] if self.index.ndim == 2 else 1
        fits = codes.ndim >= self.index.ndim and codes.shape[-1] == self.dim
        if not fits or (groups > 1 and codes.shape[0] % groups):
            raise ShapeError(
                f"codes have shape {tuple(codes.shape)}, index {tuple(self.index.shape)}; expected "
                "equal last dimensions and a multiple of the groups first"
            )
        if self.index.ndim == 2:
            codes = codes.unflatten(0, (codes.shape[0] // groups, groups)).transpose(0, 1)
        rows = codes.reshape(*self.index.shape[:-1], -1, self.dim)
        return self._total_bits(count_codes(rows))

    def _total_bits(self, counts: Tensor) -> Tensor:
        if counts.shape != (*self.index.shape, SYMBOLS):
            raise ShapeError(
                f"counts have shape {tuple(counts.shape)}, expected {(*self.index.shape, SYMBOLS)}"
            )
        bits = torch.from_numpy(self._bits)[self.index.cpu().long()]
        return (counts.cpu() * bits).sum(dim=-1)

    @property
    def _sizes(self) -> Integers:
        """Symbols of each table."""
        sizes: Integers = 2 * self.radius.cpu().numpy().astype(np.int64) + 2
        return sizes


def count_codes(codes: Tensor) -> Tensor:
    """How often each code occurs in each coordinate; counts of several batches add up.

    Args:
        codes: Integers in the range of int16, shape ``(..., n, dim)``.

    Returns:
        int64, shape ``(..., dim, 256)``: codes -127..127, then all of larger magnitude.

    Raises:
        ShapeError: The codes have fewer than two dimensions.
        SettingError: The codes are not integers in the range of int16.
    """
    if codes.ndim < 2:
        raise ShapeError(f"codes have shape {tuple(codes.shape)}, expected (..., n, dim)")
    check_codes(codes)
    *batch, n, dim = codes.shape
    columns = int(np.prod(batch, dtype=np.int64)) * dim
    flat = codes.cpu().movedim(-2, 0).reshape(n, columns)
    counts = torch.zeros(columns * SYMBOLS, dtype=torch.int64)
    places = torch.arange(columns) * SYMBOLS
    for rows in flat.split(max(1, CHUNK // max(columns, 1))):
        symbols = rows.to(torch.int64) + LARGEST_RADIUS
        symbols = torch.where((symbols < 0) | (symbols > ESCAPE), ESCAPE, symbols)
        counts += torch.bincount((symbols + places).flatten(), minlength=counts.numel())
    return counts.reshape(*batch, dim, SYMBOLS)


def entropy_bits(counts: Tensor) -> Tensor:
    """Entropy of the empirical law, bits per code: what no static table of the counts can beat.

    Args:
        counts: As :func:`count_codes` returns, shape ``(..., 256)``. Codes of magnitude above 127
            count as one symbol followed by 16 bits.

    Returns:
        float64, shape ``(...)``; 0 where nothing is counted.
    """
    share = counts.to(torch.float64) / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    entropy: Tensor = -torch.xlogy(share, share).sum(dim=-1) / math.log(2.0)
    return entropy + ESCAPED_BITS * share[..., ESCAPE]


def fit_tables(codes: Tensor, *, classes: Tensor | None = None, precision: int = 12) -> CodeTables:
    """Tables for the codes of each coordinate, or of each class of coordinates.

    Args:
        codes: Integers in the range of int16, shape ``(n, dim)`` or ``(groups, n, dim)``.
        classes: Table of each coordinate, integers from 0 without gaps, shape ``(dim,)`` or
            ``(groups, dim)``; by default each coordinate has its own table.
        precision: Bits of the sum of a table's frequencies, in [8, 12].

    Returns:
        Tables whose frequencies minimize the bits of these codes; the index has the shape
        of the classes.

    Raises:
        ShapeError: The shapes do not match.
        SettingError: A setting is out of range, or the codes are not integers of int16.
    """
    if codes.ndim not in (2, 3):
        raise ShapeError(f"codes have shape {tuple(codes.shape)}, expected (n, dim) with groups")
    return tables_from_counts(count_codes(codes), classes=classes, precision=precision)


def tables_from_counts(
    counts: Tensor, *, classes: Tensor | None = None, precision: int = 12
) -> CodeTables:
    """Tables from counts, as :func:`fit_tables` makes them.

    Args:
        counts: As :func:`count_codes` returns, shape ``(dim, 256)`` or ``(groups, dim, 256)``.
        classes: As in :func:`fit_tables`.
        precision: As in :func:`fit_tables`.

    Returns:
        Tables; the radius of each is the one of least estimated cost.

    Raises:
        ShapeError: The shapes do not match.
        SettingError: The precision or the classes are out of range.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"precision of the tables is {precision} bits, expected 8 to 12")
    shape = counts.shape[:-1]
    if len(shape) not in (1, 2) or counts.shape[-1] != SYMBOLS or not counts.numel():
        raise ShapeError(
            f"counts have shape {tuple(counts.shape)}, expected ({SYMBOLS},) for each coordinate"
        )
    index = torch.arange(shape.numel()).reshape(shape) if classes is None else classes.cpu().long()
    if index.shape != shape:
        raise ShapeError(f"classes have shape {tuple(index.shape)}, expected {tuple(shape)}")
    number = int(index.max()) + 1
    if int(index.min()) < 0 or index.unique().numel() != number or number > 1 << 15:
        raise SettingError(
            "classes of coordinates must count from 0 without gaps, to at most 32767; found "
            f"{index.unique().numel()} classes from {int(index.min())} to {number - 1}"
        )
    pooled = torch.zeros(number, SYMBOLS, dtype=torch.int64)
    pooled.index_add_(0, index.flatten(), counts.cpu().to(torch.int64).reshape(-1, SYMBOLS))
    table = pooled.numpy().astype(np.float64)
    radius = _best_radius(table, precision)
    inside = _inside(radius)
    table[:, ESCAPE] += np.where(inside, 0.0, table).sum(axis=1)
    frequencies = _allocate(table, inside, precision)
    return CodeTables(
        frequencies=torch.from_numpy(frequencies[inside].astype(np.uint16)),
        radius=torch.from_numpy(radius.astype(np.uint8)),
        index=index.to(torch.int16),
    )


def check_codes(codes: Tensor) -> None:
    """Refuse codes that int16 does not hold."""
    if codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool:
        raise SettingError(f"codes have dtype {codes.dtype}, expected integers")
    if codes.dtype in (torch.int8, torch.uint8, torch.int16) or not codes.numel():
        return
    low, high = (int(v) for v in codes.to(torch.int64).aminmax())
    if low < -(1 << 15) or high >= 1 << 15:
        raise SettingError(f"codes span {low} to {high}, expected the range of int16")


def _inside(radius: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether a table has each of the 256 symbols, shape (T, 256)."""
    magnitude = np.abs(np.arange(SYMBOLS) - LARGEST_RADIUS)
    magnitude[ESCAPE] = 0
    found: NDArray[np.bool_] = magnitude <= radius[:, None]
    return found


def _best_radius(counts: Floats, precision: int) -> Integers:
    """Radius of least cost by table, when each symbol gets one unit and a share of the others."""
    seen = np.flatnonzero(counts[:, :ESCAPE].any(axis=0))
    widest = int(np.abs(seen - LARGEST_RADIUS).max()) if seen.size else 0
    widest = min(widest, (1 << precision - 1) - 1)
    total = counts.sum(axis=1, keepdims=True).clip(min=1)
    costs = np.empty((len(counts), widest + 1))
    for radius in range(widest + 1):
        kept = counts[:, LARGEST_RADIUS - radius : LARGEST_RADIUS + radius + 1]
        escaped = total - kept.sum(axis=1, keepdims=True)
        symbols = np.concatenate((kept, escaped), axis=1)
        shared = (1 << precision) - symbols.shape[1]
        bits = precision - np.log2(1.0 + shared * symbols / total)
        costs[:, radius] = (symbols * bits).sum(axis=1) + ESCAPED_BITS * escaped[:, 0]
    best: Integers = costs.argmin(axis=1)
    return best


def _allocate(counts: Floats, inside: NDArray[np.bool_], precision: int) -> Integers:
    """Frequencies of least cross-entropy: at least 1 inside, 0 outside, ``2^precision`` in all.

    Raising a frequency from f to f + 1 saves ``c log(1 + 1/f)``, less each time. So the optimum
    takes every raise that saves at least some threshold; bisection finds it, and what is left
    over goes to the best raises one at a time.
    """
    target = 1 << precision
    counts = np.where(inside, counts, 0.0)
    counts[counts.sum(axis=1) == 0, LARGEST_RADIUS] = 1.0
    total = counts.sum(axis=1, keepdims=True)

    def raised(threshold: Floats) -> Integers:
        with np.errstate(divide="ignore"):
            most = -1.0 / np.expm1(-threshold / counts)
        found: Integers = np.where(inside, np.maximum(np.floor(most), 1), 0).astype(np.int64)
        return found

    low, high = total / (2 * target), total.copy()
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        fits = raised(middle).sum(axis=1, keepdims=True) <= target
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    frequencies = raised(high)
    rows = np.arange(len(counts))
    while True:
        left = target - frequencies.sum(axis=1)
        if not left.any():
            return frequencies
        best = (counts * np.log1p(1.0 / np.maximum(frequencies, 1))).argmax(axis=1)
        frequencies[rows, best] += left > 0
