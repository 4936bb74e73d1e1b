"""The spectrum from the factors is the spectrum of the product, beside a null that holds."""

import math
from dataclasses import replace

import pytest
import torch

from gonio.adapters import DenseUpdate, load_adapter, random_lora, spectrum_table
from gonio.adapters.batches import spectra_of
from gonio.adapters.measure import numerical_rank_of, singular_value_table
from gonio.errors import AdapterError
from gonio.linalg.spectrum import (
    effective_rank,
    energy_rank,
    frobenius_norm,
    spectral_norm,
    spectral_tolerance,
    stable_rank,
)

Q = "model.layers.{}.self_attn.q_proj"
SHAPES = [(1, 1, 1), (7, 5, 3), (5, 7, 5), (3, 9, 8), (96, 64, 8), (64, 96, 1)]


def dense_row(product: torch.Tensor) -> dict[str, float]:
    """The same quantities, spelled out on the dense product by another route (eigenvalues)."""
    energy = torch.linalg.eigvalsh(product.mT @ product).flip(0).clamp(min=0)
    shares = torch.linalg.svdvals(product) / torch.linalg.svdvals(product).sum()
    held = energy.cumsum(0) / energy.sum()
    shares = shares[shares > 0]
    return {
        "frobenius_norm": float(product.square().sum().sqrt()),
        "spectral_norm": float(energy[0].sqrt()),
        "stable_rank": float(product.square().sum() / energy[0]),
        "effective_rank": math.exp(-float((shares * shares.log()).sum())),
        "k90": float((held < 0.9 - 1e-12).sum() + 1),
        "k99": float((held < 0.99 - 1e-12).sum() + 1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_table_equals_the_dense_product(shape, dtype, factors, make_adapter):
    """Factored and dense agree to 1e-6 relative; values off by 0.1% do not pass."""
    m, n, r = shape
    lora_b, lora_a = factors(m, n, r, dtype)
    table = spectrum_table(make_adapter({Q.format(3): (lora_b, lora_a)}, scaling=-0.5), samples=20)
    row = table.iloc[0]
    expected = dense_row(-0.5 * lora_b.double() @ lora_a.double())
    for name, value in expected.items():
        # The eigenvalue route squares the rounding: sqrt(eps64) is 1.5e-8, so 1e-6 is ample.
        assert row[name] == pytest.approx(value, rel=1e-6), name
        assert row[name] != pytest.approx(value * 1.001, rel=1e-6), name
    assert row["numerical_rank"] == min(shape)
    assert (row["out_features"], row["in_features"], row["rank"]) == shape
    assert (row["layer"], row["projection"]) == (3, "self_attn.q_proj")


def test_singular_values_reach_machine_precision(factors, make_adapter):
    lora_b, lora_a = factors(96, 64, 8)
    update = make_adapter({"x": (lora_b, lora_a)}, scaling=3.0).updates["x"]
    dense = torch.linalg.svdvals(3.0 * lora_b.double() @ lora_a.double())[:8]
    atol = spectral_tolerance(dense[0], 160, torch.float64)
    torch.testing.assert_close(update.singular_values(), dense, rtol=0, atol=atol)


def test_a_lost_direction_lowers_the_numerical_rank(factors, make_adapter):
    """A direction below float32 noise is not counted; one above it is."""
    lora_b, lora_a = (factor.double() for factor in factors(40, 30, 3))
    lora_b, lora_a = torch.linalg.qr(lora_b).Q, torch.linalg.qr(lora_a.mT).Q.mT
    noise = 40 * torch.finfo(torch.float32).eps
    for factor, rank in ((0.5, 2), (2.0, 3)):
        scaled = lora_b * torch.tensor([1.0, 0.5, factor * noise], dtype=torch.float64)
        table = spectrum_table(make_adapter({"x": (scaled, lora_a)}), samples=10)
        assert table["numerical_rank"].tolist() == [rank]


def test_zero_updates_are_nan_and_said(factors, make_adapter):
    lora_b, lora_a = factors(6, 5, 2)
    table = spectrum_table(
        make_adapter({Q.format(0): (lora_b, lora_a), Q.format(1): (0 * lora_b, lora_a)}), samples=10
    )
    zero = table.iloc[1]
    assert zero["frobenius_norm"] == zero["spectral_norm"] == zero["numerical_rank"] == 0
    assert zero[["stable_rank", "effective_rank", "k90", "k99"]].isna().all()
    assert table.iloc[0][["stable_rank", "effective_rank", "k90", "k99"]].notna().all()


CANCELLING = {
    "two ones": (torch.tensor([[1.0, -1.0]]).expand(5, 2), torch.ones(2, 7)),
    "thirds": (torch.tensor([[1 / 3, -1 / 3]]).expand(9, 2), torch.full((2, 4), 0.1)),
    "wide rank": (torch.tensor([[1.0, -1.0] * 20]).expand(3, 40), torch.full((40, 2), 0.7)),
}


@pytest.mark.parametrize("name", CANCELLING)
def test_factors_that_cancel_are_a_zero_update(name, factors, make_adapter):
    """Rounding noise of B A = 0 is no rank; what a change of 2^-20 leaves of it is rank one."""
    lora_b, lora_a = CANCELLING[name]
    near = lora_b.clone()
    near[:, 0] *= 1 + 2**-20
    adapter = make_adapter({"zero": (lora_b, lora_a), "near": (near, lora_a)}, scaling=-3.0)
    assert not bool((lora_b @ lora_a).any())
    zero, one = (row for _, row in spectrum_table(adapter, samples=10).iterrows())
    assert zero["frobenius_norm"] == zero["spectral_norm"] == zero["numerical_rank"] == 0
    assert zero[["stable_rank", "effective_rank", "k90", "k99"]].isna().all()
    assert one["numerical_rank"] == 1
    assert one["stable_rank"] == pytest.approx(1, abs=1e-6)
    dense = float((3 * near.double() @ lora_a.double()).norm())
    assert one["frobenius_norm"] == pytest.approx(dense, abs=adapter.updates["near"].noise_floor())


def test_a_direction_zero_in_one_factor_hides_no_other(factors, make_adapter):
    """|B|_F |A|_F would call this update noise; a column counts with its own row only."""
    lora_b, lora_a = (factor.double() for factor in factors(6, 5, 3))
    lora_b[:, 0], lora_a[0] = 1e300, 0.0
    update = make_adapter({"x": (lora_b, lora_a)}).updates["x"]
    table = spectrum_table(make_adapter({"x": (lora_b, lora_a)}), samples=10)
    assert table["numerical_rank"].tolist() == [2]
    nuclear = float(update.singular_values().sum())
    assert nuclear <= update.norm_bound() < 100 * nuclear


def test_an_adapter_saved_before_training_is_refused(write_adapter, factors):
    lora_b, lora_a = factors(6, 5, 4)
    folder = write_adapter({"model.layers.0.q_proj": (0 * lora_b, lora_a)})
    with pytest.raises(AdapterError, match=r"all 1 updates of .* are zero"):
        spectrum_table(load_adapter(folder))


def test_scaling_moves_norms_and_nothing_else(factors, make_adapter):
    pair = {"x": factors(20, 30, 4)}
    one = spectrum_table(make_adapter(pair, scaling=1.0), samples=10).iloc[0]
    four = spectrum_table(make_adapter(pair, scaling=4.0), samples=10).iloc[0]
    assert four["spectral_norm"] == pytest.approx(4 * one["spectral_norm"], rel=1e-14)
    for name in ("stable_rank", "effective_rank", "k90", "k99", "numerical_rank"):
        assert four[name] == pytest.approx(one[name], rel=1e-14), name


def test_the_null_is_that_of_gaussian_products(rng):
    """Means against products drawn and decomposed outright, within four standard errors."""
    m, n, r, draws = 24, 16, 4, 2000
    left = torch.randn(draws, m, r, generator=rng, dtype=torch.float64)
    right = torch.randn(draws, r, n, generator=rng, dtype=torch.float64)
    energy = torch.linalg.svdvals(left @ right)[:, :r].square()
    stable = energy.sum(-1) / energy[:, 0]
    null = random_lora(m, n, r, samples=draws, seed=1)
    error = 4 * float(stable.std()) * math.sqrt(2 / draws)
    assert abs(null.stable_rank - float(stable.mean())) < error
    assert abs(null.stable_rank * 1.05 - float(stable.mean())) > error
    low, high = stable.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    width = high - low
    assert abs(null.stable_rank_low - low) < 0.08 * width  # quantile noise at 2000 draws: 3%
    assert abs(null.stable_rank_high - high) < 0.08 * width


def test_random_factors_stand_inside_their_own_null(factors, make_adapter):
    """Of 60 random updates about 95% lie in the interval; fewer than 80% has probability 1e-5."""
    table = spectrum_table(make_adapter({Q.format(i): factors(40, 32, 6) for i in range(60)}))
    low, high = table["random_lora_stable_rank_low"], table["random_lora_stable_rank_high"]
    assert table["stable_rank"].between(low, high).mean() > 0.8
    assert (table["stable_rank"] * 1.5).between(low, high).mean() < 0.5


def test_the_same_seed_gives_the_same_table(factors, make_adapter):
    adapter = make_adapter({Q.format(0): factors(12, 8, 3)})
    first, second = (spectrum_table(adapter, samples=50, seed=3) for _ in range(2))
    assert first.equals(second)
    assert not first.equals(spectrum_table(adapter, samples=50, seed=4))


def test_progress_is_told(factors, make_adapter):
    seen = []
    adapter = make_adapter({Q.format(i): factors(6, 5, 2) for i in range(3)})
    spectrum_table(adapter, samples=5, progress=lambda *call: seen.append(call))
    assert seen == [(Q.format(i), i + 1, 3) for i in range(3)]


def test_every_singular_value_has_a_row_and_a_bound(factors, make_adapter):
    """Two shapes interleaved, a zero update, a module outside the layers."""
    names = [Q.format(0), "lm_head", Q.format(1), Q.format(2)]
    pairs = [factors(20, 12, 5), factors(9, 30, 3), factors(20, 12, 5), factors(3, 4, 6)]
    pairs[2] = (0 * pairs[2][0], pairs[2][1])
    adapter = make_adapter(dict(zip(names, pairs, strict=True)), scaling=-0.5)
    table = singular_value_table(adapter)
    counts = dict(zip(names, (5, 3, 5, 3), strict=True))
    assert table["module"].tolist() == [name for name in names for _ in range(counts[name])]
    assert table["layer"].dtype == "Int64"
    assert table.loc[table["module"] == "lm_head", "layer"].isna().all()
    summary = spectrum_table(adapter, samples=5).set_index("module")
    for name, (lora_b, lora_a) in zip(names, pairs, strict=True):
        rows = table[table["module"] == name]
        assert rows["index"].tolist() == list(range(1, len(rows) + 1))
        dense = torch.linalg.svdvals(-0.5 * lora_b.double() @ lora_a.double())[: len(rows)].numpy()
        rounding = 30 * torch.finfo(torch.float64).eps * dense[0]
        assert (abs(rows["sigma"].to_numpy() - dense) <= rows["error_bound"] + rounding).all()
        assert summary.loc[name, "error_bound"] == rows["error_bound"].max()
        if not dense.any():
            assert rows["energy_share"].isna().all()
            continue
        assert rows["error_bound"].max() <= 1e-9 * dense[0]
        shares = dense**2 / (dense**2).sum()
        assert rows["energy_share"].tolist() == pytest.approx(shares.tolist(), rel=1e-8)
        assert rows["cumulative_energy"].tolist() == pytest.approx(shares.cumsum().tolist())
        assert rows["cumulative_energy"].iloc[-1] == pytest.approx(1)


def test_a_zero_adapter_has_no_singular_value_table(factors, make_adapter):
    lora_b, lora_a = factors(6, 5, 4)
    with pytest.raises(AdapterError, match="all 1 updates"):
        singular_value_table(make_adapter({"x": (0 * lora_b, lora_a)}))


def test_the_null_of_a_shape_is_that_of_its_transpose(factors, make_adapter):
    adapter = make_adapter({Q.format(0): factors(40, 12, 3), Q.format(1): factors(12, 40, 3)})
    columns = [c for c in spectrum_table(adapter, samples=20) if c.startswith("random_lora")]
    first, second = (row for _, row in spectrum_table(adapter, samples=20)[columns].iterrows())
    assert first.equals(second)


def awkward_pairs(factors):
    """Rank 1, zero, repeated values, few directions of many, wide rank, huge and tiny scales."""
    eye = torch.eye(12, dtype=torch.float64)
    lora_b, lora_a = (factor.double() for factor in factors(30, 20, 4))
    dependent = lora_b.clone()
    dependent[:, 2:] = dependent[:, :2]
    plain = [
        *((lora_b * scale, lora_a * scale) for scale in (1.0, 1e-60, 1e60, 2.0**-20)),
        (lora_b * torch.tensor([1.0, 1e-3, 1e-6, 1e-12], dtype=torch.float64), lora_a),
        (dependent, lora_a),
        (0 * lora_b, lora_a),
        (lora_b, 0 * lora_a),
    ]
    tied = [(eye[:, :10], eye[:10]), (3 * eye[:, :10], eye[:10]), (0 * eye[:, :10], eye[:10])]
    others = [factors(30, 20, 1), factors(20, 30, 1), factors(3, 4, 9), factors(1, 1, 1)]
    return plain + tied + others + [factors(20, 30, 4, torch.bfloat16), factors(12, 12, 10)]


@pytest.mark.parametrize("scaling", [1.0, -1e-9])
def test_the_table_is_that_of_each_module_alone(scaling, factors, make_adapter):
    """Stacks of one shape against the functions of one spectrum, called per module."""
    pairs = awkward_pairs(factors)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    adapter = make_adapter({Q.format(i): pairs[i] for i in order}, scaling=scaling)
    updates = list(adapter.updates.values())
    table = spectrum_table(adapter, samples=5).set_index("module")
    assert table.index.tolist() == [update.module for update in updates]
    assert (table["frobenius_norm"] == 0).sum() == 3
    for i, spectrum in spectra_of(updates):
        row, sigma = table.loc[updates[i].module], spectrum.sigma
        rank = numerical_rank_of(updates[i], sigma, spectrum.error)
        assert row["numerical_rank"] == rank
        assert row["error_bound"] == float(spectrum.error.max())
        names = ["frobenius_norm", "spectral_norm", "stable_rank", "effective_rank", "k90", "k99"]
        expected = [0.0, 0.0, *[math.nan] * 4]
        if rank:
            values = frobenius_norm, spectral_norm, stable_rank, effective_rank
            expected = [float(value(sigma)) for value in values]
            expected += [float(energy_rank(sigma, share)) for share in (0.9, 0.99)]
        assert row[names].tolist() == pytest.approx(expected, rel=1e-14, abs=0, nan_ok=True)
        alone = make_adapter({"x": (updates[i].lora_b, updates[i].lora_a)}, scaling=scaling)
        if rank:
            single = spectrum_table(alone, samples=5).iloc[0]
            assert row[names].tolist() == pytest.approx(single[names].tolist(), rel=1e-12, abs=0)
            chance = [name for name in table if name.startswith("random_lora")]
            assert row[chance].tolist() == single[chance].tolist()


def test_a_dense_update_among_factors(factors, make_adapter):
    """It is a stack of its own; its chance is that of a Gaussian matrix, not of factors."""
    matrix = torch.linspace(-1, 1, 63, dtype=torch.float64).sin().reshape(7, 9)
    adapter = make_adapter({Q.format(0): factors(7, 9, 7)})
    dense = DenseUpdate(Q.format(1), (7, 9), lambda: matrix)
    both = replace(adapter, updates={**adapter.updates, dense.module: dense})
    first, second = (row for _, row in spectrum_table(both, samples=50).iterrows())
    assert second["stable_rank"] == pytest.approx(dense_row(matrix)["stable_rank"], rel=1e-6)
    assert first["random_lora_stable_rank"] < 0.9 * second["random_lora_stable_rank"]
