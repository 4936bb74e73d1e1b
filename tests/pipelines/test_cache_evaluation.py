"""The evaluation record: every table, controls that match what is coded, honest refusals."""

from dataclasses import replace

import pytest

from gonio.errors import ModelError, SettingError
from gonio.kvcache import calibrate, evaluate_codecs
from gonio.kvcache.recall import RecallSettings
from gonio.pipelines import cache_evaluate
from gonio.pipelines.bench import TokenBudget, open_bench
from gonio.pipelines.cache_evaluate import CacheEvaluation, evaluate_cache
from gonio.records import read_measurement, write_measurement

PLAN = CacheEvaluation(
    prefill=32,
    lengths=(128,),
    allocation=600,
    memory=(256, 1024),
    recall=RecallSettings(lengths=(96,), depths=(0.5,), trials=2, passage=32, cue=8),
)


@pytest.fixture(scope="module")
def bench(tiny_folder):
    return open_bench(str(tiny_folder), "bundled", TokenBudget(128, 256, 64))


@pytest.fixture(scope="module")
def codecs(bench):
    options = {"sign": {}, "both": {"method": "affine", "bits": 2, "value_bits": 4, "sinks": 4}}
    return {name: calibrate(bench.model, bench.calibration, **o) for name, o in options.items()}


@pytest.fixture(scope="module")
def found(bench, codecs):
    return evaluate_cache(bench, codecs, PLAN)


def test_the_record_holds_every_table_and_survives_writing(found, tmp_path):
    assert found.record.kind == "cache-evaluation"
    expected = {"methods", "windows", "lengths", "positions", "pairs", "memory"}
    assert set(found.tables) == expected | {"allocation", "recall", "probes"}
    read = read_measurement(write_measurement(found, tmp_path / "record"))
    assert read.record == found.record
    assert len(read.tables["windows"]) == len(found.tables["windows"])
    assert read.record.settings["recall"]["cue"] == 8
    assert read.record.settings["codecs"]["both"]["coded"] == ["keys", "values"]


def test_tables_cover_protocols_lengths_methods_and_pairs(found):
    lengths = found.tables["lengths"]
    assert len(lengths) == 2 * 2 * 4  # protocols, lengths, methods with both controls
    windows = lengths.groupby("context_length")["windows"].first()
    assert windows.to_dict() == {64: 4, 128: 2}
    positions = found.tables["positions"]
    cut = positions[(positions["context_length"] == 128) & (positions["protocol"] == "cache")]
    assert set(zip(cut["context_from"], cut["context_to"], strict=True)) == {(33, 63), (64, 127)}
    pairs = found.tables["pairs"]
    assert len(pairs) == 2 * 2
    assert set(zip(pairs["first"], pairs["second"], strict=True)) == {("sign", "both")}
    assert len(found.tables["recall"]) == 2 * 4  # present and absent, methods


def test_bits_count_keys_and_values_apart_and_sinks_raw(found):
    rows = found.tables["methods"].groupby("method").first()
    assert rows.loc["sign", ["key_bits", "value_bits", "bits_per_element"]].tolist() == [3, 32, 3]
    assert rows.loc["full", "bits_per_element"] == 32
    raw = 4 + (64 - 4) % 32  # sinks, and tokens that wait for their block of 32
    coded = 64 - raw  # two bits, and a float16 scale and offset per 32 tokens
    expected = (raw * 32 + coded * (2 + 32 / 32)) / 64
    assert rows.loc["both", "key_bits"] == pytest.approx(expected)
    both = (rows.loc["both", "key_bits"] + rows.loc["both", "value_bits"]) / 2
    assert rows.loc["both", "bits_per_element"] == pytest.approx(both)


def test_allocated_bytes_are_the_reported_ones(found):
    for name in ("sign", "both"):
        value = found.record.value(f"allocated_over_reported_{name}").value
        assert value == pytest.approx(1, abs=0.01)
    assert found.tables["allocation"]["seq_len"].eq(600).all()


def test_the_zeros_control_zeroes_what_is_coded(bench, codecs, found):
    rows = found.tables["methods"].set_index(["method", "protocol"])
    assert rows.loc[("zeros", "cache"), ["key_bits", "value_bits"]].tolist() == [0, 0]
    plan = replace(PLAN, allocation=0, recall=None, lengths=(), protocols=("cache",))
    keys_only = evaluate_cache(bench, {"sign": codecs["sign"]}, plan)
    assert {"allocation", "recall", "pairs"}.isdisjoint(keys_only.tables)
    row = keys_only.tables["methods"].set_index("method").loc["zeros"]
    assert row[["key_bits", "value_bits"]].tolist() == [0, 32]


def test_values_carry_chance_and_intervals(found):
    ratio = found.record.value("perplexity_ratio_both_cache")
    assert ratio.interval.low <= ratio.value <= ratio.interval.high
    methods = found.tables["methods"].set_index(["method", "protocol"])
    assert ratio.chance == methods.loc[("zeros", "cache"), "perplexity_ratio"]
    recall = found.record.value("recall_full_96")
    assert recall.chance is not None
    assert recall.interval is not None


def test_lengths_beyond_the_text_or_the_model_are_refused(bench, codecs):
    with pytest.raises(SettingError, match="has 256 tokens"):
        evaluate_cache(bench, codecs, replace(PLAN, lengths=(512,)))
    with pytest.raises(SettingError, match="knows 2048 positions, and a context of 4096"):
        evaluate_cache(bench, codecs, replace(PLAN, lengths=(4096,)))
    with pytest.raises(SettingError, match="64 tokens leave nothing to score after 63"):
        evaluate_cache(bench, codecs, replace(PLAN, prefill=63))
    with pytest.raises(SettingError, match="control has that name"):
        evaluate_cache(bench, {"full": codecs["sign"]}, PLAN)


def test_a_model_that_reads_past_its_cache_is_refused(bench, codecs, monkeypatch):
    """The mutant evaluation gives every codec the full-precision cache."""

    def bypass(model, windows, codecs, settings, *, progress=None):
        scores = evaluate_codecs(model, windows, {}, settings)
        return cache_evaluate.pd.concat([scores.assign(method=name) for name in ("full", *codecs)])

    monkeypatch.setattr(cache_evaluate, "evaluate_codecs", bypass)
    with pytest.raises(ModelError, match="does not read its cache"):
        evaluate_cache(bench, codecs, PLAN)
