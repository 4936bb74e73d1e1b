"""What a sequence costs to store, layer by layer: counted on stored tensors, not by formula."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.stream import TokenStream
from gonio.models.attention import AttentionLayout
from gonio.quant.accounting import StoredBits

__all__ = ["new_stream", "stored_by_layer"]


def new_stream(
    codec: TensorCodec, layout: AttentionLayout, layer: int, *, sinks: int, window: int
) -> TokenStream:
    """Empty storage for one tensor of a layer; a layer with a sliding window has no sinks."""
    return TokenStream(codec, sinks if layout.window_of(layer) is None else 0, window)


def stored_by_layer(
    codecs: Sequence[TensorCodec],
    layout: AttentionLayout,
    seq_len: int,
    *,
    part: Part,
    sinks: int = 0,
    window: int = 0,
    dtype: torch.dtype = torch.float16,
) -> list[StoredBits]:
    """Every byte that each layer stores of one sequence, and its fixed side data.

    Codes, scales, padding, raw sinks, the raw window and incomplete blocks count. Of a layer with
    a sliding window the tokens still in it count, as stored bytes and as elements.

    Args:
        codecs: One per layer.
        layout: Shape of the model's cache.
        seq_len: Tokens.
        part: Whether ``keys`` or ``values`` are stored.
        sinks: First tokens kept raw.
        window: Most recent tokens kept raw.
        dtype: What raw tokens are stored in: the model's dtype.
    """
    dim = layout.head_dim if part == "keys" else layout.value_dim
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, layout.num_kv_heads, seq_len, dim), generator=generator).to(dtype)
    known: dict[str, StoredBits] = {}  # layers alike but for the content of their side data
    counted = []
    for layer, codec in enumerate(codecs):
        settings, tensors = codec.state()
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        key = json.dumps([codec.method, settings, shapes, layout.window_of(layer)], sort_keys=True)
        if key not in known:
            stream = new_stream(codec, layout, layer, sinks=sinks, window=window)
            stream.append(x)
            held = layout.tokens_held(layer, seq_len)
            if held < seq_len:
                stream.remove_first(seq_len - held)
            known[key] = StoredBits(
                code_bytes=stream.stored_bytes - stream.metadata_bytes,
                metadata_bytes=stream.metadata_bytes,
                side_bytes=codec.side_bytes,
                elements=layout.num_kv_heads * held * dim,
            )
        counted.append(known[key])
    return counted
