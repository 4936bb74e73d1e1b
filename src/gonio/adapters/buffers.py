"""Memory for one file after the other: what no tensor uses any more is used again."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RecycledBuffers"]


class RecycledBuffers:
    """Buffers that return once nothing refers to what was taken.

    A page that the system hands out for the first time costs several times as much as reading a
    file's bytes into it.

    Args:
        keep: Unused buffers that are kept at most.
    """

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self._unused: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> Tensor:
        """Uninitialized bytes, uint8, shape ``(size,)``; safe in any thread."""
        try:
            whole = self._unused.pop()
        except IndexError:
            whole = np.empty(size, np.uint8)
        if len(whole) < size:
            whole = np.empty(size, np.uint8)
        part = whole[:size]
        weakref.finalize(part, self._return, whole).atexit = False
        return torch.from_numpy(part)  # which refers to `part`, as do all of its views

    def _return(self, whole: NDArray[np.uint8]) -> None:
        if len(self._unused) < self._keep:
            self._unused.append(whole)
