"""Rotations: orthogonality, what they map where, and optimality against rivals."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg import (
    haar_rotation,
    hadamard_matrix,
    householder_reflection,
    learned_sign_rotation,
    procrustes_rotation,
    rotations,
    sign_cosine_of_random_direction,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps


def assert_orthogonal(rotation, atol):
    d = rotation.shape[-1]
    identity = torch.eye(d, dtype=rotation.dtype).expand_as(rotation)
    torch.testing.assert_close(rotation.mT @ rotation, identity, rtol=0, atol=atol)


def mean_cosine(rows, rotation):
    turned = (rows @ rotation.mT).double()
    return (turned.abs().sum(-1) / turned.norm(dim=-1)).mean(-1) / math.sqrt(rows.shape[-1])


@pytest.mark.parametrize("d", [1, 2, 5, 64])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_haar_rotations_are_orthogonal_and_reproducible(d, dtype):
    draws = [
        haar_rotation(d, torch.Generator().manual_seed(seed), batch=(3, 2), dtype=dtype)
        for seed in (1, 1)
    ]
    assert draws[0].shape == (3, 2, d, d)
    assert draws[0].dtype == dtype
    assert torch.equal(*draws)
    assert_orthogonal(draws[0], 8 * d * torch.finfo(dtype).eps)


def test_haar_law(rng):
    """Diagonal entries have the marginal law, both determinants come up, eigenvalues spread.

    Without the sign fix QR makes the diagonal of Q lean to one sign, which this rejects.
    """
    samples, d = 4000, 4
    rotations = haar_rotation(d, rng, batch=(samples,), dtype=F64)
    law = scipy.stats.beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)
    for row in range(d):
        assert scipy.stats.kstest(rotations[:, row, row].numpy(), law.cdf).pvalue > 1e-4
    positive = int((torch.linalg.det(rotations) > 0).sum())
    assert scipy.stats.binomtest(positive, samples).pvalue > 1e-4
    raw, _ = torch.linalg.qr(torch.randn((samples, d, d), generator=rng, dtype=F64))
    assert scipy.stats.kstest(raw[:, 0, 0].numpy(), law.cdf).pvalue < 1e-10


def test_haar_needs_a_dimension():
    with pytest.raises(ShapeError):
        haar_rotation(0, torch.Generator())


@settings(derandomize=True, deadline=None)
@given(
    d=st.integers(1, 12),
    gap=st.sampled_from([0.0, 1e-16, 1e-12, 1e-8, 1e-3, 1.0]),
    scale=st.sampled_from([1e-200, 1.0, 1e200]),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_householder_maps_source_to_target(d, gap, scale, flip, seed):
    """Also for nearly equal and nearly opposite directions, where the naive formula fails."""
    rng = torch.Generator().manual_seed(seed)
    source = torch.randn(d, generator=rng, dtype=F64)
    target = (-source if flip else source) + gap * torch.randn(d, generator=rng, dtype=F64)
    matrix = householder_reflection(source * scale, target)
    assert torch.equal(matrix, matrix.mT)
    assert_orthogonal(matrix, 16 * d * EPS)
    mapped = matrix @ (source / source.norm())
    torch.testing.assert_close(mapped, target / target.norm(), rtol=0, atol=32 * d * EPS)


def test_householder_reaches_the_cube_corner(rng):
    """One key on the corner of its signs: 1-bit cosine 1."""
    key = torch.randn((5, 64), generator=rng, dtype=F64)
    corner = torch.where(key >= 0, 1.0, -1.0).double()
    rotation = householder_reflection(key, corner)
    assert rotation.shape == (5, 64, 64)
    torch.testing.assert_close(
        mean_cosine(key.unsqueeze(1), rotation), torch.ones(5, dtype=F64), rtol=0, atol=1e-13
    )


def test_householder_refusals():
    assert torch.equal(householder_reflection(torch.ones(3), torch.ones(3)), torch.eye(3))
    with pytest.raises(ZeroMatrixError, match="target"):
        householder_reflection(torch.ones(3), torch.zeros(3))
    with pytest.raises(ShapeError):
        householder_reflection(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_procrustes_recovers_a_rotation_and_matches_scipy(dtype, rng):
    eps = torch.finfo(dtype).eps
    truth = haar_rotation(6, rng, dtype=dtype)
    source = torch.randn((20, 6), generator=rng, dtype=dtype)
    found = procrustes_rotation(source, source @ truth.mT)
    torch.testing.assert_close(found, truth, rtol=0, atol=64 * eps)
    noisy = source @ truth.mT + 0.3 * torch.randn((20, 6), generator=rng, dtype=dtype)
    best = procrustes_rotation(source, noisy)
    expected, _ = scipy.linalg.orthogonal_procrustes(source.double(), noisy.double())
    torch.testing.assert_close(best.double().mT, torch.from_numpy(expected), rtol=0, atol=64 * eps)
    assert_orthogonal(best, 64 * eps)
    skew = torch.randn((6, 6), generator=rng, dtype=dtype)
    rival = best @ torch.linalg.matrix_exp(0.01 * (skew - skew.mT))
    assert float((source @ rival.mT - noisy).norm()) > float((source @ best.mT - noisy).norm())


def test_procrustes_batches_and_refuses(rng):
    source = torch.randn((3, 10, 4), generator=rng, dtype=F64)
    target = torch.randn((3, 10, 4), generator=rng, dtype=F64)
    batched = procrustes_rotation(source, target)
    torch.testing.assert_close(batched[1], procrustes_rotation(source[1], target[1]))
    with pytest.raises(ShapeError):
        procrustes_rotation(source, target[:, :5])


def plain_alternation(rows, rotation, iterations):
    """The same alternation without acceleration, in NumPy with SciPy's polar factor."""
    rows, rotation = rows.double().numpy(), rotation.double().numpy()
    cosines = []
    for _ in range(iterations):
        signs = np.where(rows @ rotation.T >= 0, 1.0, -1.0)
        rotation = scipy.linalg.polar(signs.T @ rows)[0]
        turned = rows @ rotation.T
        lengths = np.linalg.norm(turned, axis=1) * math.sqrt(rows.shape[1])
        cosines.append((np.abs(turned).sum(axis=1) / lengths).mean())
    return rotation, cosines


@pytest.mark.parametrize("start", ["identity", "haar", "given"])
def test_learned_rotation_climbs_and_reports_what_it_does(start, rng):
    """It starts and ends at the rotations it claims; on unit vectors the last step never falls."""
    rows = torch.randn((2, 200, 16), generator=rng, dtype=F64)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    initial = hadamard_matrix(16, dtype=F64) if start == "given" else None
    generator = rng if start == "haar" else None
    best, trace = learned_sign_rotation(rows, iterations=30, initial=initial, generator=generator)
    assert (best.shape, trace.shape) == ((2, 16, 16), (31, 2))
    assert_orthogonal(best, 128 * EPS)
    assert bool((trace[-1] >= trace.amax(dim=0) - 16 * EPS).all())
    torch.testing.assert_close(mean_cosine(rows, best), trace.amax(dim=0), rtol=1e-13, atol=0)
    if start != "haar":
        first = torch.eye(16, dtype=F64) if initial is None else initial
        torch.testing.assert_close(mean_cosine(rows, first), trace[0], rtol=1e-13, atol=0)
    # 200 isotropic vectors in 16 dimensions: learning must beat every random rotation's c_16.
    assert bool((trace[-1] > sign_cosine_of_random_direction(16) + 0.01).all())


def falling_rows(rng, count, d, decades=2.0):
    """Unit rows of falling variances in a random basis, as keys are."""
    rows = torch.randn((count, d), generator=rng, dtype=F64) * torch.logspace(0, -decades, d)
    rows = rows @ haar_rotation(d, rng, dtype=F64)
    return rows / rows.norm(dim=1, keepdim=True)


def test_one_iteration_is_the_procrustes_step(rng):
    rows, initial = falling_rows(rng, 60, 8), haar_rotation(8, rng, dtype=F64)
    best, trace = learned_sign_rotation(rows, iterations=1, initial=initial)
    expected, cosines = plain_alternation(rows, initial, 1)
    torch.testing.assert_close(best, torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert float(trace[1]) == pytest.approx(cosines[0], abs=1e-13)


@pytest.mark.parametrize("d", [8, 64])
def test_acceleration_beats_the_plain_alternation(d, rng, monkeypatch):
    """Half of its steps reach a higher cosine; over-soft signs (a mutant) do not."""
    rows, initial = falling_rows(rng, 10 * d, d), haar_rotation(d, rng, dtype=F64)
    _, plain = plain_alternation(rows, initial, 30)
    _, trace = learned_sign_rotation(rows, iterations=15, initial=initial)
    assert float(trace.max()) > max(plain)
    monkeypatch.setattr(rotations, "SOFTNESS", 30.0)
    _, trace = learned_sign_rotation(rows, iterations=15, initial=initial)
    assert float(trace.max()) < max(plain)


@pytest.mark.parametrize("near", [1e-2, 1e-3, 1e-4])
def test_a_step_without_momentum_is_the_polar_factor_to_first_order(near, rng, monkeypatch):
    """Against SciPy, where the symmetric part is diagonal; a bound on turns (a mutant) shows."""
    rotation, skew = haar_rotation(6, rng, dtype=F64), torch.randn((6, 6), generator=rng).double()
    pull = torch.diag(torch.rand(6, generator=rng, dtype=F64) + 0.5) + near * (skew - skew.mT)
    expected = rotation @ torch.from_numpy(scipy.linalg.polar(pull.numpy())[0])
    start = torch.zeros(6, 6, dtype=F64)
    monkeypatch.setattr(rotations, "MOMENTUM", 0.0)
    found, _ = rotations._climb(rotation, pull, start)
    assert float((found - expected).norm()) < 20 * near**2
    monkeypatch.setattr(rotations, "LEAST_WEIGHT", 2.0)
    short, _ = rotations._climb(rotation, pull, start)
    assert float((short - expected).norm()) > 20 * near**2


AWKWARD = {
    "rank 1": lambda rng: torch.randn((2, 30, 1), generator=rng) @ torch.ones(1, 9),
    "rank 2": lambda rng: torch.randn((30, 2), generator=rng) @ torch.randn((2, 9), generator=rng),
    "fewer than dimensions": lambda rng: torch.randn((3, 20), generator=rng),
    "one": lambda rng: torch.randn((1, 5), generator=rng),
    "of the line": lambda rng: torch.randn((12, 1), generator=rng),
    "all alike": lambda rng: torch.ones(40, 6),
    "an orthonormal basis": lambda rng: haar_rotation(16, rng),
    "one direction dominates": lambda rng: torch.randn((50, 8), generator=rng) + 1e4,
    "tiny": lambda rng: torch.randn((2, 3, 50, 8), generator=rng) * 1e-30,
    "huge": lambda rng: torch.randn((50, 8), generator=rng) * 1e30,
    "eight decades": lambda rng: torch.randn((99, 8), generator=rng) * torch.logspace(0, -8, 8),
    "mostly zero": lambda rng: torch.randn((60, 8), generator=rng) * torch.eye(60, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("kind", AWKWARD)
def test_learned_rotation_of_awkward_populations(kind, dtype, rng):
    """Orthogonal, with the cosine it claims, and no worse than where it starts."""
    rows = AWKWARD[kind](rng).to(dtype)
    best, trace = learned_sign_rotation(rows, iterations=12, generator=rng)
    assert_orthogonal(best.double(), 1e-6 if dtype == torch.float32 else 1e-13)
    seen = rows.double()
    seen = seen[seen.any(dim=-1)] if kind == "mostly zero" else seen
    atol = 1e-6 if dtype == torch.float32 else 1e-12
    highest = trace.amax(dim=0)
    found = mean_cosine(seen, best.double())
    torch.testing.assert_close(found, highest.double(), rtol=0, atol=atol)
    assert bool((highest >= trace[0]).all())


def test_learned_rotation_finds_a_hidden_lattice(rng):
    """Corners turned by a small rotation: one turn back makes the cosine 1."""
    corners = torch.randint(2, (300, 8), generator=rng).double() * 2 - 1
    skew = 0.05 * torch.randn((8, 8), generator=rng, dtype=F64)
    hidden = torch.linalg.matrix_exp(skew - skew.mT)
    best, trace = learned_sign_rotation(corners @ hidden.mT, iterations=20)
    assert float(trace[-1]) == pytest.approx(1.0, abs=1e-12)
    assert float(trace[0]) < 0.999
    turned = corners @ hidden.mT @ best.mT
    torch.testing.assert_close(turned.abs(), torch.ones_like(turned), rtol=0, atol=1e-12)


def test_learned_rotation_of_unequal_lengths_returns_its_best(rng):
    """With lengths over six decades the cosine may fall on the way; the best is kept."""
    rows = torch.randn((20, 50, 6), generator=rng, dtype=F64)
    rows = rows * torch.logspace(-3, 3, 50, dtype=F64).unsqueeze(-1)
    best, trace = learned_sign_rotation(rows, iterations=25)
    assert bool((trace[-1] < trace.amax(dim=0) - 1e-3).any())
    torch.testing.assert_close(mean_cosine(rows, best), trace.amax(dim=0), rtol=1e-13, atol=0)


def test_learned_rotation_is_batched_and_scale_free(rng):
    rows = torch.randn((3, 40, 8), generator=rng, dtype=F64)
    best, trace = learned_sign_rotation(rows, iterations=5)
    alone, alone_trace = learned_sign_rotation(rows[1] * 1e-180, iterations=5)
    torch.testing.assert_close(best[1], alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(trace[:, 1], alone_trace, rtol=1e-10, atol=0)
    padded = torch.cat([rows, torch.zeros(3, 4, 8, dtype=F64)], dim=1)
    torch.testing.assert_close(learned_sign_rotation(padded, iterations=5)[1], trace)
    half = learned_sign_rotation(rows.to(torch.bfloat16), iterations=0)
    assert half[0].dtype == half[1].dtype == torch.float32


def test_learned_rotation_refusals():
    with pytest.raises(ZeroMatrixError):
        learned_sign_rotation(torch.zeros(4, 3))
    with pytest.raises(SettingError):
        learned_sign_rotation(torch.ones(4, 3), iterations=-1)
    with pytest.raises(ShapeError, match="first rotation"):
        learned_sign_rotation(torch.ones(4, 3), initial=torch.eye(4))
    with pytest.raises(ShapeError):
        learned_sign_rotation(torch.ones(3))


def test_isotropic_vectors_have_the_same_cosine_under_every_rotation(rng):
    """Haar, Hadamard and the identity all give c_d on spherical vectors."""
    rows = torch.randn((20_000, 12), generator=rng, dtype=F64)
    for rotation in (torch.eye(12, dtype=F64), hadamard_matrix(12, dtype=F64)):
        turned = rows @ rotation.mT
        cosines = turned.abs().sum(-1) / turned.norm(dim=-1) / math.sqrt(12)
        error = float(cosines.std()) / math.sqrt(len(rows))
        expected = sign_cosine_of_random_direction(12)
        assert abs(float(cosines.mean()) - expected) < 4.5 * error
        assert abs(float(cosines.mean()) - np.sqrt(2 / np.pi)) > 4.5 * error
