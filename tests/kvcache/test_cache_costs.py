"""Stored bytes counted from one block per layer are those of a whole sequence."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from gonio.kvcache import AffineCodec, EncodedTensor, LosslessCodec, ScalarCodec, SignCodec
from gonio.kvcache.correction import RankCorrection
from gonio.kvcache.costs import new_stream, stored_by_layer
from gonio.kvcache.exceptions import ExactExceptions
from gonio.kvcache.frame import Frame
from gonio.kvcache.refined_codec import RefinedCodec
from gonio.linalg.rotations import haar_rotation
from gonio.models import AttentionLayout

HEADS, DIM = 3, 16
FRAME = Frame(haar_rotation(DIM, torch.Generator().manual_seed(0), batch=(HEADS,)))
CODECS = {
    "lossless": LosslessCodec(),
    "sign": SignCodec(FRAME),
    "scalar": ScalarCodec(3, FRAME, "sphere"),
    "affine-channel": AffineCodec(3, "channel", 4),
    "affine-token": AffineCodec(2, "token", 5),
    "refined": RefinedCodec(
        AffineCodec(2, "channel", 4),
        (RankCorrection(FRAME.rotation[:, :, :2].contiguous(), "int8"), ExactExceptions(3)),
    ),
}


def layout_of(layers: int, window: int | None = None) -> AttentionLayout:
    windows = () if window is None else (window,) * layers
    return AttentionLayout(
        num_layers=layers, num_heads=6, num_kv_heads=HEADS, head_dim=DIM, windows=windows
    )


@dataclass(frozen=True)
class MaskedCodec:
    """Keeps the coordinates that its mask names: what it stores depends on a tensor's content."""

    mask: torch.Tensor
    method: ClassVar[str] = "masked"
    block: ClassVar[int] = 1
    side_bytes: ClassVar[int] = 0

    def encode(self, x):
        codes = x[..., self.mask].clone()
        return EncodedTensor({"codes": codes}, x.shape[2], x.shape[3], x.dtype)

    def decode(self, encoded):
        raise NotImplementedError

    def state(self):
        return {}, {"mask": self.mask}


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("seq_len", [1, 11, 24])
@pytest.mark.parametrize("name", sorted(CODECS))
def test_bytes_are_those_of_a_sequence_that_arrives_token_by_token(name, seq_len, window, rng):
    layout, codec = layout_of(1, window), CODECS[name]
    (counted,) = stored_by_layer([codec], layout, seq_len, part="keys", sinks=2, window=3)
    stream = new_stream(codec, layout, 0, sinks=2, window=3)
    for x in torch.randn(1, HEADS, seq_len, DIM, generator=rng).half().split(1, dim=2):
        stream.append(x)
    held = layout.tokens_held(0, seq_len)
    if held < seq_len:
        stream.remove_first(seq_len - held)
    assert counted.code_bytes + counted.metadata_bytes == stream.stored_bytes
    assert counted.metadata_bytes == stream.metadata_bytes
    assert counted.elements == HEADS * DIM * held
    assert counted.side_bytes == codec.side_bytes


def test_layers_that_differ_in_content_only_are_counted_apart():
    """Masks of one shape and settings, with 3 and 16 coordinates kept of each key."""
    few = torch.arange(DIM) < 3
    codecs = [MaskedCodec(few), MaskedCodec(few | True), MaskedCodec(few)]
    counted = stored_by_layer(codecs, layout_of(3), 10, part="keys", dtype=torch.float32)
    assert [each.code_bytes for each in counted] == [4 * HEADS * 10 * n for n in (3, 16, 3)]


def test_a_long_sequence_needs_one_block_of_work(monkeypatch):
    """At 65,536 tokens each layer still encodes a single block."""
    seen = []
    original = AffineCodec.encode
    monkeypatch.setattr(
        AffineCodec, "encode", lambda self, x: seen.append(x.shape[2]) or original(self, x)
    )
    (counted,) = stored_by_layer(
        [AffineCodec(2, "channel", 64)], layout_of(1), 2**16, part="keys", window=1
    )
    assert seen == [64]
    assert counted.elements == HEADS * DIM * 2**16
