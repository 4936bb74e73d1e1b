"""``gonio cache certify`` on a tiny model: tables, records, the guarantee, and what is refused."""

import json

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from gonio.cli.main import cli
from gonio.kvcache import distortion_bound, load_codec
from gonio.kvcache.distortion_bound import RUNGS

SIZES = ["--window", "64", "--evaluation-tokens", "64"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["cache", *arguments], prog_name="gonio")


@pytest.fixture(scope="module")
def codec(tiny_folder, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("codec") / "three"
    options = ["--method", "affine", "--bits", "2", "--value-bits", "3"]
    sizes = ["--calibration-tokens", "128", "--window", "64"]
    made = run("calibrate", str(tiny_folder), "--out", str(path), *options, *sizes)
    assert made.exit_code == 0, made.output
    return str(path)


def test_every_head_has_its_error_and_bounds(codec, tiny_folder):
    result = run("certify", str(tiny_folder), "--codec", codec, *SIZES, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["record"]["kind"] == "cache-certificate"
    assert content["record"]["settings"]["calibration_tokens"] == 128  # kept apart
    assert content["record"]["settings"]["arithmetic"] == "float64"
    values = {each["name"]: each["value"] for each in content["record"]["values"]}
    heads = pd.DataFrame(content["tables"]["heads"])
    assert len(heads) == 2 * 4
    assert list(heads["kv_head"]) == [0, 0, 1, 1] * 2
    assert values["bound_violations"] == 0
    assert (heads["error"] > 0).all()
    for tight, loose in zip(
        ("error", *(f"bound_{r}" for r in RUNGS[::-1])), [*RUNGS[::-1]], strict=False
    ):
        assert (heads[tight] <= heads[f"bound_{loose}"] * (1 + 1e-9)).all()
    assert values["slack_weights"] >= 1
    broken = heads[heads["relative_bound"] > 0.05]
    assert values["heads_over_budget"] == len(broken) == heads["breaks_budget"].sum()
    rungs = pd.DataFrame(content["tables"]["rungs"]).set_index("rung")
    largest = (heads["bound_scores"] / heads["value_range"]).max()
    assert rungs.loc["scores", "largest"] == pytest.approx(largest)


def test_the_tables_fit_80_columns(codec, tiny_folder):
    result = run("certify", str(tiny_folder), "--codec", codec, *SIZES)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "Bounds over the range of values" in result.stdout


def test_a_guarantee_is_written_and_holds(codec, tiny_folder, tmp_path):
    out = tmp_path / "bounded"
    options = ["--guarantee", "--budget", "0.1", "--out", str(out), "--calibration-tokens", "128"]
    result = run("certify", str(tiny_folder), "--codec", codec, *SIZES, *options)
    assert result.exit_code == 0, result.output
    assert "promised nowhere else" in result.stderr
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert load_codec(out).provenance["guarantee"] == {"budget": 0.1, "rung": "weights"}
    again = run(
        *("certify", str(tiny_folder), "--codec", str(out), *SIZES, "--budget", "0.1"),
        *("--guarantee", "--out", str(tmp_path / "same"), "--calibration-tokens", "128", "--json"),
    )
    content = json.loads(again.stdout)
    spending = pd.DataFrame(content["tables"]["spending"])
    assert spending["steps"].sum() == 0  # met already
    heads = pd.DataFrame(content["tables"]["heads"])
    assert set(zip(heads["codec"], heads["text"], strict=True)) == {
        ("given", "calibration"),
        ("guaranteed", "calibration"),
        ("guaranteed", "evaluation"),
    }
    refused = run("certify", str(tiny_folder), "--codec", codec, *SIZES, *options)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr


def test_a_wrong_bound_ends_in_exit_code_1(codec, tiny_folder, monkeypatch):
    """If an error ever exceeded its bound the command would say so and fail."""
    monkeypatch.setattr(distortion_bound, "output_bound", lambda m, spread, dv: 0.01 * m)
    result = run("certify", str(tiny_folder), "--codec", codec, *SIZES)
    assert result.exit_code == 1
    assert "bound violations" in result.stdout


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--guarantee"], "give both"),
        (["--out", "x"], "give both"),
        (["--budget", "0"], "share above 0"),
        (["--window", "16"], "stay raw in windows of 16"),
    ],
    ids=["nowhere to write", "nothing to write", "no budget", "shorter than a block"],
)
def test_what_cannot_be_certified_is_refused(codec, tiny_folder, given, complaint):
    refused = run("certify", str(tiny_folder), "--codec", codec, *SIZES, *given)
    assert refused.exit_code == 2
    assert complaint in refused.stderr
