"""Codes and costs of entropy-coded blocks: compiled cells against array operations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import ShapeError
from gonio.kernels.cells import BIT, Cells, block_codes, block_costs
from gonio.kernels.native import available_levels
from gonio.kvcache.quantizer_design import cell_edges

COMPILED = [level for level in available_levels() if level != "reference"]
needs_compiler = pytest.mark.skipif(not COMPILED, reason="no C compiler")


def make_cells(generator, coordinates, radius, dead_zone=0.15):
    """Cells of codes with random lengths; some are empty, and some borders infinite."""
    grid = torch.arange(-radius, radius + 1).float().repeat(coordinates, 1)
    lengths = 1 + grid.abs() + 6 * torch.rand(grid.shape, generator=generator)
    edges = cell_edges(grid, lengths, dead_zone)
    if radius > 1:
        edges[: coordinates // 2, -1] = math.inf
    costs = (lengths * BIT).round().int()
    return Cells(edges, costs, costs.amax(dim=1) + 9 * BIT)


@needs_compiler
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    coordinates=st.integers(1, 9),
    blocks=st.integers(0, 5),
    radius=st.sampled_from([0, 1, 2, 7, 23, 24, 25, 127]),
    spread=st.sampled_from([0.0, 1e-3, 0.4, 3.0, 40.0, 1e6, 3e38]),
)
def test_compiled_cells_are_those_of_array_operations(seed, coordinates, blocks, radius, spread):
    generator = torch.Generator().manual_seed(seed)
    cells = make_cells(generator, coordinates, radius)
    rows = torch.randn((coordinates, blocks, 64), generator=generator)
    rows = (rows * spread).clamp(-3e38, 3e38)
    if radius and blocks:  # values on the borders themselves
        rows[:, 0, : 2 * radius] = cells.edges[:, :64].nan_to_num(posinf=1e30)[:, : 2 * radius]
    scale = torch.rand(blocks, generator=generator) * 2
    scale[1::3] = 0.0
    which = torch.randperm(blocks, generator=generator)[: blocks - blocks // 3]
    for level in COMPILED:
        found = block_codes(rows, cells, scale, level=level)
        assert torch.equal(found, block_codes(rows, cells, scale, level="reference"))
        costs = block_costs(rows, cells, scale[which], which, level=level)
        expected = block_costs(rows, cells, scale[which], which, level="reference")
        assert torch.equal(costs, expected)


@pytest.mark.parametrize("level", available_levels())
def test_codes_are_those_of_least_error_and_bits(level):
    """By trying every code; a dead zone of nothing rounds."""
    generator = torch.Generator().manual_seed(4)
    rows = 3 * torch.randn((5, 3, 64), generator=generator)
    ones = torch.ones(3)
    for weight in (0.0, 0.15):
        cells = make_cells(generator, 5, 9, weight)
        cells = Cells(cells.edges.clamp(max=1e9), cells.costs, cells.escaped)
        codes = block_codes(rows, cells, ones, level=level).long()
        grid = torch.arange(-9, 10)
        price = (rows[..., None] - grid) ** 2 + weight * cells.costs[:, None, None] / BIT
        far = rows.abs() > 9.5
        places = (codes + 9).clamp(0, 18)[..., None]
        own = price.gather(-1, places)[..., 0]
        assert (own <= price.amin(dim=-1) + 1e-4)[~far & (rows < 8)].all()  # no 9 for some
        costs = block_costs(rows, cells, ones, torch.arange(3), level=level)
        near = cells.costs[:, None, None].expand(5, 3, 64, 19).gather(-1, places)[..., 0]
        total = near.long().where(~far, cells.escaped.long()[:, None, None]).sum(dim=(0, 2))
        assert torch.equal(costs, total)


@pytest.mark.parametrize("level", available_levels())
def test_a_lost_block_takes_its_cheapest_codes_and_far_values_escape(level):
    costs = torch.tensor([[3, 1, 2], [1, 5, 5]], dtype=torch.int32) * BIT
    cells = Cells(torch.tensor([[-0.5, 0.5]] * 2), costs, torch.tensor([7, 7], dtype=torch.int32))
    rows = torch.tensor([1.0, -1e9, 2.5, 3.5]).repeat(2, 2, 16)
    codes = block_codes(rows, cells, torch.tensor([0.0, 1.0]), level=level)
    assert (codes[0, 0] == 0).all()
    assert (codes[1, 0] == -1).all()
    assert codes[0, 1, :4].tolist() == [1, -32767, 2, 4]  # halves round to even
    found = block_costs(rows, cells, torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), level=level)
    assert found.tolist() == [2 * 64 * BIT, 16 * ((2 + 5) * BIT + 6 * 7)]


def test_shapes_that_do_not_fit_are_refused():
    cells = make_cells(torch.Generator().manual_seed(0), 4, 2)
    one, first = torch.ones(1), torch.zeros(1, dtype=torch.long)
    for rows in (torch.zeros(3, 1, 64), torch.zeros(4, 1, 32), torch.zeros(4, 64)):
        with pytest.raises(ShapeError, match="do not fit"):
            block_codes(rows, cells, torch.ones(rows.shape[1]))
    for which in (first + 1, first - 1):
        with pytest.raises(ShapeError, match="not all among"):
            block_costs(torch.zeros(4, 1, 64), cells, one, which)
    with pytest.raises(ShapeError, match="scales"):
        block_costs(torch.zeros(4, 1, 64), cells, torch.ones(2), first)
    with pytest.raises(ShapeError, match="do not fit"):
        Cells(cells.edges[:, 1:], cells.costs, cells.escaped)


def test_costs_do_not_depend_on_how_they_are_added_up():
    """Whole numbers: the sum of single coordinates is that of all."""
    generator = torch.Generator().manual_seed(1)
    cells = make_cells(generator, 6, 5)
    rows = torch.randn((6, 2, 64), generator=generator)
    scale, which = torch.ones(2), torch.arange(2)
    parts = [
        block_costs(
            rows[j : j + 1],
            Cells(cells.edges[j : j + 1], cells.costs[j : j + 1], cells.escaped[j : j + 1]),
            scale,
            which,
        )
        for j in range(6)
    ]
    assert np.array_equal(sum(parts), block_costs(rows, cells, scale, which))
