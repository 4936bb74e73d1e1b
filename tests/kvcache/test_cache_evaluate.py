"""Evaluation: full precision as computed by hand, zeros ruin both protocols, nothing leaks."""

import math

import pytest
import torch

from gonio.errors import SettingError
from gonio.kvcache import EvaluationSettings, calibrate, control_codec, evaluate_codecs

PROTOCOLS = ["teacher-forced", "cache"]


@pytest.fixture
def trained(make_model, rng):
    """A tiny model that has learned a text in which each token follows from an earlier one.

    Token t repeats token t - 5 with noise, so that predictions need attention, and a cache that
    loses the keys must pay for it.
    """
    torch.manual_seed(5)
    model = make_model("llama")
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(400):
        batch = _repeating(rng, 16)
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
    with pytest.raises(SettingError, match="nothing to score"):
        evaluate_codecs(make_model("llama"), tokens, {}, EvaluationSettings("cache", prefill=23))
