"""The record of ``cache observe``: its tables, what they say and what is left out."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from gonio.pipelines.bench import Bench
from gonio.pipelines.cache_observe import TRANSFORMS, observe_cache

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 61}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(
        num_hidden_layers=2, num_key_value_heads=2, head_dim=8, **SHAPE
    ),
    "odd": lambda: transformers.LlamaConfig(
        num_hidden_layers=2, num_key_value_heads=2, head_dim=10, **SHAPE
    ),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61),
}


def observed(family, rng, **options):
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    windows = torch.randint(1, 61, (8, 24), generator=rng)
    words = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
    bench = Bench(family, model, words, "text", "0" * 64, windows[:4], windows[4:], ())
    return observe_cache(bench, iterations=5, convergence_layers=2, **options)


@pytest.mark.parametrize(
    ("family", "whats", "left_out"),
    [
        ("llama", ["key_post", "key_pre", "value"], set()),
        ("odd", ["key_post", "key_pre", "value"], {"hadamard"}),
        ("gpt2", ["key_post", "value"], {"key_pre"}),
    ],
)
def test_tables_hold_every_layer_head_and_kind(family, whats, left_out, rng):
    found = observed(family, rng)
    kinds = [name for name in TRANSFORMS if name not in left_out]
    heads, layers = found.tables["heads"], found.tables["layers"]
    num_heads = 4 if family == "gpt2" else 2
    assert len(heads) == 2 * num_heads * len(whats) * len(kinds)
    assert heads["what"].unique().tolist() == layers["what"].unique().tolist() == whats
    assert heads["transform"].unique().tolist() == kinds
    assert (heads["low"] <= heads["mean_cosine"]).all()
    assert (heads["mean_cosine"] <= heads["high"]).all()
    assert not layers.drop(columns="what").isna().any(axis=None)
    assert set(found.record.settings["left_out"]) == left_out
    dim = 10 if family == "odd" else 8
    assert len(found.tables["eigenvalues"]) == 2 * (len(whats) + 1) * dim
    assert len(found.tables["spectra"]) == 2 * num_heads * (len(whats) + 1)
    names = {value.name for value in found.record.values}
    assert {"mean_cosine_learned", "beta_channel_value", "phase_angle_value"} <= names


def test_values_are_the_means_of_the_tables_beside_chance_and_interval(rng):
    found = observed("llama", rng)
    values = {value.name: value for value in found.record.values}
    heads = found.tables["heads"].set_index(["what", "transform"])
    value = values["beta_learned_value"]
    rows = heads.loc[("value", "learned")]
    assert value.value == pytest.approx(rows["beta"].mean())
    assert value.chance == rows["beta_chance"].iloc[0]
    assert value.interval.low <= value.value <= value.interval.high
    assert values["mean_cosine_none"].value == pytest.approx(
        heads.loc[("key_post", "none"), "mean_cosine"].mean()
    )


def test_a_sample_smaller_than_the_text_is_enough(rng):
    found = observed("llama", rng, learning_samples=30, samples=20)
    assert found.record.settings["samples"] == 20
    assert found.record.settings["learning_samples"] == 30
