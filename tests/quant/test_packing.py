"""Packed bytes against Python's big integers, exact sizes, round trips of awkward shapes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.quant import pack_bits, unpack_bits

shapes = st.lists(st.integers(0, 4), max_size=2).flatmap(
    lambda batch: st.integers(0, 40).map(lambda n: (*batch, n))
)


def random_codes(shape, bits, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(1 << bits, shape, generator=rng, dtype=torch.uint8)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(shape=shapes, bits=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_round_trip(shape, bits, seed):
    codes = random_codes(shape, bits, seed)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
    assert packed.shape == (*shape[:-1], math.ceil(shape[-1] * bits / 8))
    assert torch.equal(unpack_bits(packed, bits, shape[-1]), codes)


@pytest.mark.parametrize("n", [1, 7, 8, 13, 64])
@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_one_little_endian_integer(bits, n):
    """Codes as digits of one integer in base 2^bits, written as little-endian bytes."""
    codes = random_codes((n,), bits, seed=100 * bits + n)
    number = sum(code << (bits * place) for place, code in enumerate(codes.tolist()))
    expected = list(number.to_bytes(math.ceil(n * bits / 8), "little"))
    assert pack_bits(codes, bits).tolist() == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_views_and_copies(bits):
    codes = random_codes((6, 5), bits, seed=bits)
    packed = pack_bits(codes.mT, bits)
    assert torch.equal(packed, pack_bits(codes.mT.contiguous(), bits))
    kept = codes.clone()
    pack_bits(codes, bits).zero_()
    assert torch.equal(codes, kept)
    unpacked = unpack_bits(packed, bits, 6)
    unpack_bits(packed, bits, 6).zero_()
    assert torch.equal(unpacked, codes.mT)


def test_refusals():
    codes = torch.tensor([0, 4], dtype=torch.uint8)
    with pytest.raises(SettingError, match="code 4 does not fit in 2 bits"):
        pack_bits(codes, 2)
    with pytest.raises(SettingError, match="1 to 8"):
        pack_bits(codes, 9)
    with pytest.raises(SettingError, match="uint8"):
        pack_bits(codes.int(), 3)
    with pytest.raises(ShapeError, match="no dimension"):
        pack_bits(codes[0], 3)
    with pytest.raises(ShapeError, match="expected 3"):
        unpack_bits(pack_bits(codes, 3), 3, 8)
    with pytest.raises(ShapeError):
        unpack_bits(codes[:0], 3, -1)
