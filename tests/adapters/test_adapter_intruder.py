"""Intruder dimensions against two dense SVDs, planted ones, and a calibrated null."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.adapters.intruder import _Base, _turned, intruder_table
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError, SettingError

Q0 = "model.layers.0.self_attn.q_proj"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense_cosines(weight: torch.Tensor, change: torch.Tensor, k: int) -> torch.Tensor:
    """The definition: two thin SVDs, as PEFT's reduce_intruder_dimension takes them."""
    base = torch.linalg.svd(weight, full_matrices=False)
    kept = 1e-6 * base.S[0] < base.S
    tuned = torch.linalg.svd(weight + change, full_matrices=False).U[:, :k]
    return (base.U[:, kept].mT @ tuned).abs().amax(dim=0)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    r=st.integers(1, 4),
    scale=st.sampled_from([1e-3, 0.3, 10.0]),
    seed=st.integers(0, 10**6),
)
def test_cosines_equal_those_of_dense_decompositions(m, n, r, scale, seed):
    lora_b, lora_a = scale * normal(m, r, seed=seed), normal(r, n, seed=seed + 1)
    weight = normal(m, n, seed=seed + 2)
    update = LoraUpdate(Q0, lora_a, lora_b, 1.0, 0, "self_attn.q_proj")
    k = min(m, n, 3)
    base = _Base(update, weight)
    found = base.largest_cosines(lora_b, lora_a, k).sort().values
    expected = dense_cosines(weight, lora_b @ lora_a, k)
    # Vectors of nearly equal values turn with rounding: 1e-16 over the gaps of random matrices.
    torch.testing.assert_close(found, expected.sort().values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)], ids=str)
def test_a_planted_intruder_is_counted(shape, make_adapter, weight_source):
    """A large random direction is no singular vector of the base; a rescaled one of its own is."""
    m, n = shape
    weight = normal(m, n)
    base = torch.linalg.svd(weight, full_matrices=False)
    top = float(base.S[0])
    own = (base.U[:, 3:4] * 3 * top, base.Vh[3:4])
    stray = (normal(m, 1, seed=1), normal(1, n, seed=2))
    stray = (stray[0] / stray[0].norm() * 3 * top, stray[1] / stray[1].norm())
    adapter = make_adapter({"layers.0.own": own, "layers.1.stray": stray}, scaling=1.0)
    weights = weight_source({"layers.0.own.weight": weight, "layers.1.stray.weight": weight})
    found = intruder_table(adapter, weights, k=1, threshold=0.6, draws=5).modules
    assert found["intruders"].tolist() == [0, 1]
    assert found["least_cosine"].iloc[0] == pytest.approx(1.0, abs=1e-6)
    # Any random update of this size brings an intruder: the stray one is what chance gives.
    assert found["chance"].tolist() == [1.0, 1.0]
    assert found["p_value"].tolist() == [1.0, 1.0]


def test_the_null_is_calibrated(make_adapter, weight_source):
    """P-values of updates drawn from the null itself are no smaller than uniform ones."""
    weight = normal(30, 20)
    names = [f"layers.{i}.q" for i in range(60)]
    generator = torch.Generator().manual_seed(1)
    sigma = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    adapter = make_adapter({name: _turned(sigma, (30, 20), generator) for name in names}, 1.0)
    found = intruder_table(
        adapter, weight_source({f"{n}.weight": weight for n in names}), k=6, draws=19
    ).modules
    # 3 of 60 expected at 0.05; 9 or more happen once in 400.
    assert (found["p_value"] <= 0.05).sum() <= 8
    difference = found["intruders"] - found["chance"]
    assert abs(difference.mean()) < 4 * difference.std() / 60**0.5


def test_the_null_keeps_the_spectrum_and_the_seed():
    sigma = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    left, right = _turned(sigma, (9, 7), torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.svdvals(left @ right)[:3], sigma)
    again = _turned(sigma, (9, 7), torch.Generator().manual_seed(0))
    other = _turned(sigma, (9, 7), torch.Generator().manual_seed(1))
    assert torch.equal(left @ right, again[0] @ again[1])
    assert not torch.allclose(left @ right, other[0] @ other[1])


def test_a_base_of_low_rank_has_fewer_vectors():
    """The arbitrary left vectors of zero values do not hide an intruder."""
    weight = normal(10, 2) @ normal(2, 8, seed=1)
    lora_b, lora_a = 100 * normal(10, 1, seed=2), normal(1, 8, seed=3)
    base = _Base(LoraUpdate(Q0, lora_a, lora_b, 1.0, 0, "q"), weight)
    assert base.left.shape == (10, 2)
    expected = dense_cosines(weight, lora_b @ lora_a, 1)
    torch.testing.assert_close(base.largest_cosines(lora_b, lora_a, 1), expected)


def test_zero_updates_and_bad_input_are_said(make_adapter, weight_source):
    pair = normal(6, 2), normal(2, 5, seed=1)
    adapter = make_adapter({"a": pair, "b": (0 * pair[0], pair[1])})
    weights = weight_source({"a.weight": normal(6, 5), "b.weight": normal(6, 5)})
    found = intruder_table(adapter, weights, draws=2)
    assert found.modules["k"].tolist() == [5]  # no more than min(m, n)
    assert found.left_out == (("b", "zero update"),)
    with pytest.raises(AdapterError, match=r"every update of .* is zero"):
        intruder_table(make_adapter({"b": (0 * pair[0], pair[1])}), weights)
    with pytest.raises(AdapterError, match="base weight of a is zero"):
        intruder_table(make_adapter({"a": pair}), weight_source({"a.weight": torch.zeros(6, 5)}))
    for bad in ({"k": 0}, {"draws": 0}, {"threshold": 1.0}):
        with pytest.raises(SettingError, match="expected k >= 1"):
            intruder_table(adapter, weights, **bad)
