"""Codecs: shapes, error bounds, bits worked by hand, files."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.kvcache import (
    CacheCodec,
    KeySamples,
    LosslessCodec,
    SignCodec,
    ZeroCodec,
    calibrate_from_samples,
    load_codec,
)
from gonio.kvcache.frame import Frame
from gonio.linalg.rotations import haar_rotation
from gonio.models import AttentionLayout
from gonio.quant.sign import sign_beta

LAYOUT = AttentionLayout(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16)


@pytest.fixture
def keys(rng: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 7, 16, generator=rng) * 5


@pytest.mark.parametrize("rotated", [False, True])
def test_error_of_a_key_is_what_the_residual_formula_says(keys, rng, rotated):
    """The energy lost is 1 - cos^2 of the rotated key, up to the rounding of a float16 scale."""
    rotation = haar_rotation(16, rng, batch=(3,)) if rotated else None
    codec = SignCodec(Frame(rotation))
    decoded = codec.decode(codec.encode(keys))
    lost = (keys - decoded).square().sum(-1) / keys.square().sum(-1)
    turned = keys if rotation is None else torch.einsum("hij,bhtj->bhti", rotation, keys)
    torch.testing.assert_close(lost, 1 - sign_beta(turned), rtol=0, atol=2e-6)
    assert not torch.allclose(lost, 1 - sign_beta(turned.roll(1, 2)), rtol=0, atol=2e-6)


def test_the_unbiased_scale_keeps_the_inner_product_with_the_key(keys):
    codec = SignCodec(scale_kind="unbiased")
    decoded = codec.decode(codec.encode(keys))
    ratio = (keys * decoded).sum(-1) / keys.square().sum(-1)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-3)  # float16 scale


@pytest.mark.parametrize(
    ("head_dim", "expected"),
    [(64, 1 + 16 / 64), (16, 1 + 16 / 16), (10, (2 * 8 + 16) / 10), (1, 24.0)],
)
def test_bits_per_element_are_codes_padding_and_scale(rng, head_dim, expected):
    keys = torch.randn(1, 2, 5, head_dim, generator=rng)
    encoded = SignCodec().encode(keys)
    assert encoded.bits_per_element == pytest.approx(expected)
    assert encoded.stored_bytes == sum(t.nbytes for t in encoded.tensors.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "codec", [SignCodec(), ZeroCodec(), LosslessCodec()], ids=lambda c: c.method
)
def test_round_trip_keeps_shape_and_dtype(keys, codec, dtype):
    decoded = codec.decode(codec.encode(keys.to(dtype)))
    assert decoded.shape == keys.shape
    assert decoded.dtype == dtype


def test_zero_and_huge_keys_stay_finite():
    keys = torch.zeros(1, 1, 2, 8)
    keys[0, 0, 1] = 1e6  # above the largest float16 scale
    decoded = SignCodec().decode(SignCodec().encode(keys))
    assert decoded[0, 0, 0].abs().max() == 0
    assert torch.isfinite(decoded).all()


def test_appending_runs_equals_encoding_them_together(keys):
    codec = SignCodec()
    parts = codec.encode(keys[:, :, :3]).append(codec.encode(keys[:, :, 3:]))
    torch.testing.assert_close(
        codec.decode(parts), codec.decode(codec.encode(keys)), rtol=0, atol=0
    )
    cropped = codec.decode(parts.first(2))
    torch.testing.assert_close(cropped, codec.decode(codec.encode(keys[:, :, :2])), rtol=0, atol=0)


def test_appending_another_kind_of_run_is_refused(keys):
    with pytest.raises(ShapeError, match="cannot append"):
        SignCodec().encode(keys).append(LosslessCodec().encode(keys))


def test_wrong_settings_and_shapes_are_refused(keys, rng):
    with pytest.raises(SettingError, match="scale_kind"):
        SignCodec(scale_kind="nearest")
    with pytest.raises(SettingError, match="scale_dtype must be one of float16, float32, found"):
        SignCodec(scale_dtype="bfloat16")
    with pytest.raises(ShapeError, match="rotation must be"):
        SignCodec(Frame(torch.eye(16)))
    with pytest.raises(CodecError, match="not orthogonal"):
        SignCodec(Frame(1.01 * haar_rotation(16, rng, batch=(1,))))
    with pytest.raises(ShapeError, match="2 heads of 16"):
        SignCodec(Frame(haar_rotation(16, rng, batch=(2,)))).encode(keys)
    with pytest.raises(ShapeError, match="keys and values must be"):
        SignCodec().encode(keys[0])


def test_a_saved_codec_decodes_the_same(tmp_path, keys, rng):
    layers = tuple(SignCodec(Frame(haar_rotation(16, rng, batch=(3,)))) for _ in range(3))
    codec = CacheCodec(LAYOUT, layers, provenance={"seed": 3})
    loaded = load_codec(codec.save(tmp_path / "codec.safetensors"))
    assert loaded.layout == LAYOUT
    assert loaded.provenance == {"seed": 3}
    for layer in range(3):
        expected = codec.roundtrip(layer, keys)
        torch.testing.assert_close(loaded.roundtrip(layer, keys), expected, rtol=0, atol=0)
    other = loaded.roundtrip(1, keys)
    assert not torch.equal(other, codec.roundtrip(0, keys))


def test_a_shared_rotation_is_stored_and_counted_once(tmp_path, rng):
    rotation = haar_rotation(16, rng, batch=(1,))
    codec = CacheCodec(LAYOUT, (SignCodec(Frame(rotation)),) * 3)
    assert codec.stored(8).side_bytes == rotation.nbytes
    loaded = load_codec(codec.save(tmp_path / "codec.safetensors"))
    assert loaded.stored(8).side_bytes == rotation.nbytes
    apart = CacheCodec(LAYOUT, tuple(SignCodec(Frame(rotation.clone())) for _ in range(3)))
    assert apart.stored(8).side_bytes == 3 * rotation.nbytes


def test_scales_are_counted_apart_from_codes():
    stored = CacheCodec(LAYOUT, (SignCodec(),) * 3).stored(8)
    keys = 3 * 2 * 8  # layers, heads, tokens; each two bytes of signs and a float16 scale
    assert (stored.code_bytes, stored.metadata_bytes) == (2 * keys, 2 * keys)
    assert stored.bits_per_element == 8 * 4 / 16


def test_float32_scales_are_not_rounded_and_cost_16_bits_more(keys):
    """The decoded magnitude is the mean absolute coordinate, to the last bit only in float32."""
    exact = keys.abs().mean(dim=-1, keepdim=True).expand_as(keys)
    wide, narrow = SignCodec(scale_dtype="float32"), SignCodec()
    bound = 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(wide.decode(wide.encode(keys)).abs(), exact, rtol=bound, atol=0)
    rounded = narrow.decode(narrow.encode(keys)).abs()
    assert not torch.allclose(rounded, exact, rtol=bound, atol=0)
    more = wide.encode(keys).bits_per_element - narrow.encode(keys).bits_per_element
    assert more == pytest.approx(16 / 16)
    large = wide.decode(wide.encode(keys * 1e6))  # float16 ends at 65504
    torch.testing.assert_close(large.abs(), exact * 1e6, rtol=bound, atol=0)
    stored = CacheCodec(LAYOUT, (wide,) * 3).stored(8)
    assert (stored.code_bytes, stored.metadata_bytes) == (2 * 48, 4 * 48)  # 3 x 2 x 8 vectors


@pytest.mark.parametrize(("method", "bits"), [("sign", 1), ("residual_sign", 2)])
def test_the_dtype_of_scales_is_an_option_that_files_keep(tmp_path, keys, method, bits):
    """Files from before the option, which lack it, and files of its default are the same."""
    samples = KeySamples(LAYOUT, (keys[:, :2],) * 3, torch.arange(7))
    settings = {"method": method, "bits": bits, "rotation": "haar"}
    codecs = {
        dtype: calibrate_from_samples(samples, scale_dtype=dtype, **settings)
        for dtype in ("float16", "float32")
    }
    for dtype, codec in codecs.items():
        loaded = load_codec(codec.save(tmp_path / f"{dtype}.safetensors"))
        expected = codec.roundtrip(0, keys[:, :2])
        torch.testing.assert_close(loaded.roundtrip(0, keys[:, :2]), expected, rtol=0, atol=0)
        assert loaded.bits_per_element(8) == codec.bits_per_element(8)
    more = codecs["float32"].bits_per_element(8) - codecs["float16"].bits_per_element(8)
    assert more == bits * 16 / 16
    assert "scale_dtype" not in str(codecs["float16"].keys[0].state()[0])
    with pytest.raises(SettingError, match="scale_dtype must be one of float16, float32"):
        calibrate_from_samples(samples, scale_dtype="float64", **settings)


def test_unreadable_codec_files_are_refused(tmp_path, rng):
    with pytest.raises(CodecError, match="no codec file"):
        load_codec(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(CodecError, match=r"not a safetensors file|not a gonio codec"):
        load_codec(broken)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(CodecError, match="not a gonio codec"):
        load_codec(foreign)
    future = tmp_path / "future.safetensors"
    save_file({"x": torch.zeros(1)}, future, metadata={"gonio_codec": '{"format": 9}'})
    with pytest.raises(CodecError, match="header"):
        load_codec(future)


def test_a_codec_must_have_every_layer_of_keys_and_of_values():
    with pytest.raises(CodecError, match="3 layers was given 1 for keys"):
        CacheCodec(LAYOUT, (SignCodec(),))
    with pytest.raises(CodecError, match="3 layers was given 2 for values"):
        CacheCodec(LAYOUT, (SignCodec(),) * 3, (SignCodec(),) * 2)
    with pytest.raises(SettingError, match="sinks and window must be >= 0"):
        CacheCodec(LAYOUT, (SignCodec(),) * 3, window=-1)
    mixed = CacheCodec(LAYOUT, (SignCodec(), SignCodec(), ZeroCodec()))
    assert mixed.method == "sign+zeros"
    with pytest.raises(SettingError, match="part must be keys or values"):
        mixed.of("queries")


def test_learned_rotations_raise_the_cosine_on_keys_they_were_not_fitted_to(rng):
    """Keys near a plane are turned near the corners of the cube; fitted and measured apart."""
    plane = haar_rotation(16, rng)[:2]

    def draw() -> KeySamples:
        keys = []
        for _ in range(3):
            noise = 0.1 * torch.randn(2, 2, 200, 16, generator=rng)
            keys.append(torch.randn(2, 2, 200, 2, generator=rng) @ plane + noise)
        return KeySamples(LAYOUT, tuple(keys), torch.arange(200))

    learn, measure = draw(), draw()
    isotropic = dataclasses.replace(
        learn, keys=tuple(torch.randn(keys.shape, generator=rng) for keys in learn.keys)
    )
    error = {
        "learned": _mean_error(calibrate_from_samples(learn, rotation="learned"), measure),
        "haar": _mean_error(calibrate_from_samples(learn, rotation="haar"), measure),
        "fitted elsewhere": _mean_error(calibrate_from_samples(isotropic), measure),
    }
    assert error["learned"] < 0.7 * error["haar"]
    assert error["learned"] < 0.7 * error["fitted elsewhere"]


def _mean_error(codec: CacheCodec, samples) -> float:
    errors = []
    for layer, keys in enumerate(samples.keys):
        decoded = codec.roundtrip(layer, keys)
        errors.append(((keys - decoded).square().sum() / keys.square().sum()).item())
    return sum(errors) / len(errors)


def test_a_file_with_an_unknown_method_or_setting_is_refused(tmp_path, blocked):
    path = CacheCodec(LAYOUT, (blocked(4),) * 3).save(tmp_path / "codec.safetensors")
    with pytest.raises(CodecError, match=r"codec.safetensors\n  layer 0 uses method 'blocked'"):
        load_codec(path)
