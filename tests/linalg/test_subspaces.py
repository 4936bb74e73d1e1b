"""Bases, principal angles and overlaps against SciPy and angles set by hand."""

import numpy as np
import pytest
import scipy.linalg
import torch

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg import (
    haar_rotation,
    orthonormal_basis,
    principal_angles,
    spectral_tolerance,
    subspace_overlap,
    top_singular_subspaces,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps


def planted(angles, n, columns, rng):
    """Frames of R^n, len(angles) and ``columns`` wide, at exactly these principal angles."""
    k = len(angles)
    turn = haar_rotation(n, rng, dtype=F64)
    theta = torch.tensor(angles, dtype=F64)
    basis_u = turn[:, :k]
    leaning = theta.cos() * turn[:, :k] + theta.sin() * turn[:, k : 2 * k]
    basis_v = torch.cat([leaning, turn[:, 2 * k : k + columns]], dim=1)
    basis_u = basis_u @ haar_rotation(k, rng, dtype=F64)
    return basis_u, basis_v @ haar_rotation(basis_v.shape[1], rng, dtype=F64)


@pytest.mark.parametrize("swap", [False, True], ids=["k<=l", "k>=l"])
@pytest.mark.parametrize(
    "angles",
    [
        (0.0,),
        (1e-14, 1e-10, 1e-7, 1e-3, 0.5),
        (0.7853981, 0.7853982, 0.9, 1.5707),
        (np.pi / 2 - 1e-9, np.pi / 2),
        (0.3, 0.3, 0.3),
    ],
    ids=str,
)
def test_principal_angles_find_planted_angles(angles, swap, rng):
    """Absolute error of a few eps at both ends, where one formula alone errs by 1e-8."""
    basis_u, basis_v = planted(angles, 20, 7, rng)
    pair = (basis_v, basis_u) if swap else (basis_u, basis_v)
    found = principal_angles(*pair)
    expected = torch.tensor(angles, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=0, atol=64 * EPS)
    reference = scipy.linalg.subspace_angles(basis_u.numpy(), basis_v.numpy())[::-1]
    # SciPy takes some angles of mixed sets from the flat end of arccos or arcsin: half the digits.
    np.testing.assert_allclose(found.numpy(), reference, rtol=0, atol=4 * np.sqrt(EPS))


def test_cosines_alone_would_fail_near_zero(rng):
    """The near miss: arccos of the singular values loses an angle of 1e-10 altogether."""
    basis_u, basis_v = planted((1e-10,), 20, 3, rng)
    naive = torch.linalg.svdvals(basis_u.mT @ basis_v).clamp(max=1).acos()
    assert abs(float(naive[0]) - 1e-10) > 5e-11
    assert abs(float(principal_angles(basis_u, basis_v)[0]) - 1e-10) < 64 * EPS


@pytest.mark.parametrize(("n", "k", "l"), [(1, 1, 1), (5, 5, 5), (9, 2, 6), (40, 7, 3)], ids=str)
def test_overlap_is_mean_squared_cosine(n, k, l, rng):  # noqa: E741
    basis_u = haar_rotation(n, rng, dtype=F64)[:, :k]
    basis_v = haar_rotation(n, rng, dtype=F64)[:, :l]
    overlap = subspace_overlap(basis_u, basis_v)
    angles = scipy.linalg.subspace_angles(basis_u.numpy(), basis_v.numpy())
    expected = float(np.mean(np.cos(angles) ** 2))
    assert float(overlap) == pytest.approx(expected, abs=32 * n * EPS)
    assert float(overlap) * 1.001 != pytest.approx(expected, abs=32 * n * EPS)
    torch.testing.assert_close(subspace_overlap(basis_v, basis_u), overlap)
    inside = subspace_overlap(basis_u, basis_u[:, :1])
    assert 1 - 32 * EPS <= float(inside) <= 1


def test_batched_angles_and_overlaps(rng):
    basis_u = haar_rotation(8, rng, batch=(3,), dtype=F64)[..., :3]
    basis_v = haar_rotation(8, rng, batch=(2, 3), dtype=F64)[..., :5]
    overlap, angles = subspace_overlap(basis_u, basis_v), principal_angles(basis_u, basis_v)
    assert (overlap.shape, angles.shape) == ((2, 3), (2, 3, 3))
    torch.testing.assert_close(angles.cos().square().mean(dim=-1), overlap)
    torch.testing.assert_close(principal_angles(basis_u[1], basis_v[1, 1]), angles[1, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_bases_are_accepted_in_their_own_precision(dtype, rng):
    basis = haar_rotation(64, rng)[:, :8].to(dtype)
    overlap = subspace_overlap(basis, basis)
    assert overlap.dtype == torch.float32
    assert float(overlap) == pytest.approx(1.0, abs=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("function", [subspace_overlap, principal_angles])
def test_wrong_bases_are_refused(function, rng):
    basis = haar_rotation(6, rng)[:, :2]
    with pytest.raises(ShapeError, match=r"R\^6 and R\^5"):
        function(basis, torch.eye(5)[:, :2])
    with pytest.raises(SettingError, match="orthonormal_basis"):
        function(basis * 1.01, basis)
    with pytest.raises(SettingError, match="not orthonormal"):
        function(basis, torch.full((6, 2), torch.nan))
    with pytest.raises(ShapeError, match="columns <= rows"):
        function(torch.ones(6, 7), basis)
    with pytest.raises(ShapeError, match="expected"):
        function(torch.ones(6), basis)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200], ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 6), (9, 4)], ids=str)
def test_basis_spans_the_columns(n, k, scale, rng):
    matrix = torch.randn((2, n, k), generator=rng, dtype=F64)
    matrix = matrix * 10.0 ** torch.arange(k)  # short columns still count
    basis = orthonormal_basis(matrix * scale)
    identity = torch.eye(k, dtype=F64).expand(2, k, k)
    torch.testing.assert_close(basis.mT @ basis, identity, rtol=0, atol=16 * n * EPS)
    rebuilt = basis @ (basis.mT @ matrix)
    torch.testing.assert_close(rebuilt, matrix, rtol=0, atol=64 * n * EPS * 10.0**k)


def test_no_basis_of_dependent_columns(rng):
    matrix = torch.randn((6, 3), generator=rng)
    matrix[:, 2] = matrix[:, 0] - 2 * matrix[:, 1]
    with pytest.raises(ShapeError, match="span only 2"):
        orthonormal_basis(matrix)
    matrix[:, 2] = 0
    with pytest.raises(ShapeError, match="span only 2"):
        orthonormal_basis(matrix)
    with pytest.raises(ZeroMatrixError):
        orthonormal_basis(torch.zeros(6, 3))
    with pytest.raises(ShapeError, match="k <= n"):
        orthonormal_basis(torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (30, 20, 5), (20, 30, 20), (64, 8, 8)])
def test_top_subspaces_match_a_full_svd(m, n, k, dtype, rng):
    weight = torch.randn((m, n), generator=rng, dtype=dtype)
    u, sigma, v = top_singular_subspaces(weight, k)
    full_u, full_sigma, full_vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    atol = spectral_tolerance(full_sigma[0], m + n, F64)
    np.testing.assert_allclose(sigma.numpy(), full_sigma[:k], rtol=0, atol=atol)
    for frame, reference in ((u, full_u[:, :k]), (v, full_vh[:k].T)):
        assert frame.dtype == F64
        torch.testing.assert_close(
            frame.mT @ frame, torch.eye(k, dtype=F64), rtol=0, atol=16 * (m + n) * EPS
        )
        assert 1 - float(subspace_overlap(frame, torch.from_numpy(reference.copy()))) < 1e-12
    torch.testing.assert_close(weight.double() @ v, u * sigma, rtol=0, atol=8 * atol)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200], ids=str)
@pytest.mark.parametrize("condition", [1e3, 1e6, 1e10, 1e12], ids="{:.0e}".format)
def test_deep_directions_of_an_ill_conditioned_weight(condition, scale, rng):
    """Where the Gram matrix cannot resolve the k-th value, the full route takes over."""
    true = torch.logspace(0, -np.log10(condition), 12, dtype=F64)
    left, right = (haar_rotation(d, rng, dtype=F64)[:, :12] for d in (30, 16))
    u, sigma, v = top_singular_subspaces((left * true) @ right.mT * scale, 12)
    torch.testing.assert_close(sigma / scale, true, rtol=0, atol=64 * EPS)
    assert 1 - float(subspace_overlap(u, left)) < 1e-8 * condition / 1e12 + 1e-12
    assert 1 - float(subspace_overlap(v, right)) < 1e-8 * condition / 1e12 + 1e-12


def test_no_more_directions_than_the_numerical_rank(rng):
    lora = torch.randn((40, 16), generator=rng) @ torch.randn((16, 30), generator=rng)
    assert top_singular_subspaces(lora, 16)[1].shape == (16,)
    with pytest.raises(ShapeError, match="numerical rank 16"):
        top_singular_subspaces(lora, 20)
    with pytest.raises(ShapeError, match="k <= min"):
        top_singular_subspaces(lora, 31)
    with pytest.raises(ShapeError, match="1 <= k"):
        top_singular_subspaces(lora, 0)
    with pytest.raises(ZeroMatrixError):
        top_singular_subspaces(torch.zeros(4, 4), 1)
