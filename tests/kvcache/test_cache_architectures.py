"""A lossless cache generates what the plain one does, on every architecture and in every way.

The codec stores blocks of four tokens, two sinks and a window of three, so that each sequence is
cut into all the parts a cache can hold; sliding windows (six tokens) are crossed.
"""

import pytest
import torch
from transformers import DynamicCache

from gonio.kvcache import control_codec, load_cache, save_cache
from gonio.models import attention_layout

GREEDY = {"max_new_tokens": 9, "do_sample": False}


@pytest.fixture
def batch(tokens):
    """Three prompts of 11 tokens, the first two padded on the left."""
    ids, mask = tokens[:3, :11].clone(), torch.ones(3, 11, dtype=torch.long)
    for row, padding in enumerate((4, 1)):
        mask[row, :padding] = 0
        ids[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def codec(any_architecture, blocked_cache_codec):
    return blocked_cache_codec(any_architecture)


def test_greedy_batch_with_left_padding(any_architecture, codec, batch):
    expected = any_architecture.generate(**batch, **GREEDY)
    assert expected.shape == (3, 20)
    for prefill in ("exact", "decoded"):
        cache = codec.new_cache(any_architecture, prefill=prefill, left_padding=4)
        found = any_architecture.generate(**batch, **GREEDY, past_key_values=cache)
        assert torch.equal(found, expected)
    plain = control_codec(any_architecture, "lossless").new_cache(any_architecture)
    assert torch.equal(
        any_architecture.generate(**batch, **GREEDY, past_key_values=plain), expected
    )


def test_three_beams(any_architecture, codec, batch):
    settings = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
    expected = any_architecture.generate(**batch, **settings)
    cache = codec.new_cache(any_architecture)
    found = any_architecture.generate(**batch, **settings, past_key_values=cache)
    assert torch.equal(found, expected)


def test_prefill_in_chunks(any_architecture, codec, batch):
    expected = any_architecture.generate(**batch, **GREEDY)
    cache = codec.new_cache(any_architecture)
    found = any_architecture.generate(
        **batch, **GREEDY, past_key_values=cache, prefill_chunk_size=4
    )
    assert torch.equal(found, expected)


def test_assisted_by_a_model_and_by_the_prompt(any_architecture, codec, make_model, tokens):
    """Rejected candidates are cropped away, inside blocks and sliding windows too."""
    prompt = tokens[:1, :4].repeat(1, 3)
    prompt = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    expected = any_architecture.generate(**prompt, **GREEDY)
    helpers = ({"assistant_model": make_model("llama", seed=5)}, {"prompt_lookup_num_tokens": 3})
    for helper in helpers:
        cache = codec.new_cache(any_architecture)
        crops = _count_crops(cache)
        found = any_architecture.generate(**prompt, **GREEDY, **helper, past_key_values=cache)
        assert torch.equal(found, expected)
        assert crops


@pytest.mark.parametrize("removed", [1, 5, 10])
@torch.no_grad()
def test_crop_then_continue(any_architecture, codec, tokens, removed):
    """After a crop the cache is that of the shorter sequence."""
    cache = codec.new_cache(any_architecture)
    cache.activate_past_recording()
    plain = DynamicCache(config=any_architecture.config)
    any_architecture(input_ids=tokens[:, :14], past_key_values=cache)
    cache.crop(-removed)
    assert cache.get_seq_length() == 14 - removed
    any_architecture(input_ids=tokens[:, : 14 - removed], past_key_values=plain)
    more = tokens[:, 16:21]
    found = any_architecture(input_ids=more, past_key_values=cache).logits
    expected = any_architecture(input_ids=more, past_key_values=plain).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded_it_continues_the_same(any_architecture, codec, tokens, tmp_path):
    cache = codec.new_cache(any_architecture)
    with torch.no_grad():
        any_architecture(input_ids=tokens[:1, :13], past_key_values=cache)
    path = save_cache(cache, tmp_path / "cache.safetensors")
    loaded = load_cache(path, any_architecture, codec)
    assert loaded.get_seq_length() == 13
    assert (loaded.key_bytes, loaded.value_bytes) == (cache.key_bytes, cache.value_bytes)
    prompt = {"input_ids": tokens[:1, :14], "attention_mask": torch.ones_like(tokens[:1, :14])}
    found = any_architecture.generate(**prompt, **GREEDY, past_key_values=loaded)
    expected = any_architecture.generate(**prompt, **GREEDY, past_key_values=cache)
    assert torch.equal(found, expected)
    assert torch.equal(found, any_architecture.generate(**prompt, **GREEDY))


@torch.no_grad()
def test_the_layout_is_that_of_the_tensors_a_cache_gets(any_architecture, tokens):
    layout = attention_layout(any_architecture.config)
    cache = DynamicCache(config=any_architecture.config)
    any_architecture(input_ids=tokens, past_key_values=cache)
    assert layout.num_layers == len(cache.layers)
    for index, layer in enumerate(cache.layers):
        assert layer.keys.shape[1::2] == (layout.num_kv_heads, layout.head_dim)
        assert layer.values.shape[1::2] == (layout.num_kv_heads, layout.value_dim)
        assert layer.keys.shape[2] == layout.tokens_held(index, tokens.shape[1])
        assert layout.window_of(index) == getattr(layer, "sliding_window", None)


def _count_crops(cache) -> list[int]:
    """A list that records each real crop of the cache."""
    crops: list[int] = []
    plain = cache.crop

    def crop(tokens_to_remove: int) -> None:
        if tokens_to_remove:
            crops.append(tokens_to_remove)
        plain(tokens_to_remove)

    cache.crop = crop
    return crops
