"""What is stored, in bytes: the only source of bits per element and compression ratios."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gonio.errors import SettingError

__all__ = ["StoredBits", "tensor_bytes"]


@dataclass(frozen=True)
class StoredBits:
    """Bytes stored for a number of elements; parts add up with ``+``."""

    code_bytes: int  # packed codes and raw elements, padding included; grows with the data
    metadata_bytes: int  # scales, offsets, norms; grows with the data
    side_bytes: int  # means, bases, codebooks; fixed, stored once
    elements: int  # numbers represented, before padding

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise SettingError(
                    f"{field.name} is {getattr(self, field.name)}, expected at least 0"
                )

    def __add__(self, other: "StoredBits") -> "StoredBits":
        """Both stores together."""
        if not isinstance(other, StoredBits):
            return NotImplemented
        return StoredBits(
            code_bytes=self.code_bytes + other.code_bytes,
            metadata_bytes=self.metadata_bytes + other.metadata_bytes,
            side_bytes=self.side_bytes + other.side_bytes,
            elements=self.elements + other.elements,
        )

    @property
    def bits_per_element(self) -> float:
        """Bits that grow with the data (codes and metadata) per element, side data apart."""
        return 8 * (self.code_bytes + self.metadata_bytes) / self._counted()

    @property
    def side_bits_per_element(self) -> float:
        """Bits of the fixed side data per element, at this number of elements."""
        return 8 * self.side_bytes / self._counted()

    def compression_ratio(self, dtype: torch.dtype = torch.float16) -> float:
        """Bytes of the elements in ``dtype`` over all bytes stored, side data included.

        Args:
            dtype: How the elements were stored before.

        Returns:
            Dimensionless; above 1 when memory is saved.

        Raises:
            SettingError: Nothing is stored.
        """
        stored = self.code_bytes + self.metadata_bytes + self.side_bytes
        if stored == 0:
            raise SettingError("no compression ratio: nothing is stored")
        return self._counted() * dtype.itemsize / stored

    def _counted(self) -> int:
        """The number of elements, which must not be zero."""
        if self.elements == 0:
            raise SettingError("no bits per element: no element is stored")
        return self.elements


def tensor_bytes(*tensors: Tensor) -> int:
    """Bytes of the elements of the tensors.

    Args:
        tensors: Any shapes and dtypes.

    Returns:
        Sum of ``numel * element_size``.
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
