"""Pruning by magnitude, and matrices with few nonzero entries stored as values and places.

The places are a bitmap (one bit per entry of the matrix) or 32-bit indices (32 bits per nonzero),
whichever is smaller: indices below a density of 1/32. All of it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.quant.packing import pack_bits, unpack_bits

__all__ = ["SparseMatrix", "kept_entries", "magnitude_mask", "sparse_from_tensors"]

_SHAPE_BYTES = 16  # two int64


def kept_entries(numel: int, density: float) -> int:
    """How many of ``numel`` entries a density keeps, rounded up.

    Raises:
        SettingError: The density is not in (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise SettingError(f"density must be in (0, 1], found {density}")
    return min(numel, math.ceil(density * numel - 1e-9))  # 0.1 * 30 is a little above 3


def magnitude_mask(values: Tensor, density: float) -> Tensor:
    """Where the largest magnitudes are; of equal ones the first in order.

    Args:
        values: Any shape.
        density: Share to keep, in (0, 1].

    Returns:
        Booleans of the same shape, exactly :func:`kept_entries` of them true.

    Raises:
        SettingError: The density is not in (0, 1].
    """
    keep = kept_entries(values.numel(), density)
    order = torch.sort(values.abs().flatten(), descending=True, stable=True).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[order[:keep]] = True
    return mask.view_as(values)


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """All that is stored of a matrix with few nonzero entries; its bytes are the whole cost.

    Attributes:
        values: The nonzero entries in row-major order, in the matrix's dtype.
        places: uint8: a bitmap of the entries, eight a byte, first entry in the lowest bit; or
            int32: row-major indices.
        shape: ``(m, n)``.
    """

    values: Tensor
    places: Tensor
    shape: tuple[int, int]

    @classmethod
    def encode(cls, matrix: Tensor) -> SparseMatrix:
        """Keep the nonzero entries of a matrix of fewer than 2^31 entries.

        Raises:
            ShapeError: It is no matrix, or too large.
        """
        if matrix.ndim != 2 or matrix.numel() >= 2**31:
            raise ShapeError(f"expected a matrix below 2^31 entries, found {tuple(matrix.shape)}")
        flat = matrix.detach().cpu().flatten()
        indices = flat.nonzero().flatten()
        places = indices.to(torch.int32)
        if 4 * len(indices) >= math.ceil(len(flat) / 8):
            places = pack_bits((flat != 0).to(torch.uint8), 1)
        return cls(flat[indices], places, (matrix.shape[0], matrix.shape[1]))

    def decode(self) -> Tensor:
        """The matrix, entry for entry.

        Raises:
            CodecError: Values and places do not fit the shape.
        """
        numel = self.shape[0] * self.shape[1]
        if self.places.dtype == torch.uint8:
            is_sized = len(self.places) == math.ceil(numel / 8)
            bits = unpack_bits(self.places, 1, 8 * len(self.places))
            indices = bits.nonzero().flatten()
        else:
            is_sized, indices = True, self.places.long()
        is_inside = not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < numel)
        if not (is_sized and is_inside and len(indices) == len(self.values)):
            raise CodecError(
                f"a sparse matrix {self.shape} with {len(self.values)} values and "
                f"{len(indices)} places is broken; write it again"
            )
        flat = torch.zeros(numel, dtype=self.values.dtype)
        flat[indices] = self.values
        return flat.view(self.shape)

    @property
    def density(self) -> float:
        """Share of the entries that are stored, in [0, 1]."""
        return len(self.values) / max(1, self.shape[0] * self.shape[1])

    @property
    def stored_bytes(self) -> int:
        """Values, places and shape; names in a file are not counted."""
        parts = (self.values, self.places)
        return sum(t.numel() * t.element_size() for t in parts) + _SHAPE_BYTES

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What to store under names that begin with ``name``."""
        return {
            f"{name}.values": self.values,
            f"{name}.places": self.places,
            f"{name}.shape": torch.tensor(self.shape, dtype=torch.int64),
        }


def sparse_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, SparseMatrix]:
    """Matrices by name, from what :meth:`SparseMatrix.tensors` gave.

    Raises:
        CodecError: A part is missing or of another type.
    """
    names = sorted(key.removesuffix(".shape") for key in tensors if key.endswith(".shape"))
    found = {}
    for name in names:
        parts = [tensors.get(f"{name}.{part}") for part in ("values", "places", "shape")]
        values, places, shape = parts
        if values is None or places is None or shape is None or shape.numel() != 2:
            raise CodecError(f"the sparse matrix {name} lacks its values, places or shape")
        if places.dtype not in (torch.uint8, torch.int32):
            raise CodecError(f"the places of {name} are {places.dtype}, expected uint8 or int32")
        found[name] = SparseMatrix(values, places, (int(shape[0]), int(shape[1])))
    unknown = set(tensors) - {
        f"{n}.{part}" for n in names for part in ("values", "places", "shape")
    }
    if unknown:
        raise CodecError(f"{sorted(unknown)[0]} belongs to no sparse matrix")
    return found
