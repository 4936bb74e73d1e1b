"""The bound on every head's output error, on the tokens of a text, beside the measured error.

Queries, keys and values are those of the model in full precision; each layer's keys and values
are then read as its codec decodes them. So the error is what this layer adds, given exact inputs:
errors of earlier layers are theirs, and are not carried along. Every token is read through the
codec, but sinks, and what is raw at the end of a window: as in the ``teacher-forced`` protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from gonio.errors import CodecError, ModelError, SettingError
from gonio.kvcache.capture import AttentionCall, captured_attention
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.contract import Part, TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec
from gonio.kvcache.costs import new_stream
from gonio.kvcache.distortion_bound import (
    RUNGS,
    AttentionInputs,
    OutputDistortion,
    Rung,
    attention_weights,
    output_distortion,
)
from gonio.models.attention import AttentionLayout, attention_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LayerCertificate", "certify_attention", "certify_layer", "collect_inputs"]

Progress = Callable[[str, int, int], None]

_PROBES = 4  # queries whose weights are compared with the model's own


@dataclass(frozen=True, eq=False)
class LayerCertificate:
    """Errors of one layer's heads and the bounds on them, of every query of a text, float64.

    Attributes:
        layer: Index of the layer.
        error: Largest error of an output coordinate, ``(num_heads, queries)``.
        bounds: By rung, the bound on it, ``(num_heads, queries)``.
        value_error: The part of every bound that the values' own errors make.
        value_range: Range of each head's values in a window, the largest, ``(num_heads,)``.
    """

    layer: int
    error: Tensor
    bounds: Mapping[Rung, Tensor]
    value_error: Tensor
    value_range: Tensor

    @property
    def violations(self) -> int:
        """Heads and queries at which the error exceeds some bound: 0, or something is wrong."""
        holds = torch.stack([self.error <= self.bounds[rung] for rung in RUNGS])
        return int((~holds.all(dim=0)).sum())

    def relative(self, what: Tensor) -> Tensor:
        """Errors or bounds ``(num_heads, queries)`` over the range of each head's values."""
        return torch.where(what > 0, what / self.value_range[:, None], 0.0)


@torch.no_grad()
def certify_attention(
    model: PreTrainedModel,
    windows: Tensor,
    codec: CacheCodec,
    *,
    progress: Progress | None = None,
) -> tuple[LayerCertificate, ...]:
    """Bound and measure the output error of every head on windows of text.

    Memory is that of one forward pass, of one head's attention in float64, and of six numbers per
    head and query.

    Args:
        model: A decoder in evaluation mode whose attention uses transformers' interface.
        windows: Token ids ``(num_windows, length)``, without padding.
        codec: A codec for this model.
        progress: Called with (what, windows done, windows).

    Returns:
        One certificate per layer, the queries of all windows in order.

    Raises:
        CodecError: The codec does not fit the model, or decodes infinities or NaN.
        ModelError: The model's attention cannot be observed, or is not the kind that is bounded.
        SettingError: There is no window, or they are too short for a block of the codec.
    """
    layout = _checked_layout(model, windows, codec)
    found: list[list[OutputDistortion]] = [[] for _ in range(layout.num_layers)]

    def receive(layer: int, inputs: AttentionInputs) -> None:
        found[layer].append(_distortion(inputs, codec, layer))

    _run(model, windows, receive, progress)
    return tuple(_join(layer, parts) for layer, parts in enumerate(found))


@torch.no_grad()
def collect_inputs(
    model: PreTrainedModel, windows: Tensor, *, progress: Progress | None = None
) -> tuple[tuple[AttentionInputs, ...], ...]:
    """What every layer's attention reads, one per window, to certify codecs again and again.

    Memory is that of all queries, keys and values: layers x tokens x (num_heads x head_dim +
    num_kv_heads x (head_dim + value_dim)) elements.

    Raises:
        ModelError: As :func:`certify_attention`.
        SettingError: There is no window.
    """
    layout = _checked_layout(model, windows)
    found: list[list[AttentionInputs]] = [[] for _ in range(layout.num_layers)]
    _run(model, windows, lambda layer, inputs: found[layer].append(inputs), progress)
    return tuple(tuple(each) for each in found)


def certify_layer(
    inputs: Sequence[AttentionInputs], codec: CacheCodec, layer: int
) -> LayerCertificate:
    """The certificate of one layer from what its attention reads, one item per window."""
    return _join(layer, [_distortion(each, codec, layer) for each in inputs])


def _checked_layout(
    model: PreTrainedModel, windows: Tensor, codec: CacheCodec | None = None
) -> AttentionLayout:
    layout = attention_layout(model.config)
    if codec is not None and codec.layout != layout:
        raise CodecError(
            f"the codec was made for {codec.layout}\n  the model has {layout}\n"
            "Calibrate a codec for this model."
        )
    if windows.ndim != 2 or windows.numel() == 0:
        raise SettingError(f"nothing to certify: windows of shape {tuple(windows.shape)}")
    if model.training:
        raise ModelError("the model is in training mode; call model.eval() first")
    if codec is not None:
        _require_whole_blocks(codec, windows.shape[1])
    return layout


def _require_whole_blocks(codec: CacheCodec, length: int) -> None:
    """Refuse windows in which a codec keeps every token raw, and every bound is zero."""
    for part in get_args(Part):
        for layer, own in enumerate(codec.of(part)):
            sinks = codec.sinks if codec.layout.window_of(layer) is None else 0
            least = sinks + codec.window + own.block
            if length < least and not isinstance(own, LosslessCodec):
                raise SettingError(
                    f"{part} of layer {layer} ({own.method}) stay raw in windows of {length} "
                    f"tokens, so there is nothing to bound\nUse windows of {least} tokens or more."
                )


def _run(
    model: PreTrainedModel,
    windows: Tensor,
    receive: Callable[[int, AttentionInputs], None],
    progress: Progress | None,
) -> None:
    """Hand what every layer reads in every window to ``receive``."""
    layers = attention_layout(model.config).num_layers
    seen: list[int] = []

    def take(call: AttentionCall) -> None:
        inputs = _inputs(call)
        if len(seen) < layers:  # once per layer is enough
            _require_known_attention(call, inputs, type(model).__name__)
        seen.append(call.layer)
        receive(call.layer, inputs)

    with captured_attention(model, take):
        for index, window in enumerate(windows):
            start = len(seen)
            model(input_ids=window[None].to(model.device), use_cache=False, logits_to_keep=1)
            if sorted(seen[start:]) != list(range(layers)):
                raise ModelError(
                    f"{type(model).__name__}: attention was observed in layers {seen[start:]}, "
                    f"expected each of {layers} once"
                )
            if progress is not None:
                progress("observing attention", index + 1, len(windows))


def _inputs(call: AttentionCall) -> AttentionInputs:
    """The only sequence of a call, copied to the CPU."""
    query, key, value = (x[0].detach().cpu().clone() for x in (call.query, call.key, call.value))
    sinks = None if call.sinks is None else call.sinks.detach().cpu()
    visible = call.visible.cpu()
    return AttentionInputs(query, key, value, visible, call.scale, call.softcap, sinks)


def _require_known_attention(call: AttentionCall, inputs: AttentionInputs, name: str) -> None:
    """Refuse a model whose own attention weights are not those the bound is about."""
    tokens = inputs.query.shape[1]
    rows = torch.linspace(0, tokens - 1, min(_PROBES, tokens)).round().long()
    own = call.weights(rows)[0].double().cpu()
    ours = torch.stack([attention_weights(inputs, h)[rows] for h in range(len(inputs.query))])
    # Weights move no more than scores do, which the model computes in its own precision.
    norms = [x.double().norm(dim=-1).max().item() for x in (inputs.query, inputs.key)]
    size = 1 + abs(inputs.scale) * norms[0] * norms[1]
    tolerance = min(0.25, 64 * torch.finfo(inputs.query.dtype).eps * size)
    found = (own - ours).abs().max().item()
    if not found <= tolerance:
        raise ModelError(
            f"{name}: the attention weights of layer {call.layer} differ by {found:.3g} from those "
            "of its scores, soft cap, mask and sinks\nIts attention is of a kind the bound is not "
            "about, such as one with a position bias."
        )


def _distortion(inputs: AttentionInputs, codec: CacheCodec, layer: int) -> OutputDistortion:
    decoded = [
        _decoded(part, codec, layer, x)
        for part, x in ((codec.keys[layer], inputs.key), (codec.values[layer], inputs.value))
    ]
    if not all(bool(x.isfinite().all()) for x in decoded):
        raise CodecError(f"layer {layer}: the codec decodes infinities or NaN; nothing is bounded")
    return output_distortion(inputs, *decoded)


def _decoded(part: TensorCodec, codec: CacheCodec, layer: int, x: Tensor) -> Tensor:
    """What a cache would return, to the last bit that contiguous side data gives."""
    settings, tensors = part.state()
    part = part.from_state(settings, {k: each.contiguous() for k, each in tensors.items()})
    stream = new_stream(part, codec.layout, layer, sinks=codec.sinks, window=codec.window)
    stream.append(x[None])
    return stream.read()[0]


def _join(layer: int, parts: Sequence[OutputDistortion]) -> LayerCertificate:
    return LayerCertificate(
        layer=layer,
        error=torch.cat([part.error for part in parts], dim=1),
        bounds={rung: torch.cat([part.bounds[rung] for part in parts], dim=1) for rung in RUNGS},
        value_error=torch.cat([part.value_error for part in parts], dim=1),
        value_range=torch.stack([part.value_range for part in parts]).amax(dim=0),
    )
