"""``gonio cache``: how far a codec serves is printed, warned of, and lifted by --stage pre_rope."""

import json
import warnings

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.kvcache import load_codec
from gonio.kvcache.positions import PositionWarning

SIZES = ["--calibration-tokens", "256", "--window", "64"]


def run(*arguments: str):
    return CliRunner().invoke(cli, ["cache", *arguments], prog_name="gonio")


@pytest.fixture(scope="module")
def codecs(tiny_folder, tmp_path_factory) -> dict[str, str]:
    """Transform codecs by stage, and what calibrating printed."""
    found = {}
    for stage in ("post_rope", "pre_rope"):
        path = str(tmp_path_factory.mktemp("codec") / stage)
        options = ["--method", "transform", "--bits", "3", "--stage", stage, "--json"]
        made = run("calibrate", str(tiny_folder), "--out", path, *options, *SIZES)
        assert made.exit_code == 0, made.output
        found[stage] = path
        found[f"{stage} record"] = made.stdout
    return found


def evaluate(folder, path: str) -> list[str]:
    """The warnings of an evaluation at twice the calibrated positions."""
    sizes = ["--evaluation-tokens", "256", "--window", "64", "--lengths", "128"]
    rest = ["--recall", "none", "--allocation-tokens", "600", "--prefill", "16", "--json"]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = run("evaluate", str(folder), "--codec", path, *sizes, *rest)
    assert result.exit_code == 0, result.output
    return [str(each.message) for each in found if each.category is PositionWarning]


def test_calibrate_prints_how_far_a_codec_serves(codecs):
    records = {
        stage: {each["name"]: each for each in json.loads(text)["record"]["values"]}
        for stage, text in codecs.items()
        if stage.endswith("record")
    }
    served = records["post_rope record"]["positions_served"]
    assert served["value"] == 64
    assert "--context" in served["note"]
    assert "positions_served" not in records["pre_rope record"]
    assert load_codec(codecs["pre_rope"]).method == "pre_rope"
    assert "keys_over_gaussian" in records["pre_rope record"]


def test_evaluate_warns_once_of_longer_contexts(codecs, tiny_folder):
    (message,) = evaluate(tiny_folder, codecs["post_rope"])
    assert "position 127" in message
    assert evaluate(tiny_folder, codecs["pre_rope"]) == []


def test_generate_warns_once(codecs, tiny_folder):
    prompt = ["--prompt", "the quick brown fox jumps over " * 8, "--max-new-tokens", "8"]
    with pytest.warns(PositionWarning, match="0 to 63") as found:
        result = run("generate", str(tiny_folder), "--codec", codecs["post_rope"], *prompt)
    assert result.exit_code == 0, result.output
    assert len([each for each in found if each.category is PositionWarning]) == 1


def test_values_have_no_stage(tiny_folder, tmp_path):
    options = ["--bits", "1", "--value-method", "transform", "--value-bits", "2"]
    made = run(
        *("calibrate", str(tiny_folder), "--out", str(tmp_path / "codec"), *options),
        *("--stage", "pre_rope", *SIZES),
    )
    assert made.exit_code == 2
    assert "--stage is not for" in made.output
