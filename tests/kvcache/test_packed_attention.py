"""Attention on codes is attention on what the codes decode to, in every way a model asks for it.

One cache is read twice: through ``attn_implementation="gonio"``, and decoded, by the model's own
attention. With the kernels in float32 (the torch reference) the two agree to rounding.
"""

import pytest
import torch
import transformers

from gonio.errors import CodecError, ModelError, ShapeError
from gonio.kvcache import (
    CompressedSlidingLayer,
    PackedTransformCodec,
    calibrate,
    control_codec,
    load_cache,
    save_cache,
    use_packed_attention,
)
from gonio.kvcache import packed_attention as packed_attention_module
from gonio.kvcache.packed_layer import MOST_QUERIES, PackedLayer, layer_behind

from .conftest import ARCHITECTURES, FOUR_LAYERS, HYBRID, build

PROMPT = 150  # two encoded blocks of 64 and some recent tokens, beside two sinks
STEPS = (1, 1, 3, 40, 1)  # new tokens of each later call: one, several, more than are read as codes
WIDE_WINDOWS = {  # windows that hold encoded blocks
    "gemma2-wide": lambda: transformers.Gemma2Config(
        **FOUR_LAYERS, head_dim=8, sliding_window=100, query_pre_attn_scalar=8
    ),
    "gpt-oss-wide": lambda: transformers.GptOssConfig(
        **FOUR_LAYERS,
        head_dim=8,
        sliding_window=100,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=HYBRID,
    ),
}
FAMILIES = sorted((ARCHITECTURES | WIDE_WINDOWS).keys() - {"falcon"})  # has no such interface


@pytest.fixture(autouse=True)
def exact_kernels(choose_kernels):
    choose_kernels("reference")


@pytest.fixture
def ids(rng):
    return torch.randint(1, 61, (2, PROMPT + sum(STEPS) + 1), generator=rng)


def make(family: str, monkeypatch):
    """A tiny model with room for the sequences, its own attention eager."""
    monkeypatch.setitem(ARCHITECTURES, family, (ARCHITECTURES | WIDE_WINDOWS)[family])
    model = build(family)
    model.set_attn_implementation("eager")
    return model


def codec_for(model, ids, bits=3.0, **options):
    """Keys and values at three bits; two sinks, five recent tokens raw."""
    plain = {"states": 1}
    return calibrate(
        model,
        ids[:, :64],
        context=200,
        bits=bits,
        method="transform",
        value_bits=bits,
        value_method="transform",
        value_options=plain,
        sinks=2,
        recent=5,
        **plain | options,
    )


def logits(model, cache, ids, mask=None, steps=STEPS):
    """Logits of every call: the prompt, then some tokens at a time."""
    found, at = [], 0
    with torch.no_grad():
        for count in (PROMPT, *steps):
            part = ids[:, at : at + count]
            at += count
            seen = None if mask is None else mask[:, :at]
            found.append(model(part, past_key_values=cache, attention_mask=seen).logits)
    return found


def count_readings(monkeypatch) -> list[int]:
    """A list that grows by the tokens that each call reads as codes."""
    read: list[int] = []
    real = packed_attention_module.attend

    def counting(query, runs, plans, **options):
        read.append(sum(run.tokens for run in runs))
        return real(query, runs, plans, **options)

    monkeypatch.setattr(packed_attention_module, "attend", counting)
    return read


DECODED = ["llama", "gemma2-wide", "gpt-oss-wide"]


@pytest.mark.parametrize(
    ("family", "prefill"),
    [*((f, "exact") for f in FAMILIES), *((f, "decoded") for f in DECODED)],
)
def test_codes_read_as_what_they_decode_to(family, prefill, ids, monkeypatch):
    model = make(family, monkeypatch)
    codec = codec_for(model, ids)
    use_packed_attention(model)
    read = count_readings(monkeypatch)
    cache = codec.new_cache(model, prefill=prefill)
    assert all(isinstance(layer, PackedLayer) for layer in cache.layers)
    found = logits(model, cache, ids)
    holds_blocks = any(window is None or window > 64 for window in codec.layout.windows or (None,))
    assert bool(read) == holds_blocks
    other = codec.new_cache(model, prefill=prefill)
    model.set_attn_implementation("eager")
    expected = logits(model, other, ids)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)
    for mine, others in zip(cache.layers, other.layers, strict=True):
        assert mine.get_seq_length() == others.get_seq_length()
        assert mine.key_bytes == others.key_bytes


@pytest.mark.parametrize("family", ["llama", "gemma2-wide", "gpt-oss-wide"])
def test_left_padding_is_not_seen(family, ids, monkeypatch):
    model = make(family, monkeypatch)
    codec = codec_for(model, ids)
    use_packed_attention(model)
    mask = torch.ones_like(ids)
    mask[0, :70] = 0
    found = logits(model, codec.new_cache(model, left_padding=70), ids, mask, (1, 2))
    other = codec.new_cache(model, left_padding=70)
    model.set_attn_implementation("eager")
    expected = logits(model, other, ids, mask, (1, 2))
    for one, two in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)
    wrong = logits(model, codec.new_cache(model), ids, torch.ones_like(ids), (1, 2))
    assert (wrong[1][0] - expected[1][0]).abs().max() > 0.01


@pytest.mark.parametrize("how", ["greedy", "beams", "assisted"])
@pytest.mark.parametrize("family", ["llama", "gemma2-wide"])
def test_generation_is_that_of_decoded_keys(family, how, ids, monkeypatch):
    model = make(family, monkeypatch)
    codec = codec_for(model, ids)
    use_packed_attention(model)
    settings = {"max_new_tokens": 12, "do_sample": False}
    settings |= {"beams": {"num_beams": 3}, "assisted": {"prompt_lookup_num_tokens": 3}}.get(
        how, {}
    )
    prompt = ids[:1, :50].repeat(1, 3)
    given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    found = model.generate(**given, **settings, past_key_values=codec.new_cache(model))
    other = codec.new_cache(model)
    model.set_attn_implementation("eager")
    assert torch.equal(found, model.generate(**given, **settings, past_key_values=other))


def test_compiled_kernels_stay_near(ids, monkeypatch, choose_kernels):
    """8-bit tables and weights: close to the exact numbers, and far from another cache's."""
    model = make("llama", monkeypatch)
    codec, coarse = codec_for(model, ids), codec_for(model, ids, bits=1.0)
    use_packed_attention(model)
    exact = logits(model, codec.new_cache(model), ids)
    other = logits(model, coarse.new_cache(model), ids)
    choose_kernels("")
    found = logits(model, codec.new_cache(model), ids)
    for one, two, far in zip(found[1:], exact[1:], other[1:], strict=True):
        error = (one - two).norm() / two.norm()
        assert error < 0.05
        assert error < 0.3 * (far - two).norm() / two.norm()


def test_layers_that_cannot_be_packed_are_named_once(ids, monkeypatch):
    model = make("gemma2", monkeypatch)
    codec = codec_for(model, ids).with_raw_sliding()
    use_packed_attention(model)
    with pytest.warns(UserWarning, match="2 of 4 layers reads decoded.*layer 0: keys are lossless"):
        cache = codec.new_cache(model)
    kinds = [isinstance(layer, PackedLayer) for layer in cache.layers]
    assert kinds == [False, True, False, True]
    assert isinstance(cache.layers[0], CompressedSlidingLayer)
    found = logits(model, cache, ids)
    model.set_attn_implementation("eager")
    with pytest.warns(UserWarning, match="2 of 4"):
        other = packed_attention_module.packed_cache(codec.new_cache(model), model)
    for one, two in zip(found, logits(model, other, ids), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_packed_codes_decode_to_the_last_bit_alike(
    kernels, part, ids, rng, monkeypatch, choose_kernels
):
    if kernels == "auto":
        choose_kernels("")
    model = make("llama", monkeypatch)
    codec = codec_for(model, ids).of(part)[1]
    packed = PackedTransformCodec(codec, part)
    x = 3 * torch.randn(2, 2, 128, 8, generator=rng)
    stored = packed.encode(x)
    assert torch.equal(packed.decode(stored), codec.decode(codec.encode(x)))
    again = PackedTransformCodec.from_state(*packed.state())
    assert torch.equal(again.encode(x).tensors["codes"], stored.tensors["codes"])
    assert stored.bits_per_element == pytest.approx(packed.plan.bits_per_element)
    with pytest.raises(ShapeError, match="whole blocks of 64"):
        packed.encode(x[:, :, :100])


def test_attention_of_its_own_is_refused(monkeypatch):
    with pytest.raises(ModelError, match=r"Falcon.* does not go through transformers'"):
        use_packed_attention(build("falcon"))


def test_a_trellis_cannot_be_read_code_by_code(ids, monkeypatch):
    model = make("llama", monkeypatch)
    codec = codec_for(model, ids, states=4, stage="post_rope")
    with pytest.raises(CodecError, match="calibrate with states=1"):
        PackedTransformCodec(codec.keys[0], "keys")
    use_packed_attention(model)
    with pytest.warns(UserWarning, match="keys have a trellis"):
        cache = codec.new_cache(model)
    assert not any(isinstance(layer, PackedLayer) for layer in cache.layers)


def test_stored_bytes_are_those_of_the_widths_and_the_padding(ids, monkeypatch):
    model = make("llama", monkeypatch)
    codec = codec_for(model, ids)
    use_packed_attention(model)
    cache = codec.new_cache(model)
    logits(model, cache, ids, steps=())
    layer = cache.layers[0]
    plan = layer.codecs[0].plan
    raw = PROMPT - 128  # two sinks and twenty recent tokens
    assert layer.key_bytes == 2 * (2 * plan.block_bytes + raw * 2 * 8 * 4)
    assert cache.allocated_bytes == cache.key_bytes + cache.value_bytes
    assert cache.fingerprint != codec.fingerprint


def test_a_saved_cache_continues_the_same(ids, tmp_path, monkeypatch):
    model = make("gemma2-wide", monkeypatch)
    codec = codec_for(model, ids)
    use_packed_attention(model)
    cache = codec.new_cache(model)
    logits(model, cache, ids, steps=())
    path = save_cache(cache, tmp_path / "cache.safetensors")
    loaded = load_cache(path, model, codec)
    more = ids[:, PROMPT : PROMPT + 2]
    with torch.no_grad():
        found, expected = (model(more, past_key_values=each).logits for each in (loaded, cache))
    assert torch.equal(found, expected)
    model.set_attn_implementation("eager")
    with pytest.raises(CodecError, match="filled with another codec"):
        load_cache(path, model, codec)


def test_a_model_that_changes_keys_on_the_way_is_told(ids, monkeypatch):
    model = make("llama", monkeypatch)
    codec = codec_for(model, ids)
    use_packed_attention(model)
    layer = codec.new_cache(model, prefill="decoded").layers[0]
    keys = torch.zeros(1, 2, MOST_QUERIES, 8)
    marked, _ = layer.update(keys, keys)
    assert layer_behind(marked) is layer
    assert layer_behind(marked.clone()) is None
    with pytest.raises(ModelError, match="changes keys between cache and attention"):
        layer.update(keys, keys)
    assert layer_behind(keys) is None


def test_sdpa_model_without_codes_is_untouched(ids, monkeypatch):
    """With an ordinary cache the implementation is transformers' own attention."""
    model = make("qwen3", monkeypatch)
    expected = logits(model, transformers.DynamicCache(config=model.config), ids)
    use_packed_attention(model)
    found = logits(model, transformers.DynamicCache(config=model.config), ids)
    lossless = logits(
        model, quietly(lambda: control_codec(model, "lossless").new_cache(model)), ids
    )
    for one, two, three in zip(found, expected, lossless, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(three, two, rtol=1e-4, atol=1e-4)


def quietly(make_cache):
    with pytest.warns(UserWarning, match="reads decoded"):
        return make_cache()
