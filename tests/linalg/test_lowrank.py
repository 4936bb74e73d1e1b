"""Factored products against the dense product in float64 and in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.linalg import (
    energy_rank,
    factored_frobenius_norm,
    factored_inner_product,
    factored_singular_values,
    factored_spectrum,
    factored_svd,
    haar_rotation,
    spectral_tolerance,
    stable_rank,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps
SHAPES = [(1, 1, 1), (7, 5, 3), (5, 7, 5), (5, 7, 12), (1, 9, 4), (9, 1, 4), (96, 64, 8)]


def factors(m, n, r, generator, batch=()):
    lora_b = torch.randn((*batch, m, r), generator=generator, dtype=F64)
    return lora_b, torch.randn((*batch, r, n), generator=generator, dtype=F64)


def conditioned(rows, columns, condition, generator):
    """A matrix with log-spaced singular values from 1 to 1/condition."""
    q = min(rows, columns)
    sigma = torch.logspace(0, -np.log10(condition), q, dtype=F64)
    left = haar_rotation(rows, generator, dtype=F64)[:, :q]
    right = haar_rotation(columns, generator, dtype=F64)[:, :q]
    return (left * sigma) @ right.mT


@pytest.mark.parametrize("scaling", [1.0, -0.5, 2.0], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factored_svd_rebuilds_the_product(shape, scaling, rng):
    lora_b, lora_a = factors(*shape, rng)
    u, sigma, vh = factored_svd(lora_b, lora_a, scaling)
    m, n, r = shape
    q = min(m, n, r)
    assert (u.shape, sigma.shape, vh.shape) == ((m, q), (q,), (q, n))
    dense = scaling * lora_b @ lora_a
    size = float(torch.linalg.matrix_norm(lora_b) * torch.linalg.matrix_norm(lora_a))
    atol = spectral_tolerance(size * abs(scaling), m + n + r, F64)
    torch.testing.assert_close((u * sigma) @ vh, dense, rtol=0, atol=atol)
    assert float((u * sigma * 1.001 @ vh - dense).abs().max()) > atol
    identity = torch.eye(q, dtype=F64)
    for frame in (u.mT @ u, vh @ vh.mT):
        torch.testing.assert_close(frame, identity, rtol=0, atol=8 * (m + n) * EPS)
    expected = torch.linalg.svdvals(dense)[:q]
    for values in (sigma, factored_singular_values(lora_b, lora_a, scaling)):
        torch.testing.assert_close(values, expected, rtol=0, atol=atol)
    torch.testing.assert_close(
        factored_frobenius_norm(lora_b, lora_a, scaling), dense.norm(), rtol=0, atol=atol
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1.0, 1e20, 1e140], ids=str)
@pytest.mark.parametrize("condition", [1e0, 1e4, 1e8, 1e12], ids="{:.0e}".format)
@pytest.mark.parametrize("shape", [(48, 32, 6), (32, 48, 16), (12, 10, 24)], ids=str)
def test_ranks_equal_the_dense_ones_for_hard_factors(shape, condition, scale, rng):
    """Stable rank to 1e-6 and the energy ranks exactly, both factors ill-conditioned."""
    m, n, r = shape
    lora_b = conditioned(m, r, condition, rng)
    lora_a = conditioned(r, n, condition, rng)
    dense = torch.linalg.svdvals(lora_b @ lora_a)
    sigma = factored_singular_values(lora_b * scale, lora_a)
    torch.testing.assert_close(stable_rank(sigma), stable_rank(dense), rtol=1e-6, atol=0)
    for fraction in (0.9, 0.99):
        assert int(energy_rank(sigma, fraction)) == int(energy_rank(dense, fraction))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(m=st.integers(1, 12), n=st.integers(1, 12), r=st.integers(1, 16), seed=st.integers(0, 2**31))
def test_any_shape_any_column_scale(m, n, r, seed):
    """Rows of A undo columns of B that differ by 1e+-12: as accurate as the dense product."""
    rng = torch.Generator().manual_seed(seed)
    lora_b, lora_a = factors(m, n, r, rng)
    dense = torch.linalg.svdvals(lora_b @ lora_a)[: min(m, n, r)]
    spread = 10.0 ** torch.randint(-12, 13, (r,), generator=rng).double()
    sigma = factored_singular_values(lora_b * spread, lora_a / spread.unsqueeze(-1))
    size = float((lora_b.norm(dim=0) * lora_a.norm(dim=1)).sum())
    tolerance = spectral_tolerance(size, m + n + r, F64)
    torch.testing.assert_close(sigma, dense, rtol=0, atol=tolerance)


def test_extreme_factors_do_not_overflow_before_the_product():
    """1e300 times 1e-300 per direction: the factors' norms overflow when squared."""
    lora_b = torch.tensor([[3e300, 0.0], [0.0, 2e-300]], dtype=F64)
    lora_a = torch.tensor([[1e-300, 0.0], [0.0, 1e300]], dtype=F64)
    sigma = factored_singular_values(lora_b, lora_a)
    torch.testing.assert_close(sigma, torch.tensor([3.0, 2.0], dtype=F64), rtol=4 * EPS, atol=0)
    inner = factored_inner_product(lora_b, lora_a, lora_b, lora_a)
    assert float(inner) == pytest.approx(13.0, rel=4 * EPS)
    subnormal = torch.tensor([3e-310, 2e-310], dtype=F64)
    lifted = factored_singular_values(subnormal.diag(), torch.eye(2, dtype=F64), 1e300)
    torch.testing.assert_close(lifted, subnormal * 1e300, rtol=4 * EPS, atol=0)
    norm = factored_frobenius_norm(lora_b, lora_a, 1e150)
    assert float(norm) == pytest.approx(13**0.5 * 1e150, rel=4 * EPS)


@pytest.mark.parametrize("which", ["b", "a", "both", "scaling", "directions"])
def test_zero_update(which, rng):
    lora_b, lora_a = factors(6, 5, 4, rng)
    if which in ("b", "both"):
        lora_b = torch.zeros_like(lora_b)
    if which in ("a", "both"):
        lora_a = torch.zeros_like(lora_a)
    if which == "directions":
        lora_b[:, :2] = 0
        lora_a[2:] = 0
    u, sigma, vh = factored_svd(lora_b, lora_a, 0.0 if which == "scaling" else 1.0)
    assert sigma.tolist() == [0.0] * 4
    torch.testing.assert_close(u.mT @ u, torch.eye(4, dtype=F64), rtol=0, atol=64 * EPS)
    torch.testing.assert_close(vh @ vh.mT, torch.eye(4, dtype=F64), rtol=0, atol=64 * EPS)
    assert which == "scaling" or not factored_inner_product(lora_b, lora_a, lora_b, lora_a)
    assert int(energy_rank(sigma, 0.9)) == 0


def test_inner_product_against_exact_arithmetic(rng):
    """Different ranks, in rationals."""
    parts = [*factors(4, 3, 2, rng), *factors(4, 3, 5, rng)]
    exact = [
        np.array([[Fraction(float(x)) for x in row] for row in part], dtype=object)
        for part in parts
    ]
    expected = float(((exact[0] @ exact[1]) * (exact[2] @ exact[3])).sum())
    size = float(factored_frobenius_norm(*parts[:2]) * factored_frobenius_norm(*parts[2:]))
    found = float(factored_inner_product(*parts))
    assert found == pytest.approx(expected, abs=32 * EPS * size)
    assert found + 1e-3 * size != pytest.approx(expected, abs=32 * EPS * size)


def test_repeated_singular_values(rng):
    """Orthonormal factors: every singular value is the scaling."""
    lora_b = haar_rotation(9, rng, dtype=F64)[:, :4]
    lora_a = haar_rotation(7, rng, dtype=F64)[:4]
    sigma = factored_singular_values(lora_b, lora_a, 0.25)
    torch.testing.assert_close(sigma, torch.full((4,), 0.25, dtype=F64), rtol=32 * EPS, atol=0)
    assert int(energy_rank(sigma, 0.75)) == 3


def test_batch_dimensions_and_broadcasting(rng):
    lora_b, lora_a = factors(6, 5, 3, rng, batch=(2, 4))
    u, sigma, vh = factored_svd(lora_b, lora_a, 2.0)
    torch.testing.assert_close(u * sigma.unsqueeze(-2) @ vh, 2 * lora_b @ lora_a)
    shared = factored_inner_product(lora_b, lora_a, lora_b[0, 0], lora_a[0, 0])
    expected = ((lora_b @ lora_a) * (lora_b[0, 0] @ lora_a[0, 0])).sum(dim=(-2, -1))
    torch.testing.assert_close(shared, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_inputs_are_computed_in_float64(dtype, rng):
    lora_b, lora_a = (part.to(dtype) for part in factors(8, 6, 3, rng))
    sigma = factored_singular_values(lora_b, lora_a)
    assert sigma.dtype == F64
    dense = torch.linalg.svdvals(lora_b.double() @ lora_a.double())[:3]
    torch.testing.assert_close(sigma, dense, rtol=0, atol=spectral_tolerance(dense[0], 17, F64))


@pytest.mark.parametrize(
    ("b", "a", "scaling", "error"),
    [
        ((4, 2), (3, 5), 1.0, ShapeError),
        ((4,), (4, 5), 1.0, ShapeError),
        ((4, 0), (0, 5), 1.0, ShapeError),
        ((4, 2), (2, 5), float("nan"), SettingError),
        ((4, 2), (2, 5), float("inf"), SettingError),
    ],
    ids=str,
)
def test_wrong_factors_are_refused(b, a, scaling, error):
    for function in (factored_svd, factored_singular_values, factored_frobenius_norm):
        with pytest.raises(error):
            function(torch.ones(b), torch.ones(a), scaling)


def test_non_finite_factors_and_unequal_products_are_refused():
    bad = torch.full((4, 2), torch.nan)
    with pytest.raises(SettingError, match="NaN"):
        factored_svd(bad, torch.ones(2, 5))
    with pytest.raises(ShapeError, match="inner product"):
        factored_inner_product(
            torch.ones(4, 2), torch.ones(2, 5), torch.ones(4, 2), torch.ones(2, 6)
        )


@pytest.mark.parametrize(
    ("b", "a", "error"),
    [
        (torch.ones(4, 2, dtype=torch.int64), torch.ones(2, 5), SettingError),
        (torch.ones(4, 2), torch.ones(2, 5, dtype=torch.int64), SettingError),
        (torch.ones(4, 2), torch.ones(2, 6), ShapeError),
        (torch.ones(3, 2), torch.ones(2, 5), ShapeError),
        (torch.ones(4, 3), torch.ones(2, 5), ShapeError),
    ],
    ids=["integers left", "integers right", "columns", "rows", "do not multiply"],
)
def test_every_pair_of_a_sequence_is_checked(b, a, error):
    """Not only the first of a shape or of a dtype; a pair of another float dtype is fine."""
    lefts, rights = [torch.ones(4, 2)] * 3, [torch.ones(2, 5)] * 3
    with pytest.raises(error):
        factored_spectrum([*lefts, b, *lefts], [*rights, a, *rights])
    assert factored_spectrum([*lefts, lefts[0].double()], [*rights, rights[0]]).sigma.shape[0] == 4
