"""DoRA is what PEFT merges, for every kind of module, once the base is given."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gonio.adapters import load_adapter
from gonio.errors import AdapterError
from gonio.models import WeightReader

RELATIVE = 1e-6
CASES = {
    "llama": ("llama", ["q_proj", "k_proj", "gate_proj", "down_proj"]),
    "gpt2": ("gpt2", ["c_attn", "c_proj", "c_fc"]),
    "neox": ("neox", ["query_key_value", "dense"]),
    "convolutions": ("convolutions", ["conv1", "conv2", "point", "conv3", "linear"]),
    "embedding": ("convolutions", ["table"]),
    "tied head": ("tied llama", ["lm_head"]),
}


def edit(folder, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("case", CASES)
def test_updates_are_what_peft_merges(case, use_rslora, save_with_peft):
    family, targets = CASES[case]
    saved = save_with_peft(
        family, r=4, lora_alpha=6, use_rslora=use_rslora, use_dora=True, target_modules=targets
    )
    with WeightReader(saved.base) as base:
        adapter = load_adapter(saved.adapter, base)
        assert adapter.kind == "dora"
        assert all("the base weight saved beside" in reason for _, reason in adapter.unused)
        assert {f"{m}.weight" for m in adapter.updates} <= set(saved.changes)
        for module, update in adapter.updates.items():
            assert update.kind == "dense"
            change = saved.changes[f"{module}.weight"]
            change = change.mT if family == "gpt2" else change.flatten(1)
            atol = RELATIVE * float(change.abs().max())
            torch.testing.assert_close(update.matrix(), change, rtol=0, atol=atol)
            assert not torch.allclose(update.matrix() * 1.001, change, rtol=0, atol=atol)
            sigma = torch.linalg.svdvals(change)
            torch.testing.assert_close(
                update.singular_values(), sigma, rtol=0, atol=RELATIVE * float(sigma[0])
            )


def test_shapes_are_known_before_the_base_is_read(save_with_peft, weight_source):
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=["q_proj"])
    with WeightReader(saved.base) as base:
        source = _Counting({name: base.get(name) for name in base.names})
    adapter = load_adapter(saved.adapter, source)
    assert {update.shape for update in adapter.updates.values()} == {(24, 24)}
    assert source.reads == 0
    next(iter(adapter.updates.values())).svd()
    assert source.reads == 1


class _Counting:
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.reads = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> torch.Tensor:
        self.reads += 1
        return self._tensors[name]


def test_without_the_base_the_cure_is_named(save_with_peft):
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"use_dora(.|\n)*--base MODEL") as caught:
        load_adapter(saved.adapter)
    assert "DoRA" in str(caught.value)


def test_an_untrained_magnitude_leaves_only_rounding(save_with_peft):
    """B = 0 and the magnitude PEFT starts from: the update is the magnitude's own rounding."""
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=["q_proj"])
    with WeightReader(saved.base) as base:

        def reset(tensors: dict[str, torch.Tensor]) -> None:
            for key in tensors:
                if "lora_B" in key:
                    tensors[key].zero_()
                if "magnitude" in key:
                    module = key.removeprefix("base_model.model.").partition(".lora_")[0]
                    weight = base.get(f"{module}.weight").double()
                    tensors[key] = torch.linalg.norm(weight, dim=1)

        edit(saved.adapter, reset)
        for update in load_adapter(saved.adapter, base).updates.values():
            assert float(update.singular_values()[0]) < update.noise_floor()


def test_a_wrong_base_is_refused_at_once(save_with_peft, weight_source):
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="the base model has no weight"):
        load_adapter(saved.adapter, weight_source({"x.weight": torch.ones(2, 2)}))
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(AdapterError, match="does not fit the base model"):
        load_adapter(saved.adapter, weight_source({name: torch.ones(24, 25)}))


def test_rows_of_zeros_are_refused(save_with_peft, weight_source):
    saved = save_with_peft(
        "llama", r=2, use_dora=True, target_modules=["layers.0.self_attn.q_proj"]
    )
    edit(saved.adapter, lambda tensors: [t.zero_() for k, t in tensors.items() if "lora_B" in k])
    name = "model.layers.0.self_attn.q_proj.weight"
    adapter = load_adapter(saved.adapter, weight_source({name: torch.zeros(24, 24)}))
    with pytest.raises(AdapterError, match="24 rows of W"):
        next(iter(adapter.updates.values())).matrix()


def test_both_keys_of_the_magnitude_are_read(save_with_peft):
    """Both spellings PEFT loads give the same update."""
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=["q_proj"])
    with WeightReader(saved.base) as base:
        before = load_adapter(saved.adapter, base)

        def rename(tensors: dict[str, torch.Tensor]) -> None:
            for key in [key for key in tensors if "magnitude" in key]:
                tensors[f"{key}.weight"] = tensors.pop(key)

        edit(saved.adapter, rename)
        after = load_adapter(saved.adapter, base)
        for module, update in before.updates.items():
            assert torch.equal(update.matrix(), after.updates[module].matrix())


def test_saved_modules_become_updates_with_the_base(save_with_peft):
    """Matrices saved whole are subtracted from the base; vectors stay listed."""
    saved = save_with_peft(
        "gpt2", r=2, target_modules=["c_attn"], modules_to_save=["wpe", "mlp.c_fc", "ln_f"]
    )
    plain = load_adapter(saved.adapter)
    with WeightReader(saved.base) as base:
        adapter = load_adapter(saved.adapter, base)
        extra = set(adapter.updates) - set(plain.updates)
        assert extra == {"transformer.wpe", "transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"}
        assert {key.rpartition(".")[2] for key, _ in adapter.unused} == {"weight", "bias"}
        assert len(adapter.unused) == len(plain.unused) - 3
        for module in extra:
            update = adapter.updates[module]
            change = saved.changes[f"{module}.weight"]
            change = change if module.endswith("wpe") else change.mT
            assert update.shape == change.shape
            torch.testing.assert_close(update.matrix(), change, rtol=0, atol=1e-12)
    assert adapter.kind == "lora"
    assert list(adapter.updates)[:2] == ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"]


def test_saved_modules_the_base_lacks_stay_listed(write_adapter, factors, weight_source):
    extra = {
        "base_model.model.score.weight": torch.ones(2, 5),
        "base_model.model.lm_head.weight": torch.ones(9, 5),
    }
    folder = write_adapter({"q": factors(6, 5, 4)}, extra, modules_to_save=["score", "lm_head"])
    base = weight_source({"q.weight": torch.ones(6, 5), "lm_head.weight": torch.ones(8, 5)})
    reasons = dict(load_adapter(folder, base).unused)
    assert "the base has no such weight" in reasons["base_model.model.score.weight"]
    assert "(9, 5), the base's is (8, 5)" in reasons["base_model.model.lm_head.weight"]


def test_a_dora_folder_without_its_setting_is_refused(save_with_peft):
    saved = save_with_peft("llama", r=2, use_dora=True, target_modules=["q_proj"])
    path = saved.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": False}))
    with pytest.raises(AdapterError, match="which the configuration does not mention"):
        load_adapter(saved.adapter)
