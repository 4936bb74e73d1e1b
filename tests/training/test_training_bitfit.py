"""BitFit moves biases and nothing else, and its evaluation agrees with the trained model."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.errors import AdapterError, ModelError, SettingError
from gonio.models import load_model
from gonio.pipelines.behavior import behavior_table, open_trained
from gonio.pipelines.train_evaluate import evaluate_training
from gonio.pipelines.training import train_adapter
from gonio.training import (
    applied_biases,
    bias_names,
    load_biases,
    make_recipe,
    pair_log_probs,
    pairs_from_text,
    train_bitfit,
)
from gonio.training.train import resolve_precision

pytest.importorskip("trl")

SETTINGS = {"steps": 3, "learning_rate": 1e-1, "batch_size": 2, "max_length": 60, "seed": 1}
LORA = {"r": 4, "lora_alpha": 8}


@pytest.fixture
def saved(tmp_path, make_model, tokenizer):
    def save(family):
        folder = tmp_path / family
        make_model(family).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def text_file(tmp_path, long_text):
    path = tmp_path / "text.txt"
    path.write_text(long_text, encoding="utf-8")
    return path


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_only_biases_move_and_the_model_comes_back(tmp_path, make_model, tokenizer, pairs, family):
    model = make_model(family)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run = train_bitfit(model, tokenizer, pairs, make_recipe("bitfit", **SETTINGS), tmp_path / "b")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert weight.requires_grad
    biases = load_biases(run.folder)
    assert sorted(biases) == sorted(bias_names(model))
    assert run.num_trainable == sum(bias.numel() for bias in biases.values())
    assert max((bias - before[name]).abs().max() for name, bias in biases.items()) > 0.05
    assert run.log["loss"].iloc[0] == pytest.approx(0.6931, abs=1e-3)
    assert run.log["loss"].iloc[-1] < run.log["loss"].iloc[0]
    own = pair_log_probs(model, tokenizer, pairs, max_length=60)
    with applied_biases(model, biases):
        moved = pair_log_probs(model, tokenizer, pairs, max_length=60)
    assert (moved.difference - own.difference).abs().max() > 0.1
    again = pair_log_probs(model, tokenizer, pairs, max_length=60)
    assert torch.equal(again.chosen, own.chosen)


def test_models_without_biases_are_refused_by_name(tmp_path, make_model, tokenizer, pairs):
    with pytest.raises(ModelError, match="LlamaForCausalLM has no biases"):
        train_bitfit(
            make_model("llama"), tokenizer, pairs, make_recipe("bitfit", **SETTINGS), tmp_path / "b"
        )
    assert not (tmp_path / "b").exists()


def test_biases_of_another_model_are_refused(tmp_path, make_model, tokenizer, pairs):
    run = train_bitfit(
        make_model("gpt2"), tokenizer, pairs, make_recipe("bitfit", **SETTINGS), tmp_path / "b"
    )
    with (
        pytest.raises(ModelError, match="of another model"),
        applied_biases(make_model("gpt_neox"), load_biases(run.folder)),
    ):
        pass
    (run.folder / "biases.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterError, match="cannot read the biases"):
        load_biases(run.folder)


def test_a_bitfit_training_is_measured_and_evaluated_again(tmp_path, saved, text_file):
    folder = saved("gpt_neox")
    recipe = make_recipe("bitfit", **SETTINGS)
    out = tmp_path / "run"
    found = train_adapter("bitfit", folder, str(text_file), recipe, out, held_out=6)
    assert found.record.value("held_out_kl_to_base").value > 0
    assert found.record.value("first_loss").chance == pytest.approx(0.6931, abs=1e-4)
    with pytest.raises(SettingError, match="no spectrum to follow"):
        train_adapter(
            "bitfit", folder, str(text_file), recipe, tmp_path / "x", spectrum_every=1, held_out=4
        )
    again = evaluate_training(folder, out, str(text_file), held_out=6)
    pd.testing.assert_frame_equal(again.tables["pairs"], found.tables["held_out"])
    assert again.record.settings["disjoint_from_training"] == "checked"


def test_an_adapter_s_geometry_is_kept(tmp_path, saved, text_file):
    recipe = make_recipe("clm", **SETTINGS, **LORA)
    out = tmp_path / "run"
    found = train_adapter(
        "clm", saved("gpt2"), str(text_file), recipe, out, held_out=4, spectrum_every=2
    )
    geometry = pd.read_parquet(out / "geometry.parquet")
    pd.testing.assert_frame_equal(geometry, found.tables["geometry"])
    assert sorted(geometry["step"].unique()) == [2, 3]
    value = found.record.value("last_stable_rank")
    assert 1 <= value.value < value.chance


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    tmp_path, make_model, tokenizer, long_text, pairs
):
    model = make_model("gpt2")
    run = train_bitfit(model, tokenizer, pairs, make_recipe("bitfit", **SETTINGS), tmp_path / "b")
    many = pairs_from_text(long_text, train=2, held_out=20, seed=0).held_out
    parts = tmp_path / "parts.parquet"
    seen = []

    def stop(what, done, total):
        seen.append(done)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with open_trained(model, run.folder) as trained:
        whole = behavior_table(trained, tokenizer, many, max_length=120)
        with pytest.raises(KeyboardInterrupt):
            behavior_table(trained, tokenizer, many, max_length=120, parts=parts, progress=stop)
        resumed = behavior_table(
            trained, tokenizer, many, max_length=120, parts=parts, progress=stop
        )
        assert seen == [8, 16, 20]  # the first part was not evaluated again
        pd.testing.assert_frame_equal(resumed, whole)
        other = behavior_table(trained, tokenizer, many[:9], max_length=120, parts=parts)
        assert len(other) == 9  # parts of other pairs are not taken up


def test_the_command_evaluates_and_refuses(tmp_path, saved, text_file):
    folder = saved("gpt_neox")
    out = tmp_path / "run"
    common = [str(folder), "--data", str(text_file), "--held-out", "4"]
    steps = ["--steps", "2", "--max-length", "60", "--lr", "0.1"]
    made = CliRunner().invoke(cli, ["train", "bitfit", *common, *steps, "--out", str(out)])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(cli, ["train", "evaluate", str(folder), str(out), *common[1:]])
    assert shown.exit_code == 0, shown.output
    assert "kl to base" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for wrong, named in (
        (["train", "evaluate", str(folder), str(tmp_path / "no"), *common[1:]], "no folder at"),
        (["train", "evaluate", str(folder), str(tmp_path), *common[1:]], "nothing trained in"),
    ):
        result = CliRunner().invoke(cli, wrong)
        assert result.exit_code == 2
        assert named in result.stderr
    (out / "training.json").write_text("[1]")
    result = CliRunner().invoke(cli, ["train", "evaluate", str(folder), str(out), *common[1:]])
    assert result.exit_code == 2
    assert "is not what `gonio train` writes" in result.stderr


def test_precision_follows_the_device():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "fp32"
    assert resolve_precision("auto", cpu, torch.bfloat16) == "bf16"
    assert resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(SettingError, match="fp16 needs an accelerator"):
        resolve_precision("fp16", cpu)
    assert resolve_precision("auto", torch.device("mps")) == "bf16"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_precision_of_an_accelerator(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    cuda = torch.device("cuda")
    assert resolve_precision("auto", cuda) == expected
    assert resolve_precision("auto", cuda, torch.float16) == "fp32"
    if not has_bf16:
        with pytest.raises(SettingError, match="no bf16; take fp16"):
            resolve_precision("bf16", cuda)


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"precision": "bf16"}, {"schedule": "cosine"}]
)
def test_settings_of_the_trainer_run(tmp_path, saved, text_file, changes):
    recipe = make_recipe("clm", **(SETTINGS | LORA | {"steps": 2} | changes))
    found = train_adapter(
        "clm", saved("llama"), str(text_file), recipe, tmp_path / "run", held_out=2
    )
    assert found.record.value("last_loss").value > 0


@pytest.mark.slow
def test_two_processes_write_one_folder(tmp_path, saved, text_file):
    out = tmp_path / "run"
    arguments = ["train", "clm", str(saved("llama")), "--data", str(text_file), "--held-out", "4"]
    arguments += ["--steps", "2", "--max-length", "60", "--samples", "8"]
    launched = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("-m", "gonio", *arguments, "--out", str(out), "--json"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        printed, _ = launched.communicate(timeout=300)
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
    assert launched.returncode == 0
    assert json.loads(printed)["record"]["kind"] == "training"  # printed once
    assert (out / "adapter_model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert load_model(tmp_path / "llama")
