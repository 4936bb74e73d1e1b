"""A filled cache in one safetensors file: prefill once, continue later or elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gonio.errors import CodecError, ShapeError
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.compressed_cache import CompressedCache
from gonio.kvcache.container import read_container, write_container
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.layer import CompressedLayer, Prefill
from gonio.kvcache.sliding import CompressedSlidingLayer
from gonio.kvcache.stream import TokenStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["cached_tokens", "load_cache", "save_cache"]

_HEADER = "gonio_cache"
_PARTS = ("keys", "values")
_MARKED = 64  # elements of each parameter


class _Run(BaseModel):
    """Shape of one encoded run; its tensors are named in the file."""

    model_config = ConfigDict(extra="forbid")

    tokens: int
    head_dim: int
    dtype: str
    block: int
    metadata: list[str]
    tensors: list[str]


class _Stream(BaseModel):
    """One stream: runs, and whether there are raw parts."""

    model_config = ConfigDict(extra="forbid")

    sinks: int
    raw: list[Literal["sink_part", "recent"]]
    runs: list[_Run]


class _Layer(BaseModel):
    """One layer; ``seen`` counts tokens that left a sliding window too."""

    model_config = ConfigDict(extra="forbid")

    seen: int
    dtype: str | None
    streams: list[_Stream]


class _Header(BaseModel):
    """The JSON header of a cache file; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    fingerprint: str
    prefill: Prefill
    layers: list[_Layer]
    tokens: list[int] | None = None
    weights: str | None = None


def save_cache(
    cache: CompressedCache,
    path: Path | str,
    *,
    tokens: Tensor | None = None,
    model: PreTrainedModel | None = None,
) -> Path:
    """Write a filled cache, as it is stored, to one safetensors file, atomically.

    Args:
        cache: A cache of :meth:`CacheCodec.new_cache`, filled or empty.
        path: File to write.
        tokens: Token ids ``(n,)`` of the text to continue, those in the cache first; whoever
            loads it can then tell what it holds (:func:`cached_tokens`).
        model: The model that filled it; others of the same shape are then refused.

    Raises:
        CodecError: The cache is not one of gonio's.
        OutputError: The file cannot be written.
    """
    if not isinstance(cache, CompressedCache):
        raise CodecError(
            f"cannot save a {type(cache).__name__}: only caches of CacheCodec.new_cache"
        )
    tensors: dict[str, Tensor] = {}
    layers = []
    for index, layer in enumerate(cache.layers):
        streams = [
            _pack(stream, f"{index}.{part}", tensors)
            for part, stream in zip(_PARTS, layer.streams, strict=True)
        ]
        dtype = str(layer.dtype).removeprefix("torch.") if layer.is_initialized else None
        layers.append(_Layer(seen=layer.get_seq_length(), dtype=dtype, streams=streams))
    prefill = cache.layers[0].prefill
    header = _Header(
        format=1,
        fingerprint=cache.fingerprint,
        prefill=prefill,
        layers=layers,
        tokens=None if tokens is None else tokens.tolist(),
        weights=None if model is None else _weights_mark(model),
    )
    write_container(Path(path), _HEADER, header, tensors)
    return Path(path)


def load_cache(
    path: Path | str, model: PreTrainedModel, codec: CacheCodec, *, scratch_bytes: int = 0
) -> CompressedCache:
    """Read a cache written by :func:`save_cache`, ready to continue from.

    Args:
        path: File to read.
        model: The model it serves; tensors go to its device.
        codec: The codec the cache was filled with, or an equal one.
        scratch_bytes: As of :meth:`CacheCodec.new_cache`.

    Raises:
        CodecError: The file is missing or broken, was filled with another codec, by another model
            or in another dtype, or the codec does not fit the model.
        ModelError: The model's attention is not supported.
    """
    path = Path(path)
    header, tensors = _read(path)
    cache = codec.new_cache(model, prefill=header.prefill, scratch_bytes=scratch_bytes)
    if header.fingerprint != cache.fingerprint or len(header.layers) != len(cache.layers):
        raise CodecError(
            f"the cache in {path} was filled with another codec\n"
            f"  its fingerprint  {header.fingerprint}\n  the codec's      {cache.fingerprint}\n"
            "Load it with the codec that made it."
        )
    _require_model(header, model, path)
    try:
        for index, (layer, found) in enumerate(zip(cache.layers, header.layers, strict=True)):
            _restore(layer, found, index, tensors, model.device)
    except KeyError as error:
        raise CodecError(f"the cache in {path} lacks tensor {error}") from error
    except ShapeError as error:
        raise CodecError(f"the cache in {path} is damaged\n  {error}") from error
    held = cache.get_seq_length()
    if header.tokens is not None and len(header.tokens) < held:
        raise CodecError(
            f"the cache in {path} is damaged\n"
            f"  it names {len(header.tokens)} tokens and holds {held}"
        )
    return cache


def cached_tokens(path: Path | str) -> Tensor:
    """The token ids ``(n,)`` a cache was saved with; those it holds are the first.

    Raises:
        CodecError: The file is missing or broken, or was saved without tokens.
    """
    header, _ = _read(Path(path))
    if header.tokens is None:
        raise CodecError(
            f"the cache in {path} does not say which tokens it holds\n"
            "Save it with save_cache(cache, path, tokens=...)."
        )
    return torch.tensor(header.tokens)


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    return read_container(
        path, _HEADER, _Header, what="cache", cure="Make one with gonio.kvcache.save_cache."
    )


def _pack(stream: TokenStream, prefix: str, tensors: dict[str, Tensor]) -> _Stream:
    """Describe a stream and add its tensors to those to write."""
    raw: list[Literal["sink_part", "recent"]] = []
    if stream.sink_part is not None:
        raw.append("sink_part")
        tensors[f"{prefix}.sink_part"] = stream.sink_part
    if stream.recent is not None:
        raw.append("recent")
        tensors[f"{prefix}.recent"] = stream.recent
    runs = []
    for index, run in enumerate(stream.runs):
        tensors |= {f"{prefix}.{index}.{name}": tensor for name, tensor in run.tensors.items()}
        runs.append(
            _Run(
                tokens=run.tokens,
                head_dim=run.head_dim,
                dtype=str(run.dtype).removeprefix("torch."),
                block=run.block,
                metadata=list(run.metadata),
                tensors=sorted(run.tensors),
            )
        )
    return _Stream(sinks=stream.sinks, raw=raw, runs=runs)


def _restore(
    layer: CompressedLayer,
    found: _Layer,
    index: int,
    tensors: dict[str, Tensor],
    device: torch.device,
) -> None:
    if found.dtype is None:
        return
    empty = torch.empty(0, dtype=_dtype(found.dtype), device=device)
    layer.lazy_initialization(empty, empty)
    for part, stream, state in zip(_PARTS, layer.streams, found.streams, strict=True):
        prefix = f"{index}.{part}"
        stream.sinks = state.sinks
        for name in state.raw:
            raw = tensors[f"{prefix}.{name}"]
            if raw.ndim != 4 or raw.dtype != layer.dtype:
                raise ShapeError(
                    f"{prefix}.{name} is {raw.dtype} of shape {tuple(raw.shape)}, expected "
                    f"{layer.dtype} (batch, num_kv_heads, tokens, head_dim)"
                )
            setattr(stream, name, raw.to(device))
        stream.runs = [
            EncodedTensor(
                tensors={name: tensors[f"{prefix}.{i}.{name}"].to(device) for name in run.tensors},
                tokens=run.tokens,
                head_dim=run.head_dim,
                dtype=_dtype(run.dtype),
                block=run.block,
                metadata=tuple(run.metadata),
            )
            for i, run in enumerate(state.runs)
        ]
    if isinstance(layer, CompressedSlidingLayer):
        layer.cumulative_length = found.seen


def _require_model(header: _Header, model: PreTrainedModel, path: Path) -> None:
    """Refuse a cache that another model filled, or this one in another dtype."""
    own = str(model.dtype).removeprefix("torch.")
    other = {layer.dtype for layer in header.layers} - {None, own}
    if other:
        raise CodecError(
            f"the cache in {path} was filled in {', '.join(sorted(map(str, other)))}, the model "
            f"computes in {own}\nLoad the model in the cache's dtype."
        )
    if header.weights not in (None, _weights_mark(model)):
        raise CodecError(
            f"the cache in {path} was filled by a model with other weights\n"
            "Load it with the model that made it."
        )


def _weights_mark(model: PreTrainedModel) -> str:
    """SHA-256 of the first elements of every parameter: tells models of one shape apart."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        first = parameter.detach().flatten()[:_MARKED].cpu().contiguous()
        digest.update(first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CodecError(f"the cache names an unknown dtype {name!r}")
    return found
