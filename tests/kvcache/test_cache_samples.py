"""Collected keys and values are the model's own, sampled and bounded."""

import pytest
import torch
from transformers import DynamicCache

from gonio.errors import SettingError, ShapeError
from gonio.kvcache import collect_cache, collect_keys, collect_metrics, key_rotations


def test_collected_keys_and_values_are_those_of_the_plain_cache(any_architecture, tokens):
    """Of a sliding layer the plain cache keeps the last tokens only; all are collected."""
    samples = collect_cache(any_architecture, tokens)
    cache = DynamicCache(config=any_architecture.config)
    with torch.no_grad():
        any_architecture(input_ids=tokens[2:3], past_key_values=cache)
    for layer, plain in enumerate(cache.layers):
        for mine, theirs in ((samples.keys, plain.keys), (samples.values, plain.values)):
            assert mine[layer].shape[2] == tokens.shape[1]
            found = mine[layer][2:3, :, -theirs.shape[2] :]
            torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_keys_alone_are_those_collected_with_values(any_model, tokens):
    keys, both = collect_keys(any_model, tokens), collect_cache(any_model, tokens)
    assert keys.layout == both.layout
    assert torch.equal(keys.positions, both.positions)
    for alone, together in zip(keys.keys, both.keys, strict=True):
        assert torch.equal(alone, together)


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


def test_samples_are_float32_without_gradients_whatever_the_model(make_model, tokens):
    model = make_model("llama").to(torch.bfloat16)
    samples, told = collect_cache(model, tokens), []
    collect_keys(model, tokens, progress=lambda *state: told.append(state))
    for tensor in (*samples.keys, *samples.values):
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
    assert told == [("observing keys", done, 4) for done in (1, 2, 3, 4)]


def test_the_model_is_left_as_it_was(make_model, tokens):
    model = make_model("llama")
    before = vars(model.config).copy()
    collect_cache(model, tokens)
    assert vars(model.config) == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("collect", [collect_keys, collect_cache])
def test_bad_windows_are_refused(collect, make_model, tokens):
    with pytest.raises(ShapeError, match="windows must be"):
        collect(make_model("llama"), tokens[0])


def test_a_sample_of_nothing_is_refused(make_model, tokens):
    with pytest.raises(SettingError, match="samples_per_window"):
        collect_keys(make_model("llama"), tokens, samples_per_window=0)


def test_unknown_rotation_is_refused(make_model, tokens):
    samples = collect_keys(make_model("llama"), tokens)
    with pytest.raises(SettingError, match="rotation must be one of"):
        key_rotations("fourier", samples)


def test_windows_stand_at_even_places_of_the_context(make_model, tokens):
    """Keys of layer 0 turn with their place; what the model computes does not move."""
    model = make_model("llama")
    length, context = tokens.shape[1], 100
    samples, at_start = collect_cache(model, tokens, context=context), collect_cache(model, tokens)
    assert torch.equal(samples.keys[1][0], at_start.keys[1][0])
    starts = [round(i * (context - length) / 3) for i in range(4)]
    for index, start in enumerate(starts):
        cache = DynamicCache(config=model.config)
        places = torch.arange(start, start + length)[None]
        with torch.no_grad():
            model(tokens[index : index + 1], past_key_values=cache, position_ids=places)
        torch.testing.assert_close(samples.keys[0][index], cache.layers[0].keys[0])
        torch.testing.assert_close(
            samples.values[1][index], at_start.values[1][index], rtol=1e-4, atol=1e-5
        )
    assert starts[-1] + length == context
    assert not torch.allclose(samples.keys[0][3], at_start.keys[0][3], atol=1e-2)


def test_metrics_do_not_depend_on_the_place_but_key_ones_turn_with_it(make_model, tokens):
    model = make_model("llama")
    moved, still = (collect_metrics(model, tokens[:1].repeat(2, 1), context=c) for c in (90, 0))
    plain = collect_cache(model, tokens[:1].repeat(2, 1), context=90)
    torch.testing.assert_close(moved.keys[0], plain.keys[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.values[1], still.values[1], rtol=1e-4, atol=1e-5)
    for a, b in zip(moved.key_local, still.key_local, strict=True):
        torch.testing.assert_close(
            a.diagonal(dim1=-2, dim2=-1).sum(-1),
            b.diagonal(dim1=-2, dim2=-1).sum(-1),
            rtol=1e-4,
            atol=1e-6,
        )
        assert not torch.allclose(a, b, rtol=1e-3)


@pytest.mark.parametrize("context", [-1, 10**7])
def test_a_context_the_model_does_not_have_is_refused(make_model, tokens, context):
    model = make_model("llama")
    for collect in (collect_cache, collect_metrics):
        with pytest.raises(SettingError, match="context must be 0 to"):
            collect(model, tokens, context=context)
