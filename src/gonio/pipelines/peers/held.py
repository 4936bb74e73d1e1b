"""Bytes that somebody else's object really keeps: the memory behind all tensors it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["held_bytes"]

_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device, type)


def held_bytes(root: Any) -> int:
    """Bytes of all allocations reached from ``root``, each counted once.

    Follows containers, attributes, and the inner tensors of tensor subclasses; tensors count with
    the whole memory they keep alive, so that a view of a larger tensor counts as the larger one.
    Byte strings and NumPy arrays count too. What is reached only through functions or modules does
    not.
    """
    sizes: dict[int, int] = {}
    for item in _reachable(root):
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            if storage.nbytes():
                sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, np.ndarray):
            owner = item if item.base is None else item.base
            sizes[id(owner)] = int(getattr(owner, "nbytes", item.nbytes))
        elif isinstance(item, bytes | bytearray):
            sizes[id(item)] = len(item)
    return sum(sizes.values())


def _reachable(root: Any) -> Iterator[Any]:
    """Every plain tensor, array and byte string below ``root``."""
    waiting, seen = [root], set()
    keep = []  # objects made on the way keep their identity until the end
    while waiting:
        item = waiting.pop()
        if isinstance(item, _PLAIN) or callable(item) or id(item) in seen:
            continue
        seen.add(id(item))
        keep.append(item)
        inner = _inner(item)
        if inner is None:
            yield item
        else:
            waiting.extend(inner)


def _inner(item: Any) -> list[Any] | None:
    """What an object holds; None for a tensor, an array or a byte string."""
    if isinstance(item, Tensor) and hasattr(item, "__tensor_flatten__"):  # a wrapper subclass
        names, _ = item.__tensor_flatten__()
        return [getattr(item, name) for name in names]
    if isinstance(item, Tensor | np.ndarray | bytes | bytearray):
        return None
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    found = list(getattr(item, "__dict__", {}).values())
    for kind in type(item).__mro__:
        slots = getattr(kind, "__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found += [getattr(item, name) for name in names if hasattr(item, name)]
    return found
