"""Closed-form nulls against simulation and, where one exists, another closed form."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from gonio.errors import SettingError, ShapeError
from gonio.linalg import (
    c_infinity,
    expected_gain_residual,
    expected_overlap,
    haar_rotation,
    overlap_variance,
    overlap_z_score,
    random_lora_singular_values,
    random_matrix_singular_values,
    sign_cosine_of_random_direction,
    stable_rank,
    subspace_overlap,
)

F64 = torch.float64
SIGMAS = 4.5  # seeded simulations must agree within this many standard errors


@pytest.mark.parametrize(
    ("k", "l", "n"), [(1, 1, 2), (2, 2, 5), (2, 5, 8), (5, 2, 8), (3, 3, 4), (7, 7, 8)], ids=str
)
def test_overlap_moments_against_simulation(k, l, n, rng):  # noqa: E741
    """20,000 Haar frames: mean and variance within 4.5 standard errors of the formulas."""
    samples = 20_000
    frames = haar_rotation(n, rng, batch=(samples,), dtype=F64)[..., :l]
    overlaps = subspace_overlap(torch.eye(n, dtype=F64)[:, :k], frames)
    mean, variance = expected_overlap(k, l, n), overlap_variance(k, l, n)
    error = math.sqrt(variance / samples)
    assert abs(float(overlaps.mean()) - mean) < SIGMAS * error
    squares = (overlaps - mean).square()
    spread = float(squares.std()) / math.sqrt(samples)
    assert abs(float(squares.mean()) - variance) < SIGMAS * spread
    # Near misses: a 10 % larger variance, and the printed k/n where l is larger.
    assert abs(float(squares.mean()) - 1.1 * variance) > SIGMAS * spread
    if l > k:
        assert abs(float(overlaps.mean()) - k / n) > SIGMAS * error


@pytest.mark.parametrize(("k", "n"), [(1, 2), (3, 7), (64, 576), (20, 4096)], ids=str)
def test_overlap_variance_of_a_line_is_the_beta_law(k, n):
    law = scipy.stats.beta(k / 2, (n - k) / 2)
    assert overlap_variance(k, 1, n) == pytest.approx(law.var(), rel=1e-12)
    assert overlap_variance(1, k, n) == pytest.approx(law.var(), rel=1e-12)
    assert expected_overlap(k, 1, n) == pytest.approx(law.mean(), rel=1e-12)


@pytest.mark.parametrize(("k", "l", "n"), [(2, 3, 7), (3, 3, 9), (4, 6, 12)], ids=str)
def test_overlap_variance_under_complements(k, l, n):  # noqa: E741
    """tr(P Q) and tr((1 - P) Q) differ from a constant by a sign: equal variances."""
    plain = overlap_variance(k, l, n) * min(k, l) ** 2
    other = overlap_variance(n - k, l, n) * min(n - k, l) ** 2
    assert plain == pytest.approx(other, rel=1e-13)


def test_z_score():
    mean, deviation = expected_overlap(4, 4, 64), math.sqrt(overlap_variance(4, 4, 64))
    assert overlap_z_score(mean + 3 * deviation, 4, 4, 64) == pytest.approx(3.0)
    scores = overlap_z_score(torch.tensor([mean, mean - deviation], dtype=F64), 4, 4, 64)
    torch.testing.assert_close(scores, torch.tensor([0.0, -1.0], dtype=F64), rtol=0, atol=1e-12)
    with pytest.raises(SettingError, match="constant"):
        overlap_z_score(1.0, 4, 64, 64)


@pytest.mark.parametrize("function", [expected_overlap, overlap_variance])
@pytest.mark.parametrize(("k", "l", "n"), [(0, 1, 3), (1, 4, 3), (4, 1, 3)], ids=str)
def test_subspaces_must_fit(function, k, l, n):  # noqa: E741
    with pytest.raises(ShapeError, match="expected 1 <= k, l <= n"):
        function(k, l, n)


@pytest.mark.parametrize("m", [1, 3, 10])
def test_gain_residual_against_simulation(m, rng):
    """Least squares of a Gaussian update on the columns of a fixed weight, m rows."""
    weight = torch.randn((m, 4), generator=rng, dtype=F64)
    update = torch.randn((40_000, m, 4), generator=rng, dtype=F64)
    inner = (update * weight).sum(dim=1).square() / weight.square().sum(dim=0)
    residuals = 1 - inner.sum(dim=-1) / update.square().sum(dim=(1, 2))
    error = float(residuals.std()) / 200 + 1e-12
    assert abs(float(residuals.mean()) - expected_gain_residual(m)) < SIGMAS * error
    assert abs(float(residuals.mean()) - (1 - 1 / (m + 1))) > SIGMAS * error


def test_gain_residual_needs_rows():
    with pytest.raises(ShapeError):
        expected_gain_residual(0)


@pytest.mark.parametrize("d", [1, 2, 3, 64, 128, 255, 256, 257, 1000, 9216])
def test_sign_cosine_constant_against_exact_integers(d):
    """Half-integer gammas as central binomials, in rationals: equal to 1e-13."""
    m = d // 2
    share = Fraction(math.comb(2 * m, m), 4**m)
    exact = float(share) if d % 2 else float(1 / (m * share)) / math.pi
    expected = math.sqrt(d) * exact
    assert sign_cosine_of_random_direction(d) == pytest.approx(expected, rel=1e-13)
    assert sign_cosine_of_random_direction(d + 1) != pytest.approx(expected, rel=1e-13)


def test_sign_cosine_constant_by_quadrature_and_limit():
    """In R^3 the first coordinate is uniform, so c_3 = sqrt(3)/2; then down to sqrt(2/pi)."""
    mean, _ = scipy.integrate.quad(abs, -1, 1)
    assert sign_cosine_of_random_direction(3) == pytest.approx(math.sqrt(3) * mean / 2, rel=1e-14)
    values = [sign_cosine_of_random_direction(d) for d in range(1, 2000)]
    assert all(low < high for high, low in itertools.pairwise(values))
    assert values[-1] > c_infinity
    assert sign_cosine_of_random_direction(10**9) == pytest.approx(c_infinity, rel=1e-9)
    with pytest.raises(ShapeError):
        sign_cosine_of_random_direction(0)


@pytest.mark.parametrize(("m", "n", "r"), [(12, 9, 4), (5, 20, 1), (3, 4, 6)], ids=str)
def test_random_lora_spectra_follow_the_law_of_dense_products(m, n, r, rng):
    """Each singular value and the stable rank: two-sample Kolmogorov-Smirnov at p > 1e-4."""
    samples = 4000
    sampled = random_lora_singular_values(m, n, r, samples=samples, generator=rng)
    q = min(m, n, r)
    assert sampled.shape == (samples, q)
    lora_b = torch.randn((samples, m, r), generator=rng, dtype=F64)
    lora_a = torch.randn((samples, r, n), generator=rng, dtype=F64)
    dense = torch.linalg.svdvals(lora_b @ lora_a)[:, :q]
    for place in range(q):
        test = scipy.stats.ks_2samp(sampled[:, place].numpy(), dense[:, place].numpy())
        assert test.pvalue > 1e-4
        off = scipy.stats.ks_2samp(1.1 * sampled[:, place].numpy(), dense[:, place].numpy())
        assert off.pvalue < test.pvalue
    ranks = scipy.stats.ks_2samp(stable_rank(sampled).numpy(), stable_rank(dense).numpy())
    assert ranks.pvalue > 1e-4
    energy = np.mean(sampled.square().sum(dim=-1).numpy())
    deviation = float(sampled.square().sum(dim=-1).std()) / math.sqrt(samples)
    assert abs(energy - m * n * r) < SIGMAS * deviation


@pytest.mark.parametrize(("m", "n"), [(12, 9), (5, 20), (1, 7)], ids=str)
def test_random_matrix_spectra_follow_the_law_of_dense_ones(m, n, rng):
    samples = 4000
    sampled = random_matrix_singular_values(m, n, samples=samples, generator=rng)
    dense = torch.linalg.svdvals(torch.randn((samples, m, n), generator=rng, dtype=F64))
    assert sampled.shape == dense.shape
    for place in range(min(m, n)):
        test = scipy.stats.ks_2samp(sampled[:, place].numpy(), dense[:, place].numpy())
        assert test.pvalue > 1e-4
        off = scipy.stats.ks_2samp(1.1 * sampled[:, place].numpy(), dense[:, place].numpy())
        assert off.pvalue < test.pvalue
    with pytest.raises(ShapeError):
        random_matrix_singular_values(0, n, samples=1, generator=rng)


def test_random_lora_is_reproducible_and_checked():
    draws = [
        random_lora_singular_values(
            4096, 1024, 8, samples=3, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(ShapeError, match="every count"):
        random_lora_singular_values(4, 4, 0, samples=1, generator=torch.Generator())
