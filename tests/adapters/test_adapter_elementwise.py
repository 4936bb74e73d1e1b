"""TIES and DARE against PEFT's own functions on the same dense updates."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.adapters import Adapter, LoraSettings, LoraUpdate, elementwise
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.elementwise import dare_merge, disjoint_mean, ties_merge
from gonio.adapters.merge import merge
from gonio.errors import AdapterError, SettingError

FULL = 1 << 30


def dense(update):
    return update.scaling * update.lora_b.double() @ update.lora_a.double()


def merged(resized):
    return {update.module: dense(update) for update in resized.updates}


@pytest.fixture
def three(factors, make_adapter):
    """Different ranks, scalings and targets; the last module belongs to one adapter alone."""
    one = make_adapter({"layers.0.q": factors(9, 7, 2), "layers.0.v": factors(4, 11, 3)}, 2.0)
    two = make_adapter({"layers.0.q": factors(9, 7, 4), "layers.0.v": factors(4, 11, 1)}, -0.5)
    three = make_adapter({"layers.0.q": factors(9, 7, 1), "layers.1.q": factors(9, 7, 3)}, 1.5)
    return [one, two, three]


@pytest.mark.parametrize("block", [1, 20, 1 << 22], ids="block={}".format)
@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.77, 1.0])
def test_ties_is_peft_ties_on_the_updates(three, density, sign, block, monkeypatch):
    from peft.utils.merge_utils import ties

    monkeypatch.setattr(elementwise, "_BLOCK", block)
    weights = [1.0, 0.4, -2.0]
    found = merged(ties_merge(three, weights, density, FULL, majority_sign=sign))
    for module in ("layers.0.q", "layers.0.v", "layers.1.q"):
        terms = [
            (w, dense(a.updates[module]))
            for w, a in zip(weights, three, strict=True)
            if module in a.updates
        ]
        tensors = [d for _, d in terms]
        numbers = torch.tensor([w for w, _ in terms], dtype=torch.float64)
        if density == 1.0:
            with pytest.warns(UserWarning, match="no pruning"):
                expected = ties(tensors, numbers, density, sign)
        else:
            expected = ties(tensors, numbers, density, sign)
        torch.testing.assert_close(found[module], expected, rtol=0, atol=1e-12)
        assert not torch.allclose(found[module], expected * 1.001, rtol=0, atol=1e-12)


def test_merging_factors_instead_of_updates_is_another_thing(three):
    """PEFT's plain ``ties`` on A and B: the same tolerance rejects it."""
    from peft.utils.merge_utils import ties

    one, two = (a.updates["layers.0.q"] for a in three[:2])
    b, a = one.scaling * one.lora_b.double(), one.lora_a.double()
    other_b, other_a = two.scaling * two.lora_b[:, :2].double(), two.lora_a[:2].double()
    ones = torch.ones(2, dtype=torch.float64)
    by_factors = ties([b, other_b], ones, 0.5) @ ties([a, other_a], ones, 0.5)
    found = merged(ties_merge(three[:2], None, 0.5, FULL))["layers.0.q"]
    assert (found - by_factors).norm() > 0.1 * found.norm()


def test_a_module_of_one_adapter_is_its_own_trimmed_update(three):
    """An absent update is a zero one: it neither votes nor counts."""
    alone = merged(ties_merge(three, [1.0, 1.0, -2.0], 0.4, FULL))["layers.1.q"]
    update = dense(three[2].updates["layers.1.q"])
    limit = update.abs().flatten().sort(descending=True).values[int(0.4 * update.numel()) - 1]
    expected = torch.where(update.abs() >= limit, -2.0 * update, 0.0)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-12)
    zero = torch.zeros_like(update)
    with_zero = disjoint_mean([expected, zero, zero], [1.0, 1.0, 1.0])
    torch.testing.assert_close(with_zero, expected, rtol=0, atol=0)


def test_one_adapter_at_density_one_comes_back(three):
    found = ties_merge(three[:1], None, 1.0, FULL)
    for update in found.updates:
        source = three[0].updates[update.module]
        assert update.rank == source.rank  # not more: directions of rounding noise are no rank
        assert (dense(update) - dense(source)).norm() <= 1e-12 * dense(source).norm()


def test_the_kept_part_is_the_best_of_its_rank_and_the_loss_is_measured(three):
    whole = merged(ties_merge(three, None, 0.5, FULL))
    found = ties_merge(three, None, 0.5, 2)
    rows = found.table.set_index("module")
    for update in found.updates:
        sigma = torch.linalg.svdvals(whole[update.module])
        lost = (dense(update) - whole[update.module]).square().sum()
        row = rows.loc[update.module]
        assert update.rank == row["rank_after"] == 2
        assert lost == pytest.approx(float(sigma[2:].square().sum()), rel=1e-9)
        assert row["discarded_energy"] == pytest.approx(float(lost), rel=1e-9)
        assert row["energy"] == pytest.approx(float(sigma.square().sum()), rel=1e-12)
    assert rows.loc["layers.0.q", "rank_before"] == 7
    assert rows.loc["layers.0.q", "parameters_before"] == 7 * 16
    assert list(rows.columns) == list(_resize_columns())


def _resize_columns():
    yield from ["layer", "projection", "rank_before", "rank_after"]
    yield from ["parameters_before", "parameters_after", "energy", "discarded_energy"]


@pytest.mark.parametrize("then", ["linear", "ties"])
def test_dare_is_peft_dare_once_the_masks_are_the_same(three, then):
    """The masks are recovered from one adapter alone; PEFT's merge of those is ours."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    weights, density = [0.7, -1.3], 0.6
    pair = three[:2]
    found = merged(dare_merge(pair, weights, density, FULL, seed=5, then=then))["layers.0.q"]
    streams = [elementwise._stream(5, number, "layers.0.q") for number in range(2)]
    dropped = []
    for adapter, stream in zip(pair, streams, strict=True):
        update = dense(adapter.updates["layers.0.q"])
        mask = torch.rand(update.shape, generator=stream, dtype=torch.float64) < density
        dropped.append(update * mask / density)
    stack = torch.stack(dropped)
    weighted = stack * torch.tensor(weights, dtype=torch.float64)[:, None, None]
    if then == "linear":
        expected = weighted.sum(dim=0)
    else:
        expected = disjoint_merge(weighted, calculate_majority_sign_mask(stack))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_dare_keeps_the_weighted_sum_in_expectation(three):
    """Mean and energy of the noise over many seeds, against their closed forms."""
    weights, density, seeds = [1.0, -0.5], 0.5, 400
    exact = {u.module: dense(u) for u in merge(three[:2], weights)}["layers.0.q"]
    draws = torch.stack(
        [
            merged(dare_merge(three[:2], weights, density, FULL, seed=seed))["layers.0.q"]
            for seed in range(seeds)
        ]
    )
    noise = sum(
        w**2 * (1 - density) / density * dense(a.updates["layers.0.q"]).square()
        for w, a in zip(weights, three, strict=False)
    )
    z = (draws.mean(dim=0) - exact) / (noise / seeds).sqrt()
    assert z.abs().max() < 4.5  # 63 entries
    energy = (draws - exact).square().sum(dim=(1, 2))
    assert float(energy.mean()) == pytest.approx(float(noise.sum()), rel=0.1)
    assert not (0.9 * draws.mean(dim=0) - exact).abs().div((noise / seeds).sqrt()).max() < 4.5


def test_dare_draws_do_not_depend_on_order_blocks_or_other_modules(three, monkeypatch):
    first = merged(dare_merge(three, None, 0.5, FULL, seed=1))
    monkeypatch.setattr(elementwise, "_BLOCK", 8)
    updates = dict(reversed(three[0].updates.items()))
    again = type(three[0])(three[0].path, three[0].settings, updates)
    second = merged(dare_merge([again, *three[1:]], None, 0.5, FULL, seed=1))
    assert first.keys() == second.keys()
    for module, change in first.items():
        torch.testing.assert_close(second[module], change, rtol=0, atol=1e-12)
    other = merged(dare_merge(three, None, 0.5, FULL, seed=2))
    assert not torch.allclose(other["layers.0.q"], first["layers.0.q"])
    modules = [("layers.0.q", 0), ("layers.0.v", 0), ("layers.0.q", 1)]
    draws = [torch.rand(8, generator=elementwise._stream(1, n, m)) for m, n in modules]
    assert all(not torch.equal(one, two) for one, two in itertools.combinations(draws, 2))


def test_equal_magnitudes_at_the_limit_are_all_kept(make_adapter):
    ones = make_adapter({"m": (torch.ones(3, 1), torch.ones(1, 5))}, 1.0)
    found = ties_merge([ones], None, 0.5, 4)
    torch.testing.assert_close(merged(found)["m"], torch.ones(3, 5).double())


def test_a_merge_of_nothing_drops_the_module(make_adapter, factors):
    """A density below one entry, and updates that cancel exactly."""
    adapter = make_adapter({"m": factors(2, 3, 1)})
    found = ties_merge([adapter], None, 0.1, 4)
    assert found.updates == ()
    assert found.table["rank_after"].tolist() == [0]
    assert found.discarded_share == 0.0
    assert dare_merge([adapter, adapter], [1, -1], 1.0, 4, seed=0).updates == ()


@settings(max_examples=40)
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    ranks=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    density=st.floats(0.05, 1.0),
    exponent=st.sampled_from([-160, -30, 0, 30]),
    seed=st.integers(0, 2**31),
)
def test_awkward_shapes_and_scales(m, n, ranks, density, exponent, seed):
    """Sizes 1, ranks above both dimensions, tiny and huge entries; against a plain loop."""
    generator = torch.Generator().manual_seed(seed)
    adapters = [
        Adapter(
            Path("in-memory"),
            LoraSettings(rank=r, alpha=1.0),
            {
                "m": LoraUpdate(
                    "m",
                    torch.randn(r, n, generator=generator, dtype=torch.float64),
                    torch.randn(m, r, generator=generator, dtype=torch.float64) * 2.0**exponent,
                    1.0,
                    None,
                    "m",
                )
            },
        )
        for r in ranks
    ]
    found = merged(ties_merge(adapters, None, density, FULL)).get("m", torch.zeros(m, n).double())
    trimmed = []
    for adapter in adapters:
        update = dense(adapter.updates["m"])
        order = update.abs().flatten().argsort(descending=True)[: int(density * m * n)]
        keep = torch.zeros(m * n, dtype=torch.bool)
        keep[order] = True
        trimmed.append(torch.where(keep.view(m, n), update, 0.0))
    top = max(float(t.abs().max()) for t in trimmed)
    for i, j in itertools.product(range(m), range(n)):
        values = [float(t[i, j]) for t in trimmed]
        sign = 1.0 if math.fsum(values) >= 0 else -1.0
        agreeing = [v for v in values if v * sign > 0]
        expected = sum(agreeing) / max(1, len(agreeing))
        assert abs(float(found[i, j]) - expected) <= 1e-12 * top


def test_a_dense_update_is_merged_like_factors(three):
    """A change known as a whole matrix beside its own factors."""
    update = three[0].updates["layers.0.q"]
    whole = DenseUpdate("layers.0.q", update.shape, lambda: dense(update))
    other = Adapter(three[0].path, three[0].settings, {"layers.0.q": whole}, kind="full")
    for merge_them in (ties_merge, lambda *a: dare_merge(*a, seed=3, then="ties")):
        one = merged(merge_them([other, three[1]], [1.0, -1.0], 0.5, 3))["layers.0.q"]
        two = merged(merge_them(three[:2], [1.0, -1.0], 0.5, 3))["layers.0.q"]
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_bad_settings_are_refused(three, make_adapter, factors):
    for density in (0.0, 1.5, -0.1, math.nan):
        with pytest.raises(SettingError, match="density"):
            ties_merge(three, None, density, 2)
        with pytest.raises(SettingError, match="density"):
            dare_merge(three, None, density, 2, seed=0)
    with pytest.raises(SettingError, match="rank must be at least 1"):
        ties_merge(three, None, 0.5, 0)
    with pytest.raises(SettingError, match="majority_sign"):
        ties_merge(three, None, 0.5, 1, majority_sign="loudest")
    with pytest.raises(SettingError, match="then must be"):
        dare_merge(three, None, 0.5, 1, seed=0, then="average")
    with pytest.raises(SettingError, match="3 adapters need as many weights"):
        ties_merge(three, [1.0], 0.5, 1)
    with pytest.raises(AdapterError, match="different bases"):
        ties_merge([*three, make_adapter({"layers.0.q": factors(8, 7, 2)})], None, 0.5, 1)
