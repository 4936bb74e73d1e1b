"""Choice of a rank: means, resampling, recommendations, Eckart-Young errors and bytes."""

import math

import numpy as np
import pytest
import torch

from gonio.adapters import LoraUpdate
from gonio.adapters.memory import parameter_gain, training_bytes
from gonio.adapters.rank_choice import (
    curve_table,
    eckart_young_table,
    rank_table,
    recommend_rank,
    resampled_means,
)
from gonio.adapters.resize import difference_norm, resize
from gonio.errors import SettingError, ShapeError
from gonio.linalg.curves import curve_values

RANKS = [1, 2, 4, 8, 16, 32]


def made_up(generator, *, spread=0.1, common=1.0, seeds=3, units=40):
    """Gains on a known curve; what units have in common is larger than what ranks differ by."""
    curve = curve_values("power", RANKS, 1.0, -0.8, 1.0)
    shared = common * generator.normal(size=(1, 1, units))
    own = spread * generator.normal(size=(len(RANKS), seeds, units))
    return curve[:, None, None] + shared + own


def test_units_are_resampled_together():
    """The means move together, their differences hardly: a mutant that draws per rank is told."""
    gains = made_up(np.random.default_rng(0))
    means = resampled_means(gains, resamples=400, seed=1)
    assert np.allclose(means.mean(axis=0), gains.mean(axis=(1, 2)), atol=0.05)
    differences = np.diff(means, axis=1).std(axis=0)
    assert (means.std(axis=0) > 0.1).all()
    assert (differences < 0.05).all()
    apart = np.stack(
        [resampled_means(gains, resamples=400, seed=i)[:, i] for i in range(len(RANKS))], axis=1
    )
    assert (np.diff(apart, axis=1).std(axis=0) > 0.1).all()


def test_the_interval_of_a_rank_is_that_of_scipy_for_one_seed():
    from gonio.linalg.resampling import bootstrap_interval

    gains = made_up(np.random.default_rng(1), seeds=1)
    means = resampled_means(gains, seed=0)
    table = rank_table(RANKS, gains, means)
    wanted = bootstrap_interval(gains[2, 0])
    row = table[table["rank"] == 4].iloc[0]
    assert row["gain"] == gains[2].mean()
    assert row["gain_low"] == pytest.approx(wanted.low, abs=0.06)
    assert row["gain_high"] == pytest.approx(wanted.high, abs=0.06)
    assert row["standard_error"] == pytest.approx(gains[2].std() / math.sqrt(40), rel=0.1)


def test_the_curve_of_noisy_gains_contains_its_own_parameters():
    gains = made_up(np.random.default_rng(2), common=0.0)
    means = resampled_means(gains)
    curves = curve_table(RANKS, rank_table(RANKS, gains, means), means).set_index("form")
    power = curves.loc["power"]
    assert power["limit_low"] < 1.0 < power["limit_high"]
    assert power["shape_low"] < 1.0 < power["shape_high"]
    assert power["limit_high"] - power["limit_low"] < 0.3
    assert list(curves["ranks"]) == [5, 6, 6]  # rank 1 has no logarithmic value
    assert math.isnan(curves.loc["log", "shape"])
    assert power["left_out_error"] < curves.loc["log", "left_out_error"]


def test_the_smallest_rank_within_the_tolerance_is_recommended():
    gains = made_up(np.random.default_rng(3), spread=0.01, common=0.0)
    means = resampled_means(gains)
    # 1 - 0.8 / r: 0.2, 0.6, 0.8, 0.9, 0.95, 0.975
    for tolerance, rank in ((0.0, 32), (0.05, 16), (0.1, 8), (0.2, 4), (0.9, 1)):
        found = recommend_rank(RANKS, gains, means, tolerance=tolerance)
        assert found.rank == rank
        assert found.low <= rank <= found.high
        assert sum(found.shares.values()) == pytest.approx(1.0)
    noisy = made_up(np.random.default_rng(3), spread=4.0, common=0.0, seeds=1)
    wide = recommend_rank(RANKS, noisy, resampled_means(noisy))
    assert wide.low < wide.high
    order = [5, 3, 1, 0, 2, 4]
    shuffled = recommend_rank([RANKS[i] for i in order], gains[order], means[:, order])
    assert shuffled == recommend_rank(RANKS, gains, means)


def test_where_nothing_is_gained_nothing_is_recommended():
    gains = -np.abs(made_up(np.random.default_rng(4)))
    found = recommend_rank(RANKS, gains, resampled_means(gains))
    assert (found.rank, found.low, found.nothing_gained) == (None, None, 1.0)
    single = np.ones((2, 1, 1))
    means = resampled_means(single)
    assert recommend_rank([1, 2], single, means).low is None
    assert rank_table([1, 2], single, means)["gain_low"].isna().all()


def update_of(shape, rank, rng, module="model.layers.0.q", scaling=0.5):
    m, n = shape
    return LoraUpdate(
        module,
        torch.randn(rank, n, generator=rng),
        torch.randn(m, rank, generator=rng),
        scaling,
        0,
        "q",
    )


def test_eckart_young_errors_are_those_of_dense_truncations(rng):
    """Not the plain sum of singular values, which the table holds to be told apart."""
    updates = [
        update_of((7, 5), 3, rng),
        update_of((1, 9), 4, rng, "b"),
        update_of((6, 6), 6, rng, "c", 2.0),
    ]
    table = eckart_young_table(updates).set_index("rank")
    assert list(table.index) == list(range(7))
    for rank in range(7):
        squared = plain = 0.0
        for update in updates:
            dense = update.scaling * update.lora_b.double() @ update.lora_a.double()
            left, sigma, right = torch.linalg.svd(dense, full_matrices=False)
            kept = (left[:, :rank] * sigma[:rank]) @ right[:rank]
            squared += float((dense - kept).norm() ** 2)
            plain += float(sigma[rank:].sum())
        assert table.loc[rank, "frobenius_error"] == pytest.approx(squared**0.5, abs=1e-5)
        assert table.loc[rank, "plain_sum"] == pytest.approx(plain, abs=1e-4)
        if rank:
            kept = {u.module: u for u in resize(updates, rank=rank).updates}
            lost = sum(difference_norm(u, kept.get(u.module)) ** 2 for u in updates)
            assert table.loc[rank, "frobenius_error"] == pytest.approx(lost**0.5, abs=1e-5)
    assert table.loc[0, "relative_error"] == 1.0
    assert table.loc[2, "plain_sum"] > 1.2 * table.loc[2, "frobenius_error"]
    assert table.loc[2, "parameters"] == 2 * 12 + 1 * 10 + 2 * 12
    zero = LoraUpdate("z", torch.zeros(2, 3), torch.zeros(4, 2), 1.0, None, "z")
    assert eckart_young_table([zero])["relative_error"].isna().all()


def test_bytes_by_hand():
    full = training_bytes(0, 1000)
    assert full.total == 1000 * (4 + 4 + 8)
    lora = training_bytes(
        1000, 10, frozen_dtype=torch.bfloat16, trained_dtype=torch.float32, optimizer="sgd"
    )
    assert (lora.weights, lora.gradients, lora.optimizer) == (2 * 1000 + 4 * 10, 40, 0)
    mixed = training_bytes(0, 10, trained_dtype=torch.bfloat16, has_master=True)
    assert mixed.total == 10 * (2 + 4 + 2 + 8)
    with pytest.raises(SettingError):
        training_bytes(-1, 1)
    with pytest.raises(SettingError, match="no optimizer"):
        training_bytes(1, 1, optimizer="lion")


def test_bytes_are_those_torch_holds_after_a_step():
    layer = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 7)).sum().backward()
    optimizer.step()
    states = [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    found = training_bytes(0, 40)
    assert sum(p.nbytes for p in layer.parameters()) == found.weights
    assert sum(p.grad.nbytes for p in layer.parameters()) == found.gradients
    assert sum(state.nbytes for state in states) == found.optimizer


def test_the_gain_of_a_square_matrix_is_fifty_not_a_hundred():
    assert parameter_gain((1000, 1000), 10) == 50.0
    with pytest.raises(SettingError):
        parameter_gain((10, 10), 0)


@pytest.mark.parametrize("shape", [(2, 3), (0, 1, 1)])
def test_other_arrays_are_refused(shape):
    with pytest.raises(ShapeError):
        resampled_means(np.zeros(shape))
    with pytest.raises(SettingError):
        resampled_means(np.full((1, 1, 1), np.nan))
    with pytest.raises(SettingError):
        recommend_rank([1], np.ones((1, 1, 1)), np.ones((3, 1)), tolerance=1.0)
