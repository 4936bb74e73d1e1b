"""Keys coded before RoPE: the model's own angles, true positions, and every promise of a cache."""

import copy
import gc

import pytest
import torch

from gonio.errors import CodecError, ModelError, SettingError
from gonio.kvcache import (
    CacheCodec,
    LosslessCodec,
    calibrate,
    calibrate_from_samples,
    collect_metrics,
    excess_over_limit,
    load_cache,
    load_codec,
    pre_rope_codec,
    save_cache,
    sensitivity,
    use_packed_attention,
)
from gonio.kvcache.capture import captured_attention
from gonio.kvcache.pre_rope_codec import PreRopeCodec
from gonio.kvcache.rotary import Rotary, model_rotary
from gonio.kvcache.stream import TokenStream
from gonio.models import attention_layout

GREEDY = {"max_new_tokens": 9, "do_sample": False}
TURNED = ["llama", "llama-odd-head", "qwen3", "gpt-neox", "gemma3", "phi", "olmoe"]
SERVED = ["llama", "qwen3", "gpt-neox", "gemma3"]


@pytest.fixture(params=SERVED)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture
def codec(model, blocked, monkeypatch):
    """Blocks of four tokens that lose nothing, so that only turning back and forth is left."""
    monkeypatch.setitem(pre_rope_codec._BASES, blocked.method, blocked)
    layout = attention_layout(model.config)
    keys = tuple(PreRopeCodec(blocked(), rotary) for rotary in model_rotary(model))
    return CacheCodec(layout, keys, (blocked(),) * layout.num_layers, sinks=2, window=3)


@pytest.fixture
def batch(tokens):
    """Three prompts of 11 tokens, the first two padded on the left."""
    ids, mask = tokens[:3, :11].clone(), torch.ones(3, 11, dtype=torch.long)
    for row, padding in enumerate((4, 1)):
        mask[row, :padding] = 0
        ids[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", TURNED)
@torch.no_grad()
def test_keys_turned_back_are_those_the_model_makes_without_rope(family, make_model, tokens):
    model, places = make_model(family), torch.arange(24)[None] + 300
    rotary, calls = model_rotary(model), []
    with captured_attention(model, calls.append, pre_rope=True):
        model(input_ids=tokens[:1], position_ids=places, use_cache=False)
    for call in calls:
        own = rotary[call.layer]
        near = Rotary(own.pairs, own.frequencies * 1.001)
        found, missed = (
            each.turn(call.key, each.phases(places)[:, None].conj()) for each in (own, near)
        )
        atol = 1e-4 * call.key.abs().max().item()  # angles of position 300 in float32
        torch.testing.assert_close(found, call.key_pre, rtol=0, atol=atol)
        assert (missed - call.key_pre).abs().max() > 10 * atol


@pytest.mark.parametrize(
    "pairs",
    [[[0, 4], [1, 5], [2, 6]], [[0, 1], [2, 3], [4, 5]], [[5, 0], [1, 6], [2, 3]], [[3, 1]]],
    ids=["halves", "neighbors", "scattered", "one"],
)
def test_pairs_turn_as_complex_numbers_do_however_they_lie(pairs):
    rotary = Rotary(torch.tensor(pairs), torch.linspace(0.1, 1.0, len(pairs)))
    x, places = torch.randn(2, 3, 5, 8), torch.arange(5) + 7
    found = rotary.turn(x, rotary.phases(places))
    expected = x.clone().double()
    for (first, second), frequency in zip(pairs, rotary.frequencies.tolist(), strict=True):
        whole = torch.complex(x[..., first].double(), x[..., second].double())
        whole *= torch.polar(torch.ones(5).double(), places.double() * frequency)
        expected[..., first], expected[..., second] = whole.real, whole.imag
    torch.testing.assert_close(found, expected.float())
    back = rotary.turn(found, rotary.phases(places).conj())
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_models_without_known_angles_are_refused(family, make_model, tokens):
    with pytest.raises(ModelError):
        calibrate(make_model(family), tokens, method="transform", bits=2.0, stage="pre_rope")


def test_frequencies_that_move_are_refused(make_model):
    model = make_model("llama")
    model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(ModelError, match="dynamic"):
        model_rotary(model)


def test_keys_and_metrics_before_rope_do_not_know_their_position(make_model, tokens, monkeypatch):
    """The same window further on: equal before RoPE, not after it; traces are those after it."""
    model, found = make_model("qwen3"), {}
    for start in (0, 40):
        place = [torch.arange(start, start + 24)[None]]
        monkeypatch.setattr(sensitivity, "window_positions", lambda *_, place=place: place)
        for pre_rope in (False, True):
            found[start, pre_rope] = collect_metrics(model, tokens[:1], pre_rope=pre_rope)
    for name in ("keys", "key_local", "key_fisher"):
        (here, there), (after, later) = (
            [getattr(found[start, pre_rope], name)[1] for start in (0, 40)]
            for pre_rope in (True, False)
        )
        atol = 2e-4 * here.abs().max().item()  # float32 through two layers
        torch.testing.assert_close(here, there, rtol=0, atol=atol)
        assert (after - later).abs().max() > 10 * atol
        if name != "keys":
            traces = [x.diagonal(dim1=1, dim2=2).sum(dim=1) for x in (here, after)]
            torch.testing.assert_close(*traces, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["transform", "entropy"])
def test_calibrated_codecs_survive_a_file_and_code_alike_at_every_position(
    method, make_model, tokens, tmp_path
):
    model = make_model("llama")
    ids = tokens.repeat(1, 4)
    codec = calibrate(model, ids, method=method, bits=4.0, stage="pre_rope")
    again = load_codec(codec.save(tmp_path / "codec.safetensors"))
    assert again.fingerprint == codec.fingerprint
    assert again.method == "pre_rope"
    assert again.positions is None
    own = again.keys[0]
    x = torch.randn(2, 2, 64, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for start in (0, 900):
        turned = own.rotary.turn(x, own.rotary.phases(torch.arange(start, start + 64)))
        encoded = own.encode(turned, torch.tensor([start + 63] * 2))
        assert encoded.tensors["place"][0, 0].tolist() == list(range(start, start + 64, own.block))
        errors.append((own.decode(encoded) - turned).norm().item())
    assert errors[0] == pytest.approx(errors[1], rel=0.02)  # rounding moves codes at their borders
    assert own.encode(x.bfloat16()).dtype == torch.bfloat16
    assert "place" in own.encode(x).metadata


def test_a_wrong_position_costs_nothing_but_compression(make_model, blocked, monkeypatch):
    monkeypatch.setitem(pre_rope_codec._BASES, blocked.method, blocked)
    codec = PreRopeCodec(blocked(), model_rotary(make_model("llama"))[0])
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for last in (torch.tensor([7, 7]), torch.tensor([70000, -3])):
        torch.testing.assert_close(codec.decode(codec.encode(x, last)), x, rtol=0, atol=1e-5)
    forgotten = codec.encode(x, torch.tensor([7, 9]))
    forgotten.tensors["place"][1] += 1
    assert (codec.decode(forgotten) - x)[1].abs().max() > 0.1


def test_greedy_batch_with_left_padding_knows_every_rows_positions(model, codec, batch):
    expected = model.generate(**batch, **GREEDY)
    for prefill in ("exact", "decoded"):
        cache = codec.new_cache(model, prefill=prefill, left_padding=4)
        assert torch.equal(model.generate(**batch, **GREEDY, past_key_values=cache), expected)
        stream = cache.layers[-1].key_stream
        runs = torch.cat([run.tensors["place"] for run in stream.runs], dim=2)[:, 0]
        assert (runs[2] - runs[0]).unique().tolist() == [4]
        assert (runs[2] - runs[1]).unique().tolist() == [1]
        assert (runs[:, 1:] - runs[:, :-1] == 4).all()


def test_beams_and_chunks_and_rejected_candidates(model, codec, batch, make_model):
    beams = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
    found = model.generate(**batch, **beams, past_key_values=codec.new_cache(model))
    assert torch.equal(found, model.generate(**batch, **beams))
    chunks = {"prefill_chunk_size": 4, "past_key_values": codec.new_cache(model)}
    assert torch.equal(
        model.generate(**batch, **GREEDY, **chunks), model.generate(**batch, **GREEDY)
    )
    prompt = {"input_ids": batch["input_ids"][2:, :4].repeat(1, 3)}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    helper = {"assistant_model": make_model("llama"), "past_key_values": codec.new_cache(model)}
    assert torch.equal(
        model.generate(**prompt, **GREEDY, **helper), model.generate(**prompt, **GREEDY)
    )


@torch.no_grad()
def test_cropped_saved_and_copied_it_continues_the_same(model, codec, tokens, tmp_path):
    cache = codec.new_cache(model)
    cache.activate_past_recording()
    model(input_ids=tokens[:1, :16], past_key_values=cache)
    cache.crop(-5)  # inside a block
    path = save_cache(cache, tmp_path / "cache.safetensors")
    expected = model(input_ids=tokens[:1]).logits[:, 11:]
    for each in (copy.deepcopy(cache), load_cache(path, model, codec), cache):
        found = model(input_ids=tokens[:1, 11:], past_key_values=each).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        place = each.layers[-1].key_stream.runs[0].tensors["place"].flatten()
        first = 2 if each.layers[-1].key_stream.sinks else place[0].item()
        assert place.tolist() == list(range(first, first + 4 * len(place), 4))


@torch.no_grad()
def test_position_ids_of_a_users_own_are_followed(model, codec, tokens):
    cache = codec.new_cache(model)
    model(input_ids=tokens, position_ids=torch.arange(24)[None] + 1000, past_key_values=cache)
    last = cache.layers[0].key_stream.runs[-1].tensors["place"]
    assert last.shape[0] == 4
    assert 1000 < last.min() <= last.max() < 1024


def test_the_hook_goes_with_the_last_cache_that_needs_it(make_model, blocked, monkeypatch):
    monkeypatch.setitem(pre_rope_codec._BASES, blocked.method, blocked)
    model = make_model("llama")
    keys = tuple(PreRopeCodec(blocked(), rotary) for rotary in model_rotary(model))
    hooks = model.model.rotary_emb._forward_pre_hooks
    cache = CacheCodec(attention_layout(model.config), keys).new_cache(model)
    kept = copy.deepcopy(cache)
    assert len(hooks) == 1
    del cache
    gc.collect()
    assert len(hooks) == 1
    del kept
    gc.collect()
    assert not hooks


def test_kernels_that_cannot_turn_say_so(make_model, tokens):
    model = make_model("llama")
    both = {"value_method": "transform", "value_bits": 2, "value_options": {"states": 1}}
    codec = calibrate(
        model, tokens, method="transform", bits=2.0, stage="pre_rope", states=1, **both
    )
    use_packed_attention(model)
    with pytest.warns(UserWarning, match="before RoPE"):
        cache = codec.new_cache(model)
    prompt = {"input_ids": tokens[:1, :12], "attention_mask": torch.ones_like(tokens[:1, :12])}
    assert model.generate(**prompt, **GREEDY, past_key_values=cache).shape == (1, 21)


def test_samples_and_codecs_of_different_sides_do_not_mix(make_model, tokens):
    model = make_model("llama")
    after, before = (collect_metrics(model, tokens, pre_rope=each) for each in (False, True))
    for samples, stage in ((after, "pre_rope"), (before, "post_rope")):
        with pytest.raises(SettingError, match="other side of RoPE"):
            calibrate_from_samples(samples, method="transform", bits=2.0, stage=stage)
    with pytest.raises(SettingError, match="other side of RoPE"):
        calibrate_from_samples(before, method="sign")
    codec = calibrate_from_samples(before, method="transform", bits=2.0, stage="pre_rope")
    assert (excess_over_limit(codec.keys, before)["error"] > 0).all()
    with pytest.raises(SettingError, match="before and after RoPE"):
        excess_over_limit(codec.keys, after)
    options = {"method": "lossless", "value_method": "transform", "value_bits": 2.0}
    with pytest.raises(SettingError, match="stage"):
        calibrate_from_samples(after, **options, value_options={"stage": "pre_rope"})
    with pytest.raises(CodecError, match="cannot be coded"):
        PreRopeCodec(LosslessCodec(), before.rotary[0])


def test_a_stream_counts_positions_and_bytes_by_itself(make_model, blocked, monkeypatch):
    monkeypatch.setitem(pre_rope_codec._BASES, blocked.method, blocked)
    stream = TokenStream(PreRopeCodec(blocked(), model_rotary(make_model("llama"))[0]), 2, 1)
    x = torch.randn(1, 2, 17, 8, generator=torch.Generator().manual_seed(0))
    for part in x.split([9, 1, 7], dim=2):
        stream.append(part)
    torch.testing.assert_close(stream.read(), x, rtol=0, atol=1e-5)
    assert torch.cat([r.tensors["place"] for r in stream.runs], dim=2).flatten().tolist() == [
        *(2, 6, 10)
    ]
    assert stream.metadata_bytes == 3 * 4
