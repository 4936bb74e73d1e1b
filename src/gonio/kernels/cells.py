"""Cells of entropy-coded coordinates: codes of blocks, and what they would ideally take.

Costs are whole numbers of 2^-16 bits, so that every way of adding them up gives the same sum, and
the same words are stored whatever computes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.native import compute_level, native_call, pointer

__all__ = ["BIT", "TOKENS", "Cells", "block_codes", "block_costs"]

BIT = 1 << 16  # a cost of one bit
TOKENS = 64  # of a block, as in csrc/cells.c
LARGEST_CODE = 32767.0


class _Cells(ctypes.Structure):
    """``cells`` of csrc/cells.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("edges", "costs", "escaped", "cheapest")),
        *((name, ctypes.c_int64) for name in ("coordinates", "radius")),
    )


@dataclass(frozen=True, eq=False)
class Cells:
    """Where codes begin and end, by coordinate, in units of the step; all on the CPU.

    Attributes:
        edges: Borders between the cells of codes -radius..radius, ascending, float32
            ``(coordinates, 2 * radius)``; may be infinite, and equal where a cell is empty.
        costs: Of each code, int32 ``(coordinates, 2 * radius + 1)``.
        escaped: Of a code beyond ``radius + 1/2`` steps, int32 ``(coordinates,)``.
    """

    edges: Tensor
    costs: Tensor
    escaped: Tensor

    def __post_init__(self) -> None:
        coordinates, places = self.costs.shape
        if self.edges.shape != (coordinates, places - 1) or self.escaped.shape != (coordinates,):
            raise ShapeError(
                f"edges {tuple(self.edges.shape)} and escaped {tuple(self.escaped.shape)} do not "
                f"fit costs {tuple(self.costs.shape)}"
            )

    @property
    def radius(self) -> int:
        """Largest code of a cell."""
        return self.edges.shape[1] // 2

    @cached_property
    def cheapest(self) -> Tensor:
        """Place of the cheapest code of each coordinate, int16 ``(coordinates,)``."""
        return self.costs.argmin(dim=1).to(torch.int16)


def block_costs(
    rows: Tensor, cells: Cells, scale: Tensor, which: Tensor, *, level: str = "auto"
) -> Tensor:
    """What the codes of some blocks cost.

    Args:
        rows: Finite float32 ``(coordinates, blocks, 64)`` on the CPU.
        cells: Of the coordinates.
        scale: Factor of the values of each chosen block, float32 ``(count,)``. 0 is a block that
            is lost: it takes its cheapest codes.
        which: Number of each chosen block, int64 ``(count,)``.
        level: ``auto`` or ``reference``, or one that is compiled (all of these are alike here).

    Returns:
        Int64 ``(count,)`` in :data:`BIT` parts.

    Raises:
        ShapeError: The shapes do not fit, or there is no such block.
    """
    _check(rows, cells, scale, which)
    if compute_level(level, rows) == "reference":
        return _reference(rows[:, which], cells, scale)[1]
    return _native(rows, cells, scale, which, None)


def block_codes(rows: Tensor, cells: Cells, scale: Tensor, *, level: str = "auto") -> Tensor:
    """Codes of all blocks, int16 ``(coordinates, blocks, 64)``; see :func:`block_costs`.

    Raises:
        ShapeError: The shapes do not fit.
    """
    which = torch.arange(rows.shape[1])
    _check(rows, cells, scale, which)
    if compute_level(level, rows) == "reference":
        return _reference(rows, cells, scale)[0]
    codes = torch.empty(rows.shape, dtype=torch.int16)
    _native(rows, cells, scale, which, codes)
    return codes


def _check(rows: Tensor, cells: Cells, scale: Tensor, which: Tensor) -> None:
    if rows.ndim != 3 or (len(rows), rows.shape[2]) != (len(cells.costs), TOKENS):
        raise ShapeError(
            f"rows {tuple(rows.shape)} do not fit {len(cells.costs)} coordinates and blocks of "
            f"{TOKENS} tokens"
        )
    if which.ndim != 1 or which.shape != scale.shape:
        raise ShapeError(f"{tuple(scale.shape)} scales for blocks {tuple(which.shape)}")
    if len(which) and (int(which.min()) < 0 or int(which.max()) >= rows.shape[1]):
        raise ShapeError(f"blocks {which.tolist()} are not all among {rows.shape[1]}")


def _native(
    rows: Tensor, cells: Cells, scale: Tensor, which: Tensor, codes: Tensor | None
) -> Tensor:
    rows, which, scale = rows.contiguous(), which.contiguous(), scale.float().contiguous()
    edges, costs, escaped = (
        each.contiguous() for each in (cells.edges, cells.costs, cells.escaped)
    )
    found = torch.empty(len(which), dtype=torch.int64)
    structure = _Cells(
        pointer(edges, torch.float32),
        pointer(costs, torch.int32),
        pointer(escaped, torch.int32),
        pointer(cells.cheapest, torch.int16),
        len(rows),
        cells.radius,
    )
    native_call(
        "gonio_cells",
        ctypes.byref(structure),
        pointer(rows, torch.float32),
        rows.shape[1],
        pointer(which, torch.int64),
        pointer(scale, torch.float32),
        len(which),
        pointer(found, torch.int64),
        pointer(codes, torch.int16),
    )
    return found


def _reference(rows: Tensor, cells: Cells, scale: Tensor) -> tuple[Tensor, Tensor]:
    y = rows * scale.float()[:, None]
    places = torch.searchsorted(cells.edges.contiguous(), y.flatten(1).contiguous()).view(y.shape)
    lost = (scale == 0)[:, None]
    places = torch.where(lost, cells.cheapest.long()[:, None, None], places)
    costs = cells.costs.long().gather(1, places.flatten(1)).view(y.shape)
    far = (y.abs() > cells.radius + 0.5) & ~lost
    codes = torch.where(
        far, y.round().clamp(-LARGEST_CODE, LARGEST_CODE), (places - cells.radius).float()
    )
    costs = torch.where(far, cells.escaped.long()[:, None, None], costs)
    return codes.to(torch.int16), costs.sum(dim=(0, 2))
