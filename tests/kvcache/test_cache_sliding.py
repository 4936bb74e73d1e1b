"""Sliding layers: what transformers' own sliding layer holds and shows, whatever the history."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicSlidingWindowLayer

from gonio.errors import CodecError
from gonio.kvcache import CompressedSlidingLayer, LosslessCodec, SignCodec, calibrate, control_codec

STEPS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(steps=STEPS, block=st.sampled_from([1, 4]), sliding_window=st.integers(2, 9))
def test_it_shows_what_the_plain_sliding_layer_shows(blocked, steps, block, sliding_window):
    """From windows of 2: at 1 the plain layer returns more tokens than its own mask covers."""
    generator = torch.Generator().manual_seed(0)
    plain = DynamicSlidingWindowLayer(sliding_window)
    ours = CompressedSlidingLayer(sliding_window, blocked(block), blocked(block), window=2)
    for count in steps:
        assert ours.get_mask_sizes(count) == plain.get_mask_sizes(count)
        keys = torch.randn(1, 2, count, 3, generator=generator)
        found, expected = ours.update(keys, -keys), plain.update(keys, -keys)
        length = ours.get_mask_sizes(0)[0]
        assert found[0].shape == expected[0].shape
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert ours.get_seq_length() == plain.get_seq_length()
        assert length <= ours.key_stream.tokens < length + block


@given(steps=STEPS, removed=st.integers(0, 12), block=st.sampled_from([1, 4]))
def test_a_recorded_past_can_be_cropped_back(blocked, steps, removed, block):
    """Cropped after recording, both layers hold the same window."""
    generator = torch.Generator().manual_seed(0)
    plain = DynamicSlidingWindowLayer(6)
    ours = CompressedSlidingLayer(6, blocked(block), blocked(block))
    for layer in (plain, ours):
        layer.activate_past_recording()
    for count in steps:
        keys = torch.randn(1, 2, count, 3, generator=generator)
        found, expected = ours.update(keys, keys), plain.update(keys, keys)
        assert torch.equal(found[0], expected[0])
    removed = min(removed, sum(steps) - 1)
    for layer in (plain, ours):
        layer.crop(-removed)
    assert ours.get_seq_length() == plain.get_seq_length() == sum(steps) - removed
    keys = torch.randn(1, 2, 1, 3, generator=generator)
    assert torch.equal(ours.update(keys, keys)[0], plain.update(keys, keys)[0])


def test_tokens_that_are_gone_cannot_be_cropped_back():
    layer = CompressedSlidingLayer(4, LosslessCodec())
    keys = torch.zeros(1, 1, 9, 2)
    layer.update(keys, keys)
    with pytest.raises(CodecError, match="tokens before its window are gone"):
        layer.crop(-2)
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.update(keys[:, :, :3], keys[:, :, :3])
    layer.crop(-2)
    assert layer.get_seq_length() == 1


def test_layers_are_described_by_kind(make_model, tokens):
    model = make_model("gemma3")
    codec = calibrate(model, tokens, rotation="none")
    table = codec.describe_layers(seq_len=100).set_index("layer")
    assert list(table["attention"]) == ["sliding", "full"] * 2
    assert list(table["keys"]) == ["sign"] * 4
    assert list(table["values"]) == ["lossless"] * 4
    assert table.loc[0, "window"] == 6
    assert math.isnan(table.loc[1, "window"])
    assert list(table["tokens_held"]) == [5, 100] * 2
    assert list(table["key_bits"]) == [1 + 16 / 8] * 4
    raw = codec.with_raw_sliding()
    assert raw.method == "lossless+sign"
    bits = raw.describe_layers(seq_len=100)["key_bits"]
    assert list(bits) == [16, 3] * 2
    held = 2 * (5 + 100)
    assert raw.bits_per_element(100) == pytest.approx((2 * 5 * 16 + 2 * 100 * 3) / held)


@torch.no_grad()
def test_stored_bytes_of_a_hybrid_model_are_those_counted(make_model, tokens):
    model = make_model("gpt-oss")
    codec = calibrate(model, tokens, rotation="haar")
    cache = codec.new_cache(model)
    model(input_ids=tokens[:1], past_key_values=cache)
    stored = {part: codec.stored(24, part, torch.float32) for part in ("keys", "values")}
    assert cache.key_bytes == stored["keys"].code_bytes + stored["keys"].metadata_bytes
    assert cache.value_bytes == stored["values"].code_bytes == 2 * 2 * 8 * 4 * (5 + 24)
    assert cache.allocated_bytes == cache.key_bytes + cache.value_bytes


@torch.no_grad()
def test_a_sliding_layer_reads_its_decoded_keys(make_model, tokens):
    """Zeros in the sliding layers alone change the logits: they are on the path."""
    model = make_model("mistral-sliding")
    logits = {}
    for name in ("lossless", "zeros"):
        cache = control_codec(model, name).new_cache(model, prefill="decoded")
        logits[name] = model(input_ids=tokens, past_key_values=cache).logits
    plain = model(input_ids=tokens).logits
    torch.testing.assert_close(logits["lossless"], plain, rtol=1e-4, atol=1e-4)
    assert (logits["zeros"] - plain).abs().max() > 0.1


def test_an_encoded_sliding_layer_keeps_blocks_whole(rng):
    layer = CompressedSlidingLayer(6, SignCodec(), prefill="decoded")
    keys = torch.randn(1, 2, 30, 8, generator=rng)
    shown = [layer.update(keys[:, :, i : i + 1], keys[:, :, i : i + 1])[0] for i in range(30)]
    expected = SignCodec().decode(SignCodec().encode(keys))
    assert shown[-1].shape[2] == 6
    torch.testing.assert_close(shown[-1], expected[:, :, -6:])
