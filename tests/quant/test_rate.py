"""Rate-distortion limits against a numerical optimizer and their defining conditions."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.quant import gaussian_distortion, gaussian_rate, reverse_water_filling

F64 = torch.float64
spectra = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=24).map(
    lambda values: torch.tensor(values, dtype=F64)
)


def test_rate_and_distortion_are_inverse():
    assert gaussian_distortion(3.0, 1.0) == 0.75
    variances = torch.tensor([1.0, 4.0, 1e-300], dtype=F64)
    distortion = gaussian_distortion(variances, 2.5)
    torch.testing.assert_close(gaussian_rate(variances, distortion), torch.full((3,), 2.5).double())
    assert gaussian_rate(1.0, 4.0).item() == 0.0
    assert gaussian_rate(0.0, 1.0).item() == 0.0
    assert gaussian_rate(torch.ones(2), 0.25).dtype == torch.float32
    with pytest.raises(SettingError):
        gaussian_distortion(1.0, -0.1)
    with pytest.raises(SettingError):
        gaussian_rate(1.0, 0.0)
    with pytest.raises(SettingError):
        gaussian_rate(-1.0, 1.0)


def test_worked_example():
    """Variances 16, 4, 1 and 3 bits in all: 2 bring 16 down to 1, 1 brings 4 there, 0 for 1."""
    filled = reverse_water_filling(torch.tensor([4.0, 16.0, 1.0], dtype=F64), 1.0)
    assert float(filled.level) == pytest.approx(1.0, rel=1e-15)
    assert filled.bits.tolist() == pytest.approx([1.0, 2.0, 0.0], abs=1e-15)
    assert filled.distortion.tolist() == pytest.approx([1.0, 1.0, 1.0])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(variances=spectra, bits=st.floats(0, 12))
def test_defining_conditions(variances, bits):
    """Budget spent; error min(level, variance); bits the rate of that error (KKT)."""
    filled = reverse_water_filling(variances, bits)
    if float(variances.max()) == 0:
        assert float(filled.level) == 0.0
        assert filled.bits.tolist() == [0.0] * len(variances)
        return
    assert float(filled.bits.mean()) == pytest.approx(bits, abs=1e-12 * (bits + 40))
    assert bool((filled.bits >= 0).all())
    level = float(filled.level)
    assert torch.equal(filled.distortion, variances.clamp(max=level))
    rebuilt = variances * torch.exp2(-2 * filled.bits)
    torch.testing.assert_close(rebuilt, filled.distortion, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0, 3.0], ids=str)
def test_no_other_split_is_better(bits, rng):
    """SLSQP over splits of the same budget finds no smaller error."""
    variances = 10 ** (2 * torch.randn(6, generator=rng, dtype=F64))
    filled = reverse_water_filling(variances, bits)
    plain = variances.numpy()

    def cost(split):
        return float((plain * 2.0 ** (-2 * split)).sum() / plain.sum())

    found = scipy.optimize.minimize(
        cost,
        np.full(6, bits),
        bounds=[(0, None)] * 6,
        constraints={"type": "eq", "fun": lambda split: split.sum() - 6 * bits},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = cost(filled.bits.numpy())
    assert ours <= found.fun * (1 + 1e-9)
    assert found.fun == pytest.approx(ours, rel=1e-3)
    uniform = cost(np.full(6, bits))
    assert uniform > ours * 1.001


def test_batches_and_dtypes(rng):
    variances = torch.rand((2, 3, 8), generator=rng)
    filled = reverse_water_filling(variances, 1.5)
    assert (filled.level.shape, filled.bits.shape) == ((2, 3), (2, 3, 8))
    assert filled.bits.dtype == torch.float32
    alone = reverse_water_filling(variances[1, 2], 1.5)
    torch.testing.assert_close(filled.bits[1, 2], alone.bits)
    assert reverse_water_filling(variances.bfloat16(), 1.5).level.dtype == torch.float32
    mixed = torch.stack([torch.zeros(8), torch.ones(8)])
    assert reverse_water_filling(mixed, 2.0).bits.tolist() == [[0.0] * 8, [2.0] * 8]


def test_zero_bits_and_extreme_ratios():
    variances = torch.tensor([1e-300, 1e300, 0.0], dtype=F64)
    none = reverse_water_filling(variances, 0.0)
    assert none.bits.tolist() == [0.0, 0.0, 0.0]
    assert none.distortion.tolist() == pytest.approx(variances.tolist())
    deep = reverse_water_filling(variances, 700.0)
    assert float(deep.bits.sum()) == pytest.approx(2100, rel=1e-14)
    assert float(deep.bits[1] - deep.bits[0]) == pytest.approx(300 * math.log2(10), rel=1e-13)


@pytest.mark.parametrize(
    ("variances", "bits", "error"),
    [
        ([1.0, -1e-9], 1.0, SettingError),
        ([1.0, math.nan], 1.0, SettingError),
        ([1.0], -1.0, SettingError),
        ([1.0], math.inf, SettingError),
        ([], 1.0, ShapeError),
    ],
    ids=str,
)
def test_refusals(variances, bits, error):
    with pytest.raises(error):
        reverse_water_filling(torch.tensor(variances, dtype=F64), bits)
