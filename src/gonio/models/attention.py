"""What a cache must know of a model's attention: layers, key-value heads, head size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gonio.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["AttentionLayout", "attention_layout"]


@dataclass(frozen=True)
class AttentionLayout:
    """Shape of a decoder's key-value cache.

    Attributes:
        num_layers: Decoder layers.
        num_heads: Query heads per layer.
        num_kv_heads: Key-value heads per layer; each serves ``num_heads / num_kv_heads`` queries.
        head_dim: Size of a key.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def key_elements_per_token(self) -> int:
        """Key elements that one token adds over all layers."""
        return self.num_layers * self.num_kv_heads * self.head_dim


def attention_layout(config: PreTrainedConfig) -> AttentionLayout:
    """The layout of a decoder with full attention in every layer.

    Args:
        config: A transformers configuration; of a composite model the text decoder's is used.

    Raises:
        ModelError: The model is an encoder, encoder-decoder, state-space or latent-attention
            model, or some layer has sliding or linear attention; the message names which.
    """
    text = config.get_text_config(decoder=True)
    name = text.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name}: encoder-decoder caches are not supported")
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        others = ", ".join(sorted(kinds - {"full_attention"}))
        raise ModelError(f"{name}: layers of type {others} are not supported; only full attention")
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        raise ModelError(f"{name}: sliding-window attention is not supported; only full attention")
    if getattr(text, "kv_lora_rank", None):
        raise ModelError(f"{name}: latent attention (MLA) keeps no per-head keys to compress")
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        raise ModelError(f"{name}: the configuration names no attention heads")
    return AttentionLayout(
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
    )
