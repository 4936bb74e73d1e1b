"""The files of an adapter folder read once: hashed, and parsed from the same bytes.

What is measured is then what the hash names, also when the files change meanwhile. Only plain
files of floats are parsed here, by rules that are stricter than those of the safetensors library;
the library reads every other file, and says what is wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gonio.adapters.buffers import RecycledBuffers
from gonio.adapters.config import CONFIG_NAME
from gonio.adapters.stored import WEIGHTS_NAME, LoadedTensors, all_finite
from gonio.errors import DataError

__all__ = ["AdapterContents", "parse_tensors", "prefetch_contents", "read_contents"]

_IN_MEMORY_BYTES = 256 << 20  # larger weights are hashed in blocks and mapped when they are read
_BLOCK_BYTES = 4 << 20
_SPARE_BYTES = 1 << 16
_ADVISED_BYTES = 1 << 20  # Linux takes no more at a time than a device reads at once
_SHORTEST_HEADER, _LONGEST_HEADER = 2, 100_000_000  # the second is the library's own
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, eq=False)
class AdapterContents:
    """What the two files of an adapter folder held when they were read.

    Attributes:
        config: The bytes of ``adapter_config.json``.
        weights: The bytes of the weights file, uint8; None for a file too large to be kept, or
            one that changed its length.
        sha256: File name -> hexadecimal sha256 of the bytes.
    """

    config: bytes
    weights: Tensor | None
    sha256: Mapping[str, str]

    @cached_property
    def tensors(self) -> LoadedTensors | None:
        """Views into the weights, parsed when first asked for.

        None where the library must read that file itself: it is large, unusual or broken.
        """
        return None if self.weights is None else parse_tensors(self.weights)


def read_contents(
    folder: Path,
    stopped: Callable[[], bool] = lambda: False,
    limit: int = _IN_MEMORY_BYTES,
    buffers: RecycledBuffers | None = None,
) -> AdapterContents:
    """Read and hash both files of an adapter folder.

    Args:
        folder: The adapter folder.
        stopped: Asked between blocks; once it says yes, reading ends.
        limit: Weights of more bytes are hashed in blocks and not kept.
        buffers: Where the weights are kept; fresh memory when omitted.

    Raises:
        DataError: A file cannot be read, or reading was stopped.
    """
    config = b"".join(bytes(block) for block in _blocks(folder / CONFIG_NAME, None, stopped))
    weights = folder / WEIGHTS_NAME
    try:
        size = weights.stat().st_size
    except OSError as error:
        raise _unreadable(weights, error) from error
    kept = (buffers or RecycledBuffers()).take(size) if size <= limit else None
    digest, count = hashlib.sha256(), 0
    for block in _blocks(weights, kept, stopped):
        digest.update(block)
        count += len(block)
    if count != size:  # it has changed meanwhile
        kept = None
    hashes = {CONFIG_NAME: hashlib.sha256(config).hexdigest(), WEIGHTS_NAME: digest.hexdigest()}
    return AdapterContents(config, kept, hashes)


def prefetch_contents(folder: Path) -> None:
    """Ask the system to read the weights of a folder into its cache; nothing where it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        with (folder / WEIGHTS_NAME).open("rb", buffering=0) as stream:
            size = min(os.fstat(stream.fileno()).st_size, _IN_MEMORY_BYTES)
            for start in range(0, size, _ADVISED_BYTES):
                os.posix_fadvise(stream.fileno(), start, _ADVISED_BYTES, os.POSIX_FADV_WILLNEED)
    except OSError:
        return  # reading it will say why


def parse_tensors(contents: Tensor) -> LoadedTensors | None:
    """The tensors of a safetensors file as views of its bytes; None where it is not plain.

    Plain is: a header of ASCII without escapes, signs or repeated keys; tensors of 16 to 64 bit
    floats, none empty, that lie aligned one behind the other and fill the file.

    Args:
        contents: All bytes of the file, uint8, shape ``(bytes,)``.
    """
    length = int.from_bytes(bytes(contents[:8].numpy()), "little")
    start = 8 + length
    if not _SHORTEST_HEADER <= length <= _LONGEST_HEADER or start > len(contents):
        return None
    header = bytes(contents[8:start].numpy())
    entries = _entries(header)
    if entries is None or start + sum(entry.size for entry in entries) != len(contents):
        return None
    dtypes = {entry.dtype for entry in entries}
    if len(dtypes) == 1:
        dtype = dtypes.pop()
        values = contents[start:].view(dtype)
        parts = values.split([entry.size // dtype.itemsize for entry in entries])
        is_finite = all_finite(values)
    else:
        parts = contents[start:].split([entry.size for entry in entries])
        parts = [part.view(entry.dtype) for part, entry in zip(parts, entries, strict=True)]
        is_finite = False
    tensors = {
        entry.key: part.view(entry.shape) for entry, part in zip(entries, parts, strict=True)
    }
    return LoadedTensors(tensors, is_finite, header)


def _blocks(path: Path, kept: Tensor | None, stopped: Callable[[], bool]) -> Iterable[memoryview]:
    """The bytes of a file, a block at a time; written to ``kept``, or over the last block.

    A file that has grown yields what is behind ``kept`` too, so that the hash is of the whole.
    """
    spare = memoryview(bytearray(_SPARE_BYTES if kept is not None else _BLOCK_BYTES))
    target = memoryview(b"") if kept is None else kept.numpy().data
    try:
        with path.open("rb", buffering=0) as stream:
            place = 0
            while not stopped():
                block = target[place : place + _BLOCK_BYTES] or spare
                count = stream.readinto(block)
                if not count:
                    return
                yield block[:count]
                place += count
    except OSError as error:
        raise _unreadable(path, error) from error
    raise DataError(f"reading {path} was stopped")


class _Entry(NamedTuple):
    """One tensor's line of the header."""

    key: str
    dtype: torch.dtype
    shape: list[int]
    first: int
    size: int


@lru_cache(maxsize=4)  # the header of one adapter is that of the next
def _entries(text: bytes) -> Sequence[_Entry] | None:
    """The tensors as they lie in the file; None where they do not, aligned and without gaps."""
    entries = _header(text)
    if entries is None:
        return None
    entries, end = sorted(entries, key=lambda entry: entry.first), 0
    for entry in entries:
        size = math.prod(entry.shape) * entry.dtype.itemsize
        is_aligned = (8 + len(text) + entry.first) % entry.dtype.itemsize == 0
        if entry.first != end or entry.size != size or not is_aligned:
            return None
        end += size
    return entries


def _header(text: bytes) -> Sequence[_Entry] | None:
    """All tensors in the order of the header; None for one that is not plain JSON."""
    if text[:1] != b"{" or not text.isascii() or b"\\" in text or b"-0" in text:
        return None
    try:
        raw = json.loads(text, object_pairs_hook=_without_repeats)
        metadata = raw.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
            return None
        return [_entry(key, entry) for key, entry in raw.items()]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _entry(key: str, entry: Mapping[str, Any]) -> _Entry:
    """One tensor's line, checked.

    Raises:
        ValueError: It is not plain; also TypeError and KeyError.
    """
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    numbers = [*shape, first, last]
    if entry.keys() != _FIELDS or not all(type(number) is int for number in numbers):
        raise ValueError
    if not all(0 < size < 1 << 48 for size in shape) or min(first, last) < 0:
        raise ValueError
    return _Entry(key, _DTYPES[entry["dtype"]], shape, first, last - first)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror or error}")
