"""Certified leading subspaces against a dense SVD in float64 on planted spectra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg import (
    certified_top_subspaces,
    haar_rotation,
    krylov,
    subspace_overlap,
    top_singular_subspaces,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps
SPECTRA = {
    "gap": [9.0, 8.0, 7.0, 3.0] + [2.0 * 0.97**i for i in range(26)],
    "slow decay": [1.02**-i for i in range(30)],
    "harmonic": [1 / (i + 1) for i in range(30)],
    "deep": [10.0 ** (-i / 3) for i in range(30)],
    "rank 12": [5.0 - 0.3 * i for i in range(12)] + [0.0] * 18,
    "narrow": [3.0, 2.0, 1.5, 1.5 - 1e-3] + [1.0 - 0.01 * i for i in range(26)],
}


def planted(sigma, m, n, rng):
    """A weight with these singular values and Haar-random singular vectors."""
    count = min(len(sigma), m, n)
    left, right = (haar_rotation(d, rng, dtype=F64)[:, :count] for d in (m, n))
    return (left * torch.tensor(sigma[:count], dtype=F64)) @ right.mT


def dense_subspaces(weight, k):
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return u[:, :k], sigma, vh[:k].mT


def sine(found, true):
    """Sine of the largest principal angle between two subspaces of equal dimension."""
    return float(torch.linalg.matrix_norm(found - true @ (true.mT @ found), 2))


def true_sine(weight, result):
    u, _, v = dense_subspaces(weight, result.sigma.shape[0])
    return max(sine(result.u, u), sine(result.v, v))


def check_certificate(weight, result):
    """All that a result claims, recomputed from the weight; the bound where it is certified.

    The dense subspaces carry rounding of their own, ``eps sigma_1 / gap``.
    """
    k = result.sigma.shape[0]
    weight = weight.double()
    size = weight.abs().max()
    weight, values = weight / size, result.sigma / size
    dense = dense_subspaces(weight, k)[1]
    slack = 16 * (sum(weight.shape) ** 0.5) * EPS * float(dense[0])
    wrong = [
        torch.linalg.matrix_norm(weight.mT @ result.u - result.v * values, 2),
        torch.linalg.matrix_norm(weight @ result.v - result.u * values, 2),
    ]
    assert result.residual / float(size) == pytest.approx(float(max(wrong)), rel=1e-6, abs=slack)
    identity = torch.eye(k, dtype=F64)
    for frame in (result.u, result.v):
        assert frame.dtype == F64
        torch.testing.assert_close(frame.mT @ frame, identity, rtol=0, atol=1e-13)
    following = float(dense[k]) if k < len(dense) else 0.0
    if result.certified:
        assert result.reason == ""
        assert float(values[-1]) * (1 - result.gap) >= following - slack
        rounding = slack / (float(dense[k - 1]) - following)
        assert true_sine(weight, result) <= result.sine_bound + rounding
    else:
        assert result.reason in {"k in no gap", "gap lost in rounding", "not converged"}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("m", "n"), [(150, 40), (40, 150), (60, 60)], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_certified_subspaces_hold_on_planted_spectra(name, m, n, dtype, rng):
    weight = planted(SPECTRA[name], m, n, rng).to(dtype)
    for k in (1, 3, 7):
        result = certified_top_subspaces(weight, k)
        check_certificate(weight, result)
        assert result.certified, (k, result.reason, result.sine_bound)
        assert result.sine_bound <= 1e-3
        dense = dense_subspaces(weight, k)[1]
        torch.testing.assert_close(result.sigma, dense[:k], rtol=1e-6, atol=0)


def test_agrees_with_the_gram_route(rng):
    weight = planted(SPECTRA["harmonic"], 50, 40, rng)
    result = certified_top_subspaces(weight, 6, tolerance=1e-9)
    u, sigma, v = top_singular_subspaces(weight, 6)
    assert result.certified
    torch.testing.assert_close(result.sigma, sigma)
    assert max(sine(result.u, u), sine(result.v, v)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("copies", [2, 6, 30], ids="{} copies".format)
def test_a_k_among_repeated_values_is_refused(copies, dtype, rng):
    """Any subspace of the repeated value's space would do: no bound can hold."""
    sigma = [4.0, 3.0] + [2.0] * copies + [1.0 * 0.9**i for i in range(30)]
    weight = planted(sigma, 120, 80, rng).to(dtype)
    for k in (3, min(2 + copies, 20) - 1 if copies > 2 else 3):
        result = certified_top_subspaces(weight, k)
        assert not result.certified
        assert result.reason == "k in no gap"
        assert result.gap < 1e-3
    for k in (2, 2 + copies):  # on either side of the plateau there is a gap
        result = certified_top_subspaces(weight, k)
        assert result.certified, (k, result.reason)
        check_certificate(weight, result)


@pytest.mark.parametrize(("m", "n"), [(30, 30), (50, 30)], ids=str)
def test_an_orthogonal_weight_has_no_leading_subspace(m, n, rng):
    weight = haar_rotation(m, rng, dtype=F64)[:, :n]
    result = certified_top_subspaces(weight, 4)
    assert (result.certified, result.reason) == (False, "k in no gap")
    everything = certified_top_subspaces(weight, n)
    assert everything.certified
    assert everything.gap == 1.0


def test_too_few_iterations_are_said(rng):
    weight = planted(SPECTRA["slow decay"] + [0.5] * 170, 300, 200, rng)
    result = certified_top_subspaces(weight, 5, max_iterations=2)
    assert (result.certified, result.reason, result.iterations) == (False, "not converged", 2)
    assert certified_top_subspaces(weight, 5).certified


def test_a_gap_below_float32_rounding_is_said(rng):
    weight = planted([400.0, 1.0, 0.99] + [0.5 * 0.9**i for i in range(30)], 60, 30, rng).float()
    coarse = certified_top_subspaces(weight, 2)
    assert (coarse.certified, coarse.reason) == (False, "gap lost in rounding")
    fine = certified_top_subspaces(weight.double(), 2)
    assert fine.certified
    check_certificate(weight, fine)


@pytest.mark.parametrize("iterations", [1, 4])
def test_four_blocks_certify_only_an_exhausted_space(iterations, rng):
    weight = planted(SPECTRA["slow decay"], 80, 60, rng)
    result = certified_top_subspaces(weight, 1, max_iterations=iterations, tolerance=0.1)
    assert (result.certified, result.reason) == (False, "not converged")
    few = planted([3.0, 2.0, 1.0], 80, 60, rng)  # its range is exhausted by the second block
    assert certified_top_subspaces(few, 2, max_iterations=iterations).certified == (iterations > 1)


def loose_result(rng):
    """Certified at a tolerance so loose that the subspaces are visibly off."""
    weight = planted([2.0, 1.9, 1.8] + [1.6] + [1.5 * 0.98**i for i in range(100)], 160, 120, rng)
    for iterations in range(5, 16):
        result = certified_top_subspaces(weight, 3, max_iterations=iterations, tolerance=0.1)
        if result.certified:
            return weight, result
    raise AssertionError("never certified")


def test_the_bound_holds_where_the_subspaces_are_visibly_off(rng):
    weight, result = loose_result(rng)
    check_certificate(weight, result)
    assert 1e-3 < true_sine(weight, result) < result.sine_bound


def test_the_smaller_residual_would_not_do(rng, monkeypatch):
    """The mutant: half the residual of the side that is zero by construction."""

    def wrong_side(columns, k):
        return min(float(torch.linalg.matrix_norm(part[:, :k], 2)) for part in columns) / 2

    monkeypatch.setattr(krylov, "worst_residual", wrong_side)
    weight, result = loose_result(rng)
    assert true_sine(weight, result) > 100 * result.sine_bound
    with pytest.raises(AssertionError):
        check_certificate(weight, result)


def test_half_the_residual_would_be_seen(rng, monkeypatch):
    """The mutant: the right side, halved; caught by recomputing the residual."""
    honest = krylov.worst_residual
    monkeypatch.setattr(krylov, "worst_residual", lambda columns, k: honest(columns, k) / 2)
    weight, result = loose_result(rng)
    with pytest.raises(AssertionError):
        check_certificate(weight, result)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    decay=st.floats(0.3, 1.0),
    jumps=st.lists(st.integers(1, 12), max_size=3),
    tolerance=st.sampled_from([1e-6, 1e-3, 0.1]),
    iterations=st.sampled_from([1, 5, 6, 30]),
    extra=st.integers(1, 5),
)
def test_no_certificate_is_ever_exceeded(seed, m, n, decay, jumps, tolerance, iterations, extra):
    """Any shape, decay, position of gaps, tolerance, number of blocks and block width."""
    rng = torch.Generator().manual_seed(seed)
    sigma = [decay**i * 3.0 ** -sum(i >= j for j in jumps) for i in range(min(m, n))]
    weight = planted(sigma, m, n, rng)
    most = sum(value > 1e-9 * sigma[0] for value in sigma)
    k = int(torch.randint(1, min(most, 8) + 1, (), generator=rng))
    result = certified_top_subspaces(
        weight,
        k,
        generator=rng,
        block=k + 3 + extra,
        tolerance=tolerance,
        max_iterations=iterations,
    )
    check_certificate(weight, result)
    if decay > 0.999999 and k < min(m, n) and k not in jumps:
        assert not result.certified


@pytest.mark.parametrize(("dtype", "scale"), [(F64, 1e-200), (F64, 1e200), (torch.float32, 1e-30)])
def test_tiny_and_huge_scales(dtype, scale, rng):
    weight = planted(SPECTRA["harmonic"], 60, 40, rng).to(dtype)
    plain, moved = (certified_top_subspaces(w, 4) for w in (weight, weight * scale))
    assert moved.certified
    assert moved.sine_bound == pytest.approx(plain.sine_bound, rel=0.5)
    torch.testing.assert_close(moved.sigma / scale, plain.sigma, rtol=1e-6, atol=0)
    check_certificate(weight * scale, moved)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)], ids=str)
def test_single_rows_and_columns(shape, rng):
    weight = torch.randn(shape, generator=rng, dtype=F64)
    result = certified_top_subspaces(weight, 1)
    assert result.certified
    assert float(result.sigma) == pytest.approx(float(weight.norm()), rel=1e-14)
    check_certificate(weight, result)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_rank_deficient_weight(dtype, rng):
    weight = planted(SPECTRA["rank 12"], 90, 70, rng).to(dtype)
    result = certified_top_subspaces(weight, 12)
    assert result.certified
    assert result.gap > 0.99
    check_certificate(weight, result)
    with pytest.raises(ShapeError, match=r"90 x 70 weight of numerical rank 12; ask for at most"):
        certified_top_subspaces(weight, 13)


def test_overlap_with_a_third_subspace_is_within_the_bound(rng):
    for name in ("gap", "slow decay", "narrow"):
        weight = planted(SPECTRA[name], 80, 64, rng).float()
        result = certified_top_subspaces(weight, 5)
        u, _, v = dense_subspaces(weight, 5)
        for columns in (1, 5, 16):
            for found, true in ((result.u, u), (result.v, v)):
                turn = haar_rotation(true.shape[0], rng, dtype=F64)[:, :columns]
                third = torch.linalg.qr(turn + 3 * true[:, :1]).Q
                moved = abs(float(subspace_overlap(found, third) - subspace_overlap(true, third)))
                assert moved <= result.sine_bound + 64 * EPS
                assert moved <= 1e-3


def test_the_same_generator_gives_the_same_result(rng):
    weight = planted(SPECTRA["slow decay"], 64, 48, rng)
    first, second = (certified_top_subspaces(weight, 4) for _ in range(2))
    assert torch.equal(first.u, second.u)
    one, two = (
        certified_top_subspaces(weight, 4, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(one.v, two.v)
    assert not torch.equal(one.v, first.v)


def test_half_precision_is_taken_as_float32(rng):
    weight = planted(SPECTRA["gap"], 40, 30, rng).to(torch.bfloat16)
    result = certified_top_subspaces(weight, 3)
    assert result.certified
    assert torch.equal(result.u, certified_top_subspaces(weight.float(), 3).u)


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_outside_the_shape_is_refused(k):
    with pytest.raises(ShapeError, match=rf"{k} singular directions asked of a weight .*\(4, 6\)"):
        certified_top_subspaces(torch.ones(4, 6), k)


def test_bad_weights_and_settings_are_refused():
    weight = torch.eye(6, dtype=F64)
    with pytest.raises(ShapeError, match="expected a matrix"):
        certified_top_subspaces(torch.ones(2, 4, 6), 1)
    with pytest.raises(ZeroMatrixError, match=r"zero weight \(3, 2\)"):
        certified_top_subspaces(torch.zeros(3, 2), 1)
    with pytest.raises(SettingError, match="NaN or infinite"):
        certified_top_subspaces(weight * torch.nan, 1)
    with pytest.raises(SettingError, match=r"block is 5, expected at least k \+ 4 = 6"):
        certified_top_subspaces(weight, 2, block=5)
    with pytest.raises(SettingError, match="at least 1 iteration"):
        certified_top_subspaces(weight, 2, max_iterations=0)
    with pytest.raises(SettingError, match=r"tolerance 1\.0"):
        certified_top_subspaces(weight, 2, tolerance=1.0)
    with pytest.raises(SettingError, match="dtype"):
        certified_top_subspaces(torch.ones(3, 3, dtype=torch.int64), 1)
