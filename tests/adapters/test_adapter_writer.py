"""What is written, PEFT loads and merges to the same weights; nothing beside it is lost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gonio.adapters import (
    AdapterStyle,
    DenseUpdate,
    difference_norm,
    load_adapter,
    load_finetune,
    require_rewritable,
    with_factors,
    write_adapter,
)
from gonio.errors import AdapterError
from gonio.models import WeightReader
from gonio.pipelines.reshape import merge_adapters, rescale_adapter, resize_adapter

PREFIX = "base_model.model."
RELATIVE = 1e-6  # PEFT loads into float32 parameters, of eps 1.2e-7, and multiplies them
ALL = ["conv1", "conv2", "point", "conv3", "table", "linear", "head"]
CASES = {
    "llama": (
        "llama",
        {
            "target_modules": ["q_proj", "gate_proj", "down_proj"],
            "rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"gate_proj": 7},
        },
    ),
    "llama rslora": (
        "llama",
        {"target_modules": ["v_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"v": 2}},
    ),
    "gpt2": (
        "gpt2",
        {
            "target_modules": ["c_attn", "c_proj"],
            "alpha_pattern": {"c_proj": 3},
            "use_rslora": True,
        },
    ),
    "gpt2 embeddings": ("gpt2", {"target_modules": ["wte", "wpe", "c_fc"]}),
    "neox": ("neox", {"target_modules": ["query_key_value"], "rank_pattern": {"layers.0.*": 3}}),
    "phi3": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "tied head": ("tied llama", {"target_modules": ["lm_head", "q_proj"]}),
    "tied pair": (
        "tied llama",
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "llama embedding": ("llama", {"target_modules": ["embed_tokens"], "rank_pattern": {"x": 1}}),
    "convolutions": (
        "convolutions",
        {"target_modules": ALL, "rank_pattern": {"^conv1": 2, "conv2": 3, "table": 5}},
    ),
    "biases of the layers": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only"}),
    "all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "lora_bias": (
        "convolutions",
        {"target_modules": ["conv1", "conv2", "linear"], "lora_bias": True, "lora_alpha": 3},
    ),
    "lora_bias gpt2": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "lora_bias": True, "rank_pattern": {"c_attn": 2}},
    ),
    "saved modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "saved norms": (
        "gpt2",
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "wpe"], "bias": "lora_only"},
    ),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 30]}),
    "tokens by name": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [2, 3]}},
    ),
}


def rewrite(folder: Path, out: Path, **style: object) -> Path:
    adapter = load_adapter(folder)
    require_rewritable(adapter, carries=True)
    full = replace(AdapterStyle.of(adapter), **style)
    return write_adapter(list(adapter.updates.values()), out, full)


def largest_error(first: dict, second: dict) -> float:
    """Largest difference of two models' tensors, relative to the tensor's largest entry."""
    assert set(first) == set(second)
    return max(
        float((first[k] - second[k]).abs().max() / first[k].abs().max().clamp(min=1e-30))
        for k in first
    )


@pytest.mark.parametrize("style", [{}, {"alpha": 5.0}], ids=["scaling 1", "alpha 5"])
@pytest.mark.parametrize("case", CASES)
def test_a_rewritten_folder_merges_to_the_same_weights(
    case, style, save_with_peft, peft_merge, tmp_path
):
    family, settings = CASES[case]
    saved = save_with_peft(family, **{"r": 4, "lora_alpha": 6, **settings})
    assert saved.changes
    out = rewrite(saved.adapter, tmp_path / "out", **style)
    original, merged = peft_merge(family, saved.adapter), peft_merge(family, out)
    assert largest_error(original, merged) < RELATIVE
    changed = next(iter(saved.changes))
    near_miss = {**merged, changed: merged[changed] + saved.changes[changed] * 1e-3}
    assert largest_error(original, near_miss) > RELATIVE


ACTIONS = {
    "full-rank resize": lambda folder, out: resize_adapter(folder, out, energy=1.0),
    "identity merge": lambda folder, out: merge_adapters([folder], out),
    "to rsLoRA": lambda folder, out: rescale_adapter(folder, out, use_rslora=True, alpha=3),
    "to LoRA": lambda folder, out: rescale_adapter(folder, out, use_rslora=False, alpha=3),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("case", ["phi3", "tied head", "gpt2 embeddings", "convolutions"])
def test_actions_that_change_nothing_change_nothing(
    case, action, save_with_peft, peft_merge, tmp_path
):
    family, settings = CASES[case]
    saved = save_with_peft(family, **{"r": 4, "lora_alpha": 6, **settings})
    ACTIONS[action](saved.adapter, tmp_path / "out")
    before, after = (load_adapter(path).updates for path in (saved.adapter, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, update in before.items():
        norm = difference_norm(update, None)
        assert difference_norm(update, after[name]) <= RELATIVE * norm, name
    merged = peft_merge(family, saved.adapter), peft_merge(family, tmp_path / "out")
    assert largest_error(*merged) < RELATIVE


@pytest.mark.parametrize("case", ["saved modules", "all biases", "tokens", "gpt2 embeddings"])
def test_tensors_beside_the_factors_are_written_verbatim(case, save_with_peft, tmp_path):
    family, settings = CASES[case]
    saved = save_with_peft(family, **{"r": 4, **settings})
    out = rewrite(saved.adapter, tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (saved.adapter, out))
    assert set(before) == set(after)
    beside = [key for key in before if ".lora_" not in key]
    for key in beside:
        assert torch.equal(before[key], after[key])
    one, two = (json.loads((f / "adapter_config.json").read_text()) for f in (saved.adapter, out))
    for name in ("bias", "modules_to_save", "trainable_token_indices", "lora_bias", "task_type"):
        assert one[name] == two[name]


def test_a_module_that_is_left_out_keeps_its_bias(save_with_peft, peft_merge, tmp_path):
    """A bias stored inside PEFT's wrapper is written under the bare layer's name."""
    saved = save_with_peft("gpt2", r=2, target_modules=["c_attn", "c_fc"], bias="lora_only")
    adapter = load_adapter(saved.adapter)
    kept = [update for update in adapter.updates.values() if "c_fc" in update.module]
    out = write_adapter(kept, tmp_path / "out", AdapterStyle.of(adapter))
    original, merged = peft_merge("gpt2", saved.adapter), peft_merge("gpt2", out)
    for key in original:
        if not key.endswith("c_attn.weight"):
            assert largest_error({key: original[key]}, {key: merged[key]}) < RELATIVE


def test_a_bias_of_lora_b_without_its_module_is_refused(save_with_peft, tmp_path):
    saved = save_with_peft("gpt2", r=2, target_modules=["c_attn", "c_fc"], lora_bias=True)
    adapter = load_adapter(saved.adapter)
    kept = [update for update in adapter.updates.values() if "c_fc" in update.module]
    with pytest.raises(AdapterError, match=r"c_attn has no rank left, but a bias of lora_B"):
        write_adapter(kept, tmp_path / "out", AdapterStyle.of(adapter))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_carried_is_refused(write_adapter, factors):
    grouped = {
        f"{PREFIX}c.lora_A.weight": torch.ones(4, 6, 3),
        f"{PREFIX}c.lora_B.weight": torch.ones(6, 2, 1),
    }
    adapter = load_adapter(write_adapter({"q_proj": factors(6, 5, 4)}, grouped))
    with pytest.raises(AdapterError, match=r"it would lose tensors.*\n.*c\.lora_A.*2 groups"):
        require_rewritable(adapter, carries=True)


def test_terms_of_a_sum_carry_nothing(save_with_peft):
    plain = load_adapter(save_with_peft("llama", r=2, target_modules=["q_proj"]).adapter)
    saved = save_with_peft(
        "llama", name="saved", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    beside = load_adapter(saved.adapter)
    require_rewritable(plain)
    require_rewritable(beside, carries=True)
    with pytest.raises(AdapterError, match="it would lose tensors"):
        require_rewritable(beside)


@pytest.mark.parametrize("family", ["llama", "gpt2", "convolutions"])
def test_a_fine_tune_of_low_rank_becomes_an_adapter(
    family, make_model, peft_merge, weight_source, tmp_path, rng
):
    """Matrices changed by rank 2 and vectors changed at will: PEFT's merge is the tuned model."""
    base = make_model(family).double().state_dict()
    base.pop("lm_head.weight", None)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for name, tensor in tuned.items():
        if tensor.ndim == 1:
            tensor += torch.randn(tensor.shape, generator=rng)
        elif name != "table.weight":  # no name that tells an embedding
            b = torch.randn(tensor.shape[0], 2, generator=rng)
            a = torch.randn(2, tensor[0].numel(), generator=rng)
            tensor += (b @ a).reshape(tensor.shape)
    kept = {name: tensor.clone() for name, tensor in tuned.items()}
    adapter = load_finetune(weight_source(tuned), weight_source(base), tmp_path)
    require_rewritable(adapter, carries=True)
    updates = []
    for update in adapter.updates.values():
        u, sigma, vh = update.svd()
        updates.append(with_factors(update, u[:, :2] * sigma[:2], vh[:2]))
    out = write_adapter(updates, tmp_path / "out", AdapterStyle.of(adapter))
    merged = peft_merge(family, out)
    assert largest_error(kept, {name: merged[name] for name in kept}) < RELATIVE
    assert largest_error(kept, tuned) == 0.0  # the models that were read are untouched


@pytest.mark.parametrize("targets", [["lm_head"], ["mlp.c_fc", "ln_f"]], ids=str)
def test_saved_modules_become_factors_beside_the_base(
    targets, save_with_peft, peft_merge, tmp_path
):
    """At full rank nothing is lost: what was saved whole is then written as an update."""
    family = "gpt2" if "ln_f" in targets else "llama"
    target = "c_attn" if family == "gpt2" else "q_proj"
    saved = save_with_peft(family, r=2, target_modules=[target], modules_to_save=targets)
    with WeightReader(saved.base) as base:
        adapter = load_adapter(saved.adapter, base)
        updates = []
        for update in adapter.updates.values():
            u, sigma, vh = update.svd()
            updates.append(with_factors(update, u * sigma, vh))
    require_rewritable(adapter, carries=True)
    out = write_adapter(updates, tmp_path / "out", AdapterStyle.of(adapter))
    original, merged = peft_merge(family, saved.adapter), peft_merge(family, out)
    assert largest_error(original, merged) < 4 * RELATIVE  # sums of 24 rounded products


def test_dense_updates_need_a_rank_first(tmp_path):
    update = DenseUpdate("q", (3, 2), lambda: torch.ones(3, 2, dtype=torch.float64))
    with pytest.raises(AdapterError, match="the update of q is dense"):
        write_adapter([update], tmp_path / "out", AdapterStyle())
    assert not (tmp_path / "out").exists()
