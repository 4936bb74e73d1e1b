"""From names to a measurement, and the command on top: models and texts on disk, no mocks."""

import json

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel

from gonio.cli.main import cli
from gonio.errors import DataError, ModelError, OutputError, SettingError
from gonio.models import load_model
from gonio.pipelines.training import train_adapter
from gonio.records import read_measurement, write_measurement
from gonio.training import (
    keep_fitting,
    make_recipe,
    pair_log_probs,
    pairs_from_text,
    write_pairs,
)

pytest.importorskip("trl")

SETTINGS = {"steps": 3, "learning_rate": 1e-2, "batch_size": 2, "max_length": 120}
SETTINGS |= {"r": 4, "lora_alpha": 8, "seed": 1}
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
OPTIONS = ["--steps", "3", "--lr", "0.01", "--max-length", "120", "--r", "4", "--seed", "1"]


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


@pytest.mark.parametrize("kind", ["dpo", "clm"])
def test_a_training_is_measured_on_held_out_pairs(tmp_path, model_folder, text_file, kind):
    recipe = make_recipe(kind, **SETTINGS)
    found = train_adapter(kind, model_folder, str(text_file), recipe, tmp_path / "run", held_out=6)
    record = found.record
    assert record.kind == "training"
    assert record.tables == ("log", "held_out")
    assert record.value("held_out_kl_to_base").value > 0
    assert len(found.tables["log"]) == 3
    accuracy = record.value("held_out_preference_accuracy")
    assert accuracy.chance == 0.5
    assert accuracy.interval.low < accuracy.value < accuracy.interval.high or accuracy.value == 1.0
    margin = record.value("held_out_margin")
    assert margin.interval.low < margin.value < margin.interval.high
    names = [value.name for value in record.values]
    assert ("held_out_reward_margin" in names) is (kind == "dpo")
    if kind == "dpo":
        reward = record.value("held_out_reward_margin")
        assert reward.value == pytest.approx(0.1 * margin.value, rel=1e-12)
        assert reward.interval.high == pytest.approx(0.1 * margin.interval.high, rel=1e-12)
    loss = found.tables["log"]["loss"]
    assert record.value("first_loss").value == loss.iloc[0]
    assert record.value("last_loss").value == loss.iloc[-1]
    written = read_measurement(write_measurement(found, tmp_path / "record"))
    assert written.record == record


def test_the_margins_are_those_of_the_adapter_on_disk(tmp_path, model_folder, text_file, long_text):
    recipe = make_recipe("dpo", **SETTINGS)
    out = tmp_path / "run"
    table = train_adapter("dpo", model_folder, str(text_file), recipe, out, held_out=6).tables[
        "held_out"
    ]
    model, tokenizer = load_model(model_folder)
    pairs = pairs_from_text(long_text, train=6, held_out=6, seed=1).held_out
    pairs, _ = keep_fitting(tokenizer, pairs, 120)
    base = pair_log_probs(model, tokenizer, pairs, max_length=120)
    adapted = PeftModel.from_pretrained(model, out)
    trained = pair_log_probs(adapted, tokenizer, pairs, max_length=120)
    margins = (trained.difference - base.difference).tolist()
    assert table["margin"].tolist() == pytest.approx(margins, abs=1e-4)  # float32, other batches
    assert max(map(abs, margins)) > 0.1


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model": "nonsense"}, ModelError, "nonsense"),
        ({"data": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"held_out": 1}, SettingError, "held_out"),
        ({"device": "abacus"}, SettingError, "no device 'abacus'"),
        ({"out": "/proc/gonio/run"}, OutputError, "/proc"),
        ({"kind": "clm"}, SettingError, "does not go with a DpoRecipe"),
        ({"recipe": {"precision": "fp16"}}, SettingError, "fp16 needs"),
        ({"recipe": {"target_modules": ["qq"]}}, SettingError, "called qq"),
        ({"recipe": {"report_to": ["nonsense"]}}, SettingError, "no tracker 'nonsense'"),
        ({"data": ""}, DataError, "the file is empty"),
        ({"data": '{"prompt": "a", "chosen": "b"}\n'}, DataError, "found chosen, prompt"),
        ({"data": PAIR * 9}, DataError, "cannot be split"),
    ],
)
def test_what_can_be_refused_early_is(tmp_path, model_folder, text_file, changes, error, named):
    """The weights are damaged: an error about them would mean they were read first."""
    (model_folder / "model.safetensors").write_bytes(b"damaged")
    request = {
        "kind": "dpo",
        "model": model_folder,
        "data": str(text_file),
        "recipe": make_recipe("dpo", **SETTINGS),
        "out": tmp_path / "run",
        "held_out": 4,
    }
    if "recipe" in changes:
        changes = {"recipe": make_recipe("dpo", **(SETTINGS | changes["recipe"]))}
    if "data" in changes and not changes["data"].startswith("nowhere"):
        (tmp_path / "data.jsonl").write_text(changes["data"], encoding="utf-8")
        changes = {"data": str(tmp_path / "data.jsonl")}
    with pytest.raises(error, match=named):
        train_adapter(**(request | changes))
    with pytest.raises(ModelError, match="cannot load the model"):
        train_adapter(**request)
    assert not (tmp_path / "run").exists()


def run_command(*arguments):
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def test_the_command_prints_a_record_and_writes_the_adapter(tmp_path, model_folder, text_file):
    arguments = [model_folder, "--data", text_file, *OPTIONS, "--held-out", "4"]
    result = run_command("dpo", *arguments, "--out", tmp_path / "run", "--beta", "0.2", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    settings = printed["record"]["settings"]["recipe"]
    assert (settings["beta"], settings["r"], settings["steps"]) == (0.2, 4, 3)
    log = pd.read_parquet(tmp_path / "run" / "training_log.parquet")
    assert [row["loss"] for row in printed["tables"]["log"]] == log["loss"].tolist()
    again = run_command("dpo", *arguments, "--out", tmp_path / "run")
    assert again.exit_code == 2
    assert "is not empty" in again.output


def test_the_command_prints_text_and_csv(tmp_path, model_folder, text_file):
    arguments = ["clm", model_folder, "--data", text_file, *OPTIONS, "--targets", "q_proj,o_proj"]
    result = run_command(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "held out preference accuracy" in result.stdout
    result = run_command(*arguments, "--out", tmp_path / "run", "--csv", "--force")
    assert result.stdout.splitlines()[0].startswith("step,loss,")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["o_proj", "q_proj"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--steps", "0"], "steps"),
        (["--preset", "huge"], "no dpo preset 'huge'; there are small"),
        (["--data", "missing.txt"], "no training data at missing.txt"),
        (["--data", "bad.jsonl"], "line 1"),
        (["--out", "taken"], "is not empty"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(
    tmp_path, monkeypatch, model_folder, text_file, arguments, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{}\n", encoding="utf-8")
    write_pairs(tmp_path / "taken" / "pairs.jsonl", [])
    result = run_command("dpo", model_folder, "--data", text_file, "--out", "run", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert named in result.stderr
    assert "Traceback" not in result.output


def test_threads_and_weights_of_the_caller_are_left_alone(tmp_path, model_folder, text_file):
    threads = torch.get_num_threads()
    before = (model_folder / "model.safetensors").read_bytes()
    recipe = make_recipe("clm", **SETTINGS)
    train_adapter("clm", model_folder, str(text_file), recipe, tmp_path / "run", held_out=2)
    assert torch.get_num_threads() == threads
    assert (model_folder / "model.safetensors").read_bytes() == before
