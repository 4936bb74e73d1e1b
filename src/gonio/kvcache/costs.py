"""What a sequence costs to store, layer by layer: counted on stored tensors, not by formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.encoded import EncodedTensor
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
    blocks: dict[tuple[Part, int, torch.dtype], EncodedTensor] | None = None,
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
        blocks: Filled with what one block of each layer stores, and read in later calls for the
            same codecs.
    """
    blocks = {} if blocks is None else blocks
    dim = layout.head_dim if part == "keys" else layout.value_dim
    tokens = torch.zeros((), dtype=dtype).expand(1, layout.num_kv_heads, seq_len, dim)
    counted = []
    for layer, codec in enumerate(codecs):
        if (part, layer, dtype) not in blocks:
            blocks[part, layer, dtype] = _one_block(codec, layout.num_kv_heads, dim, dtype)
        one = _OneBlock(codec.block, blocks[part, layer, dtype])
        appending = cast(TensorCodec, one)  # nothing is read back
        stream = new_stream(appending, layout, layer, sinks=sinks, window=window)
        stream.append(tokens)
        held = layout.tokens_held(layer, seq_len)
        if held < seq_len:
            stream.remove_first(seq_len - held)
        counted.append(
            StoredBits(
                code_bytes=stream.stored_bytes - stream.metadata_bytes,
                metadata_bytes=stream.metadata_bytes,
                side_bytes=codec.side_bytes,
                elements=layout.num_kv_heads * held * dim,
            )
        )
    return counted


def _one_block(codec: TensorCodec, heads: int, dim: int, dtype: torch.dtype) -> EncodedTensor:
    """What a block of tokens stores, as shapes without memory."""
    zeros = torch.zeros((), dtype=dtype).expand(1, heads, codec.block, dim)
    return codec.encode(zeros).map(lambda tensor: tensor.to("meta"))


@dataclass(frozen=True)
class _OneBlock:
    """Stores every block as the first one: the contract gives all of them the same bytes."""

    block: int
    one: EncodedTensor

    def encode(self, x: Tensor) -> EncodedTensor:
        tokens = x.shape[2]
        repeated = {
            name: tensor.repeat(1, 1, tokens // self.block, *[1] * (tensor.ndim - 3))
            for name, tensor in self.one.tensors.items()
        }
        return replace(self.one, tensors=repeated, tokens=tokens)
