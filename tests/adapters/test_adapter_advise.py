"""Advice: ranks from energy, the hard threshold where it applies, and the null beside them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gonio.adapters import Adapter, LoraSettings, spectrum_table
from gonio.adapters.advise import advice_facts, advise, hard_threshold, resize_to
from gonio.adapters.dense import DenseUpdate
from gonio.errors import AdapterError, SettingError


def with_spectrum(m, n, sigma, generator, dtype=torch.float32):
    """Factors ``(lora_b, lora_a)`` of an update with chosen singular values over 2."""
    r = len(sigma)
    left, _ = torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64))
    lora_b = left * torch.tensor(sigma, dtype=torch.float64) / 2  # make_adapter scales by 2
    return lora_b.to(dtype), right.mT.contiguous().to(dtype)


@pytest.fixture
def adapter(make_adapter, rng):
    sigma = [10.0, 3.0, 1.0, 0.5]
    return make_adapter(
        {
            "layers.0.q": with_spectrum(30, 20, sigma, rng),
            "layers.0.v": with_spectrum(20, 20, [1.0, 1.0, 1.0, 1.0], rng),
            "layers.0.o": with_spectrum(20, 30, [0.0, 0.0], rng),
            "layers.1.q": with_spectrum(5, 6, [4.0, 0.1, 0.1, 0.1], rng, torch.bfloat16),
        }
    )


def test_ranks_and_savings_worked_by_hand(adapter):
    """Energies 100, 9, 1, 0.25 of 110.25: 90.7%, 98.9%, 99.8%."""
    found = advise(adapter, samples=50).set_index("module")
    ranks = found.loc["layers.0.q", ["k90", "k95", "k99", "recommended_rank"]]
    assert ranks.tolist() == [1, 2, 3, 2]
    assert found.loc["layers.0.q", "discarded_share"] == pytest.approx(1.25 / 110.25, rel=1e-6)
    assert found.loc["layers.0.q", "parameters_saved"] == 2 * 50
    assert found.loc["layers.0.q", "bytes_saved"] == 2 * 50 * 4
    assert found.loc["layers.1.q", "bytes_saved"] == 3 * 11 * 2
    assert found.loc["layers.0.v", ["k90", "k95", "recommended_rank"]].tolist() == [4, 4, 4]
    assert found.loc["layers.0.o", ["recommended_rank", "parameters_saved"]].tolist() == [0, 100]
    assert math.isnan(found.loc["layers.0.o", "k95"])
    assert found.loc["layers.0.o", "discarded_share"] == 0
    norms = found["frobenius_norm"]
    middle = float(np.median(norms[norms > 0]))
    assert found.loc["layers.0.v", "relative_norm"] == pytest.approx(2.0 / middle, rel=1e-6)
    assert found.loc["layers.0.q", "scaling_other"] == pytest.approx(2.0 * 2.0)
    assert advise(adapter, energy=0.9, samples=50)["recommended_rank"][0] == 1
    assert advise(adapter, energy=1.0, samples=50)["recommended_rank"][0] == 4


def test_the_table_begins_with_the_spectra(adapter):
    spectra = spectrum_table(adapter, samples=50)
    found = advise(adapter, samples=50)
    assert found[list(spectra)].equals(spectra)


def test_random_factors_are_told_from_trained_ones(make_adapter, factors, rng):
    random = make_adapter({f"layers.{i}.q": factors(64, 48, 8) for i in range(20)})
    facts = advice_facts(advise(random))
    assert facts["modules_in_null"] >= 16  # 95% of 20
    assert "say nothing about a needed rank" in facts["spectrum"]
    steep = make_adapter({"layers.0.q": with_spectrum(64, 48, [2.0**-i for i in range(8)], rng)})
    facts = advice_facts(advise(steep))
    assert facts["modules_in_null"] == facts["modules_flatter_than_null"] == 0
    assert "concentrated" in facts["spectrum"]
    flat = make_adapter({"layers.0.q": with_spectrum(64, 48, [1.0] * 8, rng)})
    assert advice_facts(advise(flat))["modules_flatter_than_null"] == 1


def test_facts_add_up(adapter):
    table = advise(adapter, samples=50)
    facts = advice_facts(table)
    resized = resize_to(adapter, dict(zip(table["module"], table["recommended_rank"], strict=True)))
    before, after = (resized.table[f"parameters_{when}"].sum() for when in ("before", "after"))
    assert facts["parameters_before"] == before
    assert facts["parameters_saved"] == before - after
    assert facts["discarded_share"] == pytest.approx(resized.discarded_share, rel=1e-9)
    assert facts["modules"] == 4
    assert facts["modules_zero"] == 1
    assert facts["recommended_rank_largest"] == 4
    assert facts["largest_module"] == "layers.0.q"
    assert facts["norm_ratio"] == pytest.approx(math.sqrt(110.25) / 2, rel=1e-6)
    assert facts["scaling_least"] == facts["scaling_largest"] == 2.0


def test_resize_to_keeps_the_top_directions_of_each_module(adapter):
    ranks = {"layers.0.q": 2, "layers.0.v": 9, "layers.0.o": 0, "layers.1.q": 0}
    found = resize_to(adapter, ranks)
    assert [(u.module, u.rank) for u in found.updates] == [("layers.0.q", 2), ("layers.0.v", 4)]
    table = found.table.set_index("module")
    assert table["rank_after"].to_dict() == {**ranks, "layers.0.v": 4}
    assert table.loc["layers.0.q", "discarded_energy"] == pytest.approx(1.25, rel=1e-5)
    lost = table.loc["layers.1.q"]
    assert lost["discarded_energy"] == lost["energy"] > 15
    assert lost["parameters_after"] == 0
    with pytest.raises(SettingError, match=r"no rank for layers\.0\.q"):
        resize_to(adapter, {})
    with pytest.raises(SettingError, match="no module other"):
        resize_to(adapter, {**ranks, "other": 1})
    with pytest.raises(SettingError, match="expected >= 0"):
        resize_to(adapter, {**ranks, "layers.0.q": -1})


@pytest.mark.parametrize("shape", [(100, 100), (50, 200), (200, 10)], ids=str)
def test_the_threshold_is_near_the_published_polynomial(shape):
    """Gavish and Donoho, equation 5: 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43, within 0.02."""
    beta = min(shape) / max(shape)
    sigma = torch.ones(min(shape), dtype=torch.float64)
    polynomial = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    assert hard_threshold(sigma, shape) == pytest.approx(polynomial, abs=0.02)


def test_the_threshold_of_a_square_matrix_in_closed_form():
    """Its noise follows the quarter-circle law on [0, 2]; the threshold is 4 / sqrt(3)."""
    median = 4 / math.sqrt(3) / hard_threshold(torch.ones(9, dtype=torch.float64), (9, 9))
    area = median * math.sqrt(4 - median**2) / 2 + 2 * math.asin(median / 2)
    assert area / math.pi == pytest.approx(0.5, abs=1e-8)


def test_the_threshold_finds_a_signal_in_white_noise(rng):
    noise = torch.randn(120, 200, generator=rng, dtype=torch.float64)
    left, _ = torch.linalg.qr(torch.randn(120, 3, generator=rng, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(200, 3, generator=rng, dtype=torch.float64))
    sigma = torch.linalg.svdvals(noise + 100.0 * left @ right.mT)
    threshold = hard_threshold(sigma, (120, 200))
    assert int((sigma > threshold).sum()) == 3
    assert int((torch.linalg.svdvals(noise) > threshold).sum()) == 0


def test_the_threshold_does_not_apply_to_low_rank_products(adapter):
    assert hard_threshold(torch.ones(9), (20, 30)) is None
    assert hard_threshold(torch.ones(11), (20, 30)) > 0
    found = advise(adapter, samples=50).set_index("module")["hard_threshold_rank"]
    assert found.isna().tolist() == [True, True, True, False]
    assert found["layers.1.q"] == 1  # rank 4 of 5: the median of 4, 0.1, 0.1, 0.1, 0 is 0.1


def test_a_dense_update_has_a_threshold_and_no_stored_size(rng, make_adapter):
    """A change of full rank: there the noise model may hold, and what is stored is the matrix."""
    noise = torch.randn(40, 30, generator=rng, dtype=torch.float64)
    signal = 200.0 * noise[:, :1] @ noise[:1] / noise[:, 0].norm() / noise[0].norm()
    update = DenseUpdate("m", (40, 30), lambda: noise + signal)
    adapter = Adapter(Path("in-memory"), LoraSettings(30, 30.0), {"m": update}, kind="full")
    table = advise(adapter, samples=50)
    assert table["hard_threshold_rank"][0] == 1
    assert table["parameters_before"][0] == 1200
    assert table["parameters_saved"][0] == 1200 - 70 * table["recommended_rank"][0]
    assert table["bytes_saved"].isna()[0]
    assert advice_facts(table)["bytes_saved"] == 0


def test_bad_input_is_refused(adapter, make_adapter):
    for energy in (0.0, 1.5, math.nan):
        with pytest.raises(SettingError, match="energy"):
            advise(adapter, energy=energy)
    with pytest.raises(AdapterError, match="are zero"):
        advise(make_adapter({"m": (torch.zeros(3, 2), torch.ones(2, 4))}))
