"""Codes of 1 to 8 bits packed into bytes without gaps.

Layout: the codes of the last dimension form one bit stream, lowest bit first; stream bit i is bit
``i % 8`` of byte ``i // 8``. Code j of width b is stream bits ``j b`` to ``j b + b - 1``. Only the
last byte of a row is padded, with zeros.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from gonio.errors import SettingError, ShapeError

__all__ = ["pack_bits", "unpack_bits"]


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension.

    Args:
        codes: uint8, each below ``2^bits``, shape ``(..., n)``.
        bits: Code width in [1, 8].

    Returns:
        Bytes, uint8, shape ``(..., ceil(n * bits / 8))``; a copy.

    Raises:
        SettingError: The width or dtype is wrong, or a code does not fit.
        ShapeError: The codes have no dimension.
    """
    _check(codes, bits, "codes")
    if bits < 8 and codes.numel() and int(codes.max()) >= 1 << bits:
        raise SettingError(f"code {int(codes.max())} does not fit in {bits} bits")
    if bits == 8:
        return codes.clone()
    length = codes.shape[-1]
    if bits in (1, 2, 4):
        parts = _split(codes, 8 // bits)
        packed = parts[0].clone()
        for place, part in enumerate(parts[1:], start=1):
            packed |= part << (place * bits)
        return packed
    words = _join(_split(codes, 8), bits)
    packed = _scatter(words, bits, 8)
    return packed[..., : _bytes_for(length, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, length: int) -> Tensor:
    """Codes from their bytes; the inverse of :func:`pack_bits`.

    Args:
        packed: uint8, shape ``(..., ceil(length * bits / 8))``.
        bits: Code width in [1, 8].
        length: Number of codes n along the last dimension.

    Returns:
        Codes, uint8, shape ``(..., length)``; a copy.

    Raises:
        SettingError: The width or dtype is wrong.
        ShapeError: The number of bytes does not belong to this length.
    """
    _check(packed, bits, "packed codes")
    if length < 0 or packed.shape[-1] != _bytes_for(length, bits):
        raise ShapeError(
            f"{packed.shape[-1]} bytes found for {length} codes of {bits} bits, "
            f"expected {_bytes_for(length, bits)}"
        )
    if bits == 8:
        return packed.clone()
    if bits in (1, 2, 4):
        codes = _scatter(packed, 8 // bits, bits)
    else:
        codes = _scatter(_join(_split(packed, bits), 8), 8, bits)
    return codes[..., :length].contiguous()


def _split(values: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Every ``parts``-th value of the zero-padded last dimension, from each starting place."""
    short = -values.shape[-1] % parts
    padded = pad(values, (0, short)) if short else values
    grouped = padded.reshape(*padded.shape[:-1], padded.shape[-1] // parts, parts)
    return grouped.unbind(dim=-1)


def _join(parts: tuple[Tensor, ...], width: int) -> Tensor:
    """One int64 word from parts of ``width`` bits, the first part lowest; at most 56 bits."""
    word = parts[0].to(torch.int64)
    for place, part in enumerate(parts[1:], start=1):
        word |= part.to(torch.int64) << (place * width)
    return word


def _scatter(words: Tensor, parts: int, width: int) -> Tensor:
    """Each word as ``parts`` consecutive values of ``width`` bits, uint8, lowest first."""
    mask = (1 << width) - 1
    shape = (*words.shape, parts)
    values = torch.empty(shape, dtype=torch.uint8, device=words.device)
    for place in range(parts):
        values[..., place] = (words >> (place * width)) & mask
    return values.flatten(start_dim=-2)


def _bytes_for(length: int, bits: int) -> int:
    """Bytes that ``length`` codes of ``bits`` bits take."""
    return -(-length * bits // 8)


def _check(values: Tensor, bits: int, name: str) -> None:
    """Refuse widths outside [1, 8], other dtypes and scalars."""
    if not 1 <= bits <= 8:
        raise SettingError(f"code width is {bits} bits, expected 1 to 8")
    if values.dtype != torch.uint8:
        raise SettingError(f"{name} have dtype {values.dtype}, expected torch.uint8")
    if values.ndim == 0:
        raise ShapeError(f"{name} have no dimension to run along, expected shape (..., n)")
