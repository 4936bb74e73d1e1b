"""Where the coordinates of packed codes lie in the space of the vectors they were made from."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gonio.errors import ShapeError
from gonio.kernels.layout import CodePlan

__all__ = ["Frame"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Vectors and coordinates of the keys and of the values of a layer, float32.

    A key is ``key_basis @ coordinates + key_offset``, a value ``coordinates @ value_basis +
    value_offset``; one basis is transposed because both are read in the order of memory.

    Attributes:
        key_basis: ``(heads, dim, dim)``: coordinates of a query are ``query @ key_basis``.
        key_offset: ``(heads, dim)``: ``query . key_offset`` is added to every score.
        value_basis: ``(heads, value_dim, value_dim)``.
        value_offset: ``(heads, value_dim)``.
    """

    key_basis: Tensor
    key_offset: Tensor
    value_basis: Tensor
    value_offset: Tensor

    @classmethod
    def of(cls, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Frame:
        """The frame of two synthesis matrices (vector = matrix @ coordinates) with offsets."""
        tensors = (*keys, values[0].mT, values[1])
        return cls(*(tensor.to(torch.float32).contiguous() for tensor in tensors))

    def check(self, plans: tuple[CodePlan, CodePlan]) -> None:
        """Refuse plans of other shapes.

        Raises:
            ShapeError: Heads or coordinates differ.
        """
        for what, plan, basis, offset in (
            ("keys", plans[0], self.key_basis, self.key_offset),
            ("values", plans[1], self.value_basis, self.value_offset),
        ):
            shape = (plan.heads, plan.dim)
            if basis.shape != (*shape, plan.dim) or offset.shape != shape:
                raise ShapeError(
                    f"a basis {tuple(basis.shape)} and an offset {tuple(offset.shape)} do not fit "
                    f"{what} of {plan.heads} heads of {plan.dim}"
                )

    @cached_property
    def pointer(self) -> Any:
        """A pointer to the frame as C sees it, valid as long as this object is."""
        tensors = (self.key_basis, self.key_offset, self.value_basis, self.value_offset)
        return ctypes.pointer(_Frame(*(tensor.data_ptr() for tensor in tensors)))


class _Frame(ctypes.Structure):
    """``frame`` of csrc/gonio_kernels.h."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("key_basis", "key_offset", "value_basis", "value_offset")
    )
