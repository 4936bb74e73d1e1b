"""A transformers cache layer that keeps keys and values only in encoded form.

Unlike the quantised layers of transformers it never encodes a token twice, can be cropped and
reordered for real (every stored tensor has batch and token axes), and says which keys attention
reads on the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from gonio.errors import CodecError, ModelError
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.control_codecs import LosslessCodec
from gonio.kvcache.positions import Reach
from gonio.kvcache.rotary import PositionWatch
from gonio.kvcache.stream import TokenStream

__all__ = ["CompressedLayer", "Prefill"]

Prefill = Literal["exact", "decoded"]


class CompressedLayer(CacheLayerMixin):
    """Encoded keys and values of one layer with full attention.

    Args:
        key_codec: How keys are stored.
        value_codec: How values are stored; as they are unless given.
        sinks: First tokens kept raw.
        window: Most recent tokens kept raw.
        prefill: What attention reads on the first call. ``exact``: the fresh keys and values, as
            every serving system does. ``decoded``: the stored ones, so that all that a window
            reads has been through the codecs. From the second call on stored ones are read always.
        scratch_limit: Bytes of decoded tokens that the layer may keep, shared evenly by those of
            its streams that are coded; 0 decodes everything at each call.

    Attributes:
        watch: Where the positions of new tokens are seen; without one tokens are counted.
        reach: Told how many tokens there are, when the codec serves a number of positions.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(
        self,
        key_codec: TensorCodec,
        value_codec: TensorCodec | None = None,
        *,
        sinks: int = 0,
        window: int = 0,
        prefill: Prefill = "exact",
        scratch_limit: int = 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is partly untyped
        self.prefill = prefill
        self.watch: PositionWatch | None = None
        self.reach: Reach | None = None
        codecs = (key_codec, value_codec or LosslessCodec())
        coded = [not isinstance(codec, LosslessCodec) for codec in codecs]
        limits = [scratch_limit // max(sum(coded), 1) * each for each in coded]
        self.key_stream, self.value_stream = (
            TokenStream(codec, sinks, window, limit)
            for codec, limit in zip(codecs, limits, strict=True)
        )

    @property
    def streams(self) -> tuple[TokenStream, TokenStream]:
        """Storage of keys and of values."""
        return self.key_stream, self.value_stream

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype and device, and bring side data there; storage begins with the first token."""
        self.dtype, self.device = key_states.dtype, key_states.device
        for stream in self.streams:
            stream.codec = _ready(stream.codec, self.device)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values, and return what attention reads.

        Args:
            key_states: New keys ``(batch, num_kv_heads, new_tokens, head_dim)``, after RoPE.
            value_states: New values, same axes.
            *args: Ignored, as other cache layers do.
            **kwargs: Ignored, as other cache layers do.

        Returns:
            Keys and values of all tokens so far.

        Raises:
            ModelError: The model is being compiled.
        """
        if torch.compiler.is_compiling():
            raise ModelError(
                "a compressed cache grows and cannot be compiled; use the model itself"
            )
        is_first = self.key_stream.tokens == 0
        self._append(key_states, value_states)
        if is_first and self.prefill == "exact":
            return key_states, value_states
        return self.key_stream.read(), self.value_stream.read()

    def store(self, key_states: Tensor, value_states: Tensor) -> None:
        """Store new keys and values as :meth:`update` does, and read nothing."""
        self._append(key_states, value_states)

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        last = None if self.watch is None else self.watch.last(key_states, seen)
        self.key_stream.append(key_states, last)
        self.value_stream.append(value_states)
        if self.reach is not None:
            self.reach.note(seen + key_states.shape[-2])

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self.key_stream.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget every token."""
        for stream in self.streams:
            stream.clear()
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
        for stream in self.streams:
            stream.remove_last(-tokens_to_remove)

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
        if self.is_initialized:
            self._map(lambda tensor: tensor.to(self.device, non_blocking=True))

    @property
    def key_bytes(self) -> int:
        """Bytes stored for keys."""
        return self.key_stream.stored_bytes

    @property
    def value_bytes(self) -> int:
        """Bytes stored for values."""
        return self.value_stream.stored_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of decoded keys and values that are kept beside the stored ones."""
        return self.key_stream.scratch_bytes + self.value_stream.scratch_bytes

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        for stream in self.streams:
            stream.map(function)


def _ready(codec: TensorCodec, device: torch.device) -> TensorCodec:
    """The codec with its side data on ``device`` and contiguous; itself when it is so already.

    Products with transposed matrices round differently: a codec read from a file would not decode
    to the last bit what the codec that was written does.
    """
    settings, tensors = codec.state()
    if all(tensor.device == device and tensor.is_contiguous() for tensor in tensors.values()):
        return codec
    moved = {name: tensor.to(device).contiguous() for name, tensor in tensors.items()}
    return codec.from_state(settings, moved)
