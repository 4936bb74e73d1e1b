"""Evaluation: full precision as computed by hand, zeros ruin both protocols, nothing leaks."""

import math

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gonio.errors import CodecError, SettingError
from gonio.kvcache import (
    CacheCodec,
    EvaluationSettings,
    LosslessCodec,
    ZeroCodec,
    calibrate,
    control_codec,
    evaluate,
    evaluate_codecs,
)
from gonio.kvcache.filling import fill_caches
from gonio.models import attention_layout

PROTOCOLS = ["teacher-forced", "cache"]


@pytest.fixture(scope="module")
def trained() -> PreTrainedModel:
    """A tiny model that has learned a text in which each token follows from an earlier one.

    Token t repeats token t - 5 with noise, so that predictions need attention, and a cache that
    loses the keys must pay for it.
    """
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(6)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(400):
        batch = _repeating(generator, 16)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _repeating(rng: torch.Generator, count: int) -> torch.Tensor:
    start = torch.randint(1, 61, (count, 5), generator=rng)
    return start.repeat(1, 8)[:, :36]


def test_zeros_ruin_both_protocols_and_lossless_changes_nothing(trained, rng):
    windows = _repeating(rng, 4)
    codecs = {name: control_codec(trained, name) for name in ("lossless", "zeros")}
    codecs["sign"] = calibrate(trained, _repeating(rng, 16), rotation="learned")
    for protocol in PROTOCOLS:
        settings = EvaluationSettings(protocol, prefill=12, chunk=5)
        table = evaluate_codecs(trained, windows, codecs, settings)
        mean = table.groupby("method")[["nll", "logit_kl", "same_top1"]].mean()
        assert mean.loc["lossless", "nll"] == pytest.approx(mean.loc["full", "nll"], abs=1e-4)
        assert mean.loc["lossless", "logit_kl"] < 1e-6
        assert mean.loc["lossless", "same_top1"] == 1
        assert mean.loc["zeros", "nll"] > mean.loc["full", "nll"] + 0.5
        assert mean.loc["zeros", "nll"] > mean.loc["sign", "nll"]


@pytest.mark.parametrize("part", ["keys", "values", "both"])
def test_zeros_in_either_part_ruin_every_bucket_of_both_protocols(trained, rng, part):
    windows = _repeating(rng, 2)
    nothing = {"zeros": _zeros(trained, part)}
    for protocol in PROTOCOLS:
        settings = EvaluationSettings(protocol, prefill=12, chunk=5, buckets=(6, 13, 24))
        assert _is_ruined_everywhere(evaluate_codecs(trained, windows, nothing, settings))


def test_an_evaluation_that_scores_prefill_tokens_is_caught(trained, rng, monkeypatch):
    """The mutant adds the logits of the prefill, which read exact keys, to those it scores."""

    def leaky(model, window, codecs, settings):
        for name, codec in {"full": None, **codecs}.items():
            cache = codec.new_cache(model) if codec else DynamicCache(config=model.config)
            parts = window[None, :-1].split(
                [settings.prefill, len(window) - 1 - settings.prefill], 1
            )
            yield name, torch.cat([model(ids, past_key_values=cache).logits[0] for ids in parts])

    windows, nothing = _repeating(rng, 2), {"zeros": _zeros(trained, "both")}
    settings = EvaluationSettings("cache", prefill=12, chunk=50, buckets=(13,))
    assert _is_ruined_everywhere(evaluate_codecs(trained, windows, nothing, settings))
    monkeypatch.setattr(evaluate, "_logits_by_method", leaky)
    monkeypatch.setattr(EvaluationSettings, "first_context", 1)
    assert not _is_ruined_everywhere(evaluate_codecs(trained, windows, nothing, settings))


def _zeros(model, part: str) -> CacheCodec:
    layout = attention_layout(model.config)
    chosen = {"keys": (True, False), "values": (False, True), "both": (True, True)}[part]
    keys, values = (
        (ZeroCodec() if is_zero else LosslessCodec(),) * layout.num_layers for is_zero in chosen
    )
    return CacheCodec(layout, keys, values)


def _is_ruined_everywhere(table) -> bool:
    """Whether zeros predict far worse than full precision wherever it predicts at all."""
    mean = table.groupby(["context_from", "method"])["nll"].mean().unstack()
    learned = mean[mean["full"] < 2]  # the model guesses before a token has come twice
    assert len(learned)
    return bool((learned["zeros"] > learned["full"] + 0.5).all())


def test_buckets_split_the_same_scores(make_model, tokens):
    model = make_model("llama")
    codecs = {"zeros": control_codec(model, "zeros")}
    for protocol, first in (("teacher-forced", 1), ("cache", 9)):
        whole, split = (
            evaluate_codecs(
                model, tokens, codecs, EvaluationSettings(protocol, 8, 5, buckets)
            ).groupby(["window", "method"])
            for buckets in ((), (4, 12, 16, 99))
        )
        assert whole["scored_tokens"].sum().eq(24 - first).all()
        assert split["context_from"].min().eq(first).all()
        assert split["context_to"].max().eq(23).all()
        for name in ("nll", "logit_kl", "same_top1"):
            joined = split.apply(lambda g, name=name: (g[name] * g["scored_tokens"]).sum())
            expected = whole[name].mean() * whole["scored_tokens"].sum()
            torch.testing.assert_close(
                torch.tensor(joined.values), torch.tensor(expected.values), rtol=1e-12, atol=1e-12
            )


def test_one_pass_fills_every_cache_as_its_own_pass_would(any_architecture, blocked_cache_codec):
    """Also with sliding windows, sinks and blocks, whether read at once or in chunks."""
    model = any_architecture
    ids = torch.randint(1, 61, (1, 24), generator=torch.Generator().manual_seed(3))
    codec = blocked_cache_codec(model)
    with torch.no_grad():
        for chunk in (None, 7):
            filled = fill_caches(model, ids[:, :20], {"codec": codec}, chunk=chunk)["codec"]
            own = codec.new_cache(model)
            for part in ids[:, :20].split(chunk or 20, dim=1):
                model(input_ids=part, past_key_values=own)
            found, expected = (
                model(input_ids=ids[:, 20:], past_key_values=cache).logits
                for cache in (filled, own)
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_through_the_cache_are_those_of_a_cache_driven_by_hand(make_model, tokens):
    model = make_model("llama")
    codec = calibrate(model, tokens, method="scalar", bits=2, value_bits=2, value_method="scalar")
    settings = EvaluationSettings("cache", prefill=10, chunk=6)
    table = evaluate_codecs(model, tokens[:1], {"codec": codec}, settings).set_index("method")
    with torch.no_grad():
        full = model(input_ids=tokens[:1]).logits[0, 10:-1].double().log_softmax(-1)
        cache, parts = codec.new_cache(model), []
        model(input_ids=tokens[:1, :10], past_key_values=cache)
        for chunk in tokens[:1, 10:23].split(6, dim=1):
            parts.append(model(input_ids=chunk, past_key_values=cache).logits[0])
    mine = torch.cat(parts).double().log_softmax(-1)
    nll = torch.nn.functional.nll_loss(mine, tokens[0, 11:]).item()
    divergence = torch.nn.functional.kl_div(mine, full, log_target=True, reduction="batchmean")
    assert table.loc["codec", "nll"] == pytest.approx(nll, rel=1e-6)
    assert table.loc["codec", "logit_kl"] == pytest.approx(divergence.item(), rel=1e-4)
    assert table.loc["codec", "logit_kl"] > 1e-3


def test_logits_that_are_not_finite_are_an_error(make_model, tokens):
    class Broken(LosslessCodec):
        def decode(self, encoded):
            return super().decode(encoded) * float("nan")

    model = make_model("llama")
    codec = CacheCodec(attention_layout(model.config), (Broken(),) * 2)
    with pytest.raises(CodecError, match="broken, window 0: log-likelihoods are not finite"):
        evaluate_codecs(model, tokens, {"broken": codec})


def test_full_precision_is_the_models_own_loss(make_model, tokens):
    model = make_model("llama")
    table = evaluate_codecs(model, tokens[:1], {})
    with torch.no_grad():
        loss = model(input_ids=tokens[:1], labels=tokens[:1]).loss.item()
    assert table["nll"].item() == pytest.approx(loss, rel=1e-5)
    assert table["scored_tokens"].item() == tokens.shape[1] - 1


def test_the_cache_protocol_scores_every_token_after_the_prefill(make_model, tokens):
    model = make_model("llama")
    with torch.no_grad():
        logits = model(input_ids=tokens[:1]).logits[0].double()
    log_probs = torch.log_softmax(logits[12:-1], -1)
    expected = -log_probs.gather(-1, tokens[0, 13:, None]).mean().item()
    for chunk in (1, 4, 50):
        settings = EvaluationSettings("cache", prefill=12, chunk=chunk)
        table = evaluate_codecs(model, tokens[:1], {}, settings)
        assert table["scored_tokens"].item() == 11
        assert table["nll"].item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_that_of_the_two_distributions(make_model, tokens):
    """KL(full || zeros) from logits computed without gonio's evaluation."""
    model = make_model("llama")
    zeros = control_codec(model, "zeros")
    table = evaluate_codecs(model, tokens[:1], {"zeros": zeros}).set_index("method")
    with torch.no_grad():
        full = model(input_ids=tokens[:1]).logits[0, :-1].double().log_softmax(-1)
        cache = zeros.new_cache(model, prefill="decoded")
        other = model(input_ids=tokens[:1], past_key_values=cache).logits[0, :-1].double()
    other = other.log_softmax(-1)
    expected = torch.nn.functional.kl_div(other, full, log_target=True, reduction="batchmean")
    assert table.loc["zeros", "logit_kl"] == pytest.approx(expected.item(), rel=1e-4)
    assert table.loc["full", "logit_kl"] == pytest.approx(0, abs=1e-9)
    assert math.isclose(
        table.loc["zeros", "same_top1"], (full.argmax(-1) == other.argmax(-1)).double().mean()
    )


def test_bad_settings_are_refused(make_model, tokens):
    with pytest.raises(SettingError, match="protocol must be"):
        EvaluationSettings("optimistic")
    with pytest.raises(SettingError, match="prefill and chunk"):
        EvaluationSettings("cache", prefill=0)
    with pytest.raises(SettingError, match="buckets must be ascending"):
        EvaluationSettings(buckets=(8, 8))
    with pytest.raises(SettingError, match="cannot be called 'full'"):
        evaluate_codecs(make_model("llama"), tokens, {"full": None})
    with pytest.raises(SettingError, match="nothing to score"):
        evaluate_codecs(make_model("llama"), tokens, {}, EvaluationSettings("cache", prefill=23))
