"""Messages between the two processes: a JSON object and tensors, without pickles.

Frame: two little-endian 64-bit lengths, the JSON text, then a safetensors block.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

from safetensors.torch import load, save
from torch import Tensor

__all__ = ["read_message", "write_message"]

_LENGTHS = struct.Struct("<QQ")


def write_message(
    stream: IO[bytes], content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write one message and flush.

    Raises:
        OSError: The other side is gone.
    """
    text = json.dumps(content).encode("utf-8")
    block = save({name: tensor.contiguous() for name, tensor in (tensors or {}).items()})
    stream.write(_LENGTHS.pack(len(text), len(block)) + text)
    stream.write(block)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The next message; None where the stream ends, also inside a message."""
    head = _read(stream, _LENGTHS.size)
    if head is None:
        return None
    text_length, block_length = _LENGTHS.unpack(head)
    text, block = _read(stream, text_length), _read(stream, block_length)
    if text is None or block is None:
        return None
    return json.loads(text), load(block)


def _read(stream: IO[bytes], count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = stream.read(count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)
