"""The gain residual against dense least squares, and its null against simulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.adapters import column_gain_residual, row_gain_residual
from gonio.errors import ShapeError, ZeroMatrixError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense_residual(change: torch.Tensor, weight: torch.Tensor) -> float:
    """Best g column by column through a least-squares solver, on the dense product."""
    left = 0.0
    for column, base in zip(change.mT, weight.mT, strict=True):
        solution = torch.linalg.lstsq(base[:, None], column[:, None], driver="gelsd").solution
        left += float((column - (base[:, None] @ solution)[:, 0]).square().sum())
    return left / float(change.square().sum())


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 9), n=st.integers(1, 9), r=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_both_residuals_equal_dense_least_squares(m, n, r, seed):
    lora_b, lora_a, weight = (
        normal(*s, seed=seed + i) for i, s in enumerate([(m, r), (r, n), (m, n)])
    )
    change = -2.5 * lora_b @ lora_a
    column = column_gain_residual(lora_b, lora_a, weight, -2.5)
    row = row_gain_residual(lora_b, lora_a, weight, -2.5)
    # The residual is 1 minus a sum of squares of order 1: absolute rounding of a few eps.
    assert column.residual == pytest.approx(dense_residual(change, weight), abs=1e-12)
    assert row.residual == pytest.approx(dense_residual(change.mT, weight.mT), abs=1e-12)
    assert column.chance == pytest.approx(1 - 1 / m, abs=1e-12)
    assert row.chance == pytest.approx(1 - 1 / n, abs=1e-12)


def test_an_exact_column_gain_has_residual_zero():
    """W has rank 3, so W diag(g) is a factored update."""
    lora_b, basis, gain = normal(12, 3), normal(3, 10, seed=1), normal(10, seed=2)
    weight = lora_b @ basis
    exact = column_gain_residual(lora_b, basis * gain, weight)
    assert exact.residual == pytest.approx(0.0, abs=1e-12)
    assert exact.z_score < -10
    # A near miss: 3% of the update off the gain leaves about 1e-3 of the energy.
    bent = column_gain_residual(lora_b + 0.03 * normal(12, 3, seed=5), basis * gain, weight)
    assert bent.residual > 1e-5
    assert row_gain_residual(basis.mT, lora_b.mT, weight.mT).residual < 1 - 1e-3


def test_zero_columns_of_the_base_cannot_be_gained():
    """A zero column explains nothing: it leaves the chance of the other columns' energy."""
    lora_b, lora_a, weight = normal(8, 2), normal(2, 6, seed=1), normal(8, 6, seed=2)
    weight[:, [1, 4]] = 0
    found = column_gain_residual(lora_b, lora_a, weight)
    change = lora_b @ lora_a
    kept = float(change[:, [0, 2, 3, 5]].square().sum() / change.square().sum())
    assert found.chance == pytest.approx(1 - kept / 8, abs=1e-12)
    assert found.residual == pytest.approx(dense_residual(change, weight), abs=1e-12)


@pytest.mark.parametrize("shape", [(12, 20, 3), (30, 7, 2), (6, 6, 6), (5, 9, 1)], ids=str)
@pytest.mark.parametrize("zero_columns", [0, 2])
def test_the_null_mean_and_variance_hold(shape, zero_columns):
    """Left singular vectors turned by Haar rotations, 4000 draws, against the closed form."""
    m, n, r = shape
    draws = 4000
    lora_b, lora_a, weight = normal(m, r), normal(r, n, seed=1), normal(m, n, seed=2)
    lora_b = lora_b * torch.tensor([3.0, 1.0, 0.5, 0.3, 0.2, 0.1], dtype=torch.float64)[:r]
    weight = weight * torch.linspace(0.1, 5, n, dtype=torch.float64)
    weight[0] += 4  # columns of the base point the same way, as in trained weights
    weight[:, :zero_columns] = 0
    basis, triangle = torch.linalg.qr(normal(draws, m, m, seed=3))
    turn = basis * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    change = lora_b @ lora_a
    turned = turn @ (change / change.norm())
    norms = weight.norm(dim=0)
    unit = torch.where(norms > 0, weight / norms.clamp_min(1e-300), 0.0)
    residuals = 1 - (turned * unit).sum(dim=-2).square().sum(dim=-1)
    found = column_gain_residual(lora_b, lora_a, weight)
    deviation = (found.residual - found.chance) / found.z_score
    standard_error = float(residuals.std()) / math.sqrt(draws)
    assert abs(float(residuals.mean()) - found.chance) < 4 * standard_error
    # The relative error of a standard deviation is about sqrt(kurtosis / 4 draws): 3% at most here.
    assert deviation == pytest.approx(float(residuals.std()), rel=0.1)
    assert deviation * 1.3 != pytest.approx(float(residuals.std()), rel=0.1)


def test_one_row_is_always_a_gain():
    found = column_gain_residual(normal(1, 2), normal(2, 5, seed=1), normal(1, 5, seed=2))
    assert found.residual == pytest.approx(0.0, abs=1e-12)
    assert found.chance == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(found.z_score)


def test_blocks_do_not_change_the_null(monkeypatch):
    arguments = normal(9, 3), normal(3, 25, seed=1), normal(9, 25, seed=2)
    whole = column_gain_residual(*arguments)
    monkeypatch.setattr("gonio.adapters.gain._BLOCK", 4)
    blocked = column_gain_residual(*arguments)
    assert blocked.z_score == pytest.approx(whole.z_score, rel=1e-5)  # float32 Gram blocks


def test_bad_arguments_are_refused():
    with pytest.raises(ShapeError, match=r"\(4, 3\) beside a weight of shape \(3, 4\)"):
        column_gain_residual(normal(4, 2), normal(2, 3), normal(3, 4))
    with pytest.raises(ZeroMatrixError, match="zero update"):
        column_gain_residual(torch.zeros(4, 2), normal(2, 3), normal(4, 3))
    with pytest.raises(ZeroMatrixError, match="zero update"):
        row_gain_residual(normal(4, 2), normal(2, 3), normal(4, 3), 0.0)
