"""Matrices found in files are the modules' own, the right way round, whatever the layout."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from gonio.errors import ModelError
from gonio.models import WeightReader
from gonio.weights import input_groups, list_matrices, read_matrices

PER_EXPERT = ("mixtral", "olmoe", "qwen3-moe")


def read_all(folder, layers=None):
    with WeightReader(folder) as weights:
        matrices, left_out = list_matrices(weights, layers)
        return {
            one.name: (one, tensor) for one, tensor in read_matrices(weights, matrices)
        }, left_out


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt-neox", "gpt-oss", *PER_EXPERT])
def test_every_linear_layer_is_found_with_its_input_on_the_right(family, weights_folder):
    """Independent route: applying the built module to unit vectors gives the columns."""
    folder = weights_folder(family)
    found, _ = read_all(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    linear = (nn.Linear, transformers.pytorch_utils.Conv1D)
    blocks = getattr(model.base_model, "layers", None) or model.base_model.h
    checked = 0
    for name, module in blocks.named_modules():
        if not isinstance(module, linear):
            continue
        matches = [tensor for key, (_, tensor) in found.items() if key.endswith(f"{name}.weight")]
        assert len(matches) == 1, name
        bias = 0.0 if module.bias is None else module.bias
        columns = module(torch.eye(matches[0].shape[1])) - bias
        torch.testing.assert_close(matches[0], columns.detach().mT, rtol=0, atol=1e-6)
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("family", PER_EXPERT)
def test_expert_files_hold_what_the_fused_parameter_computes(family, weights_folder):
    folder = weights_folder(family)
    found, left_out = read_all(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    experts = [one for one, _ in found.values() if one.expert is not None]
    assert sorted({one.expert for one in experts}) == [0, 1, 2, 3]
    assert len(experts) == 2 * 4 * 3
    fused = model.model.layers[1].mlp.experts
    names = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (
        next(
            tensor
            for one, tensor in found.values()
            if (one.layer, one.expert, one.projection) == (1, 2, f"experts.{name}")
        )
        for name in names
    )
    assert torch.equal(torch.cat([gate, up]), fused.gate_up_proj[2])
    assert torch.equal(down, fused.down_proj[2])
    assert {reason for name, reason in left_out if "gate.weight" in name} == {
        "router: chooses experts, not a projection"
    }


def test_fused_and_transposed_experts_come_out_row_by_row(weights_folder):
    """gpt-oss stores (expert, in, out); its square down projection is turned all the same."""
    folder = weights_folder("gpt-oss")
    found, left_out = read_all(folder)
    stored = load_file(folder / "model.safetensors")
    for name, shape in (("gate_up_proj", (64, 32)), ("down_proj", (32, 32))):
        key = f"model.layers.0.mlp.experts.{name}"
        matrix, tensor = found[f"{key}[3]"]
        assert matrix.shape == shape
        assert torch.equal(tensor, stored[key][3].mT)
        assert not torch.equal(tensor, stored[key][3])
    assert any(reason == "bias" for _, reason in left_out)


def test_fused_experts_in_module_order_are_not_turned(weights_folder, tmp_path):
    """A folder that keeps transformers' own fused parameters, (expert, out, in)."""
    source = weights_folder("qwen3-moe")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors"
    )
    fused, _ = read_all(tmp_path)
    matrix, tensor = fused["model.layers.0.mlp.experts.gate_up_proj[1]"]
    assert not matrix.is_transposed
    assert torch.equal(tensor, model.model.layers[0].mlp.experts.gate_up_proj[1])
    apart, _ = read_all(source)
    rows = [
        apart[f"model.layers.0.mlp.experts.1.{name}.weight"][1] for name in ("gate_proj", "up_proj")
    ]
    assert torch.equal(tensor, torch.cat(rows))


def test_mxfp4_blocks_are_refused_by_name(tmp_path):
    blocks = torch.zeros((4, 64, 1, 16), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    save_file({name: blocks}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"MXFP4-packed weights: .*gate_up_proj_blocks"):
        read_all(tmp_path)


def test_experts_of_unknown_orientation_are_refused(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({name: torch.ones(2, 8, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot tell which way round"):
        read_all(tmp_path)


def test_layers_are_chosen_and_missing_ones_named(weights_folder):
    folder = weights_folder("llama")
    found, left_out = read_all(folder, [1])
    assert {one.layer for one, _ in found.values()} == {1}
    assert {name for name, _ in left_out} == {"lm_head.weight", "model.embed_tokens.weight"}
    with pytest.raises(ModelError, match="layer 7"):
        read_all(folder, [1, 7])


def test_groups_share_an_input(weights_folder):
    with WeightReader(weights_folder("mixtral")) as weights:
        matrices, _ = list_matrices(weights, [0])
    groups = [sorted(one.tensor.split(".")[-2] for one in g) for g in input_groups(matrices)]
    assert ["k_proj", "q_proj", "v_proj"] in groups
    assert groups.count(["w1", "w3"]) == 4
    assert sum(len(group) for group in groups) == len(matrices)


def test_configuration_is_not_needed(weights_folder, tmp_path):
    """Everything is read from the tensors: the same matrices without any config."""
    folder = weights_folder("gpt2")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert read_all(tmp_path)[0].keys() == read_all(folder)[0].keys()
