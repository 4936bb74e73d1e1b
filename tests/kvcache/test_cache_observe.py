"""Observed keys are the model's own, sampled and bounded; the cosine table says what they are."""

import math

import pytest
import torch
from transformers import DynamicCache

from gonio.errors import SettingError, ShapeError
from gonio.kvcache import collect_keys, key_rotations, rotation_convergence, sign_cosine_table
from gonio.linalg.chance import sign_cosine_of_random_direction


def test_collected_keys_are_those_of_the_plain_cache(any_model, tokens):
    samples = collect_keys(any_model, tokens)
    cache = DynamicCache(config=any_model.config)
    with torch.no_grad():
        any_model(input_ids=tokens[2:3], past_key_values=cache)
    for layer, keys in enumerate(samples.keys):
        torch.testing.assert_close(keys[2], cache.layers[layer].keys[0], rtol=1e-5, atol=1e-5)


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


def test_the_cosine_table_has_chance_where_the_rotation_is_random(make_model, tokens):
    """Averaged over many Haar rotations a head's cosine is c_d, whatever its keys are."""
    samples = collect_keys(make_model("llama"), tokens)
    rotations = {seed: key_rotations("haar", samples, seed=seed) for seed in range(200)}
    table = sign_cosine_table(samples, rotations)
    means = table.groupby("transform")["mean_cosine"].mean()
    error = means.std() / math.sqrt(len(means))
    chance = float(sign_cosine_of_random_direction(8))
    assert abs(means.mean() - chance) < 4 * error
    assert abs(means.mean() - math.sqrt(2 / math.pi)) > 4 * error  # the limit is not c_8
    assert (table["chance"] == chance).all()


def test_intervals_hold_the_mean_and_need_two_windows(make_model, tokens):
    model = make_model("gpt2")
    samples = collect_keys(model, tokens)
    table = sign_cosine_table(samples, {"none": key_rotations("none", samples)})
    assert (table["low"] <= table["mean_cosine"]).all()
    assert (table["mean_cosine"] <= table["high"]).all()
    single = collect_keys(model, tokens[:1])
    table = sign_cosine_table(single, {"none": key_rotations("none", single)})
    assert table[["low", "high"]].isna().all(axis=None)


def test_convergence_starts_low_and_ends_high_from_every_start(make_model, tokens):
    samples = collect_keys(make_model("llama"), tokens)
    table = rotation_convergence(samples, [0, 1], iterations=15, seeds=(0, 1))
    assert set(table["start"]) == {"random", "hadamard"}
    assert len(table) == 2 * 2 * 2 * 16
    by_step = table.groupby("iteration")["mean_cosine"].mean()
    assert by_step[15] > by_step[0] + 0.02


def test_unknown_rotation_is_refused(make_model, tokens):
    samples = collect_keys(make_model("llama"), tokens)
    with pytest.raises(SettingError, match="rotation must be one of"):
        key_rotations("fourier", samples)
