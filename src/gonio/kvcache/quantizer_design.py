"""Scalar quantizers fitted to samples of many coordinates at once.

Three designs: levels of least error for a number of levels (Lloyd), levels that a trellis chooses
from (Lloyd's iteration around Viterbi's search), and cells of least ``error^2 + weight * bits`` on
a grid of equal steps (Chou, Lookabaugh and Gray).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.quant.scalar import gaussian_lloyd_max
from gonio.quant.trellis import level_numbers, trellis_codes

__all__ = [
    "RADIUS",
    "CellDesign",
    "cell_edges",
    "design_cells",
    "design_levels",
    "design_trellis",
]

LOOK_AHEAD = 6  # codes that one may lose to: rare codes between two frequent ones are skipped
PRIOR = 4  # samples that the starting level of a cell counts for: rare cells keep it
LLOYD_STEPS = 8
TRELLIS_STEPS = (4, 4, 4, 1, 1)  # iterations: tokens per token that each looks at
CELL_STEPS = 4
RADIUS = 127  # largest code of a table; samples beyond are escapes, their own level
ESCAPE_BITS = 28.0  # a rare code of a 12-bit table and 16 bits of the sample itself


@dataclass(frozen=True, eq=False)
class CellDesign:
    """Entropy-coded cells of coordinates, in units of the step.

    Attributes:
        counts: Weight of codes -127..127, a little of it prior, ``(coordinates, 255)``.
        levels: Level of codes -127..127, ``(coordinates, 255)``.
        bits: Mean bits of each coordinate, ``(coordinates,)``.
        error: Mean squared error of each coordinate, in squared steps.
    """

    counts: Tensor
    levels: Tensor
    bits: Tensor
    error: Tensor


def design_levels(rows: Tensor, width: int, *, steps: int = LLOYD_STEPS) -> tuple[Tensor, Tensor]:
    """Levels of least squared error for each coordinate, by Lloyd's iteration from the normal law.

    Args:
        rows: Samples ``(coordinates, n)``, about zero mean.
        width: Bits of a code, 0 to 8.
        steps: Iterations.

    Returns:
        Levels ``(coordinates, 2^width)``, ascending, and the mean squared error of each.
    """
    spread = rows.square().mean(dim=1, keepdim=True).sqrt()
    start = spread * gaussian_lloyd_max(width).levels.to(rows.dtype)
    levels, rows = start, rows.contiguous()
    for step in range(steps + 1):
        edges = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        codes = torch.searchsorted(edges, rows, right=True)
        if step < steps:
            count, total = _sums(codes, rows, levels.shape[1])
            levels = (total + PRIOR * start) / (count + PRIOR)
            levels = levels.cummax(dim=1).values
    return levels, (rows - levels.gather(1, codes)).square().mean(dim=1)


def design_trellis(rows: Tensor, widths: Tensor, states: int) -> list[Tensor]:
    """Levels that a trellis of so many states chooses from with the least squared error.

    Args:
        rows: Samples ``(coordinates, n)`` in the order of the trellis, about zero mean.
        widths: Bits of each coordinate, uint8; those of 0 bits are left out of the trellis.
        states: Of the trellis.

    Returns:
        Of each coordinate its ``2^(width + 1)`` levels, ascending in each subset; 1 level (the
        mean) where the width is 0.
    """
    found = [rows[i].mean()[None] for i in range(len(rows))]
    coded = widths.nonzero()[:, 0]
    if not coded.numel():
        return found
    rows, widths = rows[coded], widths[coded]
    start = rows.new_zeros((len(rows), 2 << int(widths.max())))
    for width in widths.unique().tolist():
        where = (widths == width).nonzero()[:, 0]
        start[where, : 2 << width] = _spread_levels(rows[where], width + 1)
    levels = start
    for thinning in TRELLIS_STEPS:
        some = rows[:, :: thinning if rows.shape[1] >= 1024 * thinning else 1].contiguous()
        numbers = level_numbers(trellis_codes(some, levels, widths, states), states)
        count, total = _sums(numbers, some, levels.shape[1])
        levels = (total + PRIOR * levels) / (count + PRIOR)
    for i, (own, width) in enumerate(zip(levels, widths.tolist(), strict=True)):
        found[int(coded[i])] = own[: 2 << width]
    return found


def _spread_levels(rows: Tensor, width: int) -> Tensor:
    """Levels to start from: those of the normal law above 8 bits, which no samples fill."""
    if width <= 8:
        return design_levels(rows, width, steps=3)[0]
    spread = rows.square().mean(dim=1, keepdim=True).sqrt()
    return spread * 4 * torch.linspace(-1, 1, 1 << width, dtype=rows.dtype)


def cell_edges(levels: Tensor, lengths: Tensor, weight: float) -> Tensor:
    """Borders between cells of least ``error^2 + weight * bits``.

    Args:
        levels: Ascending, ``(coordinates, L)``.
        lengths: Bits of each code, same shape.
        weight: Squared error that a bit is worth.

    Returns:
        Ascending ``(coordinates, L - 1)``; a code whose borders meet is never chosen.
    """
    cost = levels.square() + weight * lengths
    nearest = torch.full_like(levels[:, 1:], torch.inf)
    for ahead in range(1, min(LOOK_AHEAD, levels.shape[1] - 1) + 1):
        gap = (levels[:, ahead:] - levels[:, :-ahead]).clamp(min=1e-3)
        border = (cost[:, ahead:] - cost[:, :-ahead]) / (2 * gap)
        part = nearest[:, : border.shape[1]]
        part.copy_(torch.minimum(part, border))
    # A code is left for the first later one that beats it; what is left is the least that is not.
    return nearest.cummax(dim=1).values.contiguous()


def design_cells(rows: Tensor, weight: float, *, steps: int = CELL_STEPS) -> CellDesign:
    """Cells and conditional means of coordinates whose unit is the step.

    Args:
        rows: Samples ``(coordinates, n)`` in units of the step.
        weight: Squared steps that a bit is worth; 0 for no dead zone.
        steps: Times the cells are fitted to the lengths of their codes.
    """
    rows = rows.contiguous()
    grid = torch.arange(-RADIUS, RADIUS + 1, dtype=rows.dtype)
    inside = (rows.abs() <= RADIUS + 0.5).to(rows.dtype)
    prior = _laplace(rows, grid)
    levels, lengths = grid.expand_as(prior), torch.zeros_like(prior)
    for step in range(steps + 1):
        codes = torch.searchsorted(cell_edges(levels, lengths, weight), rows)
        count, total = _sums(codes, rows, len(grid), inside)
        count = count + PRIOR * prior
        lengths = -torch.log2(count / (rows.shape[1] + PRIOR))
        if step < steps:
            levels = (total + PRIOR * grid) / (count + PRIOR * (1 - prior))
            levels = levels.cummax(dim=1).values
    difference = torch.where(inside > 0, rows - levels.gather(1, codes), rows - rows.round())
    bits = torch.where(inside > 0, lengths.gather(1, codes), ESCAPE_BITS)
    return CellDesign(count, levels, bits.mean(dim=1), difference.square().mean(dim=1))


def _sums(
    codes: Tensor, rows: Tensor, size: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Samples of each code and their sum, ``(coordinates, size)``."""
    weight = torch.ones_like(rows) if weight is None else weight
    count, total = (rows.new_zeros((len(rows), size)) for _ in range(2))
    return count.scatter_add_(1, codes, weight), total.scatter_add_(1, codes, weight * rows)


def _laplace(rows: Tensor, grid: Tensor) -> Tensor:
    """A Laplace law of the samples' mean magnitude, never zero: codes that no sample had."""
    spread = rows.abs().mean(dim=1, keepdim=True).clamp(min=0.3)
    share = torch.exp(-grid.abs() / spread) + 1e-7
    return share / share.sum(dim=1, keepdim=True)
