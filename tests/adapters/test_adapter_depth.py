"""The depth correlator: pairs against dense matrices, a planted decay, a null that stays one."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from scipy.stats import spearmanr

from gonio.adapters.decay import fit_decay
from gonio.adapters.depth import depth_correlator
from gonio.errors import AdapterError, SettingError

N, K = 300, 4


def frame(generator: torch.Generator, n: int = N, k: int = K) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q


def rotating(layers: int, length: float, seed: int) -> list[torch.Tensor]:
    """Frames whose mean squared cosine falls as exp(-d / length): an order-one autoregression."""
    generator = torch.Generator().manual_seed(seed)
    keep = math.exp(-0.5 / length) if length else 0.0
    frames = [frame(generator)]
    for _ in range(layers - 1):
        moved = keep * frames[-1] + math.sqrt(1 - keep**2) * frame(generator)
        frames.append(torch.linalg.qr(moved).Q)
    return frames


def adapter_of(make_adapter, frames, *, right=None, projection="self_attn.q_proj"):
    generator = torch.Generator().manual_seed(99)
    pairs = {}
    for layer, left in enumerate(frames):
        lora_a = frame(generator, 40).mT if right is None else right[layer].mT
        pairs[f"model.layers.{layer}.{projection}"] = (left, lora_a)
    return make_adapter(pairs)


@pytest.mark.parametrize("rank", [5, 9], ids=["factored", "full rank"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_equal_dense_matrices(side, rank, make_adapter):
    generator = torch.Generator().manual_seed(3)
    pairs = {}
    for layer in (2, 3, 7):
        lora_b = torch.randn(12, rank, generator=generator, dtype=torch.float64)
        lora_a = torch.randn(rank, 9, generator=generator, dtype=torch.float64)
        pairs[f"layers.{layer}.q"] = (lora_b * 0.6 ** torch.arange(rank), lora_a)
    found = depth_correlator(make_adapter(pairs, scaling=-3.0), side, permutations=9, resamples=9)
    dense = {name.split(".")[1]: -3.0 * b @ a for name, (b, a) in pairs.items()}
    assert found.pairs["distance"].tolist() == [1, 5, 4]
    for row in found.pairs.itertuples():
        one, other = dense[str(row.layer)], dense[str(row.other_layer)]
        bases = []
        for matrix, k in ((one, row.k), (other, row.other_k)):
            svd = torch.linalg.svd(matrix)
            assert k == round(float(svd.S.square().sum() / svd.S[0] ** 2))
            bases.append(svd.U[:, :k] if side == "left" else svd.Vh[:k].mT)
        overlap = float((bases[0].mT @ bases[1]).square().sum()) / min(row.k, row.other_k)
        chance = max(row.k, row.other_k) / (12 if side == "left" else 9)
        cosine = float((one * other).sum() / (one.norm() * other.norm()))
        assert row.overlap == pytest.approx(overlap, abs=1e-10)
        assert row.correlation == pytest.approx((overlap - chance) / (1 - chance), abs=1e-10)
        assert row.correlation != pytest.approx(overlap, abs=1e-10)
        assert row.cosine == pytest.approx(cosine, abs=1e-12)
        assert row.cosine_z_score == pytest.approx(cosine * math.sqrt(108), abs=1e-10)


@pytest.mark.parametrize("length", [1.5, 4.0])
def test_a_planted_decay_length_is_found(length, make_adapter):
    found = depth_correlator(adapter_of(make_adapter, rotating(30, length, seed=1)))
    row = found.decays.iloc[0]
    assert row["reason"] == ""
    assert row["decay_length"] == pytest.approx(length, rel=0.25)
    assert row["decay_low"] < length < row["decay_high"]
    assert row["decay_high"] < 2 * row["decay_low"]
    assert row["strength"] == pytest.approx(1.0, abs=0.15)
    assert row["nearest"] == pytest.approx(math.exp(-1 / length), abs=0.1)
    assert (row["nearest_p_value"], row["rank_p_value"]) == (1 / 2000, 1 / 2000)
    means = found.distances.set_index("distance")
    for distance in (1, 2, 3):
        expected = math.exp(-distance / length)
        assert means.loc[distance, "correlation"] == pytest.approx(expected, abs=0.1)
        assert means.loc[distance, "low"] < means.loc[distance, "correlation"]
    assert means.loc[1, "pairs"] == 29
    # The near miss: the other side of the same updates is random.
    other = depth_correlator(adapter_of(make_adapter, rotating(30, length, seed=1)), "right")
    assert other.decays["decay_length"].isna().all()


def test_shuffled_layers_have_no_decay(make_adapter):
    """The same updates in another order: the mean over all pairs stays, the decay does not."""
    frames = rotating(24, 3.0, seed=2)
    order = np.random.default_rng(0).permutation(24)
    plain = depth_correlator(adapter_of(make_adapter, frames))
    mixed = depth_correlator(adapter_of(make_adapter, [frames[i] for i in order]))
    row = mixed.decays.iloc[0]
    assert row["nearest_chance"] == pytest.approx(plain.decays["nearest_chance"].iloc[0])
    assert row["nearest_p_value"] > 0.01
    assert row["reason"].startswith("no decay seen")


def test_independent_updates_show_no_decay_and_uniform_p_values(make_adapter):
    """150 adapters of independent random updates, nine layers each."""
    p_values, seen = [], 0
    generator = torch.Generator().manual_seed(11)
    for _ in range(150):
        bases = [frame(generator, 24, 2) for _ in range(9)]
        square = np.zeros((9, 9))
        for i, one in enumerate(bases):
            for j, other in enumerate(bases):
                square[i, j] = (float((one.mT @ other).square().sum()) / 2 - 2 / 24) / (1 - 2 / 24)
        row = fit_decay(square, np.arange(9.0), 99, 199, seed=len(p_values))
        p_values.append((row["nearest_p_value"], row["rank_p_value"]))
        seen += row["reason"] == ""
        assert math.isnan(row["decay_length"]) == (row["reason"] != "")
    means = np.mean(p_values, axis=0)
    assert means == pytest.approx([0.5, 0.5], abs=4 * 0.289 / math.sqrt(150))
    for column in np.transpose(p_values):
        assert 1 <= (column <= 0.1).sum() <= 30  # 15 expected, deviation 3.7
    assert seen <= 8


def test_the_fit_and_the_rank_correlation_equal_scipy(make_adapter):
    found = depth_correlator(adapter_of(make_adapter, rotating(16, 3.0, seed=4)))
    pairs, row = found.pairs, found.decays.iloc[0]
    best, _ = curve_fit(
        lambda d, c, x: c * np.exp(-d / x), pairs["distance"], pairs["correlation"], p0=(1.0, 2.0)
    )
    assert (row["strength"], row["decay_length"]) == pytest.approx(tuple(best), rel=1e-4)
    expected = spearmanr(pairs["distance"], pairs["correlation"]).statistic
    assert row["rank_correlation"] == pytest.approx(expected, abs=1e-10)
    nearest = pairs.query("distance == 1")["correlation"].mean()
    assert row["nearest"] == pytest.approx(nearest, abs=1e-12)


def test_layers_that_are_all_alike_have_no_decay(make_adapter):
    one = rotating(1, 1.0, seed=5)[0]
    row = depth_correlator(adapter_of(make_adapter, [one] * 12)).decays.iloc[0]
    assert row["reason"].startswith("no decay seen")
    assert row["nearest"] == pytest.approx(1.0)
    assert row["nearest_p_value"] == 1.0


def test_projections_are_kept_apart_and_averaged(make_adapter):
    near, far = rotating(8, 5.0, seed=6), rotating(8, 0.0, seed=7)
    adapter = make_adapter(
        {f"layers.{i}.a": (u, frame(torch.Generator().manual_seed(i), 30).mT)
         for i, u in enumerate(near)}
        | {f"layers.{i}.b": (u[:200], frame(torch.Generator().manual_seed(50 + i), 20).mT)
           for i, u in enumerate(far)}
    )  # fmt: skip
    found = depth_correlator(adapter)
    assert found.decays["projection"].tolist() == ["a", "b", "all"]
    first = found.distances.query("distance == 1").set_index("projection")["correlation"]
    assert first["all"] == pytest.approx((first["a"] + first["b"]) / 2)
    again = depth_correlator(adapter)
    assert found.decays.equals(again.decays)
    assert found.distances.equals(again.distances)
    other = depth_correlator(adapter, seed=1)
    assert not found.distances["low"].equals(other.distances["low"])


def test_what_is_left_out_is_said(make_adapter):
    generator = torch.Generator().manual_seed(8)

    def pair(m=20, n=10):
        return frame(generator, m, 2), frame(generator, n, 2).mT

    zero = (0 * pair()[0], pair()[1])
    adapter = make_adapter(
        {f"layers.{i}.q": pair() for i in range(4)}
        | {"layers.4.q": zero, "layers.5.q": pair(22), "lm_head": pair()}
        | {f"layers.{i}.v": pair() for i in range(2)}
        | {f"layers.0.experts.{i}.up": pair() for i in range(2)}
    )
    found = depth_correlator(adapter)
    assert found.decays["projection"].tolist() == ["q"]
    why = dict(found.left_out)
    assert why["lm_head"] == "outside the layers"
    assert "zero update" in why["layers.4.q"]
    assert "shape (22, 10) beside (20, 10)" in why["layers.5.q"]
    assert why["v"] == "needs at least 3 layers, found 2"
    assert "changed 2 times in its layer" in why["layers.0.experts.1.up"]


def test_too_few_layers_and_bad_settings_are_refused(make_adapter):
    adapter = adapter_of(make_adapter, rotating(1, 1.0, seed=9))
    with pytest.raises(AdapterError, match="needs at least 3 layers"):
        depth_correlator(adapter)
    with pytest.raises(SettingError, match="expected left or right"):
        depth_correlator(adapter, "up")
    with pytest.raises(SettingError, match="at least 1"):
        depth_correlator(adapter, largest_k=0)
    cap = depth_correlator(adapter_of(make_adapter, rotating(4, 1.0, seed=9)), largest_k=2)
    assert cap.pairs["k"].max() == 2
