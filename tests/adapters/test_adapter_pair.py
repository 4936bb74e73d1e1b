"""Two adapters: angles against SciPy, the cosine against the dense product, nulls by simulation."""

import math

import pytest
import torch
from scipy.linalg import subspace_angles

from gonio.adapters import compare_adapters
from gonio.adapters.pair import random_smallest_angle
from gonio.errors import AdapterError, SettingError

Q0 = "model.layers.0.self_attn.q_proj"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(m: int, n: int, r: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(m, r, seed=seed), normal(r, n, seed=seed + 1)


@pytest.mark.parametrize("shape", [(30, 20, 6, 4), (20, 30, 3, 5), (9, 9, 1, 2)], ids=str)
def test_everything_equals_the_dense_route(shape, make_adapter):
    m, n, r, s = shape
    one, two = pair(m, n, r), pair(m, n, s, seed=5)
    two = two[0] + 0.5 * one[0].sum(1, keepdim=True), two[1]
    found = compare_adapters(
        make_adapter({Q0: one}, scaling=-2.0), make_adapter({Q0: two}, scaling=0.5), ks=(1, 2, 50)
    )
    dense = -2.0 * one[0] @ one[1], 0.5 * two[0] @ two[1]
    svds = [torch.linalg.svd(d) for d in dense]
    rank = min(r, s)
    for row in found.overlaps.itertuples():
        bases = [(d.U if row.side == "left" else d.Vh.mT)[:, : row.k] for d in svds]
        angles = subspace_angles(*(basis.numpy() for basis in bases))
        assert row.smallest_angle == pytest.approx(angles.min(), abs=1e-7)
        assert row.smallest_angle != pytest.approx(angles.min() * 1.01, abs=1e-7)
        assert row.overlap == pytest.approx(float((torch.from_numpy(angles).cos() ** 2).mean()))
        assert row.chance == row.k / (m if row.side == "left" else n)
    assert set(found.overlaps.query("k_from == 'numerical_rank'")["k"]) == {rank}
    cosine = float((dense[0] * dense[1]).sum() / (dense[0].norm() * dense[1].norm()))
    row = found.cosines.iloc[0]
    assert row["cosine"] == pytest.approx(cosine, abs=1e-12)
    assert row["z_score"] == pytest.approx(cosine * math.sqrt(m * n), abs=1e-9)
    assert row["frobenius_norm_first"] == pytest.approx(float(dense[0].norm()))
    assert (Q0, f"k = 50 exceeds the smaller numerical rank {rank}") in found.left_out


def test_an_adapter_beside_itself(make_adapter):
    adapter = make_adapter({Q0: pair(20, 16, 4)})
    found = compare_adapters(adapter, adapter)
    assert found.overlaps["overlap"].tolist() == pytest.approx([1.0] * 2)
    assert found.overlaps["smallest_angle"].max() < 1e-7
    assert found.cosines["cosine"].tolist() == pytest.approx([1.0])
    flipped = compare_adapters(adapter, make_adapter({Q0: pair(20, 16, 4)}, scaling=-1.0))
    assert flipped.cosines["cosine"].tolist() == pytest.approx([-1.0])


def test_independent_updates_have_standard_z_scores(make_adapter):
    names = [f"layers.{i}.q" for i in range(300)]
    first = make_adapter({name: pair(24, 18, 4, seed=4 * i) for i, name in enumerate(names)})
    second = make_adapter({name: pair(24, 18, 4, seed=4 * i + 2) for i, name in enumerate(names)})
    found = compare_adapters(first, second, ks=(3,))
    assert abs(found.cosines["z_score"].mean()) < 4 / math.sqrt(300)
    assert abs(found.cosines["z_score"].std() - 1) < 0.3
    for _, group in found.overlaps.groupby(["side", "k"]):
        assert abs(group["z_score"].mean()) < 4 / math.sqrt(300)
        assert abs(group["z_score"].std() - 1) < 0.3
        mean, chance = group["smallest_angle"].mean(), group["smallest_angle_chance"].iloc[0]
        error = 4 * group["smallest_angle"].std() * math.sqrt(1 / 300 + 1 / 500)
        assert abs(mean - chance) < error
        assert abs(mean - chance * 1.1) > error


@pytest.mark.parametrize(("k", "other", "n"), [(1, 1, 8), (3, 2, 7), (4, 4, 8), (2, 5, 30)])
def test_the_chance_of_the_smallest_angle(k, other, n):
    """Against frames drawn outright and SciPy-free cosines, within four standard errors."""
    draws = 3000
    frames = torch.linalg.qr(normal(draws, n, other, seed=9)).Q
    angles = torch.linalg.svdvals(frames[:, :k])[:, 0].clamp(max=1).acos()
    error = 4 * float(angles.std()) * math.sqrt(2 / draws)
    found = random_smallest_angle(k, other, n, samples=draws, seed=1)
    assert abs(found - float(angles.mean())) < error
    assert abs(found * 1.1 - float(angles.mean())) > error


def test_subspaces_that_must_meet_have_angle_zero():
    assert random_smallest_angle(3, 3, 5) == 0.0


def test_modules_of_one_side_are_named(make_adapter):
    first = make_adapter({"a": pair(6, 5, 2), "b": pair(6, 5, 2)})
    second = make_adapter({"b": pair(6, 5, 2, seed=3), "c": pair(6, 5, 2)})
    found = compare_adapters(first, second, ks=(1,))
    assert (found.only_first, found.only_second) == (("a",), ("c",))
    assert set(found.overlaps["module"]) == {"b"}
    with pytest.raises(AdapterError, match="no module is changed by both"):
        compare_adapters(make_adapter({"a": pair(6, 5, 2)}), make_adapter({"c": pair(6, 5, 2)}))


def test_shapes_must_agree(make_adapter):
    with pytest.raises(AdapterError, match=r"\(6, 5\) in .*, \(5, 6\) in"):
        compare_adapters(make_adapter({"a": pair(6, 5, 2)}), make_adapter({"a": pair(5, 6, 2)}))


def test_zero_updates_are_left_out(make_adapter):
    lora_b, lora_a = pair(6, 5, 2)
    some = make_adapter({"a": (lora_b, lora_a), "b": (lora_b, lora_a)})
    half = make_adapter({"a": (lora_b, lora_a), "b": (0 * lora_b, lora_a)})
    found = compare_adapters(some, half, ks=(1,))
    assert found.left_out == (("b", "zero update"),)
    with pytest.raises(AdapterError, match="nothing to compare"):
        compare_adapters(some, make_adapter({"b": (0 * lora_b, lora_a)}))


def test_bad_ks_are_refused(make_adapter):
    adapter = make_adapter({"a": pair(6, 5, 2)})
    with pytest.raises(SettingError, match="at least 1"):
        compare_adapters(adapter, adapter, ks=(0,))
