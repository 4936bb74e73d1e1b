"""Collected keys are the model's own, sampled and bounded."""

import pytest
import torch
from transformers import DynamicCache

from gonio.errors import SettingError, ShapeError
from gonio.kvcache import collect_keys, key_rotations


def test_collected_keys_are_those_of_the_plain_cache(any_architecture, tokens):
    """Of a sliding layer the plain cache keeps the last tokens only; all are collected."""
    samples = collect_keys(any_architecture, tokens)
    cache = DynamicCache(config=any_architecture.config)
    with torch.no_grad():
        any_architecture(input_ids=tokens[2:3], past_key_values=cache)
    for layer, keys in enumerate(samples.keys):
        plain = cache.layers[layer].keys[0]
        assert keys.shape[2] == tokens.shape[1]
        found = keys[2][:, -plain.shape[1] :]
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_sampling_keeps_the_same_positions_everywhere(make_model, tokens):
    model = make_model("llama")
    everything = collect_keys(model, tokens)
    sample = collect_keys(model, tokens, samples_per_window=5, seed=3)
    assert sample.keys[0].shape == (4, 2, 5, 8)
    expected = everything.keys[1][:, :, sample.positions]
    torch.testing.assert_close(sample.keys[1], expected, rtol=0, atol=0)
    assert not torch.equal(
        sample.positions, collect_keys(model, tokens, samples_per_window=5).positions
    )


def test_the_model_is_left_as_it_was(make_model, tokens):
    model = make_model("llama")
    before = vars(model.config).copy()
    collect_keys(model, tokens)
    assert vars(model.config) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_windows_are_refused(make_model, tokens):
    with pytest.raises(ShapeError, match="windows must be"):
        collect_keys(make_model("llama"), tokens[0])
    with pytest.raises(SettingError, match="samples_per_window"):
        collect_keys(make_model("llama"), tokens, samples_per_window=0)


def test_unknown_rotation_is_refused(make_model, tokens):
    samples = collect_keys(make_model("llama"), tokens)
    with pytest.raises(SettingError, match="rotation must be one of"):
        key_rotations("fourier", samples)
