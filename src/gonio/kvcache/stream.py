"""The tokens of one tensor of one layer: raw sinks, encoded blocks, a raw recent part.

New tokens join the recent part. Whenever it exceeds its window by a block, its oldest whole
blocks are encoded and appended: what is encoded is never encoded again, and its bytes never
change. The encoded part is a list of runs, each at least twice as long as the next, merged as it
grows: no slack is allocated, and a token is copied O(log tokens) times in all.

Reading decodes every run each time. On request a stream keeps the first decoded tokens, up to a
number of bytes, and decodes the rest only: memory for time, reported apart from what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from gonio.errors import CodecError
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.encoded import EncodedTensor
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.quant.accounting import tensor_bytes

__all__ = ["TokenStream"]

_TOKEN_AXIS = 2


class TokenStream:
    """Growing storage of keys or of values.

    Args:
        codec: How whole blocks are stored.
        sinks: First tokens kept raw, at least 0.
        window: Most recent tokens kept raw, at least 0.
        scratch_limit: Bytes of decoded tokens that reading may keep, at least 0.

    Attributes:
        sink_part: Raw first tokens ``(batch, num_kv_heads, tokens, head_dim)``, or None.
        runs: Encoded runs, in order.
        recent: Raw last tokens, or None.
        scratch: The first encoded tokens as decoded, or None.
    """

    def __init__(
        self, codec: TensorCodec, sinks: int = 0, window: int = 0, scratch_limit: int = 0
    ) -> None:
        self.codec = codec
        self.sinks = sinks
        self.window = window
        self.scratch_limit = scratch_limit
        self.scratch: Tensor | None = None
        self.sink_part: Tensor | None = None
        self.runs: list[EncodedTensor] = []
        self.recent: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens stored."""
        return _length(self.sink_part) + self.encoded_tokens + _length(self.recent)

    @property
    def encoded_tokens(self) -> int:
        """Tokens stored in encoded form."""
        return sum(run.tokens for run in self.runs)

    @property
    def encoded(self) -> EncodedTensor | None:
        """The encoded part as one run, a copy; None when nothing is encoded."""
        return reduce(EncodedTensor.append, self.runs) if self.runs else None

    @property
    def tensors(self) -> list[Tensor]:
        """Every stored tensor; the scratch, which can be made again, is none."""
        raw = [part for part in (self.sink_part, self.recent) if part is not None]
        return raw + [tensor for run in self.runs for tensor in run.tensors.values()]

    @property
    def stored_bytes(self) -> int:
        """Bytes of every stored tensor, raw tokens included."""
        return tensor_bytes(*self.tensors)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of decoded tokens that are kept, beside :attr:`stored_bytes`."""
        return 0 if self.scratch is None else tensor_bytes(self.scratch)

    @property
    def metadata_bytes(self) -> int:
        """Bytes of scales and the like, a part of :attr:`stored_bytes`."""
        return sum(run.metadata_bytes for run in self.runs)

    def append(self, x: Tensor, last: Tensor | None = None) -> None:
        """Store new tokens; their tensor may be reused.

        Args:
            x: ``(batch, num_kv_heads, tokens, head_dim)``.
            last: Position of the last of them in each row, int64 ``(batch,)``, for codecs that
                turn keys; tokens are counted unless given.
        """
        room = self.sinks - _length(self.sink_part)
        if room > 0:  # nothing is encoded before the sinks are full
            self.sink_part = _join(self.sink_part, x[:, :, :room])
            x = x[:, :, room:]
        if x.shape[_TOKEN_AXIS] == 0:
            return
        waiting = x if self.recent is None else torch.cat([self.recent, x], dim=_TOKEN_AXIS)
        count = waiting.shape[_TOKEN_AXIS]
        whole = max(count - self.window, 0) // self.codec.block * self.codec.block
        if not whole:
            self.recent = _copy(x) if self.recent is None else waiting
            return
        if last is None:
            last = torch.full(x.shape[:1], self.tokens + x.shape[_TOKEN_AXIS] - 1)
        self._push(self._encode(waiting[:, :, :whole], last - (count - whole)))
        self.recent = _copy(waiting[:, :, whole:]) if whole < count else None

    def read(self) -> Tensor:
        """Every token, decoded: ``(batch, num_kv_heads, tokens, head_dim)``.

        Raises:
            CodecError: Nothing is stored.
        """
        parts = [self.sink_part, *self._decoded(), self.recent]
        present = [part for part in parts if part is not None]
        if not present:
            raise CodecError("an empty cache has nothing to read")
        return torch.cat(present, dim=_TOKEN_AXIS)

    def remove_last(self, count: int) -> None:
        """Forget the last ``count`` tokens (all, if there are fewer).

        A cut inside a block moves the block's remaining tokens, as decoded, to the recent part.
        """
        from_recent = min(count, _length(self.recent))
        self.recent = _shorten(self.recent, from_recent)
        kept = self.encoded_tokens - (count - from_recent)
        if kept >= self.encoded_tokens:
            return
        whole = kept // self.codec.block * self.codec.block
        self.scratch = _shorten(self.scratch, _length(self.scratch) - whole)
        if kept < 0:
            self.sink_part = _shorten(self.sink_part, -kept)
            self.runs = []
            return
        while self.runs and self.encoded_tokens - self.runs[-1].tokens >= kept:
            self.runs.pop()
        if self.encoded_tokens > kept:
            self._cut_last_run(kept - (self.encoded_tokens - self.runs[-1].tokens))

    def remove_first(self, count: int) -> None:
        """Forget whole blocks, then raw tokens, among the first ``count`` tokens.

        Raises:
            CodecError: The stream keeps sinks, which are first.
        """
        if self.sink_part is not None:
            raise CodecError("the first tokens of this cache are kept as sinks")
        before = self.encoded_tokens
        while self.runs and self.runs[0].tokens <= count:
            count -= self.runs.pop(0).tokens
        if self.runs:
            run = self.runs[0]
            whole = count // run.block * run.block
            if whole:
                self.runs[0] = run.slice(whole, run.tokens)
        elif self.recent is not None and count:
            self.recent = _copy(self.recent[:, :, count:]) if count < _length(self.recent) else None
        gone = before - self.encoded_tokens
        if self.scratch is not None and gone:
            rest = self.scratch[:, :, gone:]
            self.scratch = _copy(rest) if rest.shape[_TOKEN_AXIS] else None

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply ``function``, which acts on the batch axis or the device, to all that is stored."""
        self.sink_part = None if self.sink_part is None else function(self.sink_part)
        self.recent = None if self.recent is None else function(self.recent)
        self.scratch = None if self.scratch is None else function(self.scratch)
        if self.scratch_bytes > self.scratch_limit:  # the batch has grown
            self.scratch = None
        self.runs = [run.map(function) for run in self.runs]

    def clear(self) -> None:
        """Forget every token."""
        self.sink_part = self.recent = self.scratch = None
        self.runs = []

    def _decoded(self) -> list[Tensor]:
        """Every encoded token as decoded; the scratch grows to what its limit allows."""
        kept = _length(self.scratch)
        parts = [] if self.scratch is None else [self.scratch]
        start = 0
        for run in self.runs:
            if start + run.tokens > kept:
                rest = run.slice(kept - start, run.tokens) if kept > start else run
                parts.append(self.codec.decode(rest))
            start += run.tokens
        if self.scratch_limit and parts and kept < start:
            size = parts[0].element_size() * parts[0][:, :, 0].numel() * self.codec.block
            wanted = min(start, self.scratch_limit // size * self.codec.block)
            if wanted > kept:
                self.scratch = _copy(torch.cat(parts, dim=_TOKEN_AXIS)[:, :, :wanted])
        return parts

    def _encode(self, x: Tensor, last: Tensor) -> EncodedTensor:
        if isinstance(self.codec, PreRopeCodec):
            return self.codec.encode(x, last)
        return self.codec.encode(x)

    def _push(self, run: EncodedTensor) -> None:
        self.runs.append(run)
        while len(self.runs) > 1 and self.runs[-2].tokens < 2 * self.runs[-1].tokens:
            last = self.runs.pop()
            self.runs[-1] = self.runs[-1].append(last)

    def _cut_last_run(self, kept: int) -> None:
        """Keep ``kept`` tokens of the last run, more than 0 and fewer than it has."""
        run = self.runs.pop()
        whole = kept // run.block * run.block
        if whole:
            self.runs.append(run.first(whole))
        if whole < kept:
            block = self.codec.decode(run.slice(whole, whole + run.block))
            self.recent = _copy(block[:, :, : kept - whole])


def _length(part: Tensor | None) -> int:
    return 0 if part is None else part.shape[_TOKEN_AXIS]


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _join(part: Tensor | None, more: Tensor) -> Tensor:
    return _copy(more) if part is None else torch.cat([part, more], dim=_TOKEN_AXIS)


def _shorten(part: Tensor | None, count: int) -> Tensor | None:
    if count <= 0:
        return part
    kept = _length(part) - count
    return _copy(part[:, :, :kept]) if part is not None and kept > 0 else None
