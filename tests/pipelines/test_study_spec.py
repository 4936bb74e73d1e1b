"""A study that cannot work is refused before a weight is read and before anything is written."""

import json
import shutil

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.errors import ModelError, SettingError
from gonio.pipelines.study import open_study, run_study
from gonio.pipelines.study_spec import plan_cells, preset_study, read_study

pytest.importorskip("trl")


@pytest.fixture
def damaged(tmp_path, tiny_folder):
    """A model whose weights cannot be read: an error about them means that they were."""
    folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"damaged")
    return folder


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Say {n}.", "chosen": f" Here is {n}.", "rejected": f" No {n}."}
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_spec(model, data, **recipe):
    """A study of one model and one DPO recipe."""
    recipe = {"objective": "dpo", "steps": 2, "batch_size": 2, "max_length": 48, "r": 4} | recipe
    return {
        "seeds": [1],
        "data": str(data),
        "held_out": 4,
        "models": [{"name": "m", "source": str(model)}],
        "recipes": {"dpo": recipe},
    }


def run_file(tmp_path, spec):
    path = tmp_path / "spec.json"
    path.write_text(spec if isinstance(spec, str) else json.dumps(spec), encoding="utf-8")
    return CliRunner().invoke(cli, ["study", "run", str(path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"target_modules": ["q_proj", "nonsense"]}, "nonsense"),
        ({"r": 0}, "r: "),
        ({"rank": 4}, "rank: "),
        ({"seed": 3}, "seeds belong to the study"),
        ({"objective": "ppo"}, "needs an objective"),
        ({"warmup_steps": 2}, "leaves nothing of 2 steps"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, damaged, pairs, recipe, named):
    result = run_file(tmp_path, make_spec(damaged, pairs, **recipe))
    assert (result.exit_code, named in result.output) == (2, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"models": []}, "models"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"sedes": [1]}, "sedes"),
        ({"ks": [0]}, "ks"),
        ({"models": [{"name": "m"}]}, "either a source or built"),
        ({"models": [{"name": "m", "source": "x", "recipes": ["sft"]}]}, "unknown recipes: sft"),
        ({"models": [{"name": "m", "source": "nonsense"}]}, "nonsense"),
        ({"models": [{"name": "m", "built": {"architecture": "no"}}]}, "'no'"),
        ({"held_out": 12}, "12 pairs cannot be split"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path, damaged, pairs, change, named):
    result = run_file(tmp_path, make_spec(damaged, pairs) | change)
    assert (result.exit_code, named in result.output) == (2, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ('{"prompt": "a", "chosen": "b"}\n', "rejected"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "the same"),
        ("not json\n", "not JSON"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 20, "cannot be split"),
    ],
)
def test_wrong_data_are_refused(tmp_path, damaged, text, named):
    """Pairs of one prompt stay on one side of the split: twenty of them cannot be split."""
    data = tmp_path / "data.jsonl"
    data.write_text(text, encoding="utf-8")
    result = run_file(tmp_path, make_spec(damaged, data))
    assert (result.exit_code, named in result.output) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_the_weights_would_have_been_an_error(tmp_path, damaged, pairs):
    """The same study without a mistake reads them: the cell fails, and the exit code is 1."""
    result = run_file(tmp_path, make_spec(damaged, pairs))
    assert result.exit_code == 1
    assert "cannot load the model" in " ".join(result.output.split())


@pytest.mark.parametrize("text", ["", "{", "models = 3"])
def test_a_file_that_is_no_study(tmp_path, text):
    for name in ("spec.toml", "spec.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(SettingError, match="study"):
            read_study(tmp_path / name)
    with pytest.raises(SettingError, match="cannot read the study"):
        read_study(tmp_path / "nowhere.toml")
    with pytest.raises(SettingError, match="presets are small"):
        preset_study("smal")
    with pytest.raises(SettingError, match="no study in"):
        open_study(tmp_path)


def test_a_model_without_biases_takes_no_bitfit(tmp_path, damaged, pairs):
    spec = make_spec(damaged, pairs)
    spec["recipes"] = {"bitfit": {"objective": "bitfit", "steps": 2, "max_length": 48}}
    (tmp_path / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(ModelError, match=r"the model m cannot take the recipe bitfit[\s\S]*bias"):
        run_study(read_study(tmp_path / "spec.json"), tmp_path / "out")


def test_the_preset_plans_its_grid():
    """Three models; SmolLM2 has no biases and takes part in two recipes."""
    cells = plan_cells(preset_study("small"))
    kinds = {(cell.model.name, cell.kind) for cell in cells}
    assert len(cells) == 2 * len(kinds) == 16
    assert {cell.seed for cell in cells} == {42, 117}
    assert ("smollm2-135m", "bitfit") not in kinds
    assert all(cell.recipe.seed == cell.seed for cell in cells)
