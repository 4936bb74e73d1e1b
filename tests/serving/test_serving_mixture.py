"""Rows with other adapters each give what the weights merged by PEFT give."""

import copy

import pytest
import torch

from gonio.adapters import stored_bytes
from gonio.errors import AdapterError, SettingError, ShapeError
from gonio.serving import AdapterMixture

from .conftest import family_model

FAMILIES = ["llama", "gpt2", "neox"]
SUBSETS = [
    {},
    {"one": 1.0},
    {"two": -0.5},
    {"one": 1.0, "two": 1.0},
    {"one": 0.25, "two": 2.0, "three": 1.0},
    {"three": 0.0},
]


def ids(rows: int, length: int = 7) -> torch.Tensor:
    return torch.randint(1, 400, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_the_merged_model(family, read_adapters, merged_model):
    model, tokens = family_model(family), ids(len(SUBSETS))
    with torch.no_grad(), AdapterMixture(model, read_adapters(family)) as mixture:
        with mixture.rows(SUBSETS):
            mixed = model(tokens).logits
        plain = model(tokens).logits
    for row, subset in enumerate(SUBSETS):
        with torch.no_grad():
            merged = merged_model(family, subset)(tokens[row : row + 1]).logits[0]
        size = merged.abs().max()
        # Rounding of a few hundred terms per entry, in float64, through two layers.
        torch.testing.assert_close(mixed[row], merged, rtol=0, atol=float(1e-11 * size))
        if any(subset.values()):
            assert (merged - plain[row]).abs().max() > 1e-3 * size  # the tolerance can fail


def test_weights_are_never_written_and_hooks_leave(read_adapters):
    model, tokens = family_model("llama"), ids(1)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(tokens).logits
    mixture = AdapterMixture(model, read_adapters("llama"))
    with pytest.raises(IndexError), mixture, mixture.rows([{"one": 1.0}]):
        model(tokens + 400)  # no such token
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected)


def test_rows_are_switched_back_and_forth(read_adapters):
    model, tokens = family_model("llama"), ids(2)
    with torch.no_grad(), AdapterMixture(model, read_adapters("llama")) as mixture:
        found = []
        for subset in ({"one": 1.0}, {"two": 1.0}, {"one": 1.0}):
            with mixture.rows([subset, {}]):
                found.append(model(tokens).logits)
        assert torch.equal(found[0], found[2])
        assert not torch.equal(found[0][0], found[1][0])


def test_storage_is_that_of_the_factors(read_adapters):
    model, adapters = family_model("llama", torch.float32), read_adapters("llama")
    size = AdapterMixture(model, adapters).bytes
    by_hand = sum(
        4 * u.rank * sum(u.shape) for adapter in adapters.values() for u in adapter.updates.values()
    )
    expected = stored_bytes(list(adapters.values()), weight_dtype=torch.float32)
    assert size.factors == by_hand == expected.factors // 2  # stored in float64, held as the model
    assert size.merged_weights == expected.merged_weights
    assert size.merged_models == 3 * sum(p.nbytes for p in model.parameters())


def test_bfloat16_factors_follow_the_model(read_adapters):
    model = family_model("llama", torch.bfloat16)
    mixture = AdapterMixture(model, read_adapters("llama"))
    with torch.no_grad(), mixture, mixture.rows([{"one": 1.0}]):
        logits = model(ids(1)).logits
    assert logits.dtype == torch.bfloat16
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"four": 1.0}], "no adapter 'four'; there are one, two, three"),
        ([{"one": float("nan")}], "must be finite"),
    ],
)
def test_bad_rows_are_refused(rows, message, read_adapters):
    mixture = AdapterMixture(family_model("llama"), read_adapters("llama"))
    with mixture, pytest.raises(SettingError, match=message), mixture.rows(rows):
        pass


def test_a_batch_of_another_size_is_refused(read_adapters):
    model = family_model("llama")
    mixture = AdapterMixture(model, read_adapters("llama"))
    refused = pytest.raises(ShapeError, match="chosen for 1 rows")
    with mixture, mixture.rows([{"one": 1.0}]), refused:
        model(ids(2))


def test_what_cannot_be_mixed_is_refused(read_adapters, make_model_adapter):
    with pytest.raises(SettingError, match="at least one"):
        AdapterMixture(family_model("llama"), {})
    with pytest.raises(AdapterError, match="has no layer"):
        AdapterMixture(family_model("gpt2"), {"two": read_adapters("llama")["two"]})
    with pytest.raises(AdapterError, match="saved beside them"):  # the head of another base
        AdapterMixture(family_model("gpt2"), read_adapters("llama"))
    with pytest.raises(AdapterError, match=r"out_features, in_features"):
        AdapterMixture(family_model("llama"), {"bad": make_model_adapter((5, 24))})
    with pytest.raises(AdapterError, match="embedding"):
        AdapterMixture(family_model("llama"), {"bad": make_model_adapter((400, 24), "embedding")})
    mixture = AdapterMixture(family_model("llama"), read_adapters("llama"))
    with pytest.raises(SettingError, match="enter the mixture"), mixture.rows([{}]):
        pass
    with mixture, pytest.raises(SettingError, match="attached already"):
        mixture.__enter__()


@pytest.fixture
def make_model_adapter():
    from pathlib import Path

    from gonio.adapters import Adapter, LoraSettings, LoraUpdate

    def make(shape, kind="linear"):
        module = "model.layers.0.self_attn.q_proj"
        factors = torch.ones(2, shape[1]), torch.ones(shape[0], 2)
        update = LoraUpdate(module, *factors, 1.0, 0, "self_attn.q_proj", kind)
        return Adapter(Path("in-memory"), LoraSettings(rank=2, alpha=2.0), {module: update})

    return make
