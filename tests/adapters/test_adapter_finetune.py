"""A full fine-tune is the difference of two models, each tensor accounted for once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gonio.adapters import load_finetune, spectrum_table, with_factors
from gonio.adapters.base import BaseWeights
from gonio.errors import AdapterError
from gonio.models import WeightReader

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Tuned:
    base: Path
    tuned: Path
    changes: dict[str, torch.Tensor]


@pytest.fixture
def fine_tune(tmp_path, make_model, rng):
    """Change the named parameters of a tiny model; save both models by the real library."""

    def tune(family: str, *parts: str) -> Tuned:
        before, after = make_model(family), make_model(family)
        with torch.no_grad():
            for name, parameter in after.named_parameters():
                if any(part in name for part in parts):
                    parameter += torch.randn(parameter.shape, generator=rng)
        for model, folder in ((before, "base"), (after, "tuned")):
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(tmp_path / folder)
            else:
                (tmp_path / folder).mkdir()
                save_file(model.state_dict(), tmp_path / folder / "model.safetensors")
        old = before.state_dict()
        changes = {k: v.double() - old[k].double() for k, v in after.state_dict().items()}
        return Tuned(tmp_path / "base", tmp_path / "tuned", changes)

    return tune


def load(saved: Tuned):
    return load_finetune(WeightReader(saved.tuned), WeightReader(saved.base), saved.tuned)


@pytest.mark.parametrize(
    ("family", "parts", "transposed"),
    [
        ("llama", ("q_proj", "down_proj", "embed_tokens", "lm_head"), ()),
        ("neox", ("query_key_value", "embed_in"), ()),
        ("gpt2", ("c_attn.weight", "c_proj.weight", "wte", "wpe"), ("c_attn", "c_proj")),
        ("convolutions", ("conv", "table", "linear.weight"), ()),
    ],
)
def test_updates_are_the_differences(family, parts, transposed, fine_tune):
    saved = fine_tune(family, *parts)
    adapter = load(saved)
    assert adapter.kind == "full"
    changed = {k for k, change in saved.changes.items() if bool(change.any())}
    stored = {f"{module}.weight" for module in adapter.updates}
    listed = {key for key, _ in adapter.unused}
    tied = {"lm_head.weight"} if family == "gpt2" else set()
    assert stored | listed | tied == changed
    for module, update in adapter.updates.items():
        change = saved.changes[f"{module}.weight"].flatten(1)
        change = change.mT if module.endswith(transposed or "none") else change
        assert update.shape == change.shape
        assert torch.equal(update.matrix(), change)
        is_embedding = module.rpartition(".")[2] in ("embed_tokens", "embed_in", "wte", "wpe")
        assert (update.module_kind == "embedding") == is_embedding
    with WeightReader(saved.base) as base:
        for update in adapter.updates.values():
            assert BaseWeights(base).get(update).shape == update.shape


def test_vectors_are_listed_and_equal_tensors_counted(fine_tune):
    saved = fine_tune("gpt2", "c_fc", "ln_f.weight")
    adapter = load(saved)
    reasons = dict(adapter.unused)
    assert set(reasons) == {
        "transformer.ln_f.weight",
        "transformer.h.0.mlp.c_fc.bias",
        "transformer.h.1.mlp.c_fc.bias",
    }
    change = float(saved.changes["transformer.ln_f.weight"].norm()) / 24**0.5
    assert f"it changed by {change:.3g} of its norm" in reasons["transformer.ln_f.weight"]
    assert "from zero" in reasons["transformer.h.0.mlp.c_fc.bias"]
    with WeightReader(saved.base) as base:
        assert adapter.unchanged == len(base.names) - len(reasons) - len(adapter.updates)
    assert set(adapter.beside) == {f"base_model.model.{name}" for name in reasons}
    with WeightReader(saved.tuned) as tuned:
        for name in reasons:
            assert torch.equal(adapter.beside[f"base_model.model.{name}"], tuned.get(name))
    assert [path.name for path in adapter.files] == ["model.safetensors"]


def test_resized_to_a_rank_it_is_a_plain_update(fine_tune):
    adapter = load(fine_tune("llama", "layers.0.mlp.up_proj"))
    (update,) = adapter.updates.values()
    u, sigma, vh = update.svd()
    plain = with_factors(update, u[:, :3] * sigma[:3], vh[:3])
    assert (plain.kind, plain.rank, plain.scaling) == ("linear", 3, 1.0)
    expected = torch.linalg.svdvals(update.matrix())[:3]
    torch.testing.assert_close(
        plain.singular_values(), expected, rtol=0, atol=64 * EPS * float(sigma[0])
    )


@pytest.mark.parametrize("stored", ["none", "both", "tuned", "base"])
def test_tied_heads_are_not_counted_twice(stored, weight_source, rng):
    """A head is listed where it only repeats the embedding, whoever stores it."""
    old, new = (torch.randn(9, 4, generator=rng) for _ in range(2))
    base, tuned = {"model.embed_tokens.weight": old}, {"model.embed_tokens.weight": new}
    if stored in ("both", "base"):
        base["lm_head.weight"] = old.clone()
    if stored in ("both", "tuned"):
        tuned["lm_head.weight"] = new.clone()
    adapter = load_finetune(weight_source(tuned), weight_source(base), "run")
    assert list(adapter.updates) == ["model.embed_tokens"]
    assert [key for key, _ in adapter.unused] == [] if stored == "none" else ["lm_head.weight"]
    assert all("a copy of model.embed_tokens.weight" in reason for _, reason in adapter.unused)


def test_an_untied_head_is_an_update(weight_source, rng):
    old, new, head = (torch.randn(9, 4, generator=rng) for _ in range(3))
    name = "model.embed_tokens.weight"
    base = {name: old, "lm_head.weight": old.clone()}
    adapter = load_finetune(
        weight_source({name: new, "lm_head.weight": head}), weight_source(base), "run"
    )
    assert set(adapter.updates) == {"model.embed_tokens", "lm_head"}
    assert adapter.updates["lm_head"].module_kind == "linear"
    alone = load_finetune(
        weight_source({name: new, "lm_head.weight": head}), weight_source({name: old}), "run"
    )
    assert alone.unused == (("lm_head.weight", "only the tuned model has it"),)


def test_other_tensors_are_listed(weight_source):
    base = {
        "a.weight": torch.ones(3, 3),
        "b.weight": torch.ones(2, 2),
        "wte.weight": torch.ones(5, 3),
        "codes.weight": torch.ones(4, 4, dtype=torch.int8),
        "experts.up": torch.ones(2, 3, 3),
    }
    tuned = {
        "a.weight": 2 * torch.ones(3, 3),
        "c.weight": torch.ones(2, 2),
        "wte.weight": torch.ones(6, 3),
        "codes.weight": torch.zeros(4, 4, dtype=torch.int8),
        "experts.up": torch.zeros(2, 3, 3),
    }
    adapter = load_finetune(weight_source(tuned), weight_source(base), "run")
    assert list(adapter.updates) == ["a"]
    assert dict(adapter.unused) == {
        "b.weight": "only the base model has it",
        "c.weight": "only the tuned model has it",
        "codes.weight": "differs, but holds torch.int8 and torch.int8: only floats are measured",
        "experts.up": "changed, but shape (2, 3, 3) stacks several matrices: not measured",
        "wte.weight": "the vocabulary was resized: (6, 3), in the base (5, 3)",
    }


@pytest.mark.parametrize(
    ("tuned", "found"),
    [
        ({"a.weight": torch.ones(3, 3)}, "no matrix differs"),
        ({"a.weight": torch.ones(3, 4)}, r"a.weight is \(3, 4\), in the base \(3, 3\)"),
        ({"a.weight": torch.full((3, 3), torch.nan)}, "a.weight holds NaN or infinite"),
        ({"x.weight": torch.ones(3, 3)}, "it shares no tensor"),
        ({}, "it shares no tensor"),
    ],
    ids=["equal", "shape", "nan", "other names", "empty"],
)
def test_what_is_no_fine_tune_of_the_base_is_refused(tuned, found, weight_source):
    base = weight_source({"a.weight": torch.ones(3, 3)})
    with pytest.raises(AdapterError, match=found) as caught:
        load_finetune(weight_source(tuned), base, "some/run")
    assert "some/run" in str(caught.value)


def test_models_of_two_precisions_are_compared_by_value(weight_source, rng):
    """Weights that were only stored wider are unchanged; the others keep every digit."""
    old = {name: torch.randn(5, 4, generator=rng).bfloat16() for name in ("a.weight", "b.weight")}
    new = {"a.weight": old["a.weight"].float() + 1e-6, "b.weight": old["b.weight"].float()}
    adapter = load_finetune(weight_source(new), weight_source(old), "run")
    assert (list(adapter.updates), adapter.unchanged) == (["a"], 1)
    expected = new["a.weight"].double() - old["a.weight"].double()
    assert torch.equal(adapter.updates["a"].matrix(), expected)


def test_half_precision_is_subtracted_exactly(weight_source, rng):
    old = torch.randn(5, 4, generator=rng).bfloat16()
    new = (old + 0.1).bfloat16()
    adapter = load_finetune(
        weight_source({"a.weight": new}), weight_source({"a.weight": old}), "run"
    )
    assert torch.equal(adapter.updates["a"].matrix(), new.double() - old.double())


def test_tables_take_a_fine_tune(fine_tune):
    adapter = load(fine_tune("llama", "q_proj"))
    table = spectrum_table(adapter, samples=2)
    assert list(table["module"]) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert (table["rank"] == 24).all()
