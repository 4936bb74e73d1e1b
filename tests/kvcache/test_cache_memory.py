"""Memory: reported bytes are allocated bytes, tables are arithmetic, and nothing is hoarded."""

from dataclasses import dataclass, field

import pytest
import torch

from gonio.errors import CodecError
from gonio.kvcache import (
    CacheCodec,
    LosslessCodec,
    ZeroCodec,
    calibrate,
    control_codec,
    evaluate_codecs,
)
from gonio.kvcache.memory import allocation_table, coded_parts, memory_table
from gonio.models import attention_layout

CODECS = {
    "sign": {"method": "sign"},
    "sign, sinks, recent": {"method": "sign", "sinks": 4, "recent": 64},
    "affine both": {"method": "affine", "bits": 2, "value_bits": 4, "sinks": 4, "recent": 10},
    "stages": {"method": "residual_sign", "bits": 2, "value_bits": 3, "value_method": "scalar"},
}


@dataclass(frozen=True)
class Hoarder(ZeroCodec):
    """Stores nothing and remembers everything outside the cache: a bypass."""

    memory: dict = field(default_factory=dict, compare=False)

    def encode(self, x):
        self.memory["x"] = x.clone()
        return super().encode(x)

    def decode(self, encoded):
        found = self.memory.get("x")
        return super().decode(encoded) if found is None else found


@pytest.fixture
def calibrated(make_model, rng):
    model = make_model("llama")
    text = torch.randint(1, 61, (2, 96), generator=rng)
    return model, {name: calibrate(model, text, **options) for name, options in CODECS.items()}


def test_a_cache_of_4096_tokens_allocates_what_is_reported(calibrated, rng):
    model, codecs = calibrated
    ids = torch.randint(1, 61, (4096,), generator=rng)
    table = allocation_table(model, ids, codecs).set_index("method")
    assert (table["allocated_over_reported"] - 1).abs().max() < 0.01
    assert table["seq_len"].eq(4096).all()
    element_bytes = 2 * 2 * 4096 * 8 * 4  # layers, heads, tokens, head_dim, float32
    # One byte of signs and a float16 scale per key, values raw.
    assert table.loc["sign", "reported_bytes"] == element_bytes * 3 // 32 + element_bytes


def test_sliding_layers_allocate_what_is_reported(make_model, rng):
    model = make_model("gemma2")
    codec = calibrate(model, torch.randint(1, 61, (2, 96), generator=rng), method="scalar", bits=2)
    ids = torch.randint(1, 61, (700,), generator=rng)
    ratio = allocation_table(model, ids, {"scalar": codec})["allocated_over_reported"].item()
    assert ratio == pytest.approx(1, abs=0.01)


def test_a_report_that_forgets_the_scales_is_outside_the_tolerance(calibrated, rng):
    """The near miss: 16 bits of scale per 8 signs are not 1 percent."""
    model, codecs = calibrated
    ids = torch.randint(1, 61, (600,), generator=rng)
    row = allocation_table(model, ids, {"sign": codecs["sign"]}).iloc[0]
    stored = codecs["sign"].stored(600, "keys", torch.float32)
    forgotten = row["reported_bytes"] - stored.metadata_bytes
    assert abs(row["allocated_bytes"] / forgotten - 1) > 0.01


def test_a_codec_that_bypasses_the_cache_is_refused(make_model, tokens):
    """Its predictions are perfect, and its bytes tell on it."""
    model = make_model("llama")
    layout = attention_layout(model.config)
    codec = CacheCodec(layout, tuple(Hoarder() for _ in range(layout.num_layers)))
    scores = evaluate_codecs(model, tokens, {"hoarder": codec})
    assert scores["logit_kl"].max() < 1e-9
    with pytest.raises(CodecError, match="hoarder: keys of layer 0 do not decode from a copy"):
        allocation_table(model, tokens[0], {"hoarder": codec})


def test_memory_by_length_is_arithmetic(make_model):
    model = make_model("llama")
    codecs = {name: control_codec(model, name) for name in ("lossless", "zeros")}
    table = memory_table(codecs, (100, 1000)).set_index(["method", "seq_len"])
    for length in (100, 1000):
        part = 2 * 2 * length * 8 * 2  # layers, heads, tokens, head_dim, bfloat16
        exact, nothing = table.loc[("lossless", length)], table.loc[("zeros", length)]
        assert exact["key_bytes"] == exact["value_bytes"] == part
        assert exact["bf16_bytes"] == exact["total_bytes"] == 2 * part
        assert exact["key_bits"] == exact["value_bits"] == 16
        assert nothing["key_bytes"] == 0
        assert nothing["compression_ratio"] == 2


def test_fixed_side_data_counts_apart_and_weighs_less_with_length(calibrated):
    _, codecs = calibrated
    table = memory_table({"sign": codecs["sign"]}, (64, 4096))
    assert table["side_bytes"].eq(2 * 2 * 8 * 8 * 4).all()  # a rotation per layer and head
    assert table["compression_ratio"].is_monotonic_increasing
    assert table["key_bits"].tolist() == [3, 3]


def test_coded_parts_are_those_that_are_not_kept_as_they_are(calibrated):
    _, codecs = calibrated
    assert coded_parts(codecs["sign"]) == ("keys",)
    assert coded_parts(codecs["affine both"]) == ("keys", "values")
    layout = codecs["sign"].layout
    values = CacheCodec(layout, (LosslessCodec(),) * 2, (ZeroCodec(),) * 2)
    assert coded_parts(values) == ("values",)
