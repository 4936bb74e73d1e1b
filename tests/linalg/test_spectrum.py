"""Spectral summaries against NumPy and SciPy on the dense matrix, and their edges."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg import (
    effective_rank,
    energy_rank,
    frobenius_norm,
    numerical_rank,
    spectral_norm,
    spectral_tolerance,
    stable_rank,
)

EPS = torch.finfo(torch.float64).eps
SUMMARIES = [frobenius_norm, spectral_norm, stable_rank, effective_rank]
descending = st.lists(st.floats(1e-3, 1e3, allow_subnormal=False), min_size=1, max_size=40).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 5), (64, 96)], ids=str)
def test_summaries_match_dense_routes(shape, rng):
    matrix = torch.randn(shape, generator=rng, dtype=torch.float64)
    sigma = torch.linalg.svdvals(matrix)
    dense = matrix.numpy()
    tolerance = 8 * sum(shape) * EPS
    gram = scipy.linalg.eigvalsh(dense.T @ dense)[-1]
    assert float(frobenius_norm(sigma)) == pytest.approx(np.linalg.norm(dense), rel=tolerance)
    assert float(spectral_norm(sigma)) == pytest.approx(np.linalg.norm(dense, 2), rel=tolerance)
    expected = np.trace(dense.T @ dense) / gram
    assert float(stable_rank(sigma)) == pytest.approx(expected, rel=tolerance)
    assert float(stable_rank(sigma)) * 1.001 != pytest.approx(expected, rel=tolerance)
    entropy = scipy.stats.entropy(sigma.numpy())
    assert float(effective_rank(sigma)) == pytest.approx(np.exp(entropy), rel=tolerance)
    assert int(numerical_rank(sigma, shape)) == np.linalg.matrix_rank(dense)


@settings(derandomize=True, deadline=None)
@given(sigma=descending, scale=st.sampled_from([1e-290, 1e-20, 3.0, 1e20, 1e290]))
def test_ranks_stay_in_range_and_ignore_scale(sigma, scale):
    r = sigma.numel()
    for rank in (stable_rank, effective_rank):
        value = float(rank(sigma))
        assert 1 - 8 * EPS <= value <= r * (1 + 8 * r * EPS)
        assert float(rank(sigma * scale)) == pytest.approx(value, rel=16 * r * EPS)
    expected = scale * float(np.linalg.norm(sigma.numpy()))
    assert float(frobenius_norm(sigma * scale)) == pytest.approx(expected, rel=16 * r * EPS)


@settings(derandomize=True, deadline=None)
@given(sigma=descending, fraction=st.floats(0.01, 0.99))
def test_energy_rank_is_the_fewest(sigma, fraction):
    energy = sigma.square()
    k = int(energy_rank(sigma, fraction))
    total = float(energy.sum())
    assert float(energy[:k].sum()) >= (fraction - 1e-11) * total
    assert float(energy[: k - 1].sum()) < fraction * total


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.1, 1), (0.5, 5), (0.9, 9), (0.900001, 10), (1.0, 10)], ids=str
)
@pytest.mark.parametrize("noise", [0.0, 1e-15, -1e-15], ids=str)
def test_energy_rank_at_ties_does_not_depend_on_the_last_bit(fraction, expected, noise):
    """Ten equal values: nine hold 0.9 of the energy however the last bit falls."""
    sigma = torch.full((10,), 0.1, dtype=torch.float64)
    sigma[:5] += abs(noise)
    sigma[5:] += min(noise, 0.0)
    assert int(energy_rank(sigma, fraction)) == expected


@pytest.mark.parametrize(("fraction", "expected"), [(0.07, 7), (0.14, 14), (0.55, 55)])
def test_energy_rank_forgives_the_rounding_of_its_own_threshold(fraction, expected):
    """Of 100 equal values 55 hold 0.55, although 0.55 * 100 rounds to more than 55."""
    assert fraction * 100 > expected
    assert int(energy_rank(torch.ones(100, dtype=torch.float64), fraction)) == expected


def test_worked_example():
    """Values 4, 2, 1: energy 21, so stable rank 21/16; two directions hold 20/21."""
    sigma = torch.tensor([4.0, 2.0, 1.0])
    assert float(stable_rank(sigma)) == 21 / 16
    assert int(energy_rank(sigma, 0.76)) == 1
    assert int(energy_rank(sigma, 0.77)) == 2
    assert int(energy_rank(sigma, 0.96)) == 3


def test_batches_follow_their_rows(rng):
    sigma = torch.rand((2, 3, 6), generator=rng, dtype=torch.float64).sort(descending=True).values
    for summary in SUMMARIES:
        rows = torch.stack([torch.stack([summary(row) for row in block]) for block in sigma])
        torch.testing.assert_close(summary(sigma), rows, rtol=4 * EPS, atol=0)
    assert energy_rank(sigma, 0.9).shape == (2, 3)


def test_numerical_rank_threshold():
    """The threshold is max(m, n) eps sigma_1 of the stated dtype, exclusive."""
    eps32 = torch.finfo(torch.float32).eps
    sigma = torch.tensor([1.0, 10 * eps32 * 1.01, 10 * eps32, 0.0], dtype=torch.float64)
    assert int(numerical_rank(sigma, (10, 4), dtype=torch.float32)) == 2
    assert int(numerical_rank(sigma, (10, 4))) == 3
    assert int(numerical_rank(torch.zeros(4), (10, 4))) == 0


def test_zero_matrix():
    zero = torch.zeros(2, 3)
    zero[0, 0] = 1.0
    for undefined in (stable_rank, effective_rank):
        with pytest.raises(ZeroMatrixError, match="1 of the 2"):
            undefined(zero)
    assert frobenius_norm(zero).tolist() == [1.0, 0.0]
    assert energy_rank(zero, 0.9).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_upcast_once(dtype):
    sigma = torch.tensor([300.0, 4.0], dtype=dtype)
    assert frobenius_norm(sigma).dtype == torch.float32
    assert float(frobenius_norm(sigma)) == pytest.approx(np.hypot(300, 4), rel=1e-6)


def test_spectral_tolerance_formula():
    eps = torch.finfo(torch.float32).eps
    assert spectral_tolerance(2.0, 9, torch.float32) == 8 * 3 * eps * 2
    assert spectral_tolerance(torch.tensor([1.0, 2.0]), 9, torch.float32) == 8 * 3 * eps * 2


@pytest.mark.parametrize("summary", SUMMARIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("sigma", "error"),
    [
        (torch.empty(0), ShapeError),
        (torch.tensor(1.0), ShapeError),
        (torch.tensor([1.0, -1.0]), SettingError),
        (torch.tensor([1.0, 2.0]), SettingError),
        (torch.tensor([torch.nan, 1.0]), SettingError),
        (torch.tensor([2, 1]), SettingError),
    ],
    ids=["empty", "scalar", "negative", "ascending", "nan", "integer"],
)
def test_what_is_no_spectrum_is_refused(summary, sigma, error):
    with pytest.raises(error):
        summary(sigma)


def test_wrong_arguments_are_refused():
    sigma = torch.ones(3)
    with pytest.raises(SettingError, match="fraction"):
        energy_rank(sigma, 0.0)
    with pytest.raises(SettingError, match="fraction"):
        energy_rank(sigma, 1.1)
    with pytest.raises(ShapeError, match="cannot belong"):
        numerical_rank(sigma, (2, 5))
