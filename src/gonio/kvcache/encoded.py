"""What a codec stores, and what happens to it in a cache: concatenate, split, reorder.

Every stored tensor has the axes (batch, num_kv_heads, rows, ...), where a row stands for a fixed
number of tokens: one, a block, or a part of a block. So one set of operations serves every codec,
and the bytes of these tensors are the whole growing cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.quant.accounting import tensor_bytes

__all__ = ["EncodedTensor"]

_ROW_AXIS = 2


@dataclass(frozen=True)
class EncodedTensor:
    """All that is stored for a run of tokens.

    Attributes:
        tensors: Stored tensors by name, each ``(batch, num_kv_heads, rows, ...)``; the rows of a
            tensor share the run's tokens evenly, and no row crosses a block's border.
        tokens: Tokens stored, a multiple of ``block``.
        head_dim: Elements of one token and head before encoding.
        dtype: The dtype that decoding returns.
        block: Tokens that were encoded together and can only be decoded together.
        metadata: Names of the tensors that are neither codes nor raw elements: scales, offsets,
            norms, indices. Names that are not stored are ignored.
    """

    tensors: Mapping[str, Tensor]
    tokens: int
    head_dim: int
    dtype: torch.dtype
    block: int = 1
    metadata: tuple[str, ...] = ("scale", "offset", "norm", "indices")

    def __post_init__(self) -> None:
        if self.block < 1 or self.tokens < 0 or self.tokens % self.block:
            raise ShapeError(f"{self.tokens} tokens are not whole blocks of {self.block}")
        blocks = self.tokens // self.block
        for name, tensor in self.tensors.items():
            rows = tensor.shape[_ROW_AXIS] if tensor.ndim > _ROW_AXIS else -1
            if rows < 0 or (rows % blocks if blocks else rows):
                raise ShapeError(
                    f"stored tensor {name!r} must be (batch, num_kv_heads, rows, ...) with the "
                    f"rows of {blocks} blocks, found {tuple(tensor.shape)}"
                )

    @property
    def batch_size(self) -> int:
        """Sequences stored side by side."""
        return int(self._any.shape[0])

    @property
    def num_heads(self) -> int:
        """Key-value heads."""
        return int(self._any.shape[1])

    @property
    def num_elements(self) -> int:
        """Elements represented: batch x heads x tokens x head_dim."""
        return self.batch_size * self.num_heads * self.tokens * self.head_dim

    @property
    def stored_bytes(self) -> int:
        """Bytes of every stored tensor."""
        return tensor_bytes(*self.tensors.values())

    @property
    def metadata_bytes(self) -> int:
        """Bytes of scales, offsets and the like, a part of :attr:`stored_bytes`."""
        return tensor_bytes(*(self.tensors[name] for name in self.metadata if name in self.tensors))

    @property
    def bits_per_element(self) -> float:
        """Stored bits per element: codes, scales and padding, nothing left out."""
        return 8 * self.stored_bytes / self.num_elements

    def map(self, function: Callable[[Tensor], Tensor]) -> EncodedTensor:
        """The same run with ``function``, which keeps axes 1 and 2, applied to every tensor."""
        return replace(self, tensors={name: function(t) for name, t in self.tensors.items()})

    def append(self, later: EncodedTensor) -> EncodedTensor:
        """This run followed by ``later``; the bytes of both stay what they are.

        Raises:
            ShapeError: The runs differ in what they store.
        """
        if self._kind != later._kind:
            raise ShapeError(f"cannot append a run of {later._kind} to one of {self._kind}")
        tensors = {
            name: torch.cat([tensor, later.tensors[name]], dim=_ROW_AXIS)
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors, tokens=self.tokens + later.tokens)

    def first(self, tokens: int) -> EncodedTensor:
        """The first ``tokens`` tokens, copied so that the rest can be freed."""
        return self.slice(0, tokens)

    def slice(self, start: int, stop: int) -> EncodedTensor:
        """Tokens ``start`` to ``stop`` (exclusive), copied.

        Raises:
            ShapeError: A border lies outside the run or inside a block.
        """
        if not 0 <= start <= stop <= self.tokens or start % self.block or stop % self.block:
            raise ShapeError(
                f"cannot cut tokens {start} to {stop} out of {self.tokens} "
                f"in blocks of {self.block}"
            )

        def cut(tensor: Tensor) -> Tensor:
            rows = tensor.shape[_ROW_AXIS] * self.block // max(self.tokens, 1)  # of one block
            first, last = start // self.block * rows, stop // self.block * rows
            return tensor[:, :, first:last].clone(memory_format=torch.contiguous_format)

        return replace(
            self, tensors={n: cut(t) for n, t in self.tensors.items()}, tokens=stop - start
        )

    @property
    def _kind(self) -> tuple[tuple[str, ...], int, int]:
        return tuple(sorted(self.tensors)), self.head_dim, self.block

    @property
    def _any(self) -> Tensor:
        return next(iter(self.tensors.values()))
