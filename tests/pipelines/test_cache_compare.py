"""The comparison: one row for everybody, failures and absences among them, and nothing lost."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from gonio.errors import OutputError, SettingError
from gonio.kvcache import calibrate, control_codec, evaluate_codecs
from gonio.pipelines import cache_compare, compare_scores
from gonio.pipelines.bench import TokenBudget, open_bench
from gonio.pipelines.cache_compare import CacheComparison, compare_caches, work_folder
from gonio.pipelines.compare_methods import METHODS, select_methods, select_peers
from gonio.pipelines.compare_scores import WholeBlocks
from gonio.pipelines.compare_summary import frontier
from gonio.pipelines.peers.registry import PEERS, Peer
from gonio.records import read_measurement, write_measurement

ABSENT = Peer("absent", "not-there", "9.9", {"any": {}}, "nowhere")


@pytest.fixture(scope="module")
def bench(tiny_folder):
    return open_bench(str(tiny_folder), "bundled", TokenBudget(128, 192, 64))


@pytest.fixture(scope="module")
def plan(tiny_peer, tmp_path_factory):
    peer, root = tiny_peer
    return CacheComparison(
        methods=("affine 4", "affine K4 V4"),
        peers=(peer, ABSENT),
        prefill=32,
        chunk=16,
        peers_root=root,
        work=tmp_path_factory.mktemp("work"),
    )


@pytest.fixture(scope="module")
def found(bench, plan):
    return compare_caches(bench, plan)


@pytest.fixture(scope="module")
def methods(found):
    return found.tables["methods"].set_index(["method", "protocol"])


def test_every_contender_has_a_row_and_says_how_it_went(methods):
    status = methods["status"].to_dict()
    assert status["tiny good", "teacher-forced"] == "ok"
    assert status["tiny good, K+V", "cache"] == "ok"
    assert ("tiny good", "cache") not in status  # its cache holds both parts
    for mode, message in {
        "crash": "no such luck",
        "nan": "not finite",
        "shape": "of shape",
    }.items():
        assert status[f"tiny {mode}", "teacher-forced"] == "failed"
        assert message in methods.loc[(f"tiny {mode}", "teacher-forced"), "message"]
        assert status[f"tiny {mode}, K+V", "cache"] == "no cache"
    assert status["absent any", "teacher-forced"] == "not installed"
    assert "not-there==9.9" in methods.loc[("absent any", "teacher-forced"), "message"]
    assert methods.loc[("absent any", "teacher-forced"), "version"] == "9.9"
    assert math.isnan(methods.loc[("absent any", "teacher-forced"), "perplexity"])


def test_bits_are_those_of_the_tensors_kept(methods):
    head_dim = 8
    mine = methods.loc[("tiny good, K+V", "teacher-forced")]
    assert mine["key_bits"] == mine["value_bits"] == mine["bits"] == 8 + 16 / head_dim
    assert mine["held_key_bits"] == mine["key_bits"]
    assert mine["side_bytes"] == 8 * 4
    keys = methods.loc[("tiny good", "teacher-forced")]
    assert (keys["bits"], keys["value_bits"]) == (10, 16)
    dense = methods.loc[("tiny good, K+V", "cache")]
    assert dense["held_bits"] == 16  # an ordinary cache, whatever its package is called
    affine = methods.loc[("affine 4", "teacher-forced")]
    assert affine["key_bits"] == 5  # four bits, a float16 scale and offset for 32 tokens
    assert methods.loc[("full", "cache"), "key_bits"] == 16


def test_scores_are_those_of_the_evaluation(bench, methods):
    codec = calibrate(bench.model, bench.calibration, method="affine", bits=4, value_bits=4)
    zeros = control_codec(bench.model, "zeros")
    for protocol in ("teacher-forced", "cache"):
        settings = compare_scores_settings(protocol)
        expected = evaluate_codecs(
            bench.model, bench.evaluation, {"a": codec, "z": zeros}, settings
        )
        means = expected.groupby("method")[["nll", "logit_kl", "same_top1"]].mean()
        for name, row in {"a": "affine K4 V4", "z": "zeros", "full": "full"}.items():
            mine = methods.loc[(row, protocol)]
            assert mine["perplexity"] == pytest.approx(math.exp(means.loc[name, "nll"]), rel=1e-6)
            assert mine["logit_kl"] == pytest.approx(means.loc[name, "logit_kl"], abs=1e-8)


def compare_scores_settings(protocol):
    from gonio.kvcache import EvaluationSettings

    return EvaluationSettings(protocol, prefill=32, chunk=16)


def test_a_package_is_scored_through_the_model_layer_by_layer(bench, methods):
    """The tiny package, done by hand inside attention, gives the same perplexity."""

    class ByHand:
        method, block, side_bytes = "hand", 1, 0

        def encode(self, x):
            half = x.half()
            scale = (half.abs().amax(dim=-1, keepdim=True) / 127).half()
            decoded = (half / scale).round().to(torch.int8) * scale
            return compare_scores.EncodedTensor(
                {"x": decoded.to(x)}, x.shape[2], x.shape[3], x.dtype
            )

        def decode(self, encoded):
            return encoded.tensors["x"]

        def state(self):
            return {}, {}

    zeros = control_codec(bench.model, "zeros")
    by_hand = replace(zeros, keys=(ByHand(),) * len(zeros.keys))
    expected = evaluate_codecs(bench.model, bench.evaluation, {"hand": by_hand})
    nll = expected.groupby("method")["nll"].mean()
    mine = methods.loc[("tiny good", "teacher-forced"), "perplexity_ratio"]
    assert mine == pytest.approx(math.exp(nll["hand"] - nll["full"]), rel=1e-6)
    assert mine != 1


def test_a_stopped_run_goes_on_where_it_was(bench, plan, found, monkeypatch):
    scores = work_folder(bench, plan) / "scores.json"
    kept = json.loads(scores.read_text())
    assert not any("crash" in key or "nan" in key for key in kept)  # to be tried again
    missing = next(key for key in kept if key.startswith("cache/1/") and "peer" not in key)
    scores.write_text(json.dumps({key: row for key, row in kept.items() if key != missing}))
    scored = []
    original = compare_scores.Scorer._score

    def counting(self, window, protocol, cache, name):
        scored.append((protocol, window))
        return original(self, window, protocol, cache, name)

    monkeypatch.setattr(compare_scores.Scorer, "_score", counting)
    again = compare_caches(bench, replace(plan, peers=()))
    assert scored == [("cache", 1)]
    table = again.tables["methods"].set_index(["method", "protocol"])
    before = found.tables["methods"].set_index(["method", "protocol"])
    pd.testing.assert_series_equal(
        table["perplexity"], before["perplexity"].loc[table.index], rtol=1e-12
    )
    assert json.loads(scores.read_text()).keys() == kept.keys()


def test_what_was_scored_before_a_kill_is_on_disk(bench, plan, tmp_path, monkeypatch):
    original = compare_scores.Scorer._score
    calls = []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(compare_scores.Scorer, "_score", killed)
    mine = replace(plan, peers=(), methods=(), work=tmp_path, protocols=("teacher-forced",))
    with pytest.raises(KeyboardInterrupt):
        compare_caches(bench, mine)
    rows = json.loads((work_folder(bench, mine) / "scores.json").read_text())
    assert len(rows) == 4  # three windows in full precision, one of the control
    compare_caches(bench, mine)
    assert len(calls) == 5 + 2


def test_other_settings_share_no_scores(bench, plan):
    folders = {
        work_folder(bench, replace(plan, **each)) for each in ({}, {"chunk": 8}, {"seed": 1})
    }
    assert len(folders) == 3


def test_the_record_survives_writing(found, tmp_path):
    read = read_measurement(write_measurement(found, tmp_path / "record"))
    assert read.record == found.record
    assert read.record.kind == "cache-comparison"
    assert read.record.value("failed_rows").value == 6  # three modes, keys and both
    assert read.record.value("not_installed_rows").value == 3
    assert len(read.tables["methods"]) == len(found.tables["methods"])


def test_the_frontier_is_what_nobody_beats():
    rows = [("a", 1, 3), ("b", 2, 2), ("c", 2.5, 2), ("d", 3, 1), ("e", 1, 4), ("zeros", 0, 9)]
    table = pd.DataFrame(rows, columns=["method", "bits", "perplexity_ratio"]).assign(
        parts="keys", protocol="teacher-forced", status="ok"
    )
    assert table.loc[frontier(table), "method"].tolist() == ["a", "b", "d"]
    table.loc[0, "status"] = "failed"
    assert table.loc[frontier(table), "method"].tolist() == ["b", "d", "e"]


def test_incomplete_blocks_are_coded_not_kept(rng):
    from gonio.kvcache import AffineCodec

    codec = AffineCodec(4, "channel", 32)
    x = torch.randn(1, 2, 45, 8, generator=rng)
    whole = WholeBlocks(codec)
    found = whole.decode(whole.encode(x))
    assert found.shape == x.shape
    assert torch.equal(found[:, :, :32], codec.decode(codec.encode(x[:, :, :32])))
    assert not torch.equal(found[:, :, 32:], x[:, :, 32:])


@pytest.mark.parametrize(
    ("function", "words"), [(select_methods, ("sine",)), (select_peers, ("quanto", "qanto"))]
)
def test_unknown_names_are_refused(function, words):
    with pytest.raises(SettingError, match="known: "):
        function(words)


def test_names_select_methods_and_peers():
    assert select_methods(("all",)) == list(METHODS)
    assert select_methods(("affine 2", "sign")) == ["sign learned", "affine 2"]
    assert select_methods(("none",)) == []
    assert [peer.name for peer in select_peers(("hqq", "quanto"))] == ["hqq", "quanto"]
    assert select_peers(("all",)) == list(PEERS.values())


def test_windows_too_short_names_taken_and_a_second_run_are_refused(bench, plan):
    with pytest.raises(SettingError, match="leave nothing to score"):
        compare_caches(bench, replace(plan, prefill=64))
    codec = control_codec(bench.model, "lossless")
    with pytest.raises(SettingError, match="two rows are called 'affine 4'"):
        compare_caches(bench, replace(plan, codecs={"affine 4": codec}))
    folder = work_folder(bench, plan)
    with cache_compare.FileLock(folder / ".lock"), pytest.raises(OutputError, match="another run"):
        compare_caches(bench, plan)


def test_every_method_of_gonio_takes_part_and_scores_the_same_again(bench, tmp_path):
    """Codecs fitted just now, then those read from where they were kept."""
    plan = CacheComparison(
        methods=tuple(METHODS), peers=(), protocols=("teacher-forced",), work=tmp_path
    )
    small = replace(bench, evaluation=bench.evaluation[:1])
    tables = []
    for _ in range(2):
        found = compare_caches(small, plan).tables["methods"].set_index("method")
        assert (found["status"] == "ok").all(), found["message"].tolist()
        (work_folder(small, plan) / "scores.json").unlink()
        tables.append(found)
    pd.testing.assert_frame_equal(*tables)
    assert found.loc["entropy K2.6 V4", "key_bits"] == pytest.approx(2.6, abs=0.3)
