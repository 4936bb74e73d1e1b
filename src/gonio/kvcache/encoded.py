"""What a codec stores, and what happens to it in a cache: concatenate, crop, reorder.

Every stored tensor has the axes (batch, num_kv_heads, seq_len, ...), so that one set of
operations serves every codec, and the bytes of these tensors are the whole growing cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.quant.accounting import tensor_bytes

__all__ = ["EncodedKeys"]

_SEQ_AXIS = 2
_METADATA = ("scale",)  # stored tensors that are neither codes nor raw keys


@dataclass(frozen=True)
class EncodedKeys:
    """All that is stored for a run of tokens.

    Attributes:
        tensors: Stored tensors by name, each ``(batch, num_kv_heads, seq_len, ...)``.
        head_dim: Elements of one key before encoding.
        dtype: The dtype that decoding returns.
    """

    tensors: Mapping[str, Tensor]
    head_dim: int
    dtype: torch.dtype

    @property
    def seq_len(self) -> int:
        """Tokens stored."""
        return int(self._first.shape[_SEQ_AXIS])

    @property
    def num_elements(self) -> int:
        """Key elements represented: batch x heads x tokens x head_dim."""
        batch, heads, tokens = self._first.shape[:3]
        return batch * heads * tokens * self.head_dim

    @property
    def stored_bytes(self) -> int:
        """Bytes of every stored tensor."""
        return tensor_bytes(*self.tensors.values())

    @property
    def metadata_bytes(self) -> int:
        """Bytes of scales, a part of :attr:`stored_bytes`."""
        return tensor_bytes(*(self.tensors[name] for name in _METADATA if name in self.tensors))

    @property
    def bits_per_element(self) -> float:
        """Stored bits per key element: codes, scales and padding, nothing left out."""
        return 8 * self.stored_bytes / self.num_elements

    def map(self, function: Callable[[Tensor], Tensor]) -> EncodedKeys:
        """The same run with ``function`` applied to every stored tensor."""
        tensors = {name: function(tensor) for name, tensor in self.tensors.items()}
        return EncodedKeys(tensors, self.head_dim, self.dtype)

    def append(self, later: EncodedKeys) -> EncodedKeys:
        """This run followed by ``later``.

        Raises:
            ShapeError: The runs differ in what they store, in batch or in heads.
        """
        if self.tensors.keys() != later.tensors.keys() or self.head_dim != later.head_dim:
            raise ShapeError(
                f"cannot append a run storing {sorted(later.tensors)} (head_dim {later.head_dim}) "
                f"to one storing {sorted(self.tensors)} (head_dim {self.head_dim})"
            )
        tensors = {
            name: torch.cat([tensor, later.tensors[name]], dim=_SEQ_AXIS)
            for name, tensor in self.tensors.items()
        }
        return EncodedKeys(tensors, self.head_dim, self.dtype)

    def first(self, tokens: int) -> EncodedKeys:
        """The first ``tokens`` tokens, copied so that the rest can be freed."""
        return self.map(lambda tensor: tensor[:, :, :tokens].clone())

    @property
    def _first(self) -> Tensor:
        return next(iter(self.tensors.values()))
