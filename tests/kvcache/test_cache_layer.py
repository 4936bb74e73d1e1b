"""The cache inside real models: generation, batches, beams, cropping, memory, honest reading."""

import pytest
import torch
import transformers

from gonio.errors import CodecError, ModelError, SettingError
from gonio.kvcache import (
    CacheCodec,
    CompressedLayer,
    LosslessCodec,
    SignCodec,
    calibrate,
    control_codec,
)
from gonio.models import attention_layout


def test_a_lossless_cache_gives_the_logits_of_the_plain_one(any_model, tokens):
    codec = control_codec(any_model, "lossless")
    for prefill in ("exact", "decoded"):
        cache = codec.new_cache(any_model, prefill=prefill)
        with torch.no_grad():
            first = any_model(input_ids=tokens[:, :16], past_key_values=cache).logits
            second = any_model(input_ids=tokens[:, 16:], past_key_values=cache).logits
            full = any_model(input_ids=tokens).logits
        torch.testing.assert_close(torch.cat([first, second], 1), full, rtol=1e-4, atol=1e-4)


def test_generate_runs_and_stores_packed_keys_only(any_model, tokens):
    codec = calibrate(any_model, tokens, rotation="none")
    cache = codec.new_cache(any_model)
    prompt = tokens[:1, :8]
    mask = torch.ones_like(prompt)
    out = any_model.generate(
        prompt, attention_mask=mask, past_key_values=cache, max_new_tokens=6, do_sample=False
    )
    assert out.shape == (1, 14)
    layer = cache.layers[0]
    assert layer.keys is None
    assert layer.get_seq_length() == 13
    head_dim, heads = codec.layout.head_dim, codec.layout.num_kv_heads
    assert layer.key_bytes == 13 * heads * (-(-head_dim // 8) + 2)


def test_generation_with_a_lossless_cache_is_generation_without(any_model, tokens):
    """Batches with left padding and beams too; the cache is reordered for real."""
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask}
    for beams in (1, 3):
        expected = any_model.generate(tokens, num_beams=beams, **settings)
        cache = control_codec(any_model, "lossless").new_cache(any_model)
        found = any_model.generate(tokens, past_key_values=cache, num_beams=beams, **settings)
        assert torch.equal(found, expected)


def test_the_first_call_reads_exact_keys_only_when_asked(rng):
    keys, values = torch.randn(1, 2, 4, 8, generator=rng), torch.randn(1, 2, 4, 8, generator=rng)
    exact, decoded = (
        CompressedLayer(SignCodec(), prefill="exact"),
        CompressedLayer(SignCodec(), prefill="decoded"),
    )
    assert torch.equal(exact.update(keys, values)[0], keys)
    assert not torch.equal(decoded.update(keys, values)[0], keys)
    more = torch.randn(1, 2, 1, 8, generator=rng)
    read = exact.update(more, more)[0]
    assert not torch.equal(read[:, :, :4], keys)
    assert torch.equal(read[:, :, :4], decoded.update(more, more)[0][:, :, :4])


def test_crop_select_and_repeat_act_on_the_stored_keys(rng):
    keys, values = torch.randn(3, 2, 6, 8, generator=rng), torch.randn(3, 2, 6, 8, generator=rng)
    layer = CompressedLayer(SignCodec(), prefill="decoded")
    read, _ = layer.update(keys, values)
    before = layer.key_bytes
    layer.crop(-2)
    assert layer.get_seq_length() == 4
    assert layer.key_bytes == before * 4 // 6
    layer.reorder_cache(torch.tensor([2, 0, 0]))
    token = torch.randn(3, 2, 1, 8, generator=rng)
    again, kept_values = layer.update(token, token)
    assert torch.equal(again[:, :, :4], read[[2, 0, 0], :, :4])
    assert torch.equal(kept_values[:, :, :4], values[[2, 0, 0], :, :4])
    layer.batch_repeat_interleave(2)
    for stream, rows in zip(layer.streams, (again, kept_values), strict=True):
        assert torch.equal(stream.read(), rows[[0, 0, 1, 1, 2, 2]])
    layer.reset()
    assert layer.get_seq_length() == 0
    with pytest.raises(CodecError, match="crop takes"):
        layer.crop(3)


def test_a_codec_of_another_model_is_refused(make_model):
    codec = control_codec(make_model("llama"), "zeros")
    with pytest.raises(CodecError, match="the model has"):
        codec.new_cache(make_model("gpt2"))


@torch.no_grad()
@pytest.mark.parametrize("sinks", [0, 4])
def test_allocated_bytes_at_4096_tokens_are_the_bits_reported(make_model, blocked, rng, sinks):
    """Prefill, single tokens and a chunk; blocks, sinks, window and an incomplete block counted."""
    model = make_model("llama")
    layout = attention_layout(model.config)
    codec = CacheCodec(layout, (SignCodec(),) * 2, (blocked(32),) * 2, sinks=sinks, window=37)
    cache = codec.new_cache(model)
    for count in (4000, *[1] * 40, 56):
        keys = torch.randn(1, 2, count, 8, generator=rng)
        for layer in range(2):
            cache.update(keys, keys, layer)
    assert cache.get_seq_length() == 4096
    stored = {part: codec.stored(4096, part, torch.float32) for part in ("keys", "values")}
    elements = 2 * 2 * 8 * 4096
    assert stored["keys"].elements == elements
    raw = 2 * 2 * 8 * 4 * (sinks + 37)
    assert cache.key_bytes == raw + 2 * 2 * (4096 - sinks - 37) * (1 + 2)
    reported = sum(each.bits_per_element * each.elements / 8 for each in stored.values())
    assert cache.allocated_bytes == pytest.approx(reported, rel=1e-9)
    assert codec.bits_per_element(4096) == pytest.approx(3, rel=0.06)
    assert codec.bits_per_element(4096, "values") == 16


@torch.no_grad()
def test_values_are_compressed_too_when_asked(make_model, tokens):
    model = make_model("llama")
    layout = attention_layout(model.config)
    codec = CacheCodec(layout, (LosslessCodec(),) * 2, (SignCodec(),) * 2)
    cache = codec.new_cache(model, prefill="decoded")
    logits = model(input_ids=tokens, past_key_values=cache).logits
    assert (logits - model(input_ids=tokens).logits).abs().max() > 0.1
    assert cache.value_bytes * 8 / (4 * 24 * layout.key_elements_per_token) == 3
    keys = torch.randn(1, 2, 5, 8)
    assert torch.equal(codec.roundtrip(0, keys), keys)
    assert not torch.equal(codec.roundtrip(0, keys, "values"), keys)


@torch.no_grad()
def test_padding_does_not_use_up_the_sinks(make_model, tokens):
    """With four padding tokens and two sinks, six columns stay raw: two of each sequence."""
    model = make_model("llama")
    layout = attention_layout(model.config)
    codec = CacheCodec(layout, (SignCodec(),) * 2, sinks=2)
    cache = codec.new_cache(model, prefill="decoded", left_padding=4)
    keys = torch.randn(3, 2, 9, 8)
    read = cache.update(keys, keys, 0)[0]
    assert torch.equal(read[:, :, :6], keys[:, :, :6])
    assert not torch.equal(read[:, :, 6:7], keys[:, :, 6:7])


def test_offloaded_storage_comes_back(rng):
    """On a machine without an accelerator nothing moves, and nothing is lost."""
    layer = CompressedLayer(SignCodec(), prefill="decoded")
    layer.prefetch()
    keys = torch.randn(2, 2, 6, 8, generator=rng)
    read, _ = layer.update(keys, keys)
    layer.offload()
    assert all(tensor.device.type == "cpu" for tensor in layer.key_stream.tensors)
    layer.prefetch()
    assert torch.equal(layer.key_stream.read(), read)


def test_static_and_compiled_caches_are_refused_before_the_first_token(make_model):
    model = make_model("llama")
    codec = control_codec(model, "lossless")
    with pytest.raises(ModelError, match="compiled model"):
        codec.new_cache(torch.compile(model, backend="eager"))
    compiled = make_model("llama")
    compiled.compile(backend="eager")
    with pytest.raises(ModelError, match="compiled model"):
        codec.new_cache(compiled)
    with pytest.raises(SettingError, match="left_padding"):
        codec.new_cache(model, left_padding=-1)
    with pytest.raises(SettingError, match="prefill one of exact, decoded"):
        codec.new_cache(model, prefill="fast")
    model.generation_config.cache_implementation = "static"
    with pytest.raises(ModelError, match="'static' cache"):
        codec.new_cache(model)


def test_a_layer_under_the_compiler_says_so(rng):
    layer = CompressedLayer(SignCodec())
    keys = torch.randn(1, 2, 4, 8, generator=rng)
    with pytest.raises(Exception, match="cannot be compiled"):
        torch.compile(lambda x: layer.update(x, x), backend="eager", fullgraph=True)(keys)


def test_a_model_without_a_cache_is_refused():
    config = transformers.OpenAIGPTConfig(vocab_size=61, n_embd=32, n_layer=2, n_head=4)
    model = transformers.OpenAIGPTLMHeadModel(config)
    with pytest.raises(ModelError, match="takes no past_key_values"):
        control_codec(model, "lossless").new_cache(model)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.BertConfig(), "encoder has no cache"),
        (transformers.DeepseekV2Config(), "latent"),
        (transformers.DeepseekV3Config(), "latent"),
        (transformers.MambaConfig(), "linear_attention"),
        (transformers.JambaConfig(), "linear_attention"),
        (transformers.Qwen3NextConfig(), "linear_attention"),
        (transformers.RecurrentGemmaConfig(), "linear_attention"),
        (transformers.ZambaConfig(), "hybrid"),
        (transformers.FalconH1Config(), "hybrid"),
        (transformers.Gemma3nTextConfig(), "without a cache of their own"),
        (transformers.Gemma4TextConfig(), "different head counts or sizes|dummy"),
        (transformers.RwkvConfig(), "no attention heads"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_other_kinds_of_attention_are_refused_by_name(config, reason):
    with pytest.raises(ModelError, match=reason):
        attention_layout(config)
