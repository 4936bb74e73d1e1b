"""What attention reads: every architecture, against other routes to the same vectors."""

import sys

import pytest
import torch
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gonio.errors import ModelError, SettingError, ShapeError
from gonio.kvcache.capture import captured_attention
from gonio.kvcache.observation import STAGES, ObservationSettings, observe_attention
from gonio.kvcache.reservoir import TokenReservoir
from gonio.models import attention_layout

EVERY = (
    *("llama", "qwen2", "qwen3", "mistral-sliding", "gemma2", "gemma3", "gpt-neox", "gpt2"),
    *("phi", "phi3", "mixtral", "olmoe", "qwen3-moe", "gpt-oss", "stablelm", "opt", "llama4"),
)
TURNED = tuple(family for family in EVERY if family not in ("gpt2", "opt"))


def calls_of(model, window, **options):
    """Everything captured in one pass over one window, by layer, and the logits."""
    calls = {}
    with (
        torch.no_grad(),
        captured_attention(model, lambda c: calls.update({c.layer: c}), **options),
    ):
        logits = model(input_ids=window[None], use_cache=False).logits
    return calls, logits


@pytest.mark.parametrize("family", EVERY)
def test_keys_and_values_are_those_of_the_cache_and_logits_stay(family, make_model, tokens):
    """Of a sliding layer the plain cache keeps the last tokens only; all are captured."""
    model = make_model(family)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        plain = model(input_ids=tokens[:1], past_key_values=cache).logits
    calls, logits = calls_of(model, tokens[0], pre_rope=True)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    assert sorted(calls) == list(range(attention_layout(model.config).num_layers))
    for layer, call in calls.items():
        for mine, theirs in (
            (call.key, cache.layers[layer].keys),
            (call.value, cache.layers[layer].values),
        ):
            assert mine.shape[-2] == tokens.shape[1]
            held = mine[:, :, -theirs.shape[-2] :]
            torch.testing.assert_close(held, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", TURNED)
def test_keys_before_rope_are_what_the_model_rotates(family, make_model, tokens, monkeypatch):
    """The model's own rotary function is given the keys found, and gives the keys after RoPE."""
    model = make_model(family)
    attention = next(
        m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")
    )
    code = sys.modules[type(attention).__module__]
    name = "apply_rotary_emb" if family == "llama4" else "apply_rotary_pos_emb"
    original, given = getattr(code, name), []

    def spy(query, key, *args, **kwargs):
        turned = original(query, key, *args, **kwargs)
        given.append((key, turned[1]))
        return turned

    monkeypatch.setattr(code, name, spy)
    with torch.no_grad():
        model(input_ids=tokens[:1], use_cache=False)
    monkeypatch.undo()
    calls, _ = calls_of(model, tokens[0], pre_rope=True)
    turned = [call for call in calls.values() if not torch.equal(call.key, call.key_pre)]
    assert len(turned) == len(given)
    for call, (before, after) in zip(turned, given, strict=True):
        if family == "llama4":  # rotates (batch, tokens, heads, dim), then normalizes
            continue
        size = before.shape[-1]  # partial rotary embedding may be handed its part only
        torch.testing.assert_close(call.key_pre[..., :size], before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(call.key[..., :size], after, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(call.key_pre[..., size:], call.key[..., size:])


def test_llama_keys_before_rope_are_the_projection_and_turn_into_those_after(make_model, tokens):
    """Hooks on k_proj are one route, turning by explicit angles another; shifted ones fail."""
    model = make_model("llama")
    seen = []
    for layer in model.model.layers:
        layer.self_attn.k_proj.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        model(input_ids=tokens[:1], use_cache=False)
    projected = [out[0].unflatten(-1, (2, 8)).transpose(0, 1) for out in seen]
    calls, _ = calls_of(model, tokens[0], pre_rope=True)
    frequencies = 10000.0 ** (-torch.arange(4) / 4)

    def turn(keys, shift):
        angles = (torch.arange(keys.shape[-2]) + shift)[:, None] * frequencies
        first, second = keys[..., :4], keys[..., 4:]
        return torch.cat(
            [
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
            ],
            dim=-1,
        )

    for layer, call in calls.items():
        torch.testing.assert_close(call.key_pre[0], projected[layer], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(turn(call.key_pre[0], 0), call.key[0], rtol=1e-4, atol=1e-4)
        assert (turn(call.key_pre[0], 1) - call.key[0]).abs().max() > 0.1


@pytest.mark.parametrize("family", EVERY)
def test_weights_of_sampled_queries_are_the_models(family, make_model, tokens):
    model = make_model(family)
    calls, _ = calls_of(model, tokens[0])
    rows = torch.tensor([0, 3, 23])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        every = model(input_ids=tokens[:1], use_cache=False, output_attentions=True).attentions
    for layer, call in calls.items():
        torch.testing.assert_close(
            call.weights(rows), every[layer][:, :, rows], rtol=1e-3, atol=1e-4
        )
        hidden = call.weights(rows)[0][:, ~call.visible[rows]]
        assert hidden.numel() == 0 or hidden.abs().max() == 0


def test_everything_is_restored_also_after_an_error(make_model, tokens):
    model = make_model("gemma3")
    before = vars(model.config).copy()
    names = (set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS))

    def fail(call):
        raise RuntimeError("in the middle of a pass")

    with (
        pytest.raises(RuntimeError, match="middle"),
        captured_attention(model, fail, pre_rope=True),
    ):
        model(input_ids=tokens[:1])
    assert vars(model.config) == before
    assert names == (set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_moments_equal_one_shot_sums_over_everything(any_model, tokens):
    """Streaming four windows equals float64 sums over their concatenated vectors."""
    found = observe_attention(any_model, tokens)
    layout = found.layout
    is_turned = any_model.config.model_type != "gpt2"
    assert set(found.stages) == set(STAGES) - (set() if is_turned else {"key_pre"})
    for stage in found.stages:
        for sums, sample in zip(found.moments[stage], found.samples[stage], strict=True):
            rows = sample.double().reshape(layout.num_kv_heads, -1, sample.shape[-1])
            assert sums.count == tokens.numel()
            torch.testing.assert_close(sums.second, rows.mT @ rows, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(sums.absolute, rows.abs().sum(dim=1))
            for power in (1, 2, 3, 4):
                torch.testing.assert_close(sums.powers[power - 1], rows.pow(power).sum(dim=1))


def test_a_sample_holds_the_tokens_it_names(make_model, tokens):
    model = make_model("llama")
    every = observe_attention(model, tokens)
    some = observe_attention(model, tokens, ObservationSettings(samples=10, skip=2, seed=4))
    assert some.windows.shape == some.positions.shape == (10,)
    assert some.positions.min() >= 2
    places = some.windows * tokens.shape[1] + some.positions
    assert len(places.unique()) == 10
    for stage in STAGES:
        for mine, all_of_them in zip(some.samples[stage], every.samples[stage], strict=True):
            assert torch.equal(mine, all_of_them[:, places])
    assert some.moments["value"][0].count == 4 * 22


def test_queries_are_grouped_under_the_head_they_read(make_model, tokens):
    model = make_model("llama")
    found = observe_attention(model, tokens[:1])
    calls, _ = calls_of(model, tokens[0])
    query = calls[1].query[0].double()  # heads 0 and 1 read key-value head 0
    expected = sum(query[head].mT @ query[head] for head in (0, 1))
    torch.testing.assert_close(found.moments["query"][1].second[0], expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.samples["query"][1][1, :, 0], calls[1].query[0, 2])


def test_memory_is_that_of_the_sample_however_many_windows(make_model, tokens):
    """Bytes held by tensors after 4 and after 40 windows are the same."""

    def held(windows):
        found = observe_attention(make_model("llama"), windows, ObservationSettings(samples=20))
        tensors = [x for sample in found.samples.values() for x in sample]
        tensors += [x.second for sums in found.moments.values() for x in sums]
        return sum(x.untyped_storage().nbytes() for x in tensors)

    assert held(tokens) == held(tokens.repeat(10, 1))


def test_the_reservoir_is_uniform_whatever_the_window():
    """Every one of 40 tokens is kept in 10/40 of the runs, read 1, 7 or 40 at a time."""
    for step in (1, 7, 40):
        kept = torch.zeros(40)
        for seed in range(300):
            reservoir, held = TokenReservoir(10, seed), torch.full((10,), -1)
            for start in range(0, 40, step):
                taken, slots = reservoir.take(min(step, 40 - start))
                held[slots] = start + taken
            assert len(held.unique()) == 10
            kept[held] += 1
        error = (300 * 0.25 * 0.75) ** 0.5
        assert (kept - 75).abs().max() < 4.5 * error
        assert abs(kept[:10].mean() - 75) < 4 * error / 10**0.5


def test_what_cannot_be_observed_is_refused(make_model, tokens):
    with pytest.raises(ModelError, match="AttentionInterface"):
        observe_attention(make_model("falcon"), tokens)
    model = make_model("llama")
    with pytest.raises(ShapeError, match="windows must be"):
        observe_attention(model, tokens[0])
    with pytest.raises(SettingError, match="nothing to observe"):
        observe_attention(model, tokens, ObservationSettings(skip=24))
    with pytest.raises(SettingError, match="stages must be"):
        ObservationSettings(stages=("value",), sampled=("query",))
    with pytest.raises(SettingError, match="samples"):
        ObservationSettings(samples=0)
    with pytest.raises(ModelError, match="training mode"):
        observe_attention(model.train(), tokens)


def test_a_half_precision_model_is_summed_in_full(make_model, tokens):
    model = make_model("llama").to(torch.bfloat16)
    found = observe_attention(model, tokens)
    assert found.samples["key_pre"][0].dtype == torch.float32
    assert found.moments["key_pre"][0].second.dtype == torch.float64
