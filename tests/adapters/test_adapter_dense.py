"""A dense update looks like any other: the same spectrum, the same product of its factors."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gonio.adapters import DenseUpdate, LoraUpdate, spectrum_table, with_factors
from gonio.errors import AdapterError

EPS = torch.finfo(torch.float64).eps


def dense(matrix: torch.Tensor, **settings) -> DenseUpdate:
    return DenseUpdate(
        "model.layers.2.mlp.up_proj", tuple(matrix.shape), lambda: matrix, **settings
    )


@given(
    m=st.integers(1, 8),
    n=st.integers(1, 8),
    kind=st.sampled_from(["random", "zero", "ones", "identity"]),
    exponent=st.sampled_from([-150, -20, 0, 20, 150]),
)
def test_a_dense_update_agrees_with_its_own_factors(m, n, kind, exponent):
    generator = torch.Generator().manual_seed(8 * m + n)
    matrix = {
        "random": torch.randn(m, n, generator=generator, dtype=torch.float64),
        "zero": torch.zeros(m, n, dtype=torch.float64),
        "ones": torch.ones(m, n, dtype=torch.float64),
        "identity": torch.eye(m, n, dtype=torch.float64),
    }[kind] * 10.0**exponent
    update = dense(matrix)
    assert torch.equal(update.lora_b @ update.lora_a, matrix)
    assert update.lora_b.shape == (m, update.rank)
    assert update.lora_a.shape == (update.rank, n)
    factored = with_factors(update, update.lora_b, update.lora_a)
    assert type(factored) is LoraUpdate
    sigma = update.singular_values()
    atol = 16 * (m + n) * EPS * float(sigma[0])
    torch.testing.assert_close(sigma, factored.singular_values(), rtol=0, atol=atol)
    u, values, vh = update.svd()
    torch.testing.assert_close(values, sigma, rtol=0, atol=atol)
    torch.testing.assert_close((u * values) @ vh, matrix, rtol=0, atol=atol)
    assert update.norm_bound() >= float(sigma.sum()) * (1 - 1e-12)
    assert update.frobenius_norm == pytest.approx(float(torch.linalg.norm(sigma)), rel=1e-12)


def test_fields_are_those_of_a_lora_update():
    update = dense(torch.ones(3, 2, dtype=torch.float64), module_kind="embedding")
    assert (update.kind, update.module_kind, update.kernel) == ("dense", "embedding", ())
    assert (update.layer, update.projection, update.scaling) == (2, "mlp.up_proj", 1.0)
    assert (update.shape, update.out_features, update.in_features) == ((3, 2), 3, 2)
    assert "up_proj" in repr(update)
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.module = "other"
    assert with_factors(update, torch.ones(3, 1), torch.ones(1, 2)).kind == "embedding"


def test_noise_of_a_difference_lies_below_the_floor(rng):
    """Subtracting equal weights that were rounded apart leaves no direction above the floor."""
    weight = torch.randn(40, 30, generator=rng, dtype=torch.float64)
    other = (weight * 3.0) / 3.0
    assert not torch.equal(weight, other)
    update = dense(other - weight, operand_norm=float(weight.norm()))
    assert float(update.singular_values()[0]) < update.noise_floor()
    assert float(dense(other - weight).singular_values()[0]) > dense(other - weight).noise_floor()


def test_nothing_is_kept_between_uses():
    calls = []

    def read() -> torch.Tensor:
        calls.append(1)
        return torch.ones(4, 3, dtype=torch.float64)

    update = DenseUpdate("q", (4, 3), read)
    assert update.shape == (4, 3)
    assert not calls
    update.svd(), update.singular_values(), update.frobenius_norm, update.noise_floor()
    assert len(calls) == 3
    assert not any(isinstance(value, torch.Tensor) for value in vars(update).values())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_entries_that_are_not_finite_are_refused(bad):
    matrix = torch.ones(3, 3, dtype=torch.float64)
    matrix[1, 2] = bad
    with pytest.raises(AdapterError, match="up_proj holds NaN or infinite"):
        dense(matrix).svd()
    assert dense(torch.full((3, 3), 1e308, dtype=torch.float64)).matrix().max() == 1e308


def test_tables_take_dense_updates(make_adapter, rng):
    matrix = torch.randn(12, 8, generator=rng, dtype=torch.float64)
    adapter = dataclasses.replace(make_adapter({}), updates={"up": dense(matrix)}, kind="full")
    row = spectrum_table(adapter, samples=2).iloc[0]
    sigma = torch.linalg.svdvals(matrix)
    assert row["spectral_norm"] == pytest.approx(float(sigma[0]), rel=1e-12)
    assert row["stable_rank"] == pytest.approx(float((sigma / sigma[0]).square().sum()), rel=1e-12)
    assert row["numerical_rank"] == 8
