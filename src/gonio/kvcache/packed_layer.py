"""Cache layers whose attention is computed on the codes: they hand out themselves, not copies.

While the model's attention is ours, :meth:`update` returns the new keys and values only, marked
with the layer they belong to; the attention function finds the layer by that mark and reads its
codes. With any other attention, and for long runs of new tokens, decoded keys and values are
returned as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gonio.errors import ModelError
from gonio.kernels import Frame
from gonio.kvcache.layer import CompressedLayer
from gonio.kvcache.packed_codec import PackedTransformCodec
from gonio.kvcache.sliding import CompressedSlidingLayer

__all__ = ["PackedLayer", "PackedSlidingLayer", "layer_behind"]

MOST_QUERIES = 16  # for more new tokens decoding once is faster than reading codes for each
_MARK = "gonio_packed_layer"


class PackedLayer(CompressedLayer):
    """A layer with full attention on codes.

    Args:
        keys: How keys are stored.
        values: How values are stored.
        is_used: Whether the model's attention is ours just now.
        **options: As of :class:`CompressedLayer`.
    """

    def __init__(
        self,
        keys: PackedTransformCodec,
        values: PackedTransformCodec,
        *,
        is_used: Callable[[], bool],
        **options: Any,
    ) -> None:
        super().__init__(keys, values, **options)
        self._is_used = is_used
        self._is_waiting = False
        self._frame: tuple[tuple[PackedTransformCodec, PackedTransformCodec], Frame] | None = None

    @property
    def codecs(self) -> tuple[PackedTransformCodec, PackedTransformCodec]:
        """Codecs of keys and of values."""
        keys, values = (stream.codec for stream in self.streams)
        if not isinstance(keys, PackedTransformCodec):
            raise TypeError(f"the keys' codec became a {type(keys).__name__}")
        if not isinstance(values, PackedTransformCodec):
            raise TypeError(f"the values' codec became a {type(values).__name__}")
        return keys, values

    @property
    def frame(self) -> Frame:
        """Where the coordinates of both codecs lie; made once for a pair of codecs."""
        codecs = self.codecs
        if self._frame is None or self._frame[0] != codecs:
            frame = Frame.of(*((codec.synthesis, codec.offset) for codec in codecs))
            self._frame = codecs, frame
        return self._frame[1]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; they come back marked when attention is to read the codes.

        Raises:
            ModelError: The model is being compiled, or did not hand what it was last given to
                our attention function.
        """
        if self._is_waiting:
            raise ModelError(
                "the model changes keys between cache and attention, so attention cannot read "
                "codes; use another attn_implementation"
            )
        is_first = self.key_stream.tokens == 0
        if (
            not self._is_used()
            or key_states.shape[-2] > MOST_QUERIES
            or key_states.device.type != "cpu"
            or (is_first and self.prefill == "exact")
        ):
            return super().update(key_states, value_states, *args, **kwargs)
        self._store(key_states, value_states)
        self._is_waiting = True
        marked = key_states.view_as(key_states)
        setattr(marked, _MARK, self)
        return marked, value_states

    def _store(self, key_states: Tensor, value_states: Tensor) -> None:
        if torch.compiler.is_compiling():
            raise ModelError(
                "a compressed cache grows and cannot be compiled; use the model itself"
            )
        self._append(key_states, value_states)

    def finish(self) -> None:
        """Note that attention has read what it was to read."""
        self._is_waiting = False

    def reset(self) -> None:
        """Forget every token."""
        super().reset()
        self._is_waiting = False

    def hidden_tokens(self, queries: int) -> int:
        """Stored first tokens that the mask of ``queries`` new tokens does not cover."""
        del queries
        return 0


class PackedSlidingLayer(PackedLayer, CompressedSlidingLayer):
    """A layer with sliding or chunked attention on codes."""

    def __init__(
        self,
        sliding_window: int,
        keys: PackedTransformCodec,
        values: PackedTransformCodec,
        *,
        is_used: Callable[[], bool],
        **options: Any,
    ) -> None:
        CompressedSlidingLayer.__init__(self, sliding_window, keys, values, **options)
        self._is_used = is_used
        self._is_waiting = False
        self._frame = None

    def _store(self, key_states: Tensor, value_states: Tensor) -> None:
        super()._store(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]

    def finish(self) -> None:
        """Drop what left the window, once attention has read it."""
        super().finish()
        if not self.record_past:
            self._forget_the_past()

    def hidden_tokens(self, queries: int) -> int:
        """Stored first tokens that the mask of ``queries`` new tokens does not cover."""
        before = min(self.cumulative_length - queries, self.sliding_window - 1)
        return self.key_stream.tokens - before - queries


def layer_behind(keys: Tensor) -> PackedLayer | None:
    """The layer whose codes stand behind marked keys; None for keys as they are."""
    found: PackedLayer | None = getattr(keys, _MARK, None)
    return found
