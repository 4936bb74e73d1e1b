"""The k coordinates of each token that a codec got most wrong, stored as they are.

Keeping the k largest errors leaves the least energy (theorem ``top_k_optimal``). Each costs
16 bits for the number and ``ceil(log2 head_dim)`` for its place, the places of a token padded to
whole bytes: at head_dim 64 and k = 2, 0.75 bits per element.

Source: moe-gauge, part D; sparse outliers after KVQuant (Hooper et al. 2024, arXiv:2401.18079).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gonio.errors import SettingError, ShapeError
from gonio.kvcache.frame import to_float16
from gonio.quant.packing import pack_bits, unpack_bits

__all__ = ["ExactExceptions"]


@dataclass(frozen=True)
class ExactExceptions:
    """Exact numbers in place of the worst decoded ones.

    Attributes:
        count: Coordinates per token and head, k.
    """

    count: int
    kind: ClassVar[str] = "exact_exceptions"
    metadata: ClassVar[tuple[str, ...]] = ("indices", "high_indices")

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingError(f"at least 1 exception per token is stored, found {self.count}")

    def encode(self, x: Tensor, approximation: Tensor) -> dict[str, Tensor]:
        """Places and numbers of the largest errors.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``.
            approximation: What is decoded so far, same shape.

        Returns:
            ``exact`` ``(..., tokens, k)`` in the dtype of ``x`` if that has 16 bits, else
            float16, and packed ``indices`` (with ``high_indices`` above 256 channels).

        Raises:
            ShapeError: There are fewer coordinates than exceptions.
        """
        head_dim = x.shape[3]
        if self.count > head_dim:
            raise ShapeError(f"{self.count} exceptions asked of vectors of {head_dim} coordinates")
        errors = (x.float() - approximation.float()).abs()
        places = errors.topk(self.count, dim=-1).indices.sort(dim=-1).values
        exact = x.gather(-1, places)
        stored = {"exact": exact if x.dtype.itemsize == 2 else to_float16(exact.float())}
        low, high = _index_bits(head_dim)
        if low:
            stored["indices"] = pack_bits((places % 256).byte(), low)
        if high:
            stored["high_indices"] = pack_bits((places // 256).byte(), high)
        return stored

    def decode(self, stored: Mapping[str, Tensor], approximation: Tensor) -> Tensor:
        """The approximation, float32, with the exact numbers in their places."""
        low, high = _index_bits(approximation.shape[3])
        exact = stored["exact"].float()
        places = torch.zeros_like(exact, dtype=torch.long)
        if low:
            places += unpack_bits(stored["indices"], low, self.count).long()
        if high:
            places += 256 * unpack_bits(stored["high_indices"], high, self.count).long()
        return approximation.float().scatter(-1, places, exact)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The setting; there are no tensors."""
        return {"count": self.count}, {}

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The exceptions with this setting."""
        return cls(**settings)


def _index_bits(head_dim: int) -> tuple[int, int]:
    """Bits of an index below and above 2^8: codes are packed from single bytes."""
    bits = (head_dim - 1).bit_length()
    return min(bits, 8), max(bits - 8, 0)
