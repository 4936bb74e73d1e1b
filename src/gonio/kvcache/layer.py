"""A transformers cache layer that keeps keys only in encoded form.

Unlike the quantised layers of transformers it never re-encodes decoded keys, can be cropped and
reordered for real (every stored tensor has batch and sequence axes), and says which keys
attention reads on the first call.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from gonio.errors import CodecError
from gonio.kvcache.contract import KeyCodec
from gonio.kvcache.encoded import EncodedKeys
from gonio.quant.accounting import tensor_bytes

__all__ = ["CompressedLayer", "Prefill"]

Prefill = Literal["exact", "decoded"]


class CompressedLayer(CacheLayerMixin):
    """Encoded keys and exact values of one layer.

    Args:
        codec: How keys are stored.
        prefill: What attention reads on the first call. ``exact``: the fresh keys, as every
            serving system does. ``decoded``: the stored ones, so that each key a window reads has
            been through the codec. From the second call on the decoded keys are read always.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, codec: KeyCodec, prefill: Prefill = "exact") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is partly untyped
        self.codec = codec
        self.prefill = prefill
        self.encoded: EncodedKeys | None = None
        self.values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype and device; storage begins with the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Encode and store new keys, store values, and return what attention reads.

        Args:
            key_states: New keys ``(batch, num_kv_heads, new_tokens, head_dim)``, after RoPE.
            value_states: New values, same axes.
            *args: Ignored, as other cache layers do.
            **kwargs: Ignored, as other cache layers do.

        Returns:
            Keys and values of all tokens so far.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = self.codec.encode(key_states)
        if self.encoded is None or self.values is None:
            self.encoded, self.values = new, value_states
            if self.prefill == "exact":
                return key_states, value_states
        else:
            self.encoded = self.encoded.append(new)
            self.values = torch.cat([self.values, value_states], dim=-2)
        return self.codec.decode(self.encoded), self.values

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return 0 if self.encoded is None else self.encoded.seq_len

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget every token."""
        self.encoded = self.values = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens (transformers passes a negative number).

        Raises:
            CodecError: The number is positive.
        """
        if tokens_to_remove > 0:
            raise CodecError(
                f"crop takes a number <= 0 of tokens to remove, not {tokens_to_remove}"
            )
        if self.encoded is None or self.values is None:
            return
        kept = max(self.encoded.seq_len + tokens_to_remove, 0)
        self.encoded = self.encoded.first(kept)
        self.values = self.values[:, :, :kept].clone()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow beam search: row i becomes row ``beam_idx[i]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows of the batch."""
        self._map(lambda tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Move the stored tensors to the CPU."""
        self._map(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move the stored tensors back to the device of the first call."""
        self._map(lambda tensor: tensor.to(self.device, non_blocking=True))

    @property
    def key_bytes(self) -> int:
        """Bytes stored for keys."""
        return 0 if self.encoded is None else self.encoded.stored_bytes

    @property
    def value_bytes(self) -> int:
        """Bytes stored for values."""
        return 0 if self.values is None else tensor_bytes(self.values)

    def _map(self, function: Any) -> None:
        if self.encoded is not None and self.values is not None:
            self.encoded = self.encoded.map(function)
            self.values = function(self.values)
