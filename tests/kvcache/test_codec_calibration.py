"""Calibration of every method: what is fitted, what is refused, files, sinks left out."""

import dataclasses

import pytest
import torch

from gonio.errors import DataError, SettingError
from gonio.kvcache import KeySamples, calibrate, calibrate_from_samples, load_codec
from gonio.kvcache.affine_codec import AffineCodec
from gonio.kvcache.options import resolve_options
from gonio.kvcache.refined_codec import RefinedCodec
from gonio.kvcache.samples import CacheSamples
from gonio.linalg.rotations import haar_rotation
from gonio.models import AttentionLayout

LAYOUT = AttentionLayout(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
METHODS = {
    "sign": {"method": "sign", "bits": 1},
    "sign-shared": {"method": "sign", "shared_rotation": True, "centering": "token"},
    "residual": {"method": "residual_sign", "bits": 3, "centering": "channel"},
    "scalar": {"method": "scalar", "bits": 2, "rotation": "hadamard", "centering": "channel"},
    "affine": {"method": "affine", "bits": 2, "group": 8},
    "corrected": {"method": "sign", "correction_rank": 2, "coefficients": "int8", "exceptions": 1},
    "corrected-affine": {"method": "affine", "bits": 2, "group": 8, "correction_rank": 2},
}


@pytest.fixture
def samples(rng) -> CacheSamples:
    """Keys near a plane per head, values isotropic, and outliers in the first four tokens."""
    keys, values = [], []
    for _ in range(LAYOUT.num_layers):
        plane = haar_rotation(16, rng, batch=(2,))[:, :3]
        key = torch.randn(3, 2, 100, 3, generator=rng) @ plane + 0.5
        key += 0.1 * torch.randn(3, 2, 100, 16, generator=rng)
        key[:, :, :4] += 100 * torch.randn(3, 2, 4, 16, generator=rng)
        keys.append(key)
        values.append(torch.randn(3, 2, 100, 16, generator=rng))
    return CacheSamples(LAYOUT, tuple(keys), torch.arange(100), tuple(values))


def error(codec, samples, part="keys"):
    """Mean relative error on the tokens after the sinks."""
    total = []
    for layer, x in enumerate(samples.keys if part == "keys" else samples.values):
        x = x[:, :, 4:]
        single = codec.of(part)[layer]
        x = x[:, :, : x.shape[2] // single.block * single.block]
        decoded = single.decode(single.encode(x))
        total.append(((x - decoded).square().sum() / x.square().sum()).item())
    return sum(total) / len(total)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_calibrates_saves_and_loads(name, samples, tmp_path):
    codec = calibrate_from_samples(samples, sinks=4, recent=3, **METHODS[name])
    loaded = load_codec(codec.save(tmp_path / "codec.safetensors"))
    assert (loaded.sinks, loaded.window) == (4, 3)
    assert loaded.provenance == codec.provenance
    assert loaded.provenance["method"] == METHODS[name]["method"]
    for layer, x in enumerate(samples.keys):
        expected = codec.roundtrip(layer, x)
        assert torch.equal(loaded.roundtrip(layer, x), expected)
        assert torch.equal(expected[:, :, :4], x[:, :, :4])
        assert not torch.equal(expected[:, :, 4:], x[:, :, 4:])
    assert error(codec, samples) < 0.35


def test_sinks_do_not_enter_the_statistics(samples):
    """Without the outliers in the first tokens the codec is the same, tensor for tensor."""
    calm = [x.clone() for x in samples.keys]
    for x in calm:
        x[:, :, :4] = 0
    quiet = dataclasses.replace(samples, keys=tuple(calm))
    for choice in METHODS.values():
        codec = calibrate_from_samples(samples, **choice)
        other = calibrate_from_samples(quiet, **choice)
        for one, two in zip(codec.keys, other.keys, strict=True):
            for name, tensor in one.state()[1].items():
                assert torch.equal(tensor, two.state()[1][name]), name
    more = calibrate_from_samples(samples, method="sign", sinks=50)
    fewer = calibrate_from_samples(samples, method="sign")
    assert not torch.equal(more.keys[0].frame.rotation, fewer.keys[0].frame.rotation)


def test_every_choice_does_what_it_says(samples):
    """Errors in the order that theory and the planted keys demand."""
    found = {
        name: error(calibrate_from_samples(samples, **choice), samples)
        for name, choice in {
            **METHODS,
            "haar": {"method": "sign", "rotation": "haar"},
            "stage": {"method": "residual_sign", "bits": 2, "centering": "channel"},
            "rank 2": {"method": "sign", "correction_rank": 2},
            "scalar 3": {**METHODS["scalar"], "bits": 3},
        }.items()
    }
    assert found["sign"] < found["haar"]
    assert found["residual"] < found["stage"] < found["sign"]
    assert found["rank 2"] < found["sign"]
    assert found["corrected"] < found["rank 2"]
    assert found["scalar 3"] < 0.5 * found["scalar"]
    assert found["corrected-affine"] < found["affine"]


def test_a_shared_rotation_is_one_per_layer(samples):
    shared = calibrate_from_samples(samples, shared_rotation=True)
    apart = calibrate_from_samples(samples)
    assert shared.keys[0].frame.rotation.shape == (1, 16, 16)
    assert apart.keys[0].frame.rotation.shape == (2, 16, 16)
    assert error(apart, samples) < error(shared, samples)


def test_values_have_a_codec_of_their_own(samples):
    codec = calibrate_from_samples(samples, value_bits=4)
    assert codec.values[0] == AffineCodec(4, "token", 32)
    assert error(codec, samples, "values") < 0.01
    options = {"rotation": "haar", "exceptions": 2}
    codec = calibrate_from_samples(
        samples, value_method="scalar", value_bits=3, value_options=options
    )
    assert isinstance(codec.values[0], RefinedCodec)
    assert codec.provenance["values"]["exceptions"] == 2
    raw = calibrate_from_samples(samples, method="lossless", value_bits=2)
    assert raw.keys[0].method == "lossless"
    assert error(raw, samples) == 0
    keys_only = KeySamples(samples.layout, samples.keys, samples.positions)
    with pytest.raises(SettingError, match="hold keys only"):
        calibrate_from_samples(keys_only, value_bits=2)
    with pytest.raises(SettingError, match="neither value_method nor value_bits"):
        calibrate_from_samples(samples, value_options=options)


def test_calibrating_a_model_gives_a_cache_that_generates(make_model, tokens):
    model = make_model("llama")
    codec = calibrate(
        model, tokens, method="affine", bits=4, group=4, value_bits=4, sinks=2, recent=4
    )
    cache = codec.new_cache(model)
    out = model.generate(
        tokens[:2], past_key_values=cache, max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    assert out.shape[1] == tokens.shape[1] + 9
    plain = codec.stored(32).bits_per_element, codec.stored(32, "values").bits_per_element
    # 32 tokens: 2 sinks, 4 recent and 2 that wait for their block are raw, 24 are coded with
    # groups of 4 tokens (keys) or one group of 8 channels (values)
    raw = 16 * 8 / 32
    assert plain[0] == pytest.approx(raw + (4 + 32 / 4) * 24 / 32)
    assert plain[1] == pytest.approx(16 * 6 / 32 + (4 + 32 / 8) * 26 / 32)


def test_wrong_choices_are_refused_before_the_model_runs(samples):
    cases = [
        ({"method": "magic"}, "method must be one of"),
        ({"bits": 2}, "stores 1 bit"),
        ({"method": "scalar", "bits": 2.5}, "whole number"),
        ({"method": "scalar", "bits": 9}, "1 to 8"),
        ({"method": "affine", "bits": 2, "rotation": "haar"}, "'affine' has no option 'rotation'"),
        ({"exeptions": 2}, "did you mean 'exceptions'"),
        ({"method": "scalar", "bits": 2, "rotation": "learned"}, "turns towards signs"),
        ({"rotation": "fourier"}, "rotation must be one of"),
        ({"centering": "median"}, "centering must be one of"),
        ({"correction_rank": -1}, "correction_rank must be >= 0"),
        ({"value_method": "scalar"}, "stores a whole number"),
    ]
    for choice, message in cases:
        with pytest.raises(SettingError, match=message):
            calibrate_from_samples(samples, **choice)
    with pytest.raises(SettingError, match="method must be one of"):
        calibrate(None, torch.arange(10), method="magic")
    short = dataclasses.replace(samples, positions=torch.arange(4))
    with pytest.raises(DataError, match="left out as sinks"):
        calibrate_from_samples(short)
    with pytest.raises(DataError, match="shorter than the 97 tokens"):
        calibrate_from_samples(samples, method="affine", bits=2, group=97, correction_rank=1)


def test_options_are_complete_and_differ_by_part():
    assert resolve_options("affine", "keys", {})["axis"] == "channel"
    assert resolve_options("affine", "values", {})["axis"] == "token"
    assert resolve_options("lossless", "keys", {}) == {}
    assert resolve_options("sign", "keys", {})["iterations"] == 50
