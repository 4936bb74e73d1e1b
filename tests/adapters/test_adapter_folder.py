"""A folder is read as PEFT merges it, every key is accounted for, and bad input says why."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gonio.adapters import load_adapter
from gonio.adapters.update import split_module_name
from gonio.errors import AdapterError

Q0 = "model.layers.0.self_attn.q_proj"
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "llama": LLAMA,
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
PATTERNS = {
    "llama": {
        "rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 2, "gate_proj|up_proj": 5},
        "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 7, r"mlp\..*": 1, "q_proj": 32},
    },
    "gpt2": {
        "rank_pattern": {"attn.c_proj": 3, "h.1.mlp.c_proj": 6},
        "alpha_pattern": {"c_attn": 5},
    },
    "neox": {"rank_pattern": {"dense": 2}, "alpha_pattern": {r"layers\.1\..*": 3}},
}


@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("patterns", [False, True], ids=["uniform", "patterns"])
@pytest.mark.parametrize("family", CASES)
def test_updates_are_what_peft_merges(family, patterns, use_rslora, save_with_peft):
    """Module by module, scaling * B @ A is the change of the weight after merge_and_unload."""
    saved = save_with_peft(
        family,
        r=4,
        lora_alpha=6,
        target_modules=CASES[family],
        use_rslora=use_rslora,
        **(PATTERNS[family] if patterns else {}),
    )
    adapter = load_adapter(saved.adapter)
    assert {f"{module}.weight" for module in adapter.updates} == set(saved.changes)
    for module, update in adapter.updates.items():
        product = update.scaling * update.lora_b.double() @ update.lora_a.double()
        change = saved.changes[f"{module}.weight"]
        change = change.mT if family == "gpt2" else change
        # PEFT forms the product in float64 and adds it to weights of order 1.
        atol = 64 * torch.finfo(torch.float64).eps * float(product.abs().max() + 1)
        torch.testing.assert_close(product, change, rtol=0, atol=atol)
        assert not torch.allclose(product * 1.001, change, rtol=0, atol=atol)
        assert update.rank == update.lora_b.shape[1]


def test_modules_come_in_layer_order(write_adapter, factors):
    """Layer 2 before layer 10, whatever the order of the file."""
    names = [f"model.layers.{i}.self_attn.q_proj" for i in (10, 2, 0)]
    names += [f"x.{number}.y" for number in ("9" * 5000, "²")]  # digits that are no integer
    adapter = load_adapter(write_adapter({name: factors(6, 5, 4) for name in names}))
    assert [update.layer for update in adapter.updates.values()] == [0, 2, 10, None, None]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Q0, (0, "self_attn.q_proj")),
        ("transformer.h.11.mlp.c_proj", (11, "mlp.c_proj")),
        ("model.layers.3.mlp.experts.17.w1", (3, "mlp.experts.*.w1")),
        ("lm_head", (None, "lm_head")),
        ("classifier.0", (None, "classifier.0")),
        ("layers.².q_proj", (None, "layers.².q_proj")),
        (f"layers.{'9' * 5000}.q_proj", (None, f"layers.{'9' * 5000}.q_proj")),
    ],
)
def test_module_names_split(module, expected):
    assert split_module_name(module) == expected


def test_keys_beside_the_factors_are_listed(save_with_peft):
    """Bias training and saved modules are named with a reason, and their tensors can be read."""
    saved = save_with_peft(
        "gpt2",
        r=4,
        target_modules=["c_attn", "wte"],
        bias="lora_only",
        modules_to_save=["ln_f"],
    )
    adapter = load_adapter(saved.adapter)
    stored = load_file(saved.adapter / "adapter_model.safetensors")
    factors = {key for key in stored if ".lora_" in key}
    assert factors | {key for key, _ in adapter.unused} == set(stored)
    assert len(adapter.updates) == len(factors) / 2 == 3
    reasons = "\n".join(f"{key} {reason}" for key, reason in adapter.unused)
    for expected in (
        r"ln_f.weight .*modules_to_save",
        r"c_attn\S*\.bias .*bias='lora_only'",
    ):
        assert re.search(expected, reasons), (expected, reasons)
    assert set(adapter.beside) == {key for key, _ in adapter.unused}
    for key, tensor in adapter.beside.items():
        assert torch.equal(tensor, stored[key])
    with pytest.raises(KeyError):
        adapter.beside[min(factors)]


def test_lora_bias_is_listed(save_with_peft):
    saved = save_with_peft("gpt2", r=2, target_modules=["c_attn"], lora_bias=True)
    adapter = load_adapter(saved.adapter)
    assert [reason for _, reason in adapter.unused] == [
        "bias of lora_B (lora_bias), outside the weight update"
    ] * 2


def test_foreign_keys_are_listed(write_adapter, factors):
    extra = {
        "model.layers.0.self_attn.k_proj.lora_A.weight": torch.ones(4, 5),
        "base_model.model.model.layers.0.self_attn.k_proj.lora_A.default.weight": torch.ones(4, 5),
        "base_model.model.grouped.lora_A.weight": torch.ones(4, 3, 3, 3),
        "base_model.model.grouped.lora_B.weight": torch.ones(6, 2, 1, 1),
        "base_model.model.wte.lora_embedding_A.default": torch.ones(4, 5),
        "base_model.model.mlp.experts.base_layer.lora_A.weight": torch.ones(4, 5),
    }
    adapter = load_adapter(write_adapter({Q0: factors(6, 5, 4)}, extra))
    assert {key for key, _ in adapter.unused} == set(extra)
    assert list(adapter.updates) == [Q0]


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        {"init_lora_weights": "lora_ga"},
        {"use_qalora": True},
        {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}},
        {"arrow_config": {"top_k": 2}},
        {"kasa_config": {"beta": 0.1}},
        {"monteclora_config": {"num_samples": 2}},
        {"megatron_config": {"tensor_model_parallel_size": 2}},
        {"use_future_trick": True},
        {"future_config": {"power": 2}},
    ],
    ids=lambda settings: next(iter(settings)) + str(settings.get("init_lora_weights", "")),
)
def test_other_variants_are_refused_by_name(settings, write_adapter, factors):
    folder = write_adapter({Q0: factors(6, 5, 4)}, **settings)
    with pytest.raises(AdapterError, match=next(iter(settings))):
        load_adapter(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"velora_config": {"num_groups": 8}},
        {"use_dora": False, "future_number": 3, "enable_lora": None, "merge_weights": False},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
    ],
    ids=str,
)
def test_variants_with_the_plain_update_are_read(settings, write_adapter, factors):
    adapter = load_adapter(write_adapter({Q0: factors(6, 5, 4)}, **settings))
    assert adapter.updates[Q0].scaling == 2.0
    assert adapter.settings.unknown == (("future_number",) if "future_number" in settings else ())


def test_missing_settings_take_the_defaults_of_peft(write_adapter, factors):
    from peft import LoraConfig

    folder = write_adapter({Q0: factors(6, 5, LoraConfig().r)})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    defaults = LoraConfig()
    assert load_adapter(folder).updates[Q0].scaling == defaults.lora_alpha / defaults.r


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": 10**400}, r"lora_alpha is 10+\.\.\.0+, expected a finite number"),
        ({"lora_alpha": 1e300}, "too large for float64"),
        ({"r": 10**400}, r"r is 10+\.\.\.0+, expected a whole number from 1"),
        ({"rank_pattern": {"a{99999999999}": 2}}, "not a regular expression"),
        ({"bias": 3}, "bias is 3, expected one of none, all, lora_only"),
        ({"modules_to_save": [3]}, r"modules_to_save is \[3\]"),
        ({"base_model_name_or_path": {}}, r"base_model_name_or_path is \{\}"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0"),
        ({"rank_pattern": {"q_proj(": 2}}, "not a regular expression"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is a list"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, r"alpha_pattern\['q_proj'\] is inf"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"task_type": "POETRY"}, "PEFT cannot read it"),
        ({"eva_config": 3}, "PEFT cannot read it"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, found, write_adapter, factors):
    folder = write_adapter({Q0: factors(6, 5, 4)}, **settings)
    with pytest.raises(AdapterError, match=found) as caught:
        load_adapter(folder)
    assert str(folder) in str(caught.value)
    assert max(map(len, str(caught.value).splitlines())) < 400


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"a":' * 3000], ids=range(5))
def test_broken_settings_files_are_named(text, write_adapter, factors):
    folder = write_adapter({Q0: factors(6, 5, 4)})
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match="not a LoRA configuration"):
        load_adapter(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(AdapterError, match="no such folder"):
        load_adapter(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(AdapterError, match="a file, expected a folder"):
        load_adapter(tmp_path / "x")


def test_pickles_are_never_opened(tmp_path):
    """The message says what was found; the pickle, which would write a file, is not run."""
    flag = tmp_path / "opened"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16}')
    torch.save({"x": _Touch(str(flag))}, folder / "adapter_model.bin")
    flag.unlink(missing_ok=True)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert str(caught.value).splitlines() == [
        f"not a loadable LoRA adapter folder: {folder}",
        "  adapter_config.json        found (peft_type LORA, r 16)",
        "  adapter_model.safetensors  missing",
        "  adapter_model.bin          found, but pickled weights are never loaded",
        "Save the adapter again as safetensors (PeftModel.save_pretrained does so by default).",
    ]
    assert not flag.exists()


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_folders_of_named_adapters_point_below(write_adapter, factors, tmp_path):
    write_adapter({Q0: factors(6, 5, 4)}, name="dpo")
    with pytest.raises(AdapterError, match="give one of them, or all with --fleet: dpo"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1], ids=["empty", "header", "cut", "last byte"])
def test_truncated_weights_are_named(keep, write_adapter, factors):
    folder = write_adapter({Q0: factors(6, 5, 4)})
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AdapterError, match="broken or incomplete"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({}, "holds no tensors"),
        ({"base_model.model.x.weight": torch.ones(2)}, "none of them a factor pair"),
        ({"base_model.model.x.lora_A.weight": torch.ones(4, 5)}, "x: lora_A without its lora_B"),
        ({"base_model.model.x.lora_B.weight": torch.ones(4, 5)}, "x: lora_B without its lora_A"),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(4, 5),
                "base_model.model.x.lora_B.weight": torch.ones(6, 3),
            },
            r"lora_A is \(4, 5\), lora_B is \(6, 3\); their ranks differ",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(3, 5),
                "base_model.model.x.lora_B.weight": torch.ones(6, 3),
            },
            "resolves to rank 4",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(4, 0),
                "base_model.model.x.lora_B.weight": torch.ones(6, 4),
            },
            r"lora_A has shape \(4, 0\)",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(20),
                "base_model.model.x.lora_B.weight": torch.ones(6, 4),
            },
            r"lora_A has shape \(20,\)",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(4, 5, dtype=torch.int8),
                "base_model.model.x.lora_B.weight": torch.ones(6, 4),
            },
            "torch.int8",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.full((4, 5), torch.nan),
                "base_model.model.x.lora_B.weight": torch.ones(6, 4),
            },
            "x: lora_A holds 20 NaN or infinite of 20",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(4, 5),
                "base_model.model.x.lora_B.weight": torch.full((6, 4), -torch.inf),
            },
            "x: lora_B holds 24 NaN or infinite",
        ),
        (
            {"base_model.model.x.lora_magnitude_vector": torch.ones(6)},
            "a DoRA or KaSA parameter",
        ),
        ({"base_model.model.x.lora_C.weight": torch.ones(6)}, "unknown LoRA parameter"),
        ({"base_model.model..lora_A.weight": torch.ones(4, 5)}, "unknown LoRA parameter"),
        ({"base_model.model.x\n.lora_C.weight": torch.ones(6)}, r"x\\n.lora_C.weight: unknown"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_tensors_are_named(tensors, found, write_adapter):
    folder = write_adapter({}, tensors)
    with pytest.raises(AdapterError, match=found):
        load_adapter(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_float_width_is_read(dtype, write_adapter, factors):
    adapter = load_adapter(write_adapter({Q0: factors(6, 5, 4, dtype)}))
    assert adapter.updates[Q0].lora_a.dtype == dtype


def test_settings_survive_a_round_trip_through_json(save_with_peft):
    """The flag PEFT stores for GPT-2 is that of the last layer it wrapped: a hint, not a fact."""
    saved = save_with_peft("gpt2", r=2, target_modules=["c_attn", "c_proj", "lm_head"])
    stored = json.loads((saved.adapter / "adapter_config.json").read_text())
    assert stored["fan_in_fan_out"] is False
    adapter = load_adapter(saved.adapter)
    assert "transformer.h.0.attn.c_attn" in adapter.updates
    (unused,) = adapter.unused
    assert unused.key == "base_model.model.lm_head.base_layer.weight"
    assert unused.reason.startswith("not a LoRA factor")


def test_extra_files_do_not_matter(write_adapter, factors, tmp_path):
    folder = write_adapter({Q0: factors(6, 5, 4)})
    (folder / "adapter_model.bin").write_bytes(b"not a pickle either")
    (folder / "README.md").write_text("x")
    save_file({"a": torch.ones(1)}, folder / "other.safetensors")
    assert list(load_adapter(folder).updates) == [Q0]
