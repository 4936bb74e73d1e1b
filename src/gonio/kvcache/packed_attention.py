"""``attn_implementation="gonio"``: attention computed on the codes of a compressed cache.

The first pass over a prompt is ordinary attention on fresh keys and values. From then on a layer
of packed codes is read as it is stored: scores by tables, values decoded within the processor's
registers, raw sinks and recent tokens beside them, all joined by their log-sum-exp. Masks, left
padding, sliding windows, soft caps, learned sinks and grouped queries are those of the model.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from gonio.errors import ModelError
from gonio.kernels import CodeRun, Parts, attend, attend_raw, kernel_status, merge_attention
from gonio.kvcache.compressed_cache import CompressedCache
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.layer import CompressedLayer
from gonio.kvcache.packed_codec import PackedTransformCodec
from gonio.kvcache.packed_layer import PackedLayer, PackedSlidingLayer, layer_behind
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.sliding import CompressedSlidingLayer
from gonio.kvcache.transform_codec import TransformCodec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "NAME",
    "fastest_attention",
    "packed_attention",
    "packed_cache",
    "use_packed_attention",
    "uses_packed",
]

NAME = "gonio"


def use_packed_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Register ``attn_implementation="gonio"`` and set it for a model.

    Caches made by :meth:`CacheCodec.new_cache` afterwards are read as they are stored.

    Returns:
        The model.

    Raises:
        ModelError: The model's attention does not go through transformers' ``AttentionInterface``.
    """
    if not model._can_set_attn_implementation():
        raise ModelError(
            f"{type(model).__name__}: its attention does not go through transformers' "
            "AttentionInterface, so it cannot be computed on codes"
        )
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return model


def uses_packed(model: PreTrainedModel) -> bool:
    """Whether the model's attention is ours just now."""
    return _is_ours(model.config.get_text_config(decoder=True))


def _is_ours(config: PretrainedConfig) -> bool:
    return bool(config._attn_implementation == NAME)


@contextmanager
def fastest_attention(model: PreTrainedModel, codecs: Sequence[TensorCodec]) -> Iterator[bool]:
    """Read codes as they are stored inside the block, where that is exact and compiled.

    Args:
        model: The model; its attention is put back afterwards.
        codecs: Of the keys and values of every layer; none for a cache that is not compressed.

    Yields:
        Whether codes are read: all codecs are scalar transform codecs, the kernels are compiled,
        the model is on the CPU, and its attention can be replaced.
    """
    can_read = (
        bool(codecs)
        and all(isinstance(each, TransformCodec) and each.is_readable for each in codecs)
        and model.device.type == "cpu"
        and model._can_set_attn_implementation()
        and kernel_status().level != "reference"
    )
    before = model.config.get_text_config(decoder=True)._attn_implementation
    if can_read and before != NAME:
        use_packed_attention(model)
    try:
        yield can_read
    finally:
        if can_read and before != NAME:
            model.set_attn_implementation(before)


def packed_cache(cache: CompressedCache, model: PreTrainedModel) -> CompressedCache:
    """An empty cache whose layers store codes as the kernels read them, where that can be.

    Layers whose keys or values have another codec, or a trellis, stay what they are; one warning
    says which.

    Args:
        cache: Empty, of :meth:`CacheCodec.new_cache`.
        model: The model it serves.
    """
    layers, others = [], {}
    config = model.config.get_text_config(decoder=True)  # asked by every layer at every step
    for index, layer in enumerate(cache.layers):
        reason = _why_not(layer)
        if reason:
            others[index] = reason
        layers.append(layer if reason else _packed(layer, lambda: _is_ours(config)))
    if others:
        warnings.warn(
            f"attention of {len(others)} of {len(layers)} layers reads decoded keys and values: "
            + "; ".join(f"layer {index}: {reason}" for index, reason in list(others.items())[:3]),
            stacklevel=3,
        )
    if len(others) == len(layers):
        return cache
    return CompressedCache(layers, f"{cache.fingerprint}-packed")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention for transformers' ``AttentionInterface``; shapes and results as there."""
    layer = layer_behind(key)
    special = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}
    given = {name: found for name, found in special.items() if found is not None}
    if layer is not None and (position_bias is not None or _differs_by_head(attention_mask)):
        hidden = layer.hidden_tokens(query.shape[-2])
        key, value = (stream.read()[:, :, hidden:] for stream in layer.streams)
        layer.finish()
        layer = None
    if layer is None:
        return _ordinary(module, query, key, value, attention_mask, scaling, given, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reading = _Reading(layer, query * scale, softcap or 0.0, attention_mask)
    parts = reading.parts()
    if s_aux is not None:
        parts.append(reading.sink(s_aux))
    out, _ = merge_attention(parts)
    layer.finish()
    batch, _, tokens, _ = query.shape
    return out.reshape(batch, -1, tokens, out.shape[-1]).transpose(1, 2).to(query.dtype), None


@dataclass(frozen=True, eq=False)
class _Reading:
    """One step's queries, and what they read of one layer.

    Rows are the queries of a key-value head: all tokens of its first query head, of its second...
    """

    layer: PackedLayer
    query: Tensor  # (batch, num_heads, queries, dim), scaled
    softcap: float
    given_mask: Tensor | None

    def parts(self) -> list[Parts]:
        """Attention over the sinks, each encoded run and the recent tokens, in vectors."""
        keys, values = self.layer.streams
        mask, rows = self._mask(), self._rows()
        parts, start = [], 0
        if keys.sink_part is not None and values.sink_part is not None:
            parts.append((keys.sink_part, values.sink_part, start))
            start += keys.sink_part.shape[2]
        encoded = start
        start += keys.encoded_tokens
        if keys.recent is not None and values.recent is not None:
            parts.append((keys.recent, values.recent, start))
        found = [
            attend_raw(rows, *raw, mask=mask, first=first, softcap=self.softcap)
            for *raw, first in parts
        ]
        return [*found, self._encoded_part(rows, mask, encoded)] if keys.runs else found

    def sink(self, s_aux: Tensor) -> Parts:
        """A learned sink of each query head: weight without a value."""
        batch, _, queries, _ = self.query.shape
        heads = self.layer.codecs[0].plan.heads
        lse = s_aux.float().view(heads, -1, 1).expand(-1, -1, queries).reshape(heads, -1)
        lse = lse.expand(batch, -1, -1)
        return lse.new_zeros((*lse.shape, self.layer.codecs[1].plan.dim)), lse

    def _rows(self) -> Tensor:
        batch, _, _, dim = self.query.shape
        return self.query.float().reshape(batch, self.layer.codecs[0].plan.heads, -1, dim)

    def _mask(self) -> Tensor | None:
        """What is added to scores, float32 ``(batch, queries, stored tokens)``."""
        batch, _, queries, _ = self.query.shape
        stored = self.layer.key_stream.tokens
        hidden = self.layer.hidden_tokens(queries)
        given = self.given_mask
        if given is None:
            if queries == 1 and hidden == 0:
                return None
            last = torch.arange(stored - queries, stored)[:, None]
            seen = torch.arange(hidden, stored) <= last
            given = seen.expand(batch, 1, queries, stored - hidden)
        given = given[:, 0, :, : stored - hidden].expand(batch, -1, -1)
        if given.dtype == torch.bool:
            given = torch.zeros(given.shape).masked_fill(~given, -torch.inf)
        full = torch.full((batch, queries, stored), -torch.inf)
        full[:, :, hidden:] = given
        return full

    def _encoded_part(self, rows: Tensor, mask: Tensor | None, first: int) -> Parts:
        keys, values = self.layer.codecs
        runs = [
            CodeRun(
                of_keys.tensors["codes"][:, 0], of_values.tensors["codes"][:, 0], of_keys.tokens
            )
            for of_keys, of_values in zip(
                self.layer.key_stream.runs, self.layer.value_stream.runs, strict=True
            )
        ]
        return attend(
            rows,
            runs,
            (keys.plan, values.plan),
            frame=self.layer.frame,
            mask=mask,
            first=first,
            softcap=self.softcap,
        )


def _ordinary(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    special: dict[str, Any],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Attention on keys and values as they are: fused where torch can, else the model's own."""
    arguments = {**kwargs, **special, "scaling": scaling}
    if "softcap" not in special and "s_aux" not in special:
        fused: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, mask, **arguments
        )
        return fused
    queries, stored = query.shape[-2], key.shape[-2]
    if mask is None:
        seen = torch.ones(queries, stored, dtype=torch.bool, device=query.device)
        mask = seen.tril(stored - queries)[None, None]
    if mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(
            ~mask, lowest
        )
    own: Callable[..., tuple[Tensor, Tensor | None]] | None = getattr(
        sys.modules[type(module).__module__], "eager_attention_forward", None
    )
    if own is None:
        raise ModelError(f"{type(module).__name__}: no eager attention function beside it")
    return own(module, query, key, value, mask[..., :stored], **arguments)


def _differs_by_head(mask: Tensor | None) -> bool:
    return mask is not None and mask.shape[1] != 1


def _why_not(layer: CompressedLayer) -> str:
    """Why a layer's codes cannot be read by the kernels; empty when they can."""
    for part, stream in zip(get_args(Part), layer.streams, strict=True):
        codec = stream.codec
        if isinstance(codec, PreRopeCodec):
            return "keys are coded before RoPE, which the kernels do not turn"
        if not isinstance(codec, TransformCodec):
            return f"{part} are {getattr(codec, 'method', 'raw')}, not transform"
        if codec.states > 1:
            return f"{part} have a trellis (calibrate with states=1)"
        if not codec.is_readable:
            return f"{part} have one basis for all heads (calibrate with span='head')"
    return ""


def _packed(layer: CompressedLayer, is_used: Callable[[], bool]) -> CompressedLayer:
    codecs = [
        PackedTransformCodec(stream.codec, part)
        for part, stream in zip(get_args(Part), layer.streams, strict=True)
        if isinstance(stream.codec, TransformCodec)
    ]
    options: dict[str, Any] = {"window": layer.key_stream.window, "prefill": layer.prefill}
    if isinstance(layer, CompressedSlidingLayer):
        return PackedSlidingLayer(layer.sliding_window, *codecs, is_used=is_used, **options)
    return PackedLayer(*codecs, is_used=is_used, sinks=layer.key_stream.sinks, **options)
