"""Gradients, conversions and rank bounds of variants against autograd, PEFT and dense algebra."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from gonio.adapters import load_adapter
from gonio.training import make_recipe
from gonio.training.variant_settings import DynamicSettings, SparseSettings
from gonio.training.variants.adalora import freeze_rank_numbers, plain_factors
from gonio.training.variants.dynamic import kept_ranks, truncate_factors
from gonio.training.variants.factors import (
    Factors,
    factors_of,
    linear_layers,
    stacked_factors,
    write_factors,
)
from gonio.training.variants.scaled import add_scales, fold_scales, scale_gradient, scales_of
from gonio.training.variants.sparse import density_at
from gonio.training.variants.stacked import stage_starts
from gonio.training.variants.starts import Started, start_with_zero_a

TARGETS = ["q_proj", "down_proj"]


def lora_model(model, r=3, alpha=6, **options):
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=TARGETS, task_type="CAUSAL_LM", **options
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def fill(adapted, seed=0):
    """Random values in every trained tensor; a matrix that starts at zero is zero no more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.3 * drawn + (1.0 if parameter.ndim == 0 else 0.0))


def loss_of(model):
    """Next-token loss on fixed tokens, with its graph; ``value_of`` is the number."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, model.config.vocab_size, (2, 8), generator=generator)
    return torch.nn.functional.cross_entropy(
        model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )


def value_of(model):
    return float(loss_of(model).detach())


def dense_gradients(model, changes):
    """Gradients in the full weights of a model whose weights were changed by dense matrices."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, change in changes.items():
            modules[name].weight.add_(change)
    loss_of(model).backward()
    return {name: modules[name].weight.grad for name in changes}


def close(found, expected):
    error = float((found - expected).norm())
    assert error <= 1e-6 * float(expected.norm())
    assert float((1.001 * found - expected).norm()) > 1e-6 * float(expected.norm())  # can fail


def test_gradients_with_a_learned_scale_are_the_closed_forms(make_model):
    adapted = lora_model(make_model().double())
    add_scales(adapted)
    fill(adapted)
    loss_of(adapted).backward()
    changes, parts = {}, {}
    for name, layer in linear_layers(adapted):
        original = layer.lora_B["default"].parametrizations["weight"].original
        number = layer.lora_B["default"].parametrizations["weight"][0].scale
        lora_a = layer.lora_A["default"].weight
        changes[name] = (number * 2.0 * original @ lora_a).detach()  # alpha / r = 2
        parts[name] = original, lora_a, number
    gradients = dense_gradients(make_model().double(), changes)
    assert len(parts) == 4
    for name, (lora_b, lora_a, number) in parts.items():
        g, c = gradients[name], number.detach()
        close(lora_a.grad, 2.0 * c * lora_b.detach().mT @ g)
        close(lora_b.grad, 2.0 * c * g @ lora_a.detach().mT)
        close(number.grad, torch.tensor(scale_gradient(g, lora_b.detach(), lora_a.detach(), 2.0)))


def test_a_folded_scale_is_in_b_and_the_model_computes_the_same(make_model):
    adapted = lora_model(make_model().double())
    add_scales(adapted)
    fill(adapted)
    before = value_of(adapted)
    numbers = scales_of(adapted)
    original = {
        name: layer.lora_B["default"].parametrizations["weight"].original.detach().clone()
        for name, layer in linear_layers(adapted)
    }
    fold_scales(adapted)
    assert len(set(numbers.values())) == 4
    for name, factors in factors_of(adapted).items():
        assert torch.equal(factors.lora_b, numbers[name] * original[name])
    assert value_of(adapted) == pytest.approx(before, rel=1e-12)
    assert not any("parametrizations" in name for name, _ in adapted.named_parameters())


def test_of_stacked_stages_only_the_last_has_gradients_those_of_the_closed_form(make_model):
    adapted = lora_model(make_model().double())
    adapted.add_adapter("stage_2", adapted.peft_config["default"])
    adapted.base_model.set_adapter(["default", "stage_2"])
    adapted.double()
    fill(adapted)
    for name, parameter in adapted.named_parameters():
        if ".default." in name:
            parameter.requires_grad_(False)
    loss_of(adapted).backward()
    first, second = factors_of(adapted), factors_of(adapted, "stage_2")
    whole = {name: stacked_factors([first[name], second[name]]) for name in first}
    changes = {name: f.scaling * f.lora_b @ f.lora_a for name, f in whole.items()}
    for name, change in changes.items():
        parts = [2.0 * f[name].lora_b @ f[name].lora_a for f in (first, second)]
        torch.testing.assert_close(change, sum(parts), rtol=0, atol=1e-12)
        assert torch.linalg.matrix_rank(change) == 6  # rank sum, and no more
    gradients = dense_gradients(make_model().double(), changes)
    for name, layer in linear_layers(adapted):
        assert layer.lora_A["default"].weight.grad is None
        close(layer.lora_A["stage_2"].weight.grad, 2.0 * second[name].lora_b.mT @ gradients[name])
        close(layer.lora_B["stage_2"].weight.grad, 2.0 * gradients[name] @ second[name].lora_a.mT)


def test_zero_a_starts_without_update_and_moves_a_first(make_model):
    adapted = lora_model(make_model().double())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, layer in linear_layers(adapted):
            start_with_zero_a(
                layer.lora_A["default"].weight, layer.lora_B["default"].weight, generator
            )
    base = value_of(make_model().double())
    assert value_of(adapted) == base
    loss_of(adapted).backward()
    for _, layer in linear_layers(adapted):
        assert not layer.lora_B["default"].weight.grad.any()
        assert layer.lora_A["default"].weight.grad.any()


def test_the_random_factor_of_zero_a_has_the_variance_it_says():
    lora_b = torch.empty(4000, 8)
    start_with_zero_a(torch.ones(8, 5), lora_b, torch.Generator().manual_seed(0))
    assert float(lora_b.var()) == pytest.approx(1 / 24, rel=0.03)  # 32,000 draws


def test_adalora_becomes_the_lora_that_peft_would_merge(make_model, tmp_path):
    config = AdaLoraConfig(
        init_r=5, target_r=3, total_step=9, lora_alpha=7, target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(make_model(), config)
    fill(adapted)
    layers = dict(linear_layers(adapted))
    with torch.no_grad():
        for number, layer in enumerate(layers.values()):
            layer.lora_E["default"][number:] = 0.0  # 0, 1, 2, 3 directions are left
    found = plain_factors(adapted)
    assert [f.lora_b.shape[1] for f in found.values()] == [1, 1, 2, 3]
    for name, layer in layers.items():
        expected = layer.get_delta_weight("default").detach()
        change = found[name].scaling * found[name].lora_b @ found[name].lora_a
        atol = 8 * torch.finfo(torch.float32).eps * float(expected.abs().max())
        torch.testing.assert_close(change, expected, rtol=0, atol=atol)
    write_factors(tmp_path, found, config, "tiny")
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    assert value_of(loaded) == pytest.approx(value_of(adapted.eval()), rel=1e-5)


def test_gradients_of_adalora_values_are_the_closed_form(make_model):
    config = AdaLoraConfig(
        init_r=3, target_r=2, total_step=9, lora_alpha=6, target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(make_model().double(), config, autocast_adapter_dtype=False).double()
    freeze_rank_numbers(adapted)
    fill(adapted)
    loss_of(adapted).backward()
    layers = dict(linear_layers(adapted))
    changes = {n: layer.get_delta_weight("default").detach() for n, layer in layers.items()}
    gradients = dense_gradients(make_model().double(), changes)
    factor = 6 / (3 + 1e-5)
    for name, layer in layers.items():
        lora_b, lora_a = layer.lora_B["default"].detach(), layer.lora_A["default"].detach()
        expected = factor * torch.einsum("mr,mn,rn->r", lora_b, gradients[name], lora_a)
        close(layer.lora_E["default"].grad.flatten(), expected)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_conversion_of_a_changed_base_is_pefts_own(make_model, tmp_path, rng, init, use_rslora):
    recipe = make_recipe(
        "clm", steps=1, learning_rate=1e-3, batch_size=1, max_length=8, r=3, lora_alpha=6,
        init=init, use_rslora=use_rslora,
    )  # fmt: skip
    model = make_model()
    adapted = lora_model(model, use_rslora=use_rslora)
    method = Started(recipe)
    trainer = SimpleNamespace(model=adapted, accelerator=SimpleNamespace(num_processes=1))
    with method.restored():
        method.prepare(trainer)
        (tmp_path / "all").mkdir()
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "all" / "initial")
        base = value_of(make_model())
        assert value_of(adapted.eval()) == pytest.approx(base, rel=1e-5)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
        trained = value_of(adapted)
        method.save(adapted, tmp_path, "tiny")
        adapted.save_pretrained(
            tmp_path / "theirs",
            path_initial_model_for_weight_conversion=str(tmp_path / "all" / "initial"),
        )
    assert abs(trained - base) > 1e-3
    ours = load_file(tmp_path / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert load_adapter(tmp_path).updates["model.layers.0.mlp.down_proj"].rank == 6
    loaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    assert value_of(loaded) == pytest.approx(trained, rel=1e-5)
    fresh = make_model().state_dict()
    given = adapted.get_base_model().state_dict()
    own = {key.replace(".base_layer", ""): value for key, value in given.items()}
    assert all(torch.equal(own[key], value) for key, value in fresh.items())


shapes = st.tuples(*(st.integers(1, 9) for _ in range(3)))


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 9), st.sampled_from([1e-6, 1.0, 1e5]), st.integers(0, 2**31))
def test_a_truncation_misses_what_the_spectrum_says(shape, keep, size, seed):
    m, n, r = shape
    generator = torch.Generator().manual_seed(seed)
    lora_b = size * torch.randn(m, r, generator=generator, dtype=torch.float64)
    lora_a = torch.randn(r, n, generator=generator, dtype=torch.float64)
    factors, dense = Factors(lora_b, lora_a, 0.7), 0.7 * lora_b @ lora_a
    cut = truncate_factors(factors, keep)
    sigma = torch.linalg.svdvals(dense)
    assert cut.lora_b.shape[1] == min(keep, m, n, r)
    missed = torch.linalg.vector_norm(dense - cut.scaling * cut.lora_b @ cut.lora_a)
    assert abs(float(missed - sigma[keep:].norm())) <= 1e-12 * float(sigma[0])
    gram = cut.lora_b.mT @ cut.lora_b - cut.lora_a @ cut.lora_a.mT
    assert float(gram.abs().max()) <= 1e-12 * float(sigma[0])  # balanced


def test_ranks_kept_by_a_threshold():
    spectra = {
        "a": torch.tensor([10.0, 5.0, 1.0, 0.99]),
        "b": torch.tensor([1.0, 0.5, 0.05]),
        "zero": torch.zeros(3),
    }
    own = kept_ranks(spectra, DynamicSettings(threshold=0.1))
    assert own == {"a": 2, "b": 2, "zero": 3}  # 1.0 is exactly at the threshold and goes
    shared = kept_ranks(spectra, DynamicSettings(threshold=0.1, relative_to="model"))
    assert shared == {"a": 2, "b": 1, "zero": 3}  # never below 1
    assert kept_ranks(spectra, DynamicSettings(threshold=0.0)) == {"a": 4, "b": 3, "zero": 3}


def test_the_density_falls_as_a_cubic_between_two_steps():
    schedule = SparseSettings(density=0.2, begin=0.25, end=0.75)
    found = [density_at(step, 8, schedule) for step in range(9)]
    expected = [0.2 + 0.8 * (1 - t) ** 3 for t in (0.25, 0.5, 0.75)]
    assert found == pytest.approx([1.0, 1.0, 1.0, *expected, 0.2, 0.2, 0.2])
    late = SparseSettings(density=0.2, begin=1.0, end=1.0)
    assert [density_at(step, 4, late) for step in range(5)] == [1.0, 1.0, 1.0, 1.0, 0.2]
    at_once = SparseSettings(density=0.2, begin=0.5, end=0.5)
    assert [density_at(step, 4, at_once) for step in range(1, 5)] == [1.0, 0.2, 0.2, 0.2]


def test_stages_share_the_steps():
    assert stage_starts(7, 3) == [0, 2, 4]
    assert stage_starts(3, 3) == [0, 1, 2]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_written_folder_gives_every_module_its_rank_and_scaling(tmp_path, rng, use_rslora):
    """Also where one module's name ends with another's."""
    names = {"proj": 2, "layer.proj": 5, "layer.0.proj": 2, "layer.1.proj": 3}
    scaling = 1 / 3
    factors = {
        name: Factors(torch.randn(6, r, generator=rng), torch.randn(r, 4, generator=rng), scaling)
        for name, r in names.items()
    }
    config = LoraConfig(use_rslora=use_rslora, task_type="CAUSAL_LM")
    write_factors(tmp_path, factors, config, "tiny")
    updates = load_adapter(tmp_path).updates
    assert {name: update.rank for name, update in updates.items()} == names
    for name, update in updates.items():
        assert update.scaling == pytest.approx(scaling, rel=1e-15)
        assert torch.equal(update.lora_b, factors[name].lora_b)
        assert torch.equal(update.lora_a, factors[name].lora_a)
    path = tmp_path / "adapter_model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + 4 * sum(r * (6 + 4) for r in names.values())
    assert math.isclose(
        load_adapter(tmp_path).settings.alpha, scaling * (2**0.5 if use_rslora else 2)
    )
