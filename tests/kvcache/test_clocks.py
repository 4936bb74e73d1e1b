"""Times of attention and cache: the parts are what they are, and nothing stays behind."""

import time

import pytest
import torch
from transformers import DynamicCache

from gonio.kvcache import control_codec
from gonio.kvcache.clocks import attention_clocks


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "qwen2-sliding"])
@pytest.mark.parametrize("kind", ["dynamic", "codec"])
def test_the_cache_is_part_of_attention_and_attention_of_the_whole(
    make_model, tokens, family, kind
):
    model = make_model(family)
    codec = control_codec(model, "lossless")
    cache = DynamicCache(config=model.config) if kind == "dynamic" else codec.new_cache(model)
    before = dict(vars(cache))
    with attention_clocks(model, cache) as clocks, torch.no_grad():
        start = time.perf_counter()
        model(input_ids=tokens, past_key_values=cache)
        whole = time.perf_counter() - start
        assert 0 < clocks.cache < clocks.attention < whole
        clocks.reset()
        assert clocks.attention == clocks.cache == 0
    assert vars(cache).keys() == before.keys()
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_slow_cache_is_seen(make_model, tokens, monkeypatch):
    model = make_model("llama")
    cache = DynamicCache(config=model.config)
    own = type(cache).update
    monkeypatch.setattr(type(cache), "update", lambda *a, **k: (time.sleep(0.02), own(*a, **k))[1])
    with attention_clocks(model, cache) as clocks, torch.no_grad():
        model(input_ids=tokens, past_key_values=cache)
    assert clocks.cache >= 2 * 0.02


def test_nothing_stays_behind_after_an_error(make_model, tokens):
    model = make_model("llama")
    cache = DynamicCache(config=model.config)
    with pytest.raises(RuntimeError, match="stop"), attention_clocks(model, cache):
        raise RuntimeError("stop")
    assert "update" not in vars(cache)
    assert not any(module._forward_hooks for module in model.modules())
