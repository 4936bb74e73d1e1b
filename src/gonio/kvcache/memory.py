"""Memory of a compressed cache: as counted at any length, and as allocated by one that is full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, cast, get_args

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import CodecError
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.compressed_cache import CompressedCache
from gonio.kvcache.contract import Part
from gonio.kvcache.control_codecs import LosslessCodec
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.filling import fill_caches
from gonio.kvcache.stream import TokenStream
from gonio.quant.accounting import StoredBits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "MEMORY_LENGTHS",
    "allocation_table",
    "coded_parts",
    "memory_table",
    "require_bytes_tell_all",
    "stored_parts",
]

Progress = Callable[[str, int, int], None]

MEMORY_LENGTHS = tuple(1024 * 2**power for power in range(8))  # 1K to 128K tokens
_CHUNK = 512  # tokens the model reads at a time where no logits are wanted
_TOLERANCE = 1e-3  # of a copy's decoding: sums over copies may round in another order


def coded_parts(codec: CacheCodec) -> tuple[Part, ...]:
    """Keys, values or both: the parts that some layer does not keep as they are."""
    return tuple(
        part
        for part in get_args(Part)
        if not all(isinstance(each, LosslessCodec) for each in codec.of(part))
    )


def stored_parts(codec: CacheCodec, seq_len: int, dtype: torch.dtype) -> dict[Part, StoredBits]:
    """Every stored byte of keys and of values at ``seq_len`` tokens, raw ones in ``dtype``."""
    return {part: codec.stored(seq_len, part, dtype) for part in get_args(Part)}


def memory_table(
    codecs: Mapping[str, CacheCodec], lengths: Iterable[int] = MEMORY_LENGTHS
) -> pd.DataFrame:
    """Bytes by context length beside a cache in bfloat16, raw tokens in bfloat16 too.

    Args:
        codecs: Codecs by name.
        lengths: Tokens of one sequence.

    Returns:
        One row per codec and length: ``method``, ``seq_len``, ``key_bytes``, ``value_bytes``,
        ``side_bytes`` (fixed, of both), ``total_bytes``, ``bf16_bytes``, ``compression_ratio``
        (bfloat16 over total), ``key_bits`` and ``value_bits`` (per element, side data apart).
    """
    rows = []
    for name, codec in codecs.items():
        for length in lengths:
            parts = stored_parts(codec, length, torch.bfloat16)
            sizes = {part: each.code_bytes + each.metadata_bytes for part, each in parts.items()}
            side = sum(each.side_bytes for each in parts.values())
            total = sum(sizes.values()) + side
            plain = sum(each.elements for each in parts.values()) * torch.bfloat16.itemsize
            rows.append(
                {
                    "method": name,
                    "seq_len": length,
                    "key_bytes": sizes["keys"],
                    "value_bytes": sizes["values"],
                    "side_bytes": side,
                    "total_bytes": total,
                    "bf16_bytes": plain,
                    "compression_ratio": plain / total,
                    "key_bits": parts["keys"].bits_per_element,
                    "value_bits": parts["values"].bits_per_element,
                }
            )
    return pd.DataFrame(rows)


@torch.no_grad()
def allocation_table(
    model: PreTrainedModel,
    ids: Tensor,
    codecs: Mapping[str, CacheCodec],
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Bytes behind caches that a model's keys and values have filled, beside the report.

    Every cache is also read back from a copy of its bytes: one whose codec remembers more than it
    stores is refused.

    Args:
        model: The model the codecs were made for.
        ids: Token ids ``(tokens,)`` it reads.
        codecs: Codecs by name.
        progress: Called with (what, chunks read, chunks).

    Returns:
        One row per codec: ``method``, ``seq_len``, ``dtype`` (of raw tokens), ``reported_bytes``
        (keys and values, side data apart), ``allocated_bytes`` and ``allocated_over_reported``.

    Raises:
        CodecError: A codec does not fit the model, or decodes what its bytes do not hold.
    """
    ids = ids.to(model.device)
    caches = fill_caches(model, ids[None], codecs, chunk=_CHUNK, progress=progress)
    rows = []
    for name, codec in codecs.items():
        cache = cast(CompressedCache, caches[name])
        require_bytes_tell_all(cache, name)
        parts = stored_parts(codec, ids.numel(), model.dtype).values()
        reported = sum(each.code_bytes + each.metadata_bytes for each in parts)
        allocated = cache.allocated_bytes
        rows.append(
            {
                "method": name,
                "seq_len": ids.numel(),
                "dtype": str(model.dtype).removeprefix("torch."),
                "reported_bytes": reported,
                "allocated_bytes": allocated,
                "allocated_over_reported": allocated / reported if reported else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def require_bytes_tell_all(cache: CompressedCache, name: str = "cache") -> None:
    """Refuse a cache that decodes anything but what its stored tensors hold.

    Args:
        cache: A filled cache.
        name: What it is called in the error.

    Raises:
        CodecError: A copy of the stored tensors decodes to something else.
    """
    for index, layer in enumerate(cache.layers):
        for part, stream in zip(get_args(Part), layer.streams, strict=True):
            found, copied = stream.read(), _copy(stream).read()
            if (found - copied).float().norm() > _TOLERANCE * found.float().norm():
                raise CodecError(
                    f"{name}: {part} of layer {index} do not decode from a copy of the stored "
                    f"bytes as they do from the cache\nThe codec {stream.codec.method!r} must "
                    "keep nothing outside the tensors it returns."
                )


def _copy(stream: TokenStream) -> TokenStream:
    """The same bytes under a codec and encoded tensors made anew."""
    settings, tensors = stream.codec.state()
    codec = stream.codec.from_state(settings, {k: _clone(v) for k, v in tensors.items()})
    other = TokenStream(codec, stream.sinks, stream.window)
    other.sink_part, other.recent = stream.sink_part, stream.recent
    other.runs = [
        EncodedTensor(
            tensors={name: _clone(tensor) for name, tensor in run.tensors.items()},
            tokens=run.tokens,
            head_dim=run.head_dim,
            dtype=run.dtype,
            block=run.block,
            metadata=run.metadata,
        )
        for run in stream.runs
    ]
    return other


def _clone(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
