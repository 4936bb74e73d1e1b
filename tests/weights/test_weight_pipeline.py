"""Models measured end to end and printed: tables, nulls, what is left out."""

import json
import math

import pytest
import torch
import transformers
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.errors import ModelError
from gonio.linalg import haar_rotation
from gonio.pipelines.weights import measure_weights
from gonio.weights import SignSettings

QUICK = SignSettings(haar_draws=1, iterations=3, rank=2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt-oss", "qwen3-moe"])
def test_every_value_stands_beside_chance(family, weights_folder):
    found = measure_weights(weights_folder(family), QUICK)
    for value in found.record.values:
        if value.name.startswith(("cosine", "beta", "gap")):
            assert value.chance is not None
            assert value.interval is not None
    table = found.tables["matrices"]
    assert set(table["choice"]) >= {"none", "haar", "hadamard", "learned", "none+rank2"}
    assert (table["bits_per_weight"] > 1).all()
    learned = table[table["choice"] == "learned"]
    assert learned[["cosine_train", "cosine_train_chance", "beta_train"]].notna().all(axis=None)
    assert ("experts" in found.tables) == (family in ("mixtral", "gpt-oss", "qwen3-moe"))
    assert len(found.tables["left_out"])


def test_a_matrix_s_figures_are_those_of_its_rows(weights_folder):
    folder = weights_folder("gpt2")
    found = measure_weights(folder, QUICK)
    columns = measure_weights(folder, QUICK, vectors="columns")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    weight = model.transformer.h[1].attn.c_proj.weight.detach().double().mT  # (out, in)
    for one, rows in ((found, weight), (columns, weight.mT)):
        table = one.tables["matrices"].set_index(["matrix", "choice"])
        cosine = (rows.abs().sum(1) / rows.norm(dim=1) / math.sqrt(rows.shape[1])).mean().item()
        measured = table.loc[("transformer.h.1.attn.c_proj.weight", "none"), "cosine"]
        assert measured == pytest.approx(cosine, abs=1e-6)


def test_a_tiny_moe_with_planted_populations_shows_the_gap(weights_folder, tmp_path):
    """Hidden size 18 has no Hadamard matrix: own rotations win, beyond a random deal."""
    config = transformers.OlmoeConfig(
        vocab_size=50, hidden_size=18, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=3, num_experts=6, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.OlmoeForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            directions = haar_rotation(18, generator)[:6, None]
            fused = layer.mlp.experts.gate_up_proj
            fused.mul_(0.3).add_(torch.randn((6, 48, 1), generator=generator) * directions)
    model.save_pretrained(tmp_path)
    found = measure_weights(tmp_path, SignSettings(haar_draws=1, iterations=30, rank=2))
    for name in ("gap_experts.gate_proj", "gap_experts.up_proj"):
        gap = found.record.value(name)
        assert gap.interval.low > max(0.005, gap.chance)
    # The other side of the experts was not planted: no gap beyond the random deal's.
    unplanted = found.tables["experts"].query("projection == 'experts.down_proj'")
    assert abs((unplanted["gap"] - unplanted["null_gap"]).mean()) < 0.02


def test_sharing_by_input_divides_the_rotation_s_bits(weights_folder):
    folder = weights_folder("llama")
    alone, shared = (
        measure_weights(folder, QUICK, layers=[0], share=share)
        .tables["matrices"]
        .set_index(["projection", "choice"])
        for share in ("matrix", "input")
    )
    key = ("self_attn.q_proj", "learned")
    one, all_three = (float(table.loc[key, "bits_per_weight"]) for table in (alone, shared))
    base = float(alone.loc[("self_attn.q_proj", "none"), "bits_per_weight"])
    assert one - base == pytest.approx(16 * 32 / 32)
    assert all_three - base == pytest.approx(16 * 32 / (32 + 16 + 16))


def test_left_out_work_is_named(weights_folder):
    found = measure_weights(weights_folder("olmoe"), SignSettings(max_dim=32, iterations=1))
    reasons = found.tables["left_out"]
    assert reasons["what"].str.contains("down_proj.weight: learned").sum() == 2 * 4
    assert reasons["what"].str.contains("experts of layer 1, experts.down_proj").sum() == 1
    assert reasons["reason"].str.contains("above the limit of 32").any()


def test_zero_matrices_are_left_out_by_name(weights_folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(weights_folder("llama"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    found = measure_weights(tmp_path, QUICK)
    reasons = found.tables["left_out"].set_index("what")["reason"]
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "zero"
    assert "model.layers.0.mlp.up_proj.weight" not in set(found.tables["matrices"]["matrix"])


def run(*arguments):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def test_measure_prints_tables_that_fit_80_columns(weights_folder):
    result = run("weights", "measure", weights_folder("mixtral"), "--iterations", "2")
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "…" not in result.stdout
    for heading in ("self_attn.q_proj, mean of 2 matrices", "Own against shared", "Left out"):
        assert heading in result.stdout


def test_measure_prints_csv_and_json(weights_folder):
    folder = weights_folder("llama")
    arguments = ("weights", "measure", folder, "--layers", "1", "--iterations", "2")
    lines = run(*arguments, "--csv").stdout.splitlines()
    assert lines[0].startswith("matrix,layer,projection,expert,out_features,in_features,choice")
    content = json.loads(run(*arguments, "--json").stdout)
    assert content["record"]["kind"] == "weight-signs"
    assert content["record"]["settings"]["layers"] == [1]
    assert len(content["tables"]["matrices"]) == len(lines) - 1


def test_rotate_writes_prints_and_respects_what_is_there(weights_folder, tmp_path):
    arguments = ("weights", "rotate", weights_folder("qwen3"), "--out", tmp_path / "out")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "largest logit difference" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert run(*arguments).exit_code == 2
    assert run(*arguments, "--force").exit_code == 0


@pytest.mark.parametrize("layers", ["", "x", "1-", "-1", "3-1"])
def test_bad_layer_lists_are_refused(layers, weights_folder):
    result = run("weights", "measure", weights_folder("llama"), "--layers", layers)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_absent_layers_are_refused(weights_folder):
    with pytest.raises(ModelError, match="layer 9"):
        measure_weights(weights_folder("llama"), QUICK, layers=[9])
