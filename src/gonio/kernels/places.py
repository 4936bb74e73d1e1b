"""Where each coordinate of packed codes lies, one by one, and what each word or plane holds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gonio.kernels.layout import CodePlan

__all__ = ["Places", "find_places"]

BLOCK = 64
LEAST_SHARED = {"keys": 32, "values": 8}  # coordinates that a word or a plane can hold


@dataclass(frozen=True, eq=False)
class Places:
    """The plan of one layer's keys or values, by coordinate and by unit.

    A unit is a 32-bit word (keys) or a plane of bytes (values), 64 of them side by side. Offsets
    count words or bytes from the start of a block. A coordinate without bits has a mask of zero
    and a level of zero.

    Attributes:
        at: Offset of each coordinate's unit, int32 ``(heads * dim,)``.
        shift: Lowest bit of its code there.
        mask: ``2^bits - 1``.
        levels: Its levels by code, float32 ``(heads * dim, 16 or 256)``.
        unit_at: Offset of each unit, int32 ``(units,)``.
        unit_dims: Its coordinates, -1 for none, int32 ``(units, 32 or 8)``.
        unit_shifts: Their shifts.
    """

    at: Tensor
    shift: Tensor
    mask: Tensor
    levels: Tensor
    unit_at: Tensor
    unit_dims: Tensor
    unit_shifts: Tensor

    def to(self, device: torch.device) -> Places:
        """The same on a device."""
        return Places(*(getattr(self, each.name).to(device) for each in fields(self)))


def find_places(plan: CodePlan) -> Places:
    """The places of a plan's coordinates."""
    count = plan.heads * plan.dim
    at, shift, mask = (torch.zeros(count, dtype=torch.int32) for _ in range(3))
    levels = torch.zeros(count, 256 if len(plan.wide_dims) else 16)
    is_keys = plan.kind == "keys"
    shared, apart, size = (8, 4, 4) if is_keys else (2, 1, 1)  # nibbles, bytes, bytes of a unit
    units: list[tuple[int, list[tuple[int, int]]]] = []

    def put(first: int, number: int, members: list[tuple[int, int, int, Tensor]]) -> None:
        offset = first // size + number * BLOCK
        for j, low, bits, book in members:
            at[j], shift[j], mask[j] = offset, low, (1 << bits) - 1
            levels[j, : len(book)] = book
        units.append((offset, [(j, low) for j, low, *_ in members]))

    for head, (first, nibbles, first_wide, wides, offset) in enumerate(plan.head.tolist()):
        for n in range(0, nibbles, shared):
            own = range(first + n, first + n + shared)
            put(offset, n // shared, [m for k in own for m in _members(plan, head, k, first + n)])
        for w in range(0, wides, apart):
            members = []
            for place in range(apart):
                dim = int(plan.wide_dims[first_wide + w + place])
                bits = int(plan.wide_bits[first_wide + w + place])
                if dim >= 0:
                    book = plan.wide_levels[first_wide + w + place, : 1 << bits]
                    members.append((head * plan.dim + dim, 8 * place, bits, book))
            put(offset, nibbles // shared + w // apart, members)
    unit_dims = torch.full((len(units), LEAST_SHARED[plan.kind]), -1, dtype=torch.int32)
    unit_shifts = torch.zeros_like(unit_dims)
    for u, (_, pairs) in enumerate(units):
        for slot, (j, low) in enumerate(pairs):
            unit_dims[u, slot], unit_shifts[u, slot] = j, low
    unit_at = torch.tensor([offset for offset, _ in units], dtype=torch.int32)
    return Places(at, shift, mask, levels, unit_at, unit_dims, unit_shifts)


def _members(
    plan: CodePlan, head: int, nibble: int, first: int
) -> list[tuple[int, int, int, Tensor]]:
    """Coordinates of a nibble: number, shift in the unit, bits, levels by code."""
    found = []
    for slot, dim in enumerate(plan.dims[nibble].tolist()):
        if dim >= 0:
            j, low = head * plan.dim + dim, int(plan.shifts[nibble, slot])
            bits = int(plan.widths[j])
            book = plan.levels[nibble, slot][torch.arange(1 << bits) << low]
            found.append((j, 4 * (nibble - first) + low, bits, book))
    return found
