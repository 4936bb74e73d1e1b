"""Certified subspaces for several k at once, on both routes, against dense SVDs."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg import certified, haar_rotation
from gonio.linalg.certified import certified_subspaces, dense_subspaces
from gonio.linalg.krylov import certified_top_subspaces, krylov_subspaces

F64 = torch.float64


def planted(sigma, m, n, rng):
    count = min(len(sigma), m, n)
    left, right = (haar_rotation(d, rng, dtype=F64)[:, :count] for d in (m, n))
    return (left * torch.tensor(sigma[:count], dtype=F64)) @ right.mT


def true_sine(weight, result):
    """Largest sine to the subspaces of a full float64 SVD."""
    k = len(result.sigma)
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return max(
        float(torch.linalg.matrix_norm(found - true @ (true.mT @ found), 2))
        for found, true in ((result.u, u[:, :k]), (result.v, vh[:k].mT))
    )


def check(weight, found):
    """Orthonormal frames, true values, and the bound wherever there is a gap to speak of."""
    sigma = torch.linalg.svdvals(weight.double())
    for k, result in found.items():
        assert (result.u.shape, result.v.shape) == ((weight.shape[0], k), (weight.shape[1], k))
        for frame in (result.u, result.v):
            identity = torch.eye(k, dtype=F64)
            torch.testing.assert_close(frame.mT @ frame, identity, rtol=0, atol=1e-12)
        assert result.certified == (result.reason == "")
        following = float(sigma[k]) if k < len(sigma) else 0.0
        apart = float(sigma[k - 1]) - following
        slack = 1e-14 * math.sqrt(sum(weight.shape)) * float(sigma[0]) / max(apart, 1e-300)
        if result.certified:
            assert result.sine_bound <= 1e-3
            assert true_sine(weight, result) <= result.sine_bound + slack
            assert float(result.sigma[-1]) * (1 - result.gap) >= following - 1e-13 * float(sigma[0])


@pytest.mark.parametrize("route", [dense_subspaces, krylov_subspaces])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("m", "n"), [(150, 60), (60, 150), (80, 80)], ids=str)
def test_every_k_is_certified_by_one_search(route, dtype, m, n, rng):
    sigma = [1.05**-i for i in range(60)]
    weight = planted(sigma, m, n, rng).to(dtype)
    found = route(weight, (5, 1, 20, 5))
    assert sorted(found) == [1, 5, 20]
    assert all(result.certified for result in found.values())
    check(weight, found)
    for k, result in found.items():
        torch.testing.assert_close(
            result.sigma, torch.tensor(sigma[:k], dtype=F64), rtol=1e-5, atol=0
        )


def test_both_routes_and_the_single_search_agree(rng):
    weight = planted([1.1**-i for i in range(50)], 70, 50, rng)
    dense, searched = (route(weight, (3, 8)) for route in (dense_subspaces, krylov_subspaces))
    for k in (3, 8):
        alone = certified_top_subspaces(weight, k)
        for other in (searched[k], alone):
            difference = dense[k].u - other.u @ (other.u.mT @ dense[k].u)
            assert float(torch.linalg.matrix_norm(difference, 2)) <= 2 * other.sine_bound + 1e-9


def test_one_k_in_no_gap_does_not_spoil_the_others(rng):
    weight = planted([4.0, 3.0, 2.0, 2.0, 2.0] + [0.9**i for i in range(30)], 90, 60, rng)
    for route in (dense_subspaces, krylov_subspaces):
        for dtype in (torch.float32, F64):
            found = route(weight.to(dtype), (2, 3, 4, 5))
            assert [found[k].certified for k in (2, 3, 4, 5)] == [True, False, False, True]
            assert {found[k].reason for k in (3, 4)} == {"k in no gap"}
            check(weight.to(dtype), found)


@pytest.mark.parametrize("side", [0, 10_000], ids=["krylov", "dense"])
def test_a_gap_within_storage_rounding_is_no_gap(side, rng, monkeypatch):
    """A double value split by rounding has a tiny gap, which float64 resolves and means nothing."""
    monkeypatch.setattr(certified, "_DENSE_SIDE", side)
    exact = planted([3.0, 2.0, 2.0, 1.0, 0.5], 60, 40, rng)
    for dtype in (torch.float32, torch.bfloat16):
        stored = exact.to(dtype)
        apart = torch.linalg.svdvals(stored.double())
        assert float(apart[1] - apart[2]) > 1e-9  # rounding split it far above float64's eps
        found = certified_subspaces(stored, (1, 2, 3))
        assert [found[k].reason for k in (1, 2, 3)] == ["", "k in no gap", ""]
        if side == 0:
            continue
        # The near miss: the same numbers declared float64 are told apart.
        assert certified_subspaces(stored.double(), (2,))[2].certified


def test_the_storage_noise_is_that_of_rounding(rng):
    """Against the spectral norm of the rounding itself, on weights with rows of many scales."""
    for shape in ((200, 120), (64, 300)):
        scale = torch.logspace(-2, 0, shape[0], dtype=F64)[:, None]
        exact = torch.randn(shape, generator=rng, dtype=F64) * scale
        stored = exact.to(torch.bfloat16)
        moved = float(torch.linalg.matrix_norm(exact - stored.double(), 2))
        estimate = certified._storage_noise(stored.double(), torch.bfloat16)
        assert 0.3 * estimate < moved <= estimate


def test_a_gap_lost_in_float32_is_found_in_float64(rng, monkeypatch):
    monkeypatch.setattr(certified, "_DENSE_SIDE", 0)
    weight = planted([400.0, 1.0, 0.99] + [0.5 * 0.9**i for i in range(30)], 60, 30, rng).float()
    assert krylov_subspaces(weight, (1, 2))[2].reason == "gap lost in rounding"
    found = certified_subspaces(weight, (1, 2))
    assert found[2].certified
    check(weight, found)


def test_a_deep_k_falls_back_to_the_full_decomposition(rng):
    """sigma_k / sigma_1 = 1e-9 is below what a Gram matrix resolves."""
    weight = planted([1.0, 1e-3, 1e-6, 1e-9, 1e-12], 40, 30, rng)
    found = dense_subspaces(weight, (4,))
    assert found[4].certified
    assert float(found[4].sigma[-1]) == pytest.approx(1e-9, rel=1e-5)
    triplets, bounds = certified._by_gram(weight, 5)
    assert bounds[4] > 0.5 * float(triplets[1][3])  # alone, the Gram route sees no gap there


def test_a_missing_gap_in_a_stored_weight_needs_no_full_decomposition(rng, monkeypatch):
    stored = planted([3.0, 2.0, 2.0] + [0.9**i for i in range(30)], 60, 40, rng).bfloat16()
    whole = dense_subspaces(stored, (2, 3))
    monkeypatch.setattr(certified, "_by_svd", None)
    found = dense_subspaces(stored, (2, 3))
    assert [found[k].reason for k in (2, 3)] == ["k in no gap", ""]
    assert torch.equal(found[3].u, whole[3].u)
    with pytest.raises(TypeError, match="not callable"):  # where it is needed it is asked for
        dense_subspaces(planted([1.0, 1e-5, 1e-9, 1e-12], 40, 30, rng), (3,))


def test_the_bound_of_the_dense_route_is_earned(rng, monkeypatch):
    """The mutant: a Gram matrix in float32, whose vectors are visibly off, with its residual."""
    honest = certified._by_gram

    def coarse(tall, count):
        right = torch.linalg.eigh(tall.float().mT @ tall.float()).eigenvectors
        right = torch.linalg.qr(right.flip(1)[:, :count].double()).Q
        left, triangle = torch.linalg.qr(tall @ right)
        u, sigma, vh = torch.linalg.svd(triangle)
        return (left @ u, sigma, right @ vh.mT), honest(tall, count)[1]

    weight = planted([1.02**-i for i in range(60)], 90, 60, rng)
    monkeypatch.setattr(certified, "_by_gram", coarse)
    result = dense_subspaces(weight, (7,))[7]
    sine = true_sine(weight, result)
    assert 1e-8 < sine <= result.sine_bound
    assert sine > 1e-3 * result.sine_bound  # and not by an empty bound


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    decay=st.floats(0.3, 1.0),
    scale=st.sampled_from([1e-200, 1e-3, 1.0, 1e200]),
    repeats=st.integers(1, 3),
)
def test_no_certificate_is_exceeded(seed, m, n, decay, scale, repeats):
    rng = torch.Generator().manual_seed(seed)
    sigma = [decay ** (i // repeats) for i in range(min(m, n))]
    weight = planted(sigma, m, n, rng)
    most = sum(value > 1e-9 for value in sigma)
    ks = sorted(torch.randint(1, most + 1, (3,), generator=rng).tolist())
    found = certified_subspaces(weight * scale, ks)
    assert sorted(found) == sorted(set(ks))
    # The frames do not depend on the scale; the values do.
    check(weight, {k: _divided(result, scale) for k, result in found.items()})
    for k, result in found.items():
        inside = k < len(sigma) and sigma[k] == sigma[k - 1]
        assert not (inside and result.certified)


def _divided(result, scale):
    return replace(result, sigma=result.sigma / scale)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)], ids=str)
def test_single_rows_and_columns(shape, rng):
    weight = torch.randn(shape, generator=rng, dtype=F64)
    result = certified_subspaces(weight, (1,))[1]
    assert (result.certified, result.gap) == (True, 1.0)
    assert float(result.sigma) == pytest.approx(float(weight.norm()), rel=1e-14)


def test_a_transposed_weight_gives_the_sides_exchanged(rng):
    weight = planted([1.1**-i for i in range(20)], 50, 30, rng)
    one, other = dense_subspaces(weight, (4,))[4], dense_subspaces(weight.mT, (4,))[4]
    torch.testing.assert_close((one.u.mT @ other.v).abs(), torch.eye(4, dtype=F64))


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="numerical rank 1; ask for at most 1"):
        certified_subspaces(torch.ones(5, 4), (1, 2))
    with pytest.raises(ShapeError, match=r"9 singular directions .*\(5, 4\)"):
        certified_subspaces(torch.ones(5, 4), (1, 9))
    with pytest.raises(ShapeError, match="expected a matrix"):
        certified_subspaces(torch.ones(2, 5, 4), (1,))
    with pytest.raises(ZeroMatrixError, match="zero weight"):
        certified_subspaces(torch.zeros(5, 4), (1,))
    with pytest.raises(SettingError, match="no k given"):
        certified_subspaces(torch.ones(5, 4), ())
    with pytest.raises(SettingError, match="tolerance"):
        certified_subspaces(torch.ones(5, 4), (1,), tolerance=0.5)
