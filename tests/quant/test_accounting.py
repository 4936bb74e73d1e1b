"""Stored bits worked by hand."""

import pytest
import torch

from gonio.errors import SettingError
from gonio.quant import StoredBits, pack_bits, tensor_bytes


def test_four_bit_codes_with_scale_and_offset_cost_five_bits():
    """32 elements: 16 bytes of codes, 4 of float16 scale and offset: 5.0 bits, not 4."""
    packed = pack_bits(torch.zeros((1, 32), dtype=torch.uint8), 4)
    scales = torch.zeros(2, dtype=torch.float16)
    stored = StoredBits(tensor_bytes(packed), tensor_bytes(scales), 64, 32)
    assert stored.bits_per_element == 5.0
    assert stored.side_bits_per_element == 16.0
    assert stored.compression_ratio() == 64 / 84
    assert stored.compression_ratio(torch.float32) == 128 / 84


def test_stores_add_up():
    total = StoredBits(10, 2, 4, 16) + StoredBits(6, 2, 0, 16)
    assert total == StoredBits(16, 4, 4, 32)
    assert total.bits_per_element == 5.0
    assert sum([total, total], StoredBits(0, 0, 0, 0)) == StoredBits(32, 8, 8, 64)
    with pytest.raises(TypeError):
        total + 1


def test_tensor_bytes():
    assert tensor_bytes() == 0
    bits = torch.ones(3, dtype=torch.bool)
    assert tensor_bytes(torch.ones(2, 3), torch.ones(5, dtype=torch.bfloat16), bits) == 24 + 10 + 3


def test_refusals():
    with pytest.raises(SettingError, match="side_bytes is -1"):
        StoredBits(0, 0, -1, 4)
    empty = StoredBits(0, 0, 0, 0)
    with pytest.raises(SettingError, match="no element"):
        _ = empty.bits_per_element
    with pytest.raises(SettingError, match="no element"):
        _ = empty.side_bits_per_element
    with pytest.raises(SettingError, match="nothing is stored"):
        empty.compression_ratio()
