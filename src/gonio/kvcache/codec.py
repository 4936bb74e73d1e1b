"""The codec of a whole model: one key codec per layer, in one safetensors file.

The file's tensors are the layers' side data; its header holds the method, its settings, the
shape it fits and where it was calibrated. Nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gonio.errors import CodecError
from gonio.files import replace_file
from gonio.kvcache.contract import KeyCodec
from gonio.kvcache.control_codecs import LosslessCodec, ZeroCodec
from gonio.kvcache.layer import CompressedLayer, Prefill
from gonio.kvcache.sign_codec import SignCodec
from gonio.models.attention import AttentionLayout, attention_layout
from gonio.quant.accounting import StoredBits

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

__all__ = ["CacheCodec", "load_codec"]

_HEADER = "gonio_codec"
_FORMAT = 1
_CODECS: dict[str, type[KeyCodec]] = {
    LosslessCodec.method: LosslessCodec,
    SignCodec.method: SignCodec,
    ZeroCodec.method: ZeroCodec,
}


class _Header(BaseModel):
    """The JSON header of a codec file; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    format: int
    method: str
    layout: AttentionLayout
    settings: list[dict[str, Any]]
    shared: list[str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class CacheCodec:
    """A key codec for every layer of a model; values are kept as they are.

    Attributes:
        layout: The attention shape it fits.
        layers: One key codec per decoder layer, all of one method.
        provenance: Where it was calibrated: model, text hash, tokens, seed, settings.
    """

    layout: AttentionLayout
    layers: tuple[KeyCodec, ...]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if len(self.layers) != self.layout.num_layers:
            raise CodecError(
                f"a codec for {self.layout.num_layers} layers was given {len(self.layers)}"
            )
        if len({type(layer) for layer in self.layers}) > 1:
            raise CodecError("the layers of one codec must share one method")

    @property
    def method(self) -> str:
        """Name of the coding method."""
        return self.layers[0].method

    def new_cache(self, model: PreTrainedModel, *, prefill: Prefill = "exact") -> Cache:
        """An empty cache for ``model.generate(past_key_values=...)`` that stores packed keys.

        Args:
            model: The model it will serve.
            prefill: What attention reads on the first call, see
                :class:`gonio.kvcache.layer.CompressedLayer`.

        Raises:
            CodecError: The model's attention has another shape than the codec's.
            ModelError: The model's kind of attention is not supported.
        """
        from transformers import Cache

        found = attention_layout(model.config)
        if found != self.layout:
            raise CodecError(
                f"the codec was made for {self.layout}\n  the model has {found}\n"
                "Calibrate a codec for this model."
            )
        return Cache(layers=[CompressedLayer(codec, prefill) for codec in self.layers])

    def roundtrip(self, layer: int, keys: Tensor) -> Tensor:
        """Keys of one layer through encode and decode.

        Args:
            layer: Index of the decoder layer.
            keys: ``(batch, num_kv_heads, seq_len, head_dim)``, after RoPE.

        Returns:
            The approximate keys, same shape and dtype.
        """
        codec = self.layers[layer]
        return codec.decode(codec.encode(keys))

    def stored(self, seq_len: int) -> StoredBits:
        """Every byte a sequence of ``seq_len`` tokens stores for keys, and the fixed side data.

        Counted by encoding a random sequence, not by formula; every codec's size depends on the
        shape alone.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.layout.num_kv_heads, seq_len, self.layout.head_dim)
        keys = torch.randn(shape, generator=generator).to(torch.float16)
        runs = [codec.encode(keys) for codec in self.layers]
        return StoredBits(
            code_bytes=sum(run.stored_bytes - run.metadata_bytes for run in runs),
            metadata_bytes=sum(run.metadata_bytes for run in runs),
            side_bytes=sum(tensor.nbytes for tensor in _unique_tensors(self.layers)),
            elements=sum(run.num_elements for run in runs),
        )

    def bits_per_element(self, seq_len: int = 4096) -> float:
        """Stored bits per key element that grow with the sequence, at ``seq_len`` tokens."""
        return self.stored(seq_len).bits_per_element

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        states = [codec.state() for codec in self.layers]
        tensors, shared = _collect(states)
        header = _Header(
            format=_FORMAT,
            method=self.method,
            layout=self.layout,
            settings=[settings for settings, _ in states],
            shared=shared,
            provenance=self.provenance,
        )
        with replace_file(Path(path)) as staging:
            save_file(tensors, staging, metadata={_HEADER: header.model_dump_json()})
        return Path(path)


def load_codec(path: Path | str) -> CacheCodec:
    """Read a codec written by :meth:`CacheCodec.save`.

    Raises:
        CodecError: The file is missing, broken, or not a gonio codec of this format.
    """
    path = Path(path)
    if not path.is_file():
        raise CodecError(f"no codec file at {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CodecError(f"not a safetensors file: {path}\n  {error}") from error
    if text is None:
        raise CodecError(
            f"not a gonio codec: {path}\n  a safetensors file without the {_HEADER} header\n"
            "Make one with `gonio cache calibrate`."
        )
    try:
        header = _Header.model_validate(json.loads(text))
    except (ValidationError, ValueError) as error:
        raise CodecError(f"not a readable codec header in {path}\n  {error}") from error
    if header.format != _FORMAT or header.method not in _CODECS:
        raise CodecError(
            f"{path} holds method {header.method!r} in format {header.format}; "
            f"this version reads format {_FORMAT} and {', '.join(sorted(_CODECS))}"
        )
    kind = _CODECS[header.method]
    layers = tuple(
        kind.from_state(settings, _tensors_of(index, tensors, header.shared))
        for index, settings in enumerate(header.settings)
    )
    return CacheCodec(header.layout, layers, header.provenance)


def _collect(
    states: list[tuple[dict[str, Any], dict[str, Tensor]]],
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors to write, and the names of those that all layers share and that are written once."""
    first = states[0][1]
    shared = [
        name
        for name, tensor in first.items()
        if len(states) > 1 and all(state.get(name) is tensor for _, state in states)
    ]
    tensors = {f"shared.{name}": first[name].contiguous() for name in shared}
    for index, (_, state) in enumerate(states):
        for name, tensor in state.items():
            if name not in shared:
                tensors[f"layers.{index}.{name}"] = tensor.contiguous()
    return tensors, shared


def _tensors_of(index: int, tensors: dict[str, Tensor], shared: list[str]) -> dict[str, Tensor]:
    own = f"layers.{index}."
    found = {
        name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)
    }
    return found | {name: tensors[f"shared.{name}"] for name in shared}


def _unique_tensors(layers: tuple[KeyCodec, ...]) -> list[Tensor]:
    found = {id(tensor): tensor for layer in layers for tensor in layer.state()[1].values()}
    return list(found.values())
