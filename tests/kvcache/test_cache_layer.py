"""The cache inside real models: generation, batches, beams, cropping, memory, honest reading."""

import pytest
import torch
import transformers

from gonio.errors import CodecError, ModelError
from gonio.kvcache import calibrate, control_codec
from gonio.kvcache.layer import CompressedLayer
from gonio.kvcache.sign_codec import SignCodec


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
    exact, decoded = CompressedLayer(SignCodec(), "exact"), CompressedLayer(SignCodec(), "decoded")
    assert torch.equal(exact.update(keys, values)[0], keys)
    assert not torch.equal(decoded.update(keys, values)[0], keys)
    more = torch.randn(1, 2, 1, 8, generator=rng)
    read = exact.update(more, more)[0]
    assert not torch.equal(read[:, :, :4], keys)
    assert torch.equal(read[:, :, :4], decoded.update(more, more)[0][:, :, :4])


def test_crop_select_and_repeat_act_on_the_stored_keys(rng):
    keys, values = torch.randn(3, 2, 6, 8, generator=rng), torch.randn(3, 2, 6, 8, generator=rng)
    layer = CompressedLayer(SignCodec(), "decoded")
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
    assert layer.values.shape[0] == 6
    layer.reset()
    assert layer.get_seq_length() == 0
    with pytest.raises(CodecError, match="crop takes"):
        layer.crop(3)


def test_a_codec_of_another_model_is_refused(make_model):
    codec = control_codec(make_model("llama"), "zeros")
    with pytest.raises(CodecError, match="the model has"):
        codec.new_cache(make_model("gpt2"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.MistralConfig(sliding_window=8), "sliding"),
        (transformers.Gemma2Config(), "sliding_attention"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.DeepseekV3Config(), "latent"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_other_kinds_of_attention_are_refused_by_name(config, reason):
    from gonio.models import attention_layout

    with pytest.raises(ModelError, match=reason):
        attention_layout(config)
