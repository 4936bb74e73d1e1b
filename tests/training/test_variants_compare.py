"""``gonio train variants``: one recipe, several variants, held-out losses and what is stored."""

import json

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel

from gonio.cli.main import cli
from gonio.errors import OutputError, SettingError
from gonio.models import load_model
from gonio.pipelines.train_variants import VARIANTS, compare_variants, variant_recipe
from gonio.training import keep_fitting, make_recipe, pair_log_probs, tokenize_pair
from gonio.training.sources import load_split

pytest.importorskip("trl")

SETTINGS = {"steps": 4, "learning_rate": 1e-2, "batch_size": 2, "max_length": 120}
SETTINGS |= {"r": 4, "lora_alpha": 8, "seed": 1}


@pytest.fixture
def model_folder(tmp_path, make_model, tokenizer):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text_file(tmp_path, long_text):
    path = tmp_path / "text.txt"
    path.write_text(long_text, encoding="utf-8")
    return path


def test_losses_and_bytes_are_those_of_the_folders_and_nothing_is_trained_twice(
    tmp_path, model_folder, text_file
):
    recipe, names = make_recipe("clm", **SETTINGS), ["lora", "sparse"]
    arguments = (model_folder, str(text_file), recipe, tmp_path / "v")
    found = compare_variants(*arguments, only=names, held_out=6)
    table = found.tables["variants"].set_index("variant")
    network, tokenizer = load_model(model_folder)
    split = load_split(str(text_file), train=recipe.num_examples, held_out=6, seed=1).split
    pairs, _ = keep_fitting(tokenizer, split.held_out, 120)
    count = sum(len(tokenize_pair(tokenizer, pair, 120).chosen) for pair in pairs)

    def loss(model):
        return -float(pair_log_probs(model, tokenizer, pairs, max_length=120).chosen.sum()) / count

    before = loss(network)
    for name in names:
        row, folder = table.loc[name], tmp_path / "v" / name
        adapted = PeftModel.from_pretrained(network, folder).eval()
        after = loss(adapted)
        adapted.unload()
        assert row["loss_before"] == pytest.approx(before, rel=1e-6)
        assert row["loss_after"] == pytest.approx(after, rel=1e-5)
        assert row["loss_low"] < row["loss_after"] < row["loss_high"]
        size = (folder / "adapter_model.safetensors").stat().st_size
        assert row["file_bytes"] == size
        assert row["factor_bytes"] == 4 * 4 * sum(
            m + n for m, n in 2 * [(32, 32), (16, 32), (16, 32), (32, 32)] + 6 * [(48, 32)]
        )
    assert table.loc["sparse", "sparse_bytes"] < table.loc["sparse", "file_bytes"]
    assert table.loc["lora"].isna()["sparse_bytes"]
    marks = {name: (tmp_path / "v" / name).stat().st_ino for name in names}
    again = compare_variants(*arguments, only=names, held_out=6)
    assert {name: (tmp_path / "v" / name).stat().st_ino for name in names} == marks
    assert again.tables["variants"].equals(found.tables["variants"])
    other = recipe.model_copy(update={"seed": 2})
    with pytest.raises(OutputError, match="something else than this training"):
        compare_variants(model_folder, str(text_file), other, tmp_path / "v", only=["lora"])


def test_every_variant_of_the_table_is_a_recipe():
    plain = make_recipe("clm", **SETTINGS)
    assert all(variant_recipe(name, plain).r == 4 for name in VARIANTS)
    with pytest.raises(SettingError, match="no variant 'lokr'"):
        variant_recipe("lokr", plain)
    with pytest.raises(SettingError, match="plain CLM recipe"):
        variant_recipe("lora", make_recipe("dpo", **SETTINGS))


def test_the_options_of_a_training_reach_its_recipe(tmp_path, model_folder, text_file):
    out = tmp_path / "run"
    common = [str(model_folder), "--data", str(text_file), "--out", str(out), "--steps", "2"]
    common += ["--max-length", "120", "--r", "4"]
    done = CliRunner().invoke(
        cli, ["train", "clm", *common, "--variant", "dynamic", "--threshold", "0.3", "--every", "1"]
    )
    assert done.exit_code == 0, done.output
    stored = json.loads((out / "training.json").read_text())["recipe"]["variant"]
    assert stored == {"name": "dynamic", "threshold": 0.3, "relative_to": "module", "every": 1}
    for more, message in (
        (["--stages", "2"], "--stages needs --variant"),
        (["--variant", "sparse", "--stages", "2"], "Extra inputs"),
        (["--variant", "stacked", "--stages", "5"], "5 stages leave some"),
        (["--init", "eva"], "init"),
    ):
        done = CliRunner().invoke(cli, ["train", "clm", *common, *more, "--force"])
        assert done.exit_code == 2, done.output
        assert message in done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train_on_the_bundled_model(tmp_path, name):
    """Short: whether it runs, lowers the loss it trains on, and reads back as what was trained."""
    recipe = make_recipe(
        "clm", steps=4, learning_rate=2e-3, batch_size=2, max_length=48, r=4, lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
    )  # fmt: skip
    found = compare_variants("smollm2-135m", "bundled", recipe, tmp_path, only=[name], held_out=4)
    row = found.tables["variants"].iloc[0]
    assert row["loss_after"] != row["loss_before"]
    assert abs(row["loss_after"] - row["loss_before"]) < 1.0
    assert torch.isfinite(torch.tensor(row["loss_after"]))
    assert row["max_rank"] <= (8 if name in ("stacked", "pissa", "olora") else 6)
