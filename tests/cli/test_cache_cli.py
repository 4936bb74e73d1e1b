"""``gonio cache`` on a tiny model: calibrate, evaluate, observe, and what is refused."""

import json

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from gonio.cli.main import cli
from gonio.kvcache import load_codec

SIZES = ["--calibration-tokens", "128", "--window", "64"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["cache", *arguments], prog_name="gonio")


@pytest.fixture
def codec(tiny_folder, tmp_path) -> str:
    path = tmp_path / "one.safetensors"
    result = run("calibrate", str(tiny_folder), "--out", str(path), *SIZES)
    assert result.exit_code == 0, result.output
    assert "bits per key element" in result.stdout
    return str(path)


def test_a_calibrated_codec_says_where_it_comes_from(codec, tiny_folder):
    provenance = load_codec(codec).provenance
    assert provenance["model"] == str(tiny_folder)
    assert provenance["calibration_tokens"] == 128
    assert len(provenance["text_sha256"]) == 64


def test_transform_codecs_take_their_options_and_state_their_limits(tiny_folder, tmp_path):
    """Keys and values by different methods: each gets the options it has."""
    path = tmp_path / "two.safetensors"
    methods = ["--method", "entropy", "--bits", "3", "--value-method", "transform"]
    methods += ["--value-bits", "2.5", "--metric", "local", "--budget", "equal"]
    methods += ["--dead-zone", "0.2", "--states", "8", "--floor", "0.01"]
    methods += ["--spread", "1024", "--held-out-tokens", "192"]
    command = ["calibrate", str(tiny_folder), "--out", str(path), *methods, *SIZES]
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    facts = load_codec(path).provenance
    common = {"metric": "local", "budget": "equal", "floor": 0.01, "span": "layer"}
    keys = {"method": "entropy", "dead_zone": 0.2, "stage": "pre_rope", **common}
    assert facts.items() >= keys.items()
    assert facts["values"] == {"method": "transform", "bits": 2.5, "states": 8, **common}
    assert (facts["calibration_tokens"], facts["calibration_read"]) == (1024, 128)
    limits = pd.DataFrame(json.loads(result.stdout)["tables"]["limits"])
    assert list(limits["part"].unique()) == ["keys", "values"]
    assert bool((limits["over_gaussian"] > -1).all())
    assert bool((limits["tokens"] == 192).all())
    refused = run(*command, "--force", "--method", "sign", "--bits", "1")
    assert refused.exit_code == 2
    assert "--dead-zone is not for keys by 'sign' and values by 'transform'" in refused.stderr


def test_a_codec_is_not_overwritten_unasked(codec, tiny_folder):
    again = ["calibrate", str(tiny_folder), "--out", codec, "--rotation", "none", *SIZES]
    refused = run(*again)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert load_codec(codec).provenance["rotation"] == "learned"
    assert run(*again, "--force").exit_code == 0
    assert load_codec(codec).provenance["rotation"] == "none"


def test_evaluation_prints_both_protocols_with_controls(codec, tiny_folder):
    sizes = ["--evaluation-tokens", "128", "--window", "64", "--prefill", "32"]
    result = run("evaluate", str(tiny_folder), "--codec", codec, *sizes, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    methods = pd.DataFrame(content["tables"]["methods"])
    assert set(methods["method"]) == {"full", "one", "zeros"}
    assert set(methods["protocol"]) == {"teacher-forced", "cache"}
    bits = methods.set_index("method")["bits_per_element"]
    assert set(bits["one"]) == {3.0}  # head_dim 8: one byte of signs and a float16 scale
    assert content["record"]["settings"]["codecs"]["one"]["rotation"] == "learned"
    assert {"recall", "allocation", "memory", "lengths"} <= content["tables"].keys()
    assert "pairs" not in content["tables"]  # there is no second codec


def test_two_codecs_are_compared_in_tables_of_80_columns(codec, tiny_folder, tmp_path):
    other = tmp_path / "keys-no-rotate.safetensors"
    made = run("calibrate", str(tiny_folder), "--rotation", "none", "--out", str(other), *SIZES)
    assert made.exit_code == 0, made.output
    sizes = ["--evaluation-tokens", "256", "--window", "64", "--prefill", "32"]
    sizes += ["--lengths", "128", "--recall", "128", "--allocation-tokens", "600"]
    result = run("evaluate", str(tiny_folder), "--codec", codec, "--codec", str(other), *sizes)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    for title in ("Scores, cache", "Context lengths", "Pairs", "Recall", "Memory", "allocated"):
        assert title in result.stdout
    assert "…" not in result.stdout


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--lengths", "long"], "no list of lengths"),
        (["--recall", "1"], "at least 2 tokens"),
        (["--lengths", "256"], "has 128 tokens"),
        (["--recall", "60"], "no room for text"),
    ],
    ids=["words", "one token", "longer than the text", "shorter than the passage"],
)
def test_wrong_lengths_are_refused(codec, tiny_folder, given, complaint):
    sizes = ["--evaluation-tokens", "128", "--window", "64", "--prefill", "32"]
    refused = run("evaluate", str(tiny_folder), "--codec", codec, *sizes, *given)
    assert refused.exit_code == 2
    assert complaint in refused.stderr


def test_evaluation_never_reads_calibration_tokens(codec, tiny_folder, tmp_path):
    """A text that just holds both parts is enough; one token more must be refused."""
    from gonio.models import load_text, load_tokenizer

    words = " ".join(load_text().text.split()[:400])
    (tmp_path / "text.txt").write_text(words)
    text = str(tmp_path / "text.txt")
    path = str(tmp_path / "two.safetensors")
    run("calibrate", str(tiny_folder), "--text", text, "--out", path, *SIZES)
    count = len(load_tokenizer(tiny_folder)(words)["input_ids"])
    sizes = ["--text", text, "--window", "64", "--prefill", "32"]
    sizes += ["--recall", "none", "--allocation-tokens", "0"]
    command = ["evaluate", str(tiny_folder), "--codec", path, *sizes, "--evaluation-tokens"]
    assert run(*command, str(count - 128)).exit_code == 0
    refused = run(*command, str(count - 127))
    assert refused.exit_code == 2
    assert "128 for calibration" in refused.stderr


def test_codecs_with_one_name_are_kept_apart(codec, tiny_folder, tmp_path):
    other = tmp_path / "other" / "one.safetensors"
    result = run("calibrate", str(tiny_folder), "--rotation", "none", "--out", str(other), *SIZES)
    assert result.exit_code == 0
    sizes = ["--evaluation-tokens", "64", "--window", "64", "--protocol", "teacher-forced"]
    sizes += ["--recall", "none", "--allocation-tokens", "0"]
    command = ["evaluate", str(tiny_folder), "--codec", codec, "--codec", str(other), *sizes]
    methods = run(*command, "--csv").stdout
    assert codec in methods
    assert str(other) in methods
    taken = tmp_path / "zeros.safetensors"
    taken.write_bytes(other.read_bytes())
    refused = run("evaluate", str(tiny_folder), "--codec", str(taken), *sizes)
    assert refused.exit_code == 2
    assert "control has that name" in refused.stderr


def test_observing_prints_each_layer_beside_chance(tiny_folder):
    sizes = [*SIZES, "--evaluation-tokens", "128", "--iterations", "5"]
    result = run("observe", str(tiny_folder), *sizes)
    assert result.exit_code == 0, result.output
    assert "chance" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    table = run("observe", str(tiny_folder), *sizes, "--csv").stdout
    assert table.startswith("layer,head,what,transform,mean_cosine")
    assert len(table.splitlines()) == 1 + 2 * 2 * 3 * 6
