"""The codec of a whole model: one codec per layer for keys and one for values, in one file."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gonio.errors import CodecError, ModelError, SettingError
from gonio.kvcache.compressed_cache import CompressedCache
from gonio.kvcache.container import read_container, write_container
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec
from gonio.kvcache.costs import new_stream, stored_by_layer
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.layer import CompressedLayer, Prefill
from gonio.kvcache.packed_attention import packed_cache, uses_packed
from gonio.kvcache.positions import PLACED, Reach
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.rotary import PositionWatch, has_rotary, model_rotary
from gonio.kvcache.side_data import (
    CodecState,
    pack_codecs,
    side_bytes,
    side_fingerprint,
    unpack_codecs,
)
from gonio.kvcache.sliding import CompressedSlidingLayer
from gonio.models.attention import AttentionLayout, attention_layout
from gonio.quant.accounting import StoredBits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CacheCodec", "Part", "load_codec"]

_HEADER = "gonio_codec"
_FORMAT = 2


class _Header(BaseModel):
    """The JSON header of a codec file; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[2]
    layout: AttentionLayout
    sinks: int
    window: int
    codecs: dict[Part, list[CodecState]]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class CacheCodec:
    """A codec for the keys and one for the values of every layer of a model.

    A sequence is stored as raw sinks, encoded blocks and a raw recent part. A layer with a
    sliding window has no sinks and drops what left its window; give it a :class:`LosslessCodec`
    (:meth:`with_raw_sliding`) to leave it raw.

    Attributes:
        layout: The attention shape it fits.
        keys: One codec per decoder layer.
        values: One codec per decoder layer; when empty, values are kept as they are.
        sinks: First tokens kept raw.
        window: Most recent tokens kept raw, before those that wait for their block to fill.
        provenance: Where it was calibrated: model, text hash, tokens, seed, settings.
    """

    layout: AttentionLayout
    keys: tuple[TensorCodec, ...]
    values: tuple[TensorCodec, ...] = ()
    sinks: int = 0
    window: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            object.__setattr__(self, "values", (LosslessCodec(),) * len(self.keys))
        for part in get_args(Part):
            found = len(self.of(part))
            if found != self.layout.num_layers:
                raise CodecError(
                    f"a codec for {self.layout.num_layers} layers was given {found} for {part}"
                )
        if self.sinks < 0 or self.window < 0:
            raise SettingError(
                f"sinks and window must be >= 0, found {self.sinks} and {self.window}"
            )

    def of(self, part: Part) -> tuple[TensorCodec, ...]:
        """The codecs of ``keys`` or ``values``, one per layer.

        Raises:
            SettingError: The part is neither.
        """
        if part not in get_args(Part):
            raise SettingError(f"part must be keys or values, found {part!r}")
        return self.keys if part == "keys" else self.values

    @property
    def method(self) -> str:
        """Names of the methods that code keys, joined by ``+`` when layers differ."""
        return "+".join(dict.fromkeys(codec.method for codec in self.keys))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of settings and side data: caches filled with equal codecs can be exchanged."""
        return side_fingerprint({"keys": self.keys, "values": self.values})

    def with_raw_sliding(self) -> CacheCodec:
        """The same codec with the layers that have a sliding window left raw."""

        def raw(codecs: tuple[TensorCodec, ...]) -> tuple[TensorCodec, ...]:
            return tuple(
                codec if self.layout.window_of(layer) is None else LosslessCodec()
                for layer, codec in enumerate(codecs)
            )

        return replace(self, keys=raw(self.keys), values=raw(self.values))

    def new_cache(
        self,
        model: PreTrainedModel,
        *,
        prefill: Prefill = "exact",
        left_padding: int = 0,
        scratch_bytes: int = 0,
    ) -> CompressedCache:
        """An empty cache for ``model.generate(past_key_values=...)`` that stores packed bytes only.

        Args:
            model: The model it will serve.
            prefill: What attention reads on the first call, see
                :class:`gonio.kvcache.layer.CompressedLayer`.
            left_padding: Padding tokens before the longest-padded sequence of the batch. Sinks are
                the first columns of the batch; with padding that many more are kept raw, so that
                each sequence's own first tokens are among them.
            scratch_bytes: Decoded tokens that all layers together may keep, so that a step decodes
                only the rest; reported as ``scratch_bytes`` of the cache. 0 keeps none.

        Raises:
            CodecError: The model's attention has another shape than the codec's.
            ModelError: The model's kind of attention is not supported, or it wants a static or
                compiled cache.
            SettingError: The padding or the scratch is negative, or the prefill unknown.
        """
        if scratch_bytes < 0:
            raise SettingError(f"scratch_bytes must be >= 0, found {scratch_bytes}")
        if left_padding < 0 or prefill not in get_args(Prefill):
            raise SettingError(
                f"left_padding must be >= 0 and prefill one of {', '.join(get_args(Prefill))}, "
                f"found {left_padding} and {prefill!r}"
            )
        found = attention_layout(model.config)
        if found != self.layout:
            raise CodecError(
                f"the codec was made for {self.layout}\n  the model has {found}\n"
                "Calibrate a codec for this model."
            )
        _check_model(model)
        sinks = self.sinks + left_padding if self.sinks else 0
        limit = scratch_bytes // self.layout.num_layers
        layers = [self._layer(i, prefill, sinks, limit) for i in range(self.layout.num_layers)]
        cache = CompressedCache(layers, self.fingerprint)
        cache = packed_cache(cache, model) if uses_packed(model) else cache
        self._follow_positions(cache.layers, model, left_padding)
        return cache

    @property
    def positions(self) -> int | None:
        """Positions that the keys' codec serves: those of its calibration; None for all.

        None also where these are not known.
        """
        known = self.provenance.get("positions")
        return int(known) if known and set(self.method.split("+")) & set(PLACED) else None

    def _follow_positions(
        self, layers: list[CompressedLayer], model: PreTrainedModel, left_padding: int
    ) -> None:
        """Have the layers see positions where keys are turned by them, or warn past the last."""
        if any(isinstance(codec, PreRopeCodec) for codec in self.keys):
            model_rotary(model)  # refuses a model whose angles or positions are not known
            watch = PositionWatch(model)
            for layer in layers:
                layer.watch = watch
        if self.positions is not None and has_rotary(model):
            reach = Reach(self.method, self.positions, left_padding)
            for layer in layers:
                layer.reach = reach

    def _layer(self, index: int, prefill: Prefill, sinks: int, scratch: int) -> CompressedLayer:
        key, value, window = self.keys[index], self.values[index], self.layout.window_of(index)
        if window is None:
            return CompressedLayer(
                key,
                value,
                sinks=sinks,
                window=self.window,
                prefill=prefill,
                scratch_limit=scratch,
            )
        return CompressedSlidingLayer(
            window, key, value, window=self.window, prefill=prefill, scratch_limit=scratch
        )

    def roundtrip(self, layer: int, keys: Tensor, part: Part = "keys") -> Tensor:
        """Keys, or values, of one layer as a cache would return them all.

        Args:
            layer: Index of the decoder layer.
            keys: ``(batch, num_kv_heads, seq_len, head_dim)``, keys after RoPE.
            part: Whether they are ``keys`` or ``values``.

        Returns:
            The approximation, same shape and dtype; sinks, window and an incomplete block are raw.
        """
        codec = self.of(part)[layer]
        stream = new_stream(codec, self.layout, layer, sinks=self.sinks, window=self.window)
        stream.append(keys)
        return stream.read()

    def stored(
        self, seq_len: int, part: Part = "keys", dtype: torch.dtype = torch.float16
    ) -> StoredBits:
        """Every byte a sequence of ``seq_len`` tokens stores, and the fixed side data.

        Counts codes, scales, padding, raw sinks, the raw window and incomplete blocks, by storing
        a sequence rather than by formula. Of a sliding layer the tokens in its window count.

        Args:
            seq_len: Tokens.
            part: ``keys`` or ``values``.
            dtype: What raw tokens are stored in: the model's dtype.
        """
        by_layer = self.stored_by_layer(seq_len, part, dtype)
        return replace(sum(by_layer[1:], by_layer[0]), side_bytes=side_bytes(self.of(part)))

    def stored_by_layer(
        self, seq_len: int, part: Part = "keys", dtype: torch.dtype = torch.float16
    ) -> list[StoredBits]:
        """As :meth:`stored`, per layer; side data that layers share counts in each."""
        return stored_by_layer(
            self.of(part),
            self.layout,
            seq_len,
            part=part,
            sinks=self.sinks,
            window=self.window,
            dtype=dtype,
            blocks=self._blocks,
        )

    @cached_property
    def _blocks(self) -> dict[tuple[Part, int, torch.dtype], EncodedTensor]:
        """What one block of each layer stores, once it was asked for."""
        return {}

    def bits_per_element(self, seq_len: int = 4096, part: Part = "keys") -> float:
        """Stored bits per key (or value) element that grow with the sequence, at ``seq_len``."""
        return self.stored(seq_len, part).bits_per_element

    def describe_layers(self, seq_len: int = 4096) -> pd.DataFrame:
        """What happens to each layer.

        Returns:
            One row per layer: ``layer``, ``attention`` (``full`` or ``sliding``), ``window``
            (tokens, NaN for full), ``keys`` and ``values`` (methods; ``lossless`` is raw),
            ``key_bits`` and ``value_bits`` (stored bits per element at ``seq_len`` tokens) and
            ``tokens_held`` of that sequence.
        """
        windows = [self.layout.window_of(layer) for layer in range(self.layout.num_layers)]
        key_bits, value_bits = (
            [bits.bits_per_element for bits in self.stored_by_layer(seq_len, part)]
            for part in get_args(Part)
        )
        return pd.DataFrame(
            {
                "layer": range(self.layout.num_layers),
                "attention": ["full" if window is None else "sliding" for window in windows],
                "window": [float("nan") if window is None else window for window in windows],
                "keys": [codec.method for codec in self.keys],
                "values": [codec.method for codec in self.values],
                "key_bits": key_bits,
                "value_bits": value_bits,
                "tokens_held": [
                    self.layout.tokens_held(layer, seq_len) for layer in range(len(windows))
                ],
            }
        )

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        states, tensors = pack_codecs({"keys": self.keys, "values": self.values})
        header = _Header(
            format=_FORMAT,
            layout=self.layout,
            sinks=self.sinks,
            window=self.window,
            codecs=states,
            provenance=self.provenance,
        )
        write_container(Path(path), _HEADER, header, tensors)
        return Path(path)


def load_codec(path: Path | str) -> CacheCodec:
    """Read a codec written by :meth:`CacheCodec.save`.

    Raises:
        CodecError: The file is missing, broken, or not a gonio codec of this format.
    """
    header, tensors = read_container(
        Path(path),
        _HEADER,
        _Header,
        what="codec",
        cure="Make one with `gonio cache calibrate`.",
    )
    try:
        parts = {part: unpack_codecs(states, tensors) for part, states in header.codecs.items()}
        return CacheCodec(
            header.layout,
            keys=parts.get("keys", ()),
            values=parts.get("values", ()),
            sinks=header.sinks,
            window=header.window,
            provenance=header.provenance,
        )
    except CodecError as error:
        raise CodecError(f"cannot use the codec in {path}\n  {error}") from error


def _check_model(model: PreTrainedModel) -> None:
    """Refuse what would fail, or bypass the cache, after the first token."""
    name = model.config.model_type
    is_wrapped = hasattr(model, "_orig_mod")  # by torch.compile(model)
    if is_wrapped or getattr(model, "_compiled_call_impl", None) is not None:  # model.compile()
        raise ModelError(
            f"{name}: a compiled model needs a static cache; pass a model that is not compiled"
        )
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"{name}: the model takes no past_key_values, so it has no cache")
    wanted = getattr(getattr(model, "generation_config", None), "cache_implementation", None)
    if wanted not in (None, "dynamic"):
        raise ModelError(
            f"{name}: generation_config asks for a {wanted!r} cache, which excludes this one; "
            "set model.generation_config.cache_implementation = None"
        )
