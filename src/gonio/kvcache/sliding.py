"""A compressed cache layer for sliding-window attention: blocks that left the window are dropped.

It holds what transformers' ``DynamicSlidingWindowLayer`` holds, the last ``sliding_window - 1``
tokens before the next one, rounded up to whole blocks. There are no sinks: the first tokens leave
the window like all others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gonio.errors import CodecError
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.layer import CompressedLayer, Prefill

__all__ = ["CompressedSlidingLayer"]


class CompressedSlidingLayer(CompressedLayer):
    """Encoded keys and values of one layer with sliding or chunked attention.

    Args:
        sliding_window: Tokens a query sees, itself included; at least 1.
        key_codec: How keys are stored.
        value_codec: How values are stored; as they are unless given.
        window: Most recent tokens kept raw.
        prefill: What attention reads on the first call, see :class:`CompressedLayer`.
        scratch_limit: Bytes of decoded tokens that the layer may keep.
    """

    is_sliding = True

    def __init__(
        self,
        sliding_window: int,
        key_codec: TensorCodec,
        value_codec: TensorCodec | None = None,
        *,
        window: int = 0,
        prefill: Prefill = "exact",
        scratch_limit: int = 0,
    ) -> None:
        super().__init__(
            key_codec, value_codec, window=window, prefill=prefill, scratch_limit=scratch_limit
        )
        self.sliding_window = sliding_window
        self.cumulative_length = 0
        self.record_past = False

    def activate_past_recording(self) -> None:
        """Keep every token until the next :meth:`crop`, which can then go back past the window."""
        self.record_past = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`CompressedLayer.update`; returns the tokens that the mask covers."""
        visible, _ = self.get_mask_sizes(key_states.shape[-2])
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self._advance(key_states.shape[-2])
        return keys[:, :, -visible:], values[:, :, -visible:]

    def store(self, key_states: Tensor, value_states: Tensor) -> None:
        """As :meth:`CompressedLayer.store`."""
        super().store(key_states, value_states)
        self._advance(key_states.shape[-2])

    def get_seq_length(self) -> int:
        """Tokens seen, those outside the window included."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        past = min(self.cumulative_length, self.sliding_window - 1)
        return past + query_length, self.cumulative_length - past

    def get_max_length(self) -> int:
        """The window."""
        return self.sliding_window

    def reset(self) -> None:
        """Forget every token."""
        super().reset()
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens, then whatever lies outside the window.

        Raises:
            CodecError: The number is positive, or tokens that the shorter sequence would see have
                been dropped (:meth:`activate_past_recording` keeps them).
        """
        kept = max(self.cumulative_length + tokens_to_remove, 0)
        needed = min(kept, self.sliding_window - 1)
        if self.key_stream.tokens + tokens_to_remove < needed:
            raise CodecError(
                f"cannot crop {-tokens_to_remove} tokens of a sliding layer: tokens before its "
                "window are gone; call activate_past_recording() before they are read"
            )
        super().crop(tokens_to_remove)
        self.cumulative_length = kept
        self._forget_the_past()

    def _advance(self, tokens: int) -> None:
        self.cumulative_length += tokens
        if not self.record_past:
            self._forget_the_past()

    def _forget_the_past(self) -> None:
        for stream in self.streams:
            stream.remove_first(max(stream.tokens - (self.sliding_window - 1), 0))
