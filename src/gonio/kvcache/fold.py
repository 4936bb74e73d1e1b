"""Rotations moved into the projections that make queries, keys, values and outputs.

If R commutes with rotary embedding, replacing ``W_K`` by ``R W_K`` and ``W_Q`` by ``R W_Q`` turns
every cached key by R and changes no score (theorem ``attention_score_gauge_invariance``); values
need no such condition, ``W_V`` becomes ``R W_V`` and ``W_O`` becomes ``W_O R^T``. The folded model
computes the same function, and its cache holds rotated keys and values at no cost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gonio.errors import CodecError, ModelError, ShapeError
from gonio.kvcache.commuting import TOLERANCE, RotaryLayout
from gonio.models.attention import attention_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fold_rotations", "rotary_layout"]

# Their attention was read: projections as named below, RoPE (if any) right after them and their
# norms, nothing else between a projection and the scores.
_SEPARATE = (
    *("cohere", "gemma", "gemma2", "gemma3_text", "gpt_oss", "gptj", "llama", "mistral", "mixtral"),
    *("olmoe", "phi", "qwen2", "qwen3", "qwen3_moe"),
)
_FAMILIES = {**dict.fromkeys(_SEPARATE, "separate"), "gpt_neox": "by_head", "gpt2": "side_by_side"}


@dataclass(frozen=True)
class _Projection:
    """Views of the weights that make one kind of head, and of their biases."""

    weight: Tensor  # (heads, head_dim, inputs); of the output projection (heads, head_dim, outputs)
    bias: Tensor | None  # (heads, head_dim)


@dataclass(frozen=True)
class _Attention:
    """The projections of one layer, as views: writing to them changes the model."""

    name: str
    module: nn.Module
    query: _Projection
    key: _Projection
    value: _Projection
    output: _Projection


def rotary_layout(model: PreTrainedModel) -> RotaryLayout:
    """Which coordinates of a key the model's rotary embedding turns together.

    The pairs are read off the model's own function that rotates a half of the coordinates.

    Raises:
        ModelError: The model is of no family that gonio knows to fold.
    """
    layers = _attention_layers(model)
    head_dim = attention_layout(model.config).head_dim
    module = layers[0].module
    code = sys.modules[type(module).__module__]
    turn: Callable[[Tensor], Tensor] | None = getattr(code, "rotate_half", None) or getattr(
        code, "rotate_every_two", None
    )
    size = getattr(module, "rotary_ndims", None) or getattr(module, "rotary_dim", None) or head_dim
    if _model_type(model) == "gpt2":
        return RotaryLayout(head_dim, torch.empty((0, 2), dtype=torch.long))
    if _model_type(model) == "gpt_oss":  # turns halves without such a function
        turned = torch.cat([-torch.arange(size // 2 + 1, size + 1), torch.arange(size // 2) + 1])
    elif turn is None:
        raise ModelError(f"{type(module).__name__}: no function that rotates coordinate pairs")
    else:
        turned = turn(torch.arange(1.0, size + 1)[None, None, None])[0, 0, 0].long()
    first = (turned < 0).nonzero()[:, 0]  # x_first cos - x_second sin
    return RotaryLayout(head_dim, torch.stack([first, -turned[first] - 1], dim=1))


@torch.no_grad()
def fold_rotations(
    model: PreTrainedModel,
    *,
    keys: Sequence[Tensor | None] | None = None,
    values: Sequence[Tensor | None] | None = None,
) -> None:
    """Rotate keys and values by changing weights, in place; the model's outputs stay the same.

    Everything is checked before the first weight changes. Products are taken in float64 and
    rounded once to the dtype of the weights.

    Args:
        model: A model of a known family with floating-point projections.
        keys: Per layer None or ``(num_kv_heads or 1, head_dim, head_dim)``, commuting with RoPE.
            A key k becomes ``R k``, as do the queries of its group.
        values: Per layer None or any orthogonal matrices of that shape.

    Raises:
        ModelError: The family is unknown, projections are quantized or wrapped, or something
            between projection and score (a norm, clipping) would not let the rotation through.
        CodecError: A rotation does not commute with RoPE or is not orthogonal.
        ShapeError: Their number or shape does not fit the model.
    """
    layers = _attention_layers(model)
    layout = rotary_layout(model)
    anything = RotaryLayout(layout.head_dim, layout.pairs[:0])
    for name, found in (("keys", keys), ("values", values)):
        if found is not None and len(found) != len(layers):
            raise ShapeError(f"{len(found)} rotations of {name} given for {len(layers)} layers")
    key_plan = list(keys) if keys is not None else [None] * len(layers)
    value_plan = list(values) if values is not None else [None] * len(layers)
    for layer, key, value in zip(layers, key_plan, value_plan, strict=True):
        if key is not None:
            _check_rotation(layer, key, layout)
            _check_between(model, layer, key)
        if value is not None:
            _check_rotation(layer, value, anything)
            if getattr(model.config, "clip_qkv", None) is not None:
                raise ModelError(f"{layer.name} clips values; a rotation cannot be folded into it")
    for layer, key, value in zip(layers, key_plan, value_plan, strict=True):
        if key is not None:
            _turn(layer.key, key)
            _turn(layer.query, key)
        if value is not None:
            _turn(layer.value, value)
            _turn(layer.output, value)  # W_O R^T: its rows are head coordinates in this view


def _model_type(model: PreTrainedModel) -> str:
    return str(model.config.get_text_config(decoder=True).model_type)


def _attention_layers(model: PreTrainedModel) -> list[_Attention]:
    family = _FAMILIES.get(_model_type(model))
    if family is None:
        raise ModelError(
            f"{_model_type(model)}: rotations are folded into models of these types only: "
            f"{', '.join(sorted(_FAMILIES))}"
        )
    shape = attention_layout(model.config)
    names = {"separate": "k_proj", "by_head": "query_key_value", "side_by_side": "c_attn"}
    found = [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, names[family]) and hasattr(module, "layer_idx")
    ]
    if len(found) != shape.num_layers:
        raise ModelError(
            f"{_model_type(model)}: {len(found)} attention modules found for "
            f"{shape.num_layers} layers"
        )
    read = {"separate": _separate, "by_head": _by_head, "side_by_side": _side_by_side}[family]
    return [read(name, module, shape.num_heads, shape.num_kv_heads) for name, module in found]


def _separate(name: str, module: Any, heads: int, kv_heads: int) -> _Attention:
    """``q_proj``, ``k_proj``, ``v_proj`` and an output projection."""
    outputs = next(n for n in ("o_proj", "out_proj", "dense") if hasattr(module, n))
    counts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    rows = []
    for part, count in counts.items():
        weight, bias = _parameters(f"{name}.{part}", getattr(module, part))
        rows.append(
            _Projection(
                weight.unflatten(0, (count, -1)),
                None if bias is None else bias.unflatten(0, (count, -1)),
            )
        )
    query, key, value = rows
    return _Attention(
        name, module, query, key, value, _output(f"{name}.{outputs}", module, outputs, heads)
    )


def _by_head(name: str, module: Any, heads: int, kv_heads: int) -> _Attention:
    """GPT-NeoX: query, key and value rows of each head together."""
    weight, bias = _parameters(f"{name}.query_key_value", module.query_key_value)
    weights = weight.unflatten(0, (heads, 3, -1)).unbind(dim=1)
    biases = [None] * 3 if bias is None else bias.unflatten(0, (heads, 3, -1)).unbind(dim=1)
    rows = [_Projection(w, b) for w, b in zip(weights, biases, strict=True)]
    query, key, value = rows
    return _Attention(
        name, module, query, key, value, _output(f"{name}.dense", module, "dense", heads)
    )


def _side_by_side(name: str, module: Any, heads: int, kv_heads: int) -> _Attention:
    """GPT-2: all query, then all key, then all value columns of one ``Conv1D``."""
    weight, bias = _parameters(f"{name}.c_attn", module.c_attn)
    weights = weight.unflatten(0, (3, heads, -1)).unbind(dim=0)
    biases = [None] * 3 if bias is None else bias.unflatten(0, (3, heads, -1)).unbind(dim=0)
    rows = [_Projection(w, b) for w, b in zip(weights, biases, strict=True)]
    query, key, value = rows
    return _Attention(
        name, module, query, key, value, _output(f"{name}.c_proj", module, "c_proj", heads)
    )


def _output(name: str, module: Any, attribute: str, heads: int) -> _Projection:
    """The output projection by input head; its bias is not of head coordinates."""
    weight, _ = _parameters(name, getattr(module, attribute))
    return _Projection(weight.mT.unflatten(0, (heads, -1)), None)


def _parameters(name: str, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight as (outputs, inputs), a view, and bias of a plain linear layer."""
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if type(module) not in (nn.Linear, Conv1D) or not isinstance(weight, Tensor):
        raise ModelError(
            f"{name} is a {type(module).__name__}; rotations are folded into plain linear layers\n"
            "Merge adapters and load unquantized weights first."
        )
    if not weight.is_floating_point():
        raise ModelError(f"{name} has {weight.dtype} weights; load unquantized weights first")
    bias = module.bias.detach() if isinstance(module.bias, Tensor) else None
    weight = weight.detach()
    return (weight.mT if isinstance(module, Conv1D) else weight), bias


def _check_rotation(layer: _Attention, rotation: Tensor, layout: RotaryLayout) -> None:
    if rotation.shape[0] not in (1, layer.key.weight.shape[0]):
        raise ShapeError(
            f"{rotation.shape[0]} rotations given for the {layer.key.weight.shape[0]} key-value "
            f"heads of {layer.name}"
        )
    try:
        layout.check(rotation)
    except (CodecError, ShapeError) as error:
        raise type(error)(f"{layer.name}: {error}") from error


def _check_between(model: PreTrainedModel, layer: _Attention, rotation: Tensor) -> None:
    """Refuse a norm or clipping that the rotation does not pass through unchanged."""
    if getattr(model.config, "clip_qkv", None) is not None:
        raise ModelError(f"{layer.name} clips keys; a rotation cannot be folded into it")
    for name, projection in (("q", layer.query), ("k", layer.key)):
        heads, head_dim = projection.weight.shape[:2]
        for attribute in (f"{name}_norm", f"{name}_layernorm"):
            norm = getattr(layer.module, attribute, None)
            if norm is None:
                continue
            where = f"{layer.name}.{attribute} ({type(norm).__name__})"
            if "RMSNorm" not in type(norm).__name__:
                raise ModelError(f"{where} lies between projection and score: nothing folds")
            gain = norm.weight.detach().double().cpu().reshape(-1, 1, head_dim)
            turns = _for_heads(rotation.double().cpu(), heads)
            mixed = turns * (gain.mT - gain)  # the commutator of R and diag(gain)
            if not mixed.abs().max().item() <= TOLERANCE * max(gain.abs().max().item(), 1.0):
                raise ModelError(
                    f"{where} scales coordinates that the rotation mixes by different gains: it "
                    "cannot be folded; apply it online"
                )


def _turn(projection: _Projection, rotation: Tensor) -> None:
    """Replace the rows of each head by their rotation."""
    heads = projection.weight.shape[0]
    matrix = _for_heads(rotation.double().to(projection.weight.device), heads)
    projection.weight.copy_(matrix @ projection.weight.double())
    if projection.bias is not None:
        projection.bias.copy_((matrix @ projection.bias.double()[..., None])[..., 0])


def _for_heads(rotation: Tensor, heads: int) -> Tensor:
    """One rotation per head: each key-value head's serves the queries of its group."""
    return rotation.repeat_interleave(heads // rotation.shape[0], dim=0)
