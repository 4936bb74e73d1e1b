"""Embeddings, convolutions, fused and tied modules are read as PEFT merges them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gonio.adapters import LoraUpdate, load_adapter, with_factors
from gonio.adapters.base import BaseWeights
from gonio.errors import AdapterError, ShapeError
from gonio.models import WeightReader

EPS = torch.finfo(torch.float64).eps
CONVOLUTIONS = ["conv1", "conv2", "point", "conv3"]


def in_stored_shape(update: LoraUpdate, shape: tuple[int, ...]) -> torch.Tensor:
    return (update.scaling * update.lora_b.double() @ update.lora_a.double()).reshape(shape)


@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
def test_convolutions_and_embeddings_are_what_peft_merges(use_rslora, save_with_peft):
    saved = save_with_peft(
        "convolutions",
        r=4,
        lora_alpha=6,
        use_rslora=use_rslora,
        target_modules=[*CONVOLUTIONS, "table", "linear"],
        rank_pattern={"conv2": 2, "table": 3},
        alpha_pattern={"conv3": 5},
    )
    adapter = load_adapter(saved.adapter)
    assert not adapter.unused
    assert {f"{module}.weight" for module in adapter.updates} == set(saved.changes)
    kinds = {module: (u.kind, u.kernel) for module, u in adapter.updates.items()}
    assert kinds == {
        "block.conv1": ("convolution", (1,)),
        "conv1": ("convolution", (4,)),
        "conv2": ("convolution", (3, 2)),
        "conv3": ("convolution", (2, 1, 3)),
        "linear": ("linear", ()),
        "point": ("convolution", (1, 1)),
        "table": ("embedding", ()),
    }
    for module, update in adapter.updates.items():
        change = saved.changes[f"{module}.weight"]
        product = in_stored_shape(update, tuple(change.shape))
        atol = 64 * EPS * float(product.abs().max() + 1)
        torch.testing.assert_close(product, change, rtol=0, atol=atol)
        assert not torch.allclose(product * 1.001, change, rtol=0, atol=atol)


def test_the_base_serves_every_kind(save_with_peft, make_model):
    saved = save_with_peft(
        "convolutions", r=2, target_modules=[*CONVOLUTIONS, "table", "linear", "head"]
    )
    weights = make_model("convolutions").state_dict()
    with WeightReader(saved.base) as reader:
        base = BaseWeights(reader)
        for module, update in load_adapter(saved.adapter).updates.items():
            weight = base.get(update)
            assert weight.shape == update.shape
            assert torch.equal(weight, weights[f"{module}.weight"].flatten(1))
        conv2 = load_adapter(saved.adapter).updates["conv2"]
        for wrong in (replace(conv2, kernel=(2, 3)), replace(conv2, kind="linear", kernel=())):
            with pytest.raises(AdapterError, match="does not fit the base model"):
                base.get(wrong)


def test_embeddings_are_never_transposed(weight_source, make_adapter, factors):
    """A square embedding keeps its order whatever the layers around it do."""
    table = torch.arange(25.0).reshape(5, 5)
    update = make_adapter({"h.0.wte": factors(5, 5, 2)}).updates["h.0.wte"]
    source = weight_source({"h.0.wte.weight": table})
    base = BaseWeights(source, fan_in_fan_out=True)
    assert torch.equal(base.get(update), table.mT)
    assert torch.equal(base.get(replace(update, kind="embedding")), table)
    wide = make_adapter({"h.0.wte": factors(6, 5, 2)}).updates["h.0.wte"]
    turned = BaseWeights(weight_source({"h.0.wte.weight": torch.ones(5, 6)}))
    assert turned.get(wide).shape == (6, 5)
    with pytest.raises(AdapterError, match="does not fit"):
        turned.get(replace(wide, kind="embedding"))


def test_grouped_convolutions_are_listed(save_with_peft, write_adapter, factors):
    """PEFT groups lora_B as the base, and does not merge such layers."""
    grouped = {
        "base_model.model.c.lora_A.weight": torch.ones(4, 6, 3),
        "base_model.model.c.lora_B.weight": torch.ones(6, 2, 1),
    }
    adapter = load_adapter(write_adapter({"q_proj": factors(6, 5, 4)}, grouped))
    assert set(adapter.updates) == {"q_proj"}
    assert {reason for _, reason in adapter.unused} == {
        "convolution in 2 groups, which PEFT cannot merge: not measured"
    }


@pytest.mark.parametrize(
    ("family", "fused", "rows"),
    [("neox", "query_key_value", 72), ("gpt2", "c_attn", 72), ("phi3", "qkv_proj", 48)],
)
def test_fused_projections_are_single_modules(family, fused, rows, save_with_peft):
    saved = save_with_peft(family, r=3, target_modules=[fused])
    adapter = load_adapter(saved.adapter)
    assert len(adapter.updates) == 2
    with WeightReader(saved.base) as reader:
        base = BaseWeights(reader, fan_in_fan_out=adapter.settings.fan_in_fan_out)
        for module, update in adapter.updates.items():
            assert update.projection.endswith(fused)
            assert update.shape == (rows, 24) == tuple(base.get(update).shape)
            change = saved.changes[f"{module}.weight"]
            change = change.mT if family == "gpt2" else change
            product = in_stored_shape(update, update.shape)
            torch.testing.assert_close(product, change, rtol=0, atol=64 * EPS * 100)


def test_a_tied_head_is_measured_against_the_embedding(save_with_peft, make_model):
    saved = save_with_peft("tied llama", r=2, target_modules=["lm_head"])
    adapter = load_adapter(saved.adapter)
    (update,) = adapter.updates.values()
    assert (update.module, update.kind, update.shape) == ("lm_head", "linear", (40, 24))
    with WeightReader(saved.base) as reader:
        assert "lm_head.weight" not in reader.names
        weight = BaseWeights(reader).get(update)
    embedding = make_model("tied llama").state_dict()["model.embed_tokens.weight"]
    assert torch.equal(weight, embedding)
    product = in_stored_shape(update, update.shape)
    torch.testing.assert_close(
        product, saved.changes["lm_head.weight"], rtol=0, atol=64 * EPS * float(product.abs().max())
    )


def test_multihead_attention_finds_its_weight(weight_source, make_adapter, factors):
    update = make_adapter({"layers.0.attn": factors(12, 4, 2)}).updates["layers.0.attn"]
    source = weight_source({"layers.0.attn.in_proj_weight": torch.ones(12, 4)})
    assert BaseWeights(source).get(update).shape == (12, 4)


def test_new_factors_keep_the_module(make_adapter, factors):
    update = make_adapter({"layers.3.c": factors(6, 5, 2)}).updates["layers.3.c"]
    convolution = replace(update, kind="convolution", kernel=(5,))
    lora_b, lora_a = factors(6, 5, 3)
    changed = with_factors(convolution, lora_b, lora_a)
    assert (changed.kind, changed.kernel, changed.layer) == ("convolution", (5,), 3)
    assert (changed.scaling, changed.rank) == (1.0, 3)
    for wrong in ((lora_a, lora_b), (lora_b[:, :2], lora_a), (lora_b[0], lora_a)):
        with pytest.raises(ShapeError, match=r"layers\.3\.c"):
            with_factors(convolution, *wrong)


@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    rank=st.integers(1, 12),
    exponent=st.sampled_from([-38, -20, -3, 0, 5, 30, 37]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_norm_bounds_agree_across_precisions(m, n, rank, exponent, dtype):
    """The quick sums of squares of stored factors are those of their float64 copies."""
    generator = torch.Generator().manual_seed(m * n * rank)
    exponent = max(-6, min(3, exponent)) if dtype == torch.float16 else exponent
    lora_a = (torch.randn(rank, n, generator=generator).double() * 10.0**exponent).to(dtype)
    lora_b = torch.randn(m, rank, generator=generator).to(dtype)
    bounds = [
        LoraUpdate("x", a, b, -2.0, None, "x").norm_bound()
        for a, b in ((lora_a, lora_b), (lora_a.double(), lora_b.double()))
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-13, abs=0)
    rows = sum(
        2 * float(torch.linalg.norm(b)) * float(torch.linalg.norm(a))
        for b, a in zip(lora_b.double().T, lora_a.double(), strict=True)
    )
    assert bounds[0] == pytest.approx(rows, rel=1e-13)
