"""Packed blocks: nothing is lost, little is padded, and what is stored never changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.kernels import BLOCK, PackedCodes, make_plan
from gonio.kernels.layout import share_nibbles

from .conftest import MIXES, make_layer

LENGTHS = [0, 1, 63, 64, 65, 200]


@given(st.lists(st.integers(0, 8), max_size=70))
def test_nibbles_hold_every_narrow_coordinate_once_and_are_the_fewest(widths):
    nibbles = share_nibbles(widths)
    assert sorted(j for nibble in nibbles for j in nibble) == [
        j for j, width in enumerate(widths) if 1 <= width <= 4
    ]
    assert all(sum(widths[j] for j in nibble) <= 4 for nibble in nibbles)
    count = {w: widths.count(w) for w in range(1, 5)}
    after_threes = max(count[1] - count[3], 0)
    fewest = count[4] + count[3] + -(-(2 * count[2] + after_threes) // 4)
    assert len(nibbles) == fewest


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", ["keys", "values"])
def test_what_is_stored_is_the_nearest_level(mix, kind, rng):
    layer = make_layer(mix, 3, 10, rng)
    rows = torch.randn(30, 2 * 70, generator=rng)
    packed = PackedCodes.empty(layer.plan(kind), batch=2).append(rows, "reference")
    assert packed.data.shape == (2, 2, layer.plan(kind).block_bytes)
    assert torch.equal(packed.decode("reference"), layer.nearest(rows))


@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("first", LENGTHS)
@pytest.mark.parametrize("second", LENGTHS)
def test_appending_is_storing_at_once(kind, first, second, rng):
    layer = make_layer("all", 2, 9, rng)
    rows = torch.randn(18, 2, first + second, generator=rng)
    empty = PackedCodes.empty(layer.plan(kind), batch=2)
    at_once = empty.append(rows.flatten(1))
    before = empty.append(rows[:, :, :first].flatten(1))
    stored = before.data.clone()
    after = before.append(rows[:, :, first:].flatten(1))
    assert torch.equal(after.data, at_once.data)
    assert after.tokens == first + second
    assert torch.equal(before.data, stored)


def test_bytes_are_those_of_the_widths_where_they_fit():
    """64 heads' worth of 2-bit coordinates: no padding; one of 5 bits costs a byte."""
    plan = make_plan("keys", torch.full((64,), 2), torch.zeros(256), 2)
    assert plan.block_bytes == BLOCK * 64 * 2 // 8
    assert plan.bits_per_element == 2
    wide = make_plan("values", torch.tensor([5, 2, 2, 4]), torch.zeros(32 + 4 + 4 + 16), 1)
    assert wide.block_bytes == BLOCK * (1 + 1)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ShapeError, match="do not fill 2 heads"):
        make_plan("keys", torch.tensor([1, 1, 1]), torch.zeros(6), 2)
    with pytest.raises(ShapeError, match="5 levels"):
        make_plan("keys", torch.tensor([1, 1]), torch.zeros(5), 2)
    with pytest.raises(SettingError, match="found 9"):
        make_plan("keys", torch.tensor([9]), torch.zeros(512), 1)
    plan = make_plan("keys", torch.tensor([1, 1]), torch.zeros(4), 2)
    with pytest.raises(ShapeError, match="do not fit 2 heads"):
        PackedCodes.empty(plan).append(torch.zeros(3, 1))
