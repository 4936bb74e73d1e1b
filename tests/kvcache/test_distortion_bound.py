"""The bound on attention outputs: never violated, tight where it can be, and falsifiable."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gonio.errors import CodecError, ModelError, SettingError, ShapeError
from gonio.kvcache import calibrate, capture, control_codec, distortion_bound
from gonio.kvcache.certify import certify_attention, certify_layer, collect_inputs
from gonio.kvcache.distortion_bound import (
    RUNGS,
    AttentionInputs,
    attention_weights,
    output_bound,
    output_distortion,
)

LAYERS = 200  # of at least 5 heads each: 1,000 random heads, each on its own random text


def masks(tokens: int, window: int | None) -> torch.Tensor:
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return causal if window is None else causal.triu(1 - window)


@st.composite
def cases(draw):
    """A layer of random size, scale, mask, soft cap and sinks; its decoded keys and values."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kv_heads, group = draw(st.sampled_from(((5, 1), (1, 5), (2, 3), (3, 2))))
    tokens, dim, value_dim = (draw(st.integers(1, 7)) for _ in range(3))
    logs = st.sampled_from((-12, -3, 0, 1, 3))

    def normal(*shape: int) -> torch.Tensor:
        scale = 2.0 ** draw(logs)
        kind = draw(st.sampled_from(("normal", "few", "outlier")))
        x = torch.randn(shape, generator=generator) * scale
        if kind == "few":  # repeated values, zeros
            x = x.sign() * (x.abs() > scale / 2) * scale
        elif kind == "outlier":
            x[..., 0] *= 100
        return x

    inputs = AttentionInputs(
        query=normal(kv_heads * group, tokens, dim),
        key=normal(kv_heads, tokens, dim),
        value=normal(kv_heads, tokens, value_dim),
        visible=masks(tokens, draw(st.sampled_from((None, 1, 2, 4)))),
        scale=draw(st.sampled_from((dim**-0.5, 1.0, 0.01))),
        softcap=draw(st.sampled_from((None, 1.0, 30.0))),
        sinks=draw(st.sampled_from((None, 0.0, 5.0))) if draw(st.booleans()) else None,
    )
    if isinstance(inputs.sinks, float):
        sinks = torch.full((kv_heads * group,), inputs.sinks)
        inputs = AttentionInputs(**{**vars(inputs), "sinks": sinks})
    key = inputs.key + normal(*inputs.key.shape)
    value = inputs.value + normal(*inputs.value.shape) * draw(st.booleans())
    return inputs, key, value


def reference_error(inputs: AttentionInputs, key, value) -> torch.Tensor:
    """The largest output error per head and query, in numpy, with normalized exponentials."""

    def output(k, v):
        grouped = [np.repeat(x.double().numpy(), inputs.group, axis=0) for x in (k, v)]
        scores = inputs.scale * np.einsum("hqd,hkd->hqk", inputs.query.double().numpy(), grouped[0])
        if inputs.softcap is not None:
            scores = inputs.softcap * np.tanh(scores / inputs.softcap)
        scores = np.where(inputs.visible.numpy(), scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        if inputs.sinks is not None:
            total = total + np.exp(
                np.minimum(inputs.sinks.double().numpy()[:, None, None] - top, 700)
            )
        return np.einsum("hqk,hkj->hqj", weights / total, grouped[1])

    error = np.abs(output(key, value) - output(inputs.key, inputs.value))
    return torch.from_numpy(error.max(axis=-1))


def require_bounded(case) -> None:
    """What must hold of every head: the error is what it is, and no bound is below it."""
    inputs, key, value = case
    found = output_distortion(inputs, key, value)
    size = 1 + inputs.value.abs().max().item() + value.abs().max().item()
    rounding = 1e-11 * size * (1 + inputs.query.norm().item() * key.norm().item())
    expected = reference_error(inputs, key, value)
    torch.testing.assert_close(found.error, expected, rtol=0, atol=rounding)
    assert bool((found.error <= found.bounds["weights"]).all())
    for loose, tight in pairwise(RUNGS):
        assert bool((found.bounds[tight] <= found.bounds[loose] + rounding).all())


@settings(max_examples=LAYERS)
@given(cases())
def test_no_bound_is_violated_by_random_heads(case):
    require_bounded(case)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("a quarter", lambda m, spread, dv: (0.25 * m[..., None] * spread + dv).amax(dim=-1)),
        ("no value error", lambda m, spread, dv: (0.5 * m[..., None] * spread).amax(dim=-1)),
        ("squared", lambda m, spread, dv: (0.5 * m[..., None] ** 2 * spread + dv).amax(dim=-1)),
    ],
    ids=["a quarter", "no value error", "movement squared"],
)
def test_a_wrong_bound_is_caught(monkeypatch, name, wrong):
    """The same property rejects bounds that are wrong."""
    monkeypatch.setattr(distortion_bound, "output_bound", wrong)
    once = settings(max_examples=LAYERS, phases=[Phase.generate])
    search = once(given(cases())(require_bounded))
    with pytest.raises(AssertionError):
        search()


def test_a_sink_left_out_of_the_range_is_caught():
    """Weight that a sink takes gives zeros: with values all alike the output still moves."""
    one = torch.ones(1, 1, 1)
    inputs = AttentionInputs(one, one, one, masks(1, None), 1.0, sinks=torch.zeros(1))
    found = output_distortion(inputs, torch.zeros(1, 1, 1), one)
    weight = math.e / (1 + math.e)
    assert found.error.item() == pytest.approx(weight - 0.5, abs=1e-15)
    assert found.bounds["weights"].item() == pytest.approx(found.error.item(), abs=1e-12)
    without = AttentionInputs(one, one, one, masks(1, None), 1.0)
    assert output_distortion(without, torch.zeros(1, 1, 1), one).error.item() == 0


def test_the_bound_is_attained_by_two_tokens():
    """With exact values of two tokens every unit of weight that moves moves the output fully."""
    query, key = torch.ones(1, 2, 1), torch.tensor([[[1.0], [-1.0]]])
    value = torch.tensor([[[0.0, 3.0], [1.0, 3.0]]])
    inputs = AttentionInputs(query, key, value, masks(2, None), 1.0)
    found = output_distortion(inputs, -key, value)
    last = (0, 1)
    assert found.error[last].item() == pytest.approx(math.tanh(1.0), abs=1e-15)
    assert found.bounds["weights"][last].item() == pytest.approx(math.tanh(1.0), abs=1e-12)
    assert found.value_range.tolist() == [1.0]


def test_a_shift_of_all_keys_is_free_from_scores_on():
    """Keys that all move alike leave the weights alone; norms alone cannot know."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 5, 4, generator=generator) for _ in range(3))
    inputs = AttentionInputs(query, key, value, masks(5, None), 0.5)
    found = output_distortion(inputs, key.double() + 3.0, value)
    assert found.error.max() < 1e-13
    assert found.bounds["scores"].max() < 1e-11
    assert found.bounds["queries"].min() >= 0
    assert found.bounds["queries"][0, 1:].min() > 0.1


def test_masks_and_shapes_that_do_not_fit_are_refused():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError, match="do not go together"):
        AttentionInputs(x, x[:, :2], x, masks(3, None), 1.0)
    with pytest.raises(ShapeError, match="do not go together"):
        AttentionInputs(x, x, x, masks(4, None), 1.0)
    with pytest.raises(ShapeError, match="stand in"):
        output_distortion(AttentionInputs(x, x, x, masks(3, None), 1.0), x[:, :1], x)


def test_output_bound_by_hand():
    movement = torch.tensor([2.0, 1.0])
    spread = torch.tensor([[1.0, 4.0], [6.0, 0.0]])
    error = torch.tensor([[3.5, 0.0], [0.0, 0.5]])
    assert output_bound(movement, spread, error).tolist() == [4.5, 3.0]


def coarse(model, tokens):
    options = {"group": 2}
    return calibrate(
        model,
        tokens,
        method="affine",
        bits=2,
        value_bits=3,
        value_options=options,
        sinks=2,
        group=4,
    )


def test_every_architecture_is_bounded_by_its_own_rule(any_architecture, tokens):
    """Masks, scales, soft caps, learned sinks and groups are the model's own."""
    model = any_architecture
    if not model._can_set_attn_implementation():
        pytest.skip("its attention cannot be observed")
    codec = coarse(model, tokens)
    found = certify_attention(model, tokens[:2], codec)
    assert [each.layer for each in found] == list(range(codec.layout.num_layers))
    for each in found:
        assert each.error.shape == (codec.layout.num_heads, 2 * tokens.shape[1])
        assert each.violations == 0
        assert each.error.max() > 0
        if codec.layout.window_of(each.layer) is None:
            assert each.error[:, 0].max() == 0  # the first token reads itself, a raw sink
    exact = certify_attention(model, tokens[:1], control_codec(model, "lossless"))
    for each in exact:
        assert each.error.max() == 0
        assert each.relative(each.bounds["norms"]).max() < 1e-9


def test_the_measured_error_is_that_of_the_models_own_attention(make_model, tokens):
    """One layer through the model with decoded keys and values moves the outputs just as much."""
    model = make_model("llama")
    codec = coarse(model, tokens)
    outputs = {}
    for name in ("exact", "decoded"):
        calls = []
        with capture.captured_attention(model, calls.append), torch.no_grad():
            model(input_ids=tokens[:1], use_cache=False)
        call = calls[0]
        key, value = call.key, call.value
        weights = call.weights
        if name == "decoded":
            key, value = codec.roundtrip(0, key), codec.roundtrip(0, value, "values")
            scores = call.scale * call.query @ key.repeat_interleave(2, dim=1).mT
            weights = scores.masked_fill(~call.visible, -torch.inf).softmax(dim=-1)
        else:
            weights = weights(torch.arange(tokens.shape[1]))
        outputs[name] = weights @ value.repeat_interleave(2, dim=1)
    error = (outputs["decoded"] - outputs["exact"]).abs().amax(dim=-1)[0]
    found = certify_attention(model, tokens[:1], codec)[0]
    torch.testing.assert_close(error.double(), found.error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changed"),
    [("gpt-oss", {"sinks": None}), ("gemma2", {"softcap": 0.5}), ("llama", {"scale": 1.0})],
    ids=["sinks left out", "another soft cap", "another scale"],
)
def test_attention_read_wrongly_is_refused(make_model, tokens, monkeypatch, family, changed):
    """A certificate about other weights than the model's own is not given."""
    from gonio.kvcache import certify

    honest = certify._inputs
    monkeypatch.setattr(certify, "_inputs", lambda call: replace(honest(call), **changed))
    model = make_model(family)
    with pytest.raises(ModelError, match="attention weights of layer"):
        certify_attention(model, tokens[:1], control_codec(model, "lossless"))


def test_layers_can_be_certified_from_what_was_collected(make_model, tokens):
    model = make_model("qwen2-sliding")
    codec = coarse(model, tokens)
    whole = certify_attention(model, tokens[:2], codec)
    inputs = collect_inputs(model, tokens[:2])
    for layer, expected in enumerate(whole):
        found = certify_layer(inputs[layer], codec, layer)
        assert torch.equal(found.error, expected.error)
        assert all(torch.equal(found.bounds[rung], expected.bounds[rung]) for rung in RUNGS)


def test_what_cannot_be_certified_is_refused(make_model, tokens):
    model = make_model("llama")
    lossless = control_codec(model, "lossless")
    with pytest.raises(SettingError, match="nothing to certify"):
        certify_attention(model, tokens[:0], lossless)
    with pytest.raises(SettingError, match="stay raw in windows of 5 tokens"):
        certify_attention(model, tokens[:, :5], coarse(model, tokens))
    with pytest.raises(CodecError, match="Calibrate a codec"):
        certify_attention(model, tokens, control_codec(make_model("gpt2"), "lossless"))
    with pytest.raises(ModelError, match="training mode"):
        certify_attention(make_model("llama").train(), tokens, lossless)


def test_weights_are_the_models_own(make_model, tokens):
    model = make_model("gemma2")
    calls = []
    with capture.captured_attention(model, calls.append), torch.no_grad():
        model(input_ids=tokens[:1], use_cache=False)
    inputs = collect_inputs(model, tokens[:1])
    own = calls[0].weights(torch.arange(tokens.shape[1]))[0]
    for head in range(own.shape[0]):
        found = attention_weights(inputs[0][0], head)
        torch.testing.assert_close(found, own[head].double(), rtol=0, atol=1e-5)
