"""A growing run of packed codes of one layer's keys or values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.layout import BLOCK, CodePlan
from gonio.kernels.ops import decode, encode

__all__ = ["PackedCodes"]


@dataclass(frozen=True, eq=False)
class PackedCodes:
    """Codes of some tokens, in blocks of 64, the last of which may be incomplete.

    Attributes:
        plan: Where the codes lie.
        data: uint8 ``(batch, blocks, bytes)``; codes of tokens that do not exist are zero.
        tokens: Tokens stored.
    """

    plan: CodePlan
    data: Tensor
    tokens: int

    @classmethod
    def empty(cls, plan: CodePlan, batch: int = 1) -> PackedCodes:
        """No tokens yet."""
        return cls(plan, torch.zeros((batch, 0, plan.block_bytes), dtype=torch.uint8), 0)

    def append(self, rows: Tensor, level: str = "auto") -> PackedCodes:
        """These tokens and new ones, quantized from coordinates ``(heads * dim, batch * tokens)``.

        Raises:
            ShapeError: The coordinates do not fit.
        """
        batch = len(self.data)
        if len(rows) != self.plan.heads * self.plan.dim or rows.shape[1] % batch:
            raise ShapeError(
                f"coordinates {tuple(rows.shape)} do not fit {self.plan.heads} heads of "
                f"{self.plan.dim} and a batch of {batch}"
            )
        is_keys, skip = self.plan.kind == "keys", self.tokens % BLOCK
        new = encode(rows, self.plan.tensors, is_keys, batch, skip, self.plan.block_bytes, level)
        whole = self.data
        if skip:
            whole, tail = self.data[:, :-1], self.data[:, -1:]
            new = torch.cat([new[:, :1] | tail, new[:, 1:]], dim=1)
        data = torch.cat([whole, new], dim=1)
        return PackedCodes(self.plan, data, self.tokens + rows.shape[1] // batch)

    def decode(self, level: str = "auto") -> Tensor:
        """Levels of every coordinate, float32 ``(heads * dim, batch * tokens)``."""
        is_keys = self.plan.kind == "keys"
        rows: Tensor = decode(self.data, self.plan.tensors, is_keys, self.tokens, level)
        return rows
