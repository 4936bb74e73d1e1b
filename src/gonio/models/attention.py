"""What a cache must know of a model's attention: layers, key-value heads, head sizes, windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gonio.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["AttentionLayout", "attention_layout"]

_WINDOWED = ("sliding_attention", "chunked_attention")  # both keep only the latest tokens


@dataclass(frozen=True)
class AttentionLayout:
    """Shape of a decoder's key-value cache.

    Attributes:
        num_layers: Decoder layers.
        num_heads: Query heads per layer.
        num_kv_heads: Key-value heads per layer; each serves ``num_heads / num_kv_heads`` queries.
        head_dim: Size of a key.
        value_head_dim: Size of a value; None when it is that of a key.
        windows: Per layer the sliding window in tokens, None for full attention; empty when every
            layer has full attention.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int | None = None
    windows: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.num_layers:
            raise ModelError(
                f"a layout of {self.num_layers} layers was given {len(self.windows)} windows"
            )

    @property
    def value_dim(self) -> int:
        """Size of a value."""
        return self.head_dim if self.value_head_dim is None else self.value_head_dim

    @property
    def key_elements_per_token(self) -> int:
        """Key elements that one token adds over all layers, while no window is full."""
        return self.num_layers * self.num_kv_heads * self.head_dim

    def window_of(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens, the newest included; None for full attention."""
        return self.windows[layer] if self.windows else None

    def tokens_held(self, layer: int, seq_len: int) -> int:
        """Tokens of a sequence that a layer still needs: all, or the last ``window - 1``."""
        window = self.window_of(layer)
        return seq_len if window is None else min(seq_len, window - 1)


def attention_layout(config: PreTrainedConfig) -> AttentionLayout:
    """The layout of a decoder whose layers have full, sliding or chunked attention.

    Args:
        config: A transformers configuration; of a composite model the text decoder's is used.

    Raises:
        ModelError: The model is an encoder, encoder-decoder, state-space or latent-attention
            model, some layer has another kind of attention (linear, hybrid, indexed, shared), or
            the layers differ in shape; the message names which.
    """
    text: Any = config.get_text_config(decoder=True)
    name = text.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name}: encoder-decoder caches are not supported")
    if hasattr(text, "add_cross_attention") and getattr(text, "is_decoder", True) is False:
        raise ModelError(
            f"{name}: an encoder has no cache (its configuration says is_decoder=False)"
        )
    if getattr(text, "kv_lora_rank", None):
        raise ModelError(
            f"{name}: latent attention (MLA) caches one latent per token, no per-head keys"
        )
    windows = _windows(text)
    shapes = {_layer_shape(layer) for layer in text.per_layer_config}
    if len(shapes) > 1:
        raise ModelError(f"{name}: layers of different head counts or sizes are not supported")
    heads, kv_heads, head_dim, value_dim = shapes.pop()
    return AttentionLayout(
        num_layers=len(windows),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=None if value_dim == head_dim else value_dim,
        windows=windows if any(windows) else (),
    )


def _windows(text: Any) -> tuple[int | None, ...]:
    """Per layer its sliding window or None, as transformers' own cache sees the layers."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    kinds, settings = get_layer_types_and_kwargs(text)
    others = sorted(set(kinds) - {"full_attention", *_WINDOWED})
    if others:
        cure = " (layers without a cache of their own)" if "dummy" in others else ""
        raise ModelError(
            f"{text.model_type}: layers of type {', '.join(others)}{cure} are not supported; "
            "only full, sliding and chunked attention"
        )
    return tuple(
        int(each["sliding_window"]) if kind in _WINDOWED else None
        for kind, each in zip(kinds, settings, strict=True)
    )


def _layer_shape(layer: Any) -> tuple[int, int, int, int]:
    """Query heads, key-value heads, key size and value size of one layer's configuration."""
    heads = getattr(layer, "num_attention_heads", None)
    if not heads:
        raise ModelError(f"{layer.model_type}: the configuration names no attention heads")
    kv_heads = getattr(layer, "num_key_value_heads", None) or heads
    if layer.model_type == "falcon":  # its own names, and one key head unless told otherwise
        grouped = layer.new_decoder_architecture or not layer.multi_query
        kv_heads = layer.num_kv_heads if grouped else 1
    head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return heads, kv_heads, head_dim, getattr(layer, "v_head_dim", None) or head_dim
