"""The keys a model really makes: collected through its own cache, in bounded memory.

Keys are taken where a cache gets them, after rotary embedding and normalisation, from any decoder
that accepts ``past_key_values``; nothing of the model is patched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from gonio.errors import SettingError, ShapeError
from gonio.models.attention import AttentionLayout, attention_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["KeySamples", "collect_keys"]


@dataclass(frozen=True)
class KeySamples:
    """Sampled post-RoPE keys of every layer.

    Attributes:
        layout: Attention shape of the model.
        keys: Per layer, float32 ``(num_windows, num_kv_heads, samples_per_window, head_dim)``.
        positions: Sampled positions inside each window, ``(samples_per_window,)``.
    """

    layout: AttentionLayout
    keys: tuple[Tensor, ...]
    positions: Tensor

    def by_head(self, layer: int) -> Tensor:
        """Keys of one layer flattened over windows: ``(num_kv_heads, n, head_dim)``."""
        return self.keys[layer].transpose(0, 1).flatten(1, 2)


class _SamplingLayer(DynamicLayer):
    """An ordinary cache layer that also hands the keys it gets to a callback."""

    def __init__(self, layer: int, sink: Callable[[int, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is partly untyped
        self.layer = layer
        self.sink = sink

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.sink(self.layer, key_states)
        return key_states, value_states  # one pass per window: nothing needs to be kept


@torch.no_grad()
def collect_keys(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    samples_per_window: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> KeySamples:
    """Run windows of text through a model and keep a sample of every layer's keys.

    Args:
        model: A decoder with full attention.
        windows: Token ids ``(num_windows, window_length)``.
        samples_per_window: Positions kept per window, the same for all layers; all unless given.
            Memory is layers x heads x windows x samples x head_dim x 4 bytes.
        seed: Seed of the choice of positions.
        progress: Called with (what, windows done, windows).

    Raises:
        ShapeError: ``windows`` is not two-dimensional.
        SettingError: Fewer than one sample is asked for.
        ModelError: The model's attention is not supported.
    """
    if windows.ndim != 2:
        raise ShapeError(f"windows must be (num_windows, length), found {tuple(windows.shape)}")
    count, length = windows.shape
    wanted = length if samples_per_window is None else min(samples_per_window, length)
    if wanted < 1:
        raise SettingError(f"samples_per_window must be >= 1, found {samples_per_window}")
    layout = attention_layout(model.config)
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(length, generator=generator)[:wanted].sort().values
    shape = (count, layout.num_kv_heads, wanted, layout.head_dim)
    kept = [torch.empty(shape) for _ in range(layout.num_layers)]
    for index, window in enumerate(windows):

        def store(layer: int, keys: Tensor, index: int = index) -> None:
            kept[layer][index] = keys[0].index_select(1, positions.to(keys.device)).float().cpu()

        cache = Cache(layers=[_SamplingLayer(layer, store) for layer in range(layout.num_layers)])
        model(
            input_ids=window[None].to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if progress is not None:
            progress("observing keys", index + 1, count)
    return KeySamples(layout, tuple(kept), positions)
