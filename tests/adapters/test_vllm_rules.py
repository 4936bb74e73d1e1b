"""What vLLM's rules say about folders that PEFT and gonio write."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from gonio.adapters import load_adapter, merge
from gonio.adapters.vllm import even_ranks, vllm_problems
from gonio.cli.main import cli
from gonio.errors import AdapterError

PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def read_as_vllm(folder):
    """The updates as vLLM reads them: one scaling from three settings, patterns not read."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    rank = config["r"]
    scaling = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, tensor in tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            lora_b = tensors[key.replace("lora_A", "lora_B")].double()
            assert tensor.shape[0] == lora_b.shape[1] == rank  # its buffers hold one rank
            found[module] = scaling * lora_b @ tensor.double()
    return found


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}], ids=["alpha/r", "rslora"])
def test_plain_folders_have_no_problem_and_mean_what_peft_merges(save_with_peft, extra):
    saved = save_with_peft("llama", **PLAIN, **extra)
    assert vllm_problems(load_adapter(saved.adapter)) == ()
    for module, dense in read_as_vllm(saved.adapter).items():
        change = saved.changes[f"{module}.weight"]
        torch.testing.assert_close(dense, change, rtol=0, atol=1e-5 * float(change.norm()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 24}, "rank 24 is above --max-lora-rank 16; give it 32, or resize"),
        ({"rank_pattern": {"v_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"v_proj": 2}}, "alpha_pattern"),
        ({"bias": "lora_only"}, "adapter biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "of kind embedding"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_vllm_refuses_is_named(save_with_peft, settings, words):
    found = vllm_problems(load_adapter(save_with_peft("llama", **(PLAIN | settings)).adapter))
    assert any(words in problem for problem in found), found


def test_biases_of_the_factors_are_named(save_with_peft):
    adapter = load_adapter(save_with_peft("llama", **PLAIN).adapter)
    biased = replace(adapter, settings=replace(adapter.settings, lora_bias=True))
    assert vllm_problems(biased) == ("lora_bias is not supported",)


def test_dora_is_named(save_with_peft):
    from gonio.models import open_weights

    saved = save_with_peft("llama", use_dora=True, **PLAIN)
    with open_weights(saved.base) as base:
        assert "DoRA is not supported" in vllm_problems(load_adapter(saved.adapter, base))


def test_equal_ranks_change_no_update(save_with_peft):
    one = load_adapter(save_with_peft("llama", name="one", **PLAIN).adapter)
    two = load_adapter(
        save_with_peft("llama", name="two", **(PLAIN | {"target_modules": ["q_proj"]})).adapter
    )
    before = merge([one, two], [1.0, -0.5])
    after = even_ranks(before)
    assert {update.rank for update in before} == {4, 8}
    assert {update.rank for update in after} == {8}
    for old, new in zip(before, after, strict=True):
        dense = old.scaling * old.lora_b.double() @ old.lora_a.double()
        torch.testing.assert_close(new.lora_b.double() @ new.lora_a.double(), dense)
    with pytest.raises(AdapterError, match="at least one"):
        even_ranks([])


def test_a_selection_is_written_for_vllm(save_with_peft, tmp_path):
    one = save_with_peft("llama", name="one", **PLAIN)
    fewer = PLAIN | {"target_modules": ["q_proj"]}
    two = save_with_peft("llama", name="two", factor_seed=1, **fewer)

    def run(*words):
        result = CliRunner().invoke(cli, ["adapter", *map(str, words), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = run("compose", one.adapter, two.adapter, "--out", tmp_path / "bundle")
    values = {value["name"]: value["value"] for value in made["record"]["values"]}
    assert values["vllm_ready"] == 2
    for layout, is_ready in (("peft", False), ("vllm", True)):
        out = tmp_path / layout
        run("select", tmp_path / "bundle", "one", "two=2", "--layout", layout, "--out", out)
        assert (vllm_problems(load_adapter(out)) == ()) == is_ready
    for module, dense in read_as_vllm(tmp_path / "vllm").items():
        name = f"{module}.weight"
        expected = one.changes[name] + 2 * two.changes.get(name, torch.zeros(()))
        torch.testing.assert_close(dense, expected, rtol=0, atol=1e-5 * float(expected.norm()))
