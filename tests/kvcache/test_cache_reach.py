"""A cache that grows past the positions of its codec says so, once, and only where it matters."""

import copy
import warnings

import pytest
import torch

from gonio.kvcache import (
    calibrate,
    fill_caches,
    load_cache,
    save_cache,
    use_packed_attention,
)
from gonio.kvcache.positions import PositionWarning

TRANSFORM = {"method": "transform", "bits": 2.0, "stage": "post_rope"}


def warned(model, codec, ids, **options):
    """Messages of a cache that reads ids in three calls."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        cache = codec.new_cache(model, **options)
        with torch.no_grad():
            for part in ids.split([20, 6, ids.shape[1] - 26], dim=1):
                model(input_ids=part, past_key_values=cache)
    return [str(each.message) for each in found if each.category is PositionWarning]


@pytest.fixture
def long(tokens):
    return tokens[:1].repeat(1, 2)


def test_it_warns_once_with_what_where_and_the_cure(make_model, tokens, long):
    model = make_model("llama")
    codec = calibrate(model, tokens, **TRANSFORM)
    assert codec.positions == 24
    (message,) = warned(model, codec, long)
    for word in ("position 25", "0 to 23", "transform", "--stage pre_rope", "--context"):
        assert word in message


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", TRANSFORM | {"context": 64}),
        ("llama", {"method": "transform", "bits": 2.0}),
        ("llama", {"method": "affine", "bits": 4}),
        ("llama", {"method": "lossless", "value_method": "transform", "value_bits": 2.0}),
        ("gpt2", TRANSFORM),  # no rotary embedding
    ],
)
def test_it_is_silent_where_positions_do_not_matter(family, options, make_model, tokens, long):
    model = make_model(family)
    assert warned(model, calibrate(model, tokens, **options), long) == []


def test_padding_is_no_position(make_model, tokens, long):
    model = make_model("llama")
    codec = calibrate(model, tokens, **TRANSFORM)
    assert warned(model, codec, long[:, :30], left_padding=6) == []
    (message,) = warned(model, codec, long[:, :31], left_padding=6)
    assert "position 24, " in message


def test_layers_whose_codes_are_read_packed_warn_too(make_model, tokens, long):
    model = make_model("llama")
    both = {"value_method": "transform", "value_bits": 2.0, "value_options": {"states": 1}}
    codec = calibrate(model, tokens, **TRANSFORM, states=1, **both)
    assert len(warned(use_packed_attention(model), codec, long)) == 1


def test_filled_loaded_and_copied_caches_warn_too(make_model, tokens, long, tmp_path):
    model = make_model("gemma3")
    codec = calibrate(model, tokens, **TRANSFORM)
    with pytest.warns(PositionWarning, match="position 29"):
        fill_caches(model, long[:, :30], {"codec": codec})
    cache = codec.new_cache(model)
    with torch.no_grad():
        model(input_ids=long[:, :20], past_key_values=cache)
        path = save_cache(cache, tmp_path / "cache.safetensors")
        for each in (load_cache(path, model, codec), copy.deepcopy(cache), cache):
            with pytest.warns(PositionWarning, match="position 25"):
                model(input_ids=long[:, 20:26], past_key_values=each)
