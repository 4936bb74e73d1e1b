"""The tensors of an adapter's safetensors file, read one at a time; library errors become ours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gonio.adapters.refusal import one_line
from gonio.errors import AdapterError

__all__ = [
    "WEIGHTS_NAME",
    "LazyTensors",
    "LoadedTensors",
    "StoredTensors",
    "all_finite",
    "broken",
    "natural_order",
    "read_tensor",
]

WEIGHTS_NAME = "adapter_model.safetensors"

_READ_ERRORS = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError)


class LoadedTensors(NamedTuple):
    """All tensors of a weights file, in memory.

    Attributes:
        by_key: Key -> tensor.
        is_finite: Whether all are known to hold neither NaN nor infinity.
        header: The file's header, which says everything but the values.
    """

    by_key: Mapping[str, Tensor]
    is_finite: bool
    header: bytes


class StoredTensors:
    """The open weights file of an adapter folder, or its tensors that were read before.

    Args:
        folder: The adapter folder.
        loaded: What the file holds, None to open it.

    Attributes:
        is_finite: Whether all tensors are known to hold neither NaN nor infinity.
        header: The header of a file that was read before, None of one that is open.

    Raises:
        AdapterError: The file cannot be opened.
    """

    def __init__(self, folder: Path, loaded: LoadedTensors | None = None) -> None:
        self.folder = folder
        self.is_finite = loaded is not None and loaded.is_finite
        self.header = None if loaded is None else loaded.header
        self._loaded = None if loaded is None else loaded.by_key
        self._file: Any = None
        try:
            if self._loaded is None:
                self._file = safe_open(str(folder / WEIGHTS_NAME), framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file = None

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All keys, layer 2 before layer 10."""
        found = self._file.keys() if self._loaded is None else self._loaded
        return tuple(sorted(found, key=lambda key: (natural_order(key), key)))

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if self._loaded is not None:
            return tuple(self._loaded[key].shape)
        try:
            return tuple(self._file.get_slice(key).get_shape())
        except _READ_ERRORS as error:
            raise self._unreadable(error) from error

    def get(self, key: str) -> Tensor:
        """The tensor of a key, in its stored dtype."""
        if self._loaded is not None:
            return self._loaded[key]
        try:
            tensor = self._file.get_tensor(key)
        except _READ_ERRORS as error:
            raise self._unreadable(error) from error
        assert isinstance(tensor, Tensor)
        return tensor

    def _unreadable(self, error: Exception) -> AdapterError:
        return broken(
            self.folder,
            [f"{type(error).__name__}: {error}"],
            "The file is broken or incomplete; copy, download or save it again.",
        )


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by key that are read at each access; nothing is kept.

    Args:
        readers: Key -> function that reads its tensor.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, key: str) -> Tensor:
        return self._readers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_tensor(folder: Path, key: str) -> Tensor:
    """One tensor of an adapter folder, opened for it.

    Raises:
        AdapterError: The file cannot be read.
    """
    with StoredTensors(folder) as tensors:
        return tensors.get(key)


def all_finite(values: Tensor) -> bool:
    """Whether a float tensor holds neither NaN nor infinity.

    One pass without a copy: NaN and infinity survive summation. Finite terms may overflow the
    sum as well; only then is every entry looked at.
    """
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    return math.isfinite(float(values.sum(dtype=wide))) or bool(values.isfinite().all())


def broken(folder: Path, lines: Iterable[str], cure: str = "") -> AdapterError:
    """The error for a weights file that cannot be what it should be.

    Args:
        folder: The adapter folder.
        lines: What was found; each is shortened to one line.
        cure: What to do about it.
    """
    message = "\n  ".join(
        [f"cannot read the adapter: {folder / WEIGHTS_NAME}", *map(one_line, lines)]
    )
    return AdapterError(f"{message}\n{cure}" if cure else message)


@lru_cache(maxsize=1 << 14)  # the keys of one adapter are those of the next
def natural_order(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort key that puts layer 2 before layer 10."""
    keys = []
    for position, part in enumerate(re.split(r"([0-9]+)", name)):
        is_number = position % 2 == 1
        text = part.lstrip("0") if is_number else part
        keys.append((is_number, len(text) if is_number else 0, text))  # longer numbers are larger
    return tuple(keys)
