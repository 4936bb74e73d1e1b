"""Summaries of scores: ratios and intervals by window, paired, and as wide as they should be."""

import math

import numpy as np
import pandas as pd
import pytest

from gonio.errors import SettingError
from gonio.kvcache import control_codec, evaluate_codecs
from gonio.kvcache.summaries import bounds, compare_methods, summarize_scores


def scores_of(nll: dict[str, np.ndarray], tokens: int = 10) -> pd.DataFrame:
    """Scores of one bucket per window with made-up divergences."""
    return pd.DataFrame(
        [
            {
                "window": window,
                "method": method,
                "scored_tokens": tokens,
                "nll": value,
                "logit_kl": value / 10,
                "same_top1": 1 / (1 + value),
            }
            for method, values in nll.items()
            for window, value in enumerate(values)
        ]
    )


def test_a_perfect_codec_has_ratio_one_and_no_divergence(make_model, tokens):
    model = make_model("llama")
    scores = evaluate_codecs(model, tokens, {"lossless": control_codec(model, "lossless")})
    row = summarize_scores(scores).set_index("method").loc["lossless"]
    assert row["perplexity_ratio"] == row["perplexity_ratio_low"] == 1
    assert row["perplexity_ratio_high"] == 1
    assert row["logit_kl"] == 0
    assert row["same_top1"] == 1
    assert row["windows"] == 4
    assert row["scored_tokens"] == 4 * 23


def test_means_are_over_tokens_and_ratios_over_the_same_windows():
    full, codec = np.array([1.0, 3.0]), np.array([1.5, 3.25])
    scores = scores_of({"full": full, "codec": codec})
    early = scores.assign(scored_tokens=30, nll=scores["nll"] + 1)
    row = summarize_scores(pd.concat([scores, early])).set_index("method").loc["codec"]
    assert row["perplexity"] == pytest.approx(math.exp(codec.mean() + 0.75))
    assert row["perplexity_ratio"] == pytest.approx(math.exp(0.375))
    assert row["scored_tokens"] == 80
    assert row["logit_kl"] == pytest.approx(codec.mean() / 10)


def test_pairing_takes_out_how_hard_a_window_is():
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, 24)
    one, two = hard + 0.2 + rng.normal(0, 0.02, 24), hard + 0.1 + rng.normal(0, 0.02, 24)
    scores = scores_of({"full": hard, "one": one, "two": two})
    table = summarize_scores(scores).set_index("method")
    widths = np.log(table["perplexity_high"] / table["perplexity_low"])
    paired = np.log(table["perplexity_ratio_high"] / table["perplexity_ratio_low"])
    assert paired["one"] < 0.1 * widths["one"]
    (pair,) = compare_methods(scores, ["one", "two"]).to_dict("records")
    assert pair["perplexity_ratio"] == pytest.approx(math.exp((one - two).mean()))
    assert 1.05 < pair["perplexity_ratio_low"] < pair["perplexity_ratio"]
    assert pair["perplexity_ratio"] < pair["perplexity_ratio_high"] < 1.15
    assert pair["logit_kl_difference_low"] < (one - two).mean() / 10
    assert pair["same_top1_difference_high"] < 0


def test_intervals_of_the_ratio_cover_it():
    """Nominally 95 %; with 20 windows and 100 trials anything from 88 to 100 % is honest."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        full = rng.normal(2.5, 0.5, 20)
        codec = full + rng.gamma(2.0, 0.05, 20)  # true mean excess 0.1
        found = bounds("ratio", codec, seed, full, exponential=True)
        covered += found["ratio_low"] <= math.exp(0.1) <= found["ratio_high"]
    assert 88 <= covered <= 100


def test_evaluations_stay_apart_and_one_window_has_no_interval():
    scores = scores_of({"full": np.array([1.0]), "a": np.array([2.0]), "b": np.array([4.0])})
    both = pd.concat(
        [scores.assign(protocol="cache"), scores.assign(protocol="other", nll=scores["nll"] * 2)]
    )
    table = summarize_scores(both, ["protocol"]).set_index(["protocol", "method"])
    assert table.loc[("cache", "a"), "perplexity"] == pytest.approx(math.exp(2))
    assert table.loc[("other", "a"), "perplexity_ratio"] == pytest.approx(math.exp(2))
    assert math.isnan(table.loc[("cache", "a"), "perplexity_low"])
    pairs = compare_methods(both, ["a", "b"], ["protocol"])
    assert pairs["perplexity_ratio"].tolist() == pytest.approx([math.exp(-2), math.exp(-4)])
    assert compare_methods(both, ["a"], ["protocol"]).empty
    with pytest.raises(SettingError, match="no scores of 'full'; found a, b"):
        summarize_scores(scores[scores["method"] != "full"])
