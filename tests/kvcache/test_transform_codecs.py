"""Transform codecs: rates as asked, equal after a file, errors as predicted, and a mutant."""

import dataclasses

import pytest
import torch

from gonio.errors import SettingError, ShapeError
from gonio.kvcache import calibrate, calibrate_from_samples, load_codec
from gonio.kvcache.entropy_codec import EntropyCodec
from gonio.kvcache.quantizer_design import design_cells
from gonio.kvcache.samples import CacheSamples
from gonio.kvcache.sensitivity import MetricSamples
from gonio.kvcache.stream import TokenStream
from gonio.kvcache.transform_codec import TransformCodec
from gonio.kvcache.transform_fit import allocate_widths, excess_over_limit
from gonio.linalg.rotations import haar_rotation
from gonio.models import AttentionLayout

DIM, TOKENS = 16, 4 + 256
LAYOUT = AttentionLayout(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=DIM)
METHODS = ["transform", "entropy"]


def metric(rng, power=1.0):
    turn = haar_rotation(DIM, rng, batch=(2,)).double()
    return turn * torch.arange(1, DIM + 1).double().pow(-power) @ turn.mT


def make_samples(rng, windows=3):
    """Anisotropic keys and queries, outliers in the first four tokens."""
    tensors = {"keys": [], "values": []}
    for part in tensors:
        for _ in range(LAYOUT.num_layers):
            mix = metric(rng, 0.7).float() * 4
            x = torch.randn(windows, 2, TOKENS, DIM, generator=rng) @ mix + 0.5
            x[:, :, :4] *= 100
            tensors[part].append(x)
    metrics = [tuple(metric(rng) for _ in range(LAYOUT.num_layers)) for _ in range(2)]
    return MetricSamples(
        LAYOUT,
        tuple(tensors["keys"]),
        torch.arange(TOKENS),
        tuple(tensors["values"]),
        metrics[0],
        metrics[1],
        metrics[0],
        metrics[1],
    )


@pytest.fixture
def samples(rng):
    return make_samples(rng)


def weighted_error(codec, samples):
    """Mean squared score error of keys, by an einsum over explicit queries' moments."""
    total = 0.0
    for layer, x in enumerate(samples.keys):
        x = x[:, :, 4:]
        single = codec.keys[layer]
        e = (single.decode(single.encode(x)) - x).double()
        total += torch.einsum("whti,hij,whtj->", e, samples.key_local[layer], e).item()
    return total


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [1.5, 2.0, 2.73, 4.0])
def test_stored_bits_are_those_asked_for(method, bits, samples):
    codec = calibrate_from_samples(
        samples, method=method, bits=bits, value_method=method, value_bits=bits
    )
    for part in ("keys", "values"):
        stored = codec.bits_per_element(512, part)
        tolerance = 0.5 / (2 * 2 * DIM) if method == "transform" else 16 / (64 * 2 * DIM)
        assert bits - tolerance <= stored <= bits + (tolerance if method == "transform" else 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_more_bits_less_error_and_files_hold_the_codec(method, samples, tmp_path):
    errors = []
    for bits in (1.25, 2.0, 3.0):
        codec = calibrate_from_samples(samples, method=method, bits=bits, sinks=4)
        loaded = load_codec(codec.save(tmp_path / f"{bits}.safetensors"))
        assert loaded.fingerprint == codec.fingerprint
        for layer, x in enumerate(samples.keys):
            expected = codec.roundtrip(layer, x)
            assert torch.equal(loaded.roundtrip(layer, x), expected)
            assert torch.equal(expected[:, :, :4], x[:, :, :4])
        errors.append(weighted_error(codec, samples))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]


@pytest.mark.parametrize("method", METHODS)
def test_blocks_are_coded_alone_and_append(method, samples):
    codec = calibrate_from_samples(samples, method=method, bits=2).keys[0]
    x = samples.keys[0][:, :, 4:]
    whole = codec.encode(x)
    middle = TOKENS // 2 // codec.block * codec.block
    parts = codec.encode(x[:, :, :middle]).append(codec.encode(x[:, :, middle:256]))
    for name, tensor in whole.tensors.items():
        assert torch.equal(parts.tensors[name], tensor)
    cut = codec.decode(whole.slice(middle, middle + codec.block))
    assert torch.equal(cut, codec.decode(whole)[:, :, middle : middle + codec.block])
    chosen = whole.map(lambda t: t[[2, 0]])
    assert torch.equal(codec.decode(chosen), codec.decode(whole)[[2, 0]])
    assert codec.decode(codec.encode(x.to(torch.bfloat16))).dtype == torch.bfloat16
    with pytest.raises(ShapeError, match="whole blocks"):
        codec.encode(x[:, :, : codec.block + 1])


def test_a_basis_that_ignores_queries_is_worse(samples):
    """The mutant: the plain metric in place of the queries', at the same bits."""
    for method in METHODS:
        weighted, blind = (
            calibrate_from_samples(samples, method=method, bits=2, metric=metric, span="head")
            for metric in ("local", "plain")
        )
        assert weighted.bits_per_element(512) == pytest.approx(
            blind.bits_per_element(512), abs=0.02
        )
        assert weighted_error(weighted, samples) < 0.7 * weighted_error(blind, samples)


def test_a_shared_budget_has_less_error_than_an_equal_one(samples):
    louder = tuple(m * s for m, s in zip(samples.key_local, (1, 100), strict=True))
    uneven = dataclasses.replace(samples, key_local=louder)
    for method in METHODS:
        errors = [
            weighted_error(
                calibrate_from_samples(uneven, method=method, bits=2, metric="local", budget=b),
                uneven,
            )
            for b in ("shared", "equal")
        ]
        assert errors[0] < 0.8 * errors[1]


def test_a_trellis_and_entropy_coding_beat_scalar_codes_of_a_fixed_rate(samples):
    """At the same stored bits; and more states are better."""

    def error(method, **options):
        codec = calibrate_from_samples(samples, method=method, bits=2.0, metric="local", **options)
        return weighted_error(codec, samples)

    scalar = error("transform", states=1)
    assert error("entropy") < 0.95 * scalar
    assert error("transform", states=16) < error("transform", states=4) < 0.9 * scalar


def test_error_is_the_one_predicted(samples):
    """The decoded error of the calibration text is that of the design, at the blocks' gains."""
    codec = calibrate_from_samples(samples, method="entropy", bits=2.5).keys[0]
    x = samples.keys[0][:, :, 4:]
    rows = codec.basis.apply(x)
    encoded = codec.encode(x)
    error = (codec.basis.apply(codec.decode(encoded)) - rows).square().mean()
    gain = torch.exp2(encoded.tensors["gain"].flatten().float() / 64)
    scaled = rows.view(len(rows), -1, 64) / gain[:, None]
    predicted = design_cells(scaled.flatten(1), codec.dead_zone).error.mean() * gain.square().mean()
    assert error.item() == pytest.approx(predicted.item(), rel=0.05)


def test_words_and_vectors_do_not_depend_on_what_computes_them(samples, rng, choose_kernels):
    """Compiled or not, all blocks at once or one by one: the same bytes, the same floats."""
    codec = calibrate_from_samples(samples, method="entropy", bits=2.5).keys[0]
    x = samples.keys[0][:, :, 4:].clone()
    x[0, :, 5] *= 100  # codes beyond their tables
    compiled = codec.encode(x)
    decoded = codec.decode(compiled)
    blocks = [codec.decode(compiled.slice(at, at + 64)) for at in range(0, 256, 64)]
    choose_kernels("reference")
    plain = codec.encode(x)
    for name, tensor in plain.tensors.items():
        assert torch.equal(tensor, compiled.tensors[name])
    assert torch.equal(codec.decode(plain), decoded)
    torch.testing.assert_close(torch.cat(blocks, dim=2), decoded, rtol=1e-6, atol=1e-5)


def test_bytes_of_all_lengths_take_one_block_of_each_layer(samples, monkeypatch):
    """And are those of a sequence that was stored."""
    codec = calibrate_from_samples(samples, method="entropy", bits=2.5, sinks=4)
    seen = []
    encode = EntropyCodec.encode
    monkeypatch.setattr(EntropyCodec, "encode", lambda self, x: seen.append(0) or encode(self, x))
    counted = {length: codec.stored(length) for length in (100, 260, 131072)}
    assert len(seen) == LAYOUT.num_layers
    for length in (100, 260):
        stored = 0
        for layer, single in enumerate(codec.keys):
            stream = TokenStream(single, sinks=4)
            stream.append(samples.keys[layer][:1, :, :length].half())
            stored += stream.stored_bytes
        assert counted[length].code_bytes + counted[length].metadata_bytes == stored


@pytest.mark.parametrize("method", METHODS)
def test_hostile_values_keep_their_size_and_stay_finite(method, samples):
    codec = calibrate_from_samples(samples, method=method, bits=2).keys[0]
    calm = codec.encode(samples.keys[0][:1, :, 4:])
    for scale in (0.0, 1e-6, 1e3, 1e12):
        x = scale * samples.keys[0][:1, :, 4:]
        encoded = codec.encode(x)
        assert encoded.stored_bytes == calm.stored_bytes
        decoded = codec.decode(encoded)
        assert bool(torch.isfinite(decoded).all())
        if method == "entropy" and scale == 1e3:  # the gain follows
            assert (decoded - x).norm() < 0.7 * x.norm()


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_zero_vectors_calibrate(method, samples):
    flat = tuple(torch.full_like(x, 0.25) for x in samples.keys)
    zero = dataclasses.replace(samples, keys=flat)
    codec = calibrate_from_samples(zero, method=method, bits=1.5)
    decoded = codec.roundtrip(0, flat[0])
    torch.testing.assert_close(decoded, flat[0], rtol=0, atol=1e-3)


def test_widths_are_the_best_of_all(rng):
    """Against every allocation of three coordinates; errors that fall convexly."""
    variances = torch.tensor([4.0, 1.0, 0.2])
    errors = variances[:, None] * torch.tensor([1.0, 0.36, 0.12, 0.035])
    for total in range(10):
        widths = allocate_widths(errors, total)
        assert int(widths.sum()) == total
        found = errors.gather(1, widths.long()[:, None]).sum()
        grid = torch.cartesian_prod(*[torch.arange(4)] * 3)
        grid = grid[grid.sum(dim=1) == total]
        best = min(errors.gather(1, row[:, None]).sum() for row in grid)
        assert found <= best * 1.0001
    with pytest.raises(SettingError, match="coordinates"):
        allocate_widths(errors, 10)


def test_excess_over_the_limits_of_normal_vectors(rng):
    """A Gaussian source: both limits agree and no codec is below them."""
    samples = make_samples(rng, windows=16)
    for method, lowest, highest in (("entropy", 0.3, 2.5), ("transform", 0.5, 4.5)):
        codec = calibrate_from_samples(samples, method=method, bits=3, metric="local")
        table = excess_over_limit(codec.keys, samples)
        assert list(table["layer"]) == [0, 1]
        assert table["over_gaussian"].between(lowest, highest).all(), table
        assert (table["over_gaussian"] - table["over_shannon"]).abs().max() < 0.3


def test_repeated_vectors_have_no_shannon_bound(rng, recwarn):
    """As values of a first layer have that are those of the token alone: no density."""
    samples = make_samples(rng, windows=16)
    codec = calibrate_from_samples(samples, method="transform", bits=3, metric="local")
    few = samples.keys[0][:, :, :3].repeat(1, 1, 100, 1)[:, :, : samples.keys[0].shape[2]]
    repeated = dataclasses.replace(samples, keys=(few, *samples.keys[1:]))
    table = excess_over_limit(codec.keys, repeated)
    assert table["over_shannon"].isna().tolist() == [True, False]
    assert table["shannon"].isna().tolist() == [True, False]
    assert table["over_gaussian"].notna().all()
    assert not recwarn.list


def test_wrong_settings_are_refused(samples):
    with pytest.raises(SettingError, match="metric must be one of"):
        calibrate_from_samples(samples, method="entropy", bits=2, metric="euclid")
    with pytest.raises(SettingError, match="no option 'dead_zone'"):
        calibrate_from_samples(samples, method="transform", bits=2, dead_zone=0.1)
    with pytest.raises(SettingError, match="states must be one of 1, 4, 8, 16, 32, 64, found 3"):
        calibrate_from_samples(samples, method="transform", bits=2, states=3)
    with pytest.raises(SettingError, match="bits"):
        calibrate_from_samples(samples, method="transform", bits=9)
    with pytest.raises(SettingError, match=r"overhead|frequent"):
        calibrate_from_samples(samples, method="entropy", bits=0.05)
    bare = CacheSamples(LAYOUT, samples.keys, samples.positions, samples.values)
    with pytest.raises(SettingError, match="collect_metrics"):
        calibrate_from_samples(bare, method="entropy", bits=2)
    codec = calibrate_from_samples(samples, method="transform", bits=2).keys[0]
    with pytest.raises(ShapeError, match="codebooks"):
        TransformCodec(codec.basis, codec.widths, codec.levels[1:])
    other = calibrate_from_samples(samples, method="entropy", bits=2).keys[0]
    with pytest.raises(SettingError, match="most frequent codes"):
        EntropyCodec(other.basis, other.tables, other.levels, 4)


@pytest.mark.parametrize("method", METHODS)
def test_decoded_tokens_kept_change_nothing_but_bytes(method, make_model, rng):
    """The same logits with and without scratch, which is within its limit and reported."""
    model = make_model("llama")
    text = torch.randint(1, 61, (2, 90), generator=rng)
    codec = calibrate(model, text, method=method, bits=3, value_method=method, value_bits=3)
    limits = {0: 0, 2 * 2 * 2 * 64 * 8 * 4: 2 * 2 * 2 * 64 * 8 * 4, 1 << 20: None}
    logits = []
    for limit, expected in limits.items():
        cache = codec.new_cache(model, scratch_bytes=limit)
        with torch.no_grad():
            parts = [model(part, past_key_values=cache).logits for part in text[:1].split(30, 1)]
        logits.append(torch.cat(parts, dim=1))
        assert expected is None or cache.scratch_bytes == expected
        assert cache.scratch_bytes <= limit
        assert cache.allocated_bytes == cache.key_bytes + cache.value_bytes + cache.scratch_bytes
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(SettingError, match="scratch_bytes must be >= 0"):
        codec.new_cache(model, scratch_bytes=-1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "qwen3", "llama-odd-head"])
def test_a_model_generates_with_it(method, family, make_model, rng):
    """Grouped queries, partial RoPE, none; windows shorter than head_dim leave singular moments."""
    model = make_model(family)
    text = torch.randint(1, 61, (2, 12), generator=rng)
    both = {"method": method, "bits": 3, "value_method": method, "value_bits": 3}
    codec = calibrate(model, text, **both, sinks=2, context=94)
    prompt = torch.randint(1, 61, (1, 90), generator=rng)
    cache = codec.new_cache(model, prefill="decoded")
    found = model.generate(prompt, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert found.shape == (1, 94)
    raw = 2 * 90 * codec.layout.key_elements_per_token * 4
    assert cache.stored_bytes < 0.6 * raw if hasattr(cache, "stored_bytes") else True
