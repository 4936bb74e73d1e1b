"""One pass of a model that fills many caches: with its exact keys and values, by their own rules.

An exact prefill gives every cache the same keys and values, so one pass serves all codecs; each
cache stores them as if it had been given to the model, and nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.compressed_cache import CompressedCache

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["FULL", "fill_caches", "read_chunks"]

FULL = "full"  # the name of full precision among methods


class _Tee(DynamicCache):
    """A full-precision cache that passes on whatever it is given."""

    def __init__(self, model: PreTrainedModel, others: Mapping[str, CompressedCache]) -> None:
        super().__init__(config=model.config)
        self.others = dict(others)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        for cache in self.others.values():
            cache.layers[layer_idx].store(key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@torch.no_grad()
def fill_caches(
    model: PreTrainedModel,
    ids: Tensor,
    codecs: Mapping[str, CacheCodec],
    *,
    chunk: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Cache]:
    """Caches filled with the exact keys and values of a text, one per codec and one in full.

    Args:
        model: The model the codecs were made for.
        ids: Token ids ``(batch, tokens)`` on the model's device.
        codecs: Codecs by name.
        chunk: Tokens the model reads at a time; all at once unless given.
        progress: Called with (what, chunks read, chunks).

    Returns:
        :data:`FULL` and every codec's name, in order, with its cache.

    Raises:
        CodecError: A codec does not fit the model.
        ModelError: The model's attention is not supported.
    """
    filled = {name: codec.new_cache(model) for name, codec in codecs.items()}
    tee = _Tee(model, filled)
    parts = ids.split(chunk or ids.shape[1], dim=1)
    for done, part in enumerate(parts, start=1):
        model(input_ids=part, past_key_values=tee, use_cache=True, logits_to_keep=1)
        if progress is not None:
            progress("filling caches", done, len(parts))
    tee.others = {}
    return {FULL: tee, **filled}


@torch.no_grad()
def read_chunks(model: PreTrainedModel, ids: Tensor, cache: Cache, chunk: int) -> Iterator[Tensor]:
    """Logits ``(tokens, vocabulary)`` of tokens that follow a filled cache, chunk by chunk.

    Args:
        model: The model.
        ids: Token ids ``(1, tokens)``.
        cache: Filled with all tokens before; each chunk is added to it.
        chunk: Tokens per chunk. The last ones of a chunk stay raw where the codec has a window or
            blocks; with one token per chunk that is what decoding does.
    """
    for part in ids.split(chunk, dim=1):
        yield model(input_ids=part, past_key_values=cache, use_cache=True).logits[0]
