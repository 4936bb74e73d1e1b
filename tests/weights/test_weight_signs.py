"""Cosine, beta and stored bits of one matrix, by NumPy and by codes written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import SettingError, ZeroMatrixError
from gonio.linalg import haar_rotation, hadamard_matrix, sign_cosine_of_random_direction
from gonio.weights import (
    SignSettings,
    WeightSigns,
    centered_direction_beta,
    random_direction_beta,
    random_top_share,
    top_energy_share,
)
from gonio.weights.signs import sign_residual

FLOAT32 = 1e-5  # sums over at most 10^4 float32 numbers of one size


def numpy_figures(rows):
    """Mean cosine with the signs, and 1 - residual over energy of the least-squares code."""
    rows = np.asarray(rows, dtype=np.float64)
    signs = np.where(rows >= 0, 1.0, -1.0)
    n = rows.shape[1]
    cosine = (rows * signs).sum(1) / np.linalg.norm(rows, axis=1) / math.sqrt(n)
    decoded = signs * np.abs(rows).mean(1, keepdims=True)
    return cosine.mean(), 1 - np.square(rows - decoded).sum() / np.square(rows).sum()


def uneven(rng, rows=40, n=24):
    return torch.randn((rows, n), generator=rng) * torch.linspace(0.1, 2, n) + 0.2


def measured(matrix, **settings):
    figures, left_out = WeightSigns(SignSettings(**settings)).measure([matrix])
    return {figure.choice: figure for figure in figures[0]}, left_out[0]


def test_raw_and_rotated_figures_are_numpy_s(rng):
    matrix = uneven(rng)
    found, _ = measured(matrix, haar_draws=1, rank=3)
    haar = haar_rotation(24, torch.Generator().manual_seed(0))
    for choice, turned in (
        ("none", matrix),
        ("hadamard", matrix @ hadamard_matrix(24).mT),
        ("haar", matrix @ haar.mT),
    ):
        cosine, beta = numpy_figures(turned)
        assert found[choice].cosine == pytest.approx(cosine, abs=FLOAT32)
        assert found[choice].beta == pytest.approx(beta, abs=FLOAT32)
        # Beta weighs rows by energy and squares: with uneven rows it is not the squared cosine.
        assert abs(found[choice].beta - cosine**2) > 10 * FLOAT32


@pytest.mark.parametrize(("choice", "axis"), [("column_centered", 0), ("row_centered", 1)])
def test_centered_beta_is_the_energy_kept_of_the_whole_matrix(choice, axis, rng):
    matrix = uneven(rng)
    mean = matrix.mean(dim=axis, keepdim=True)
    centered = (matrix - mean).double()
    scale = centered.abs().mean(dim=1, keepdim=True)
    decoded = torch.where(centered >= 0, scale, -scale) + mean
    kept = 1 - (matrix - decoded).square().sum() / matrix.double().square().sum()
    found, _ = measured(matrix)
    assert found[choice].beta == pytest.approx(kept.item(), abs=FLOAT32)
    assert found[choice].cosine == pytest.approx(numpy_figures(centered)[0], abs=FLOAT32)


@pytest.mark.parametrize("rank", [1, 3, 24])
def test_corrected_beta_is_that_of_the_code_written_out(rank, rng):
    """Signs plus the best rank-r part of their error, decoded and compared with the matrix."""
    matrix = uneven(rng).double()
    error = matrix - torch.where(matrix >= 0, 1.0, -1.0) * matrix.abs().mean(dim=1, keepdim=True)
    left, sigma, right = torch.linalg.svd(error, full_matrices=False)
    remaining = error - (left[:, :rank] * sigma[:rank]) @ right[:rank]
    kept = 1 - remaining.square().sum() / matrix.square().sum()
    found, _ = measured(matrix.float(), rank=rank)
    assert found[f"none+rank{rank}"].beta == pytest.approx(kept.item(), abs=FLOAT32)
    # A near miss: singular values not squared.
    wrong = sigma[:rank].sum() / sigma.sum()
    if rank < 24:
        beta = found["none"].beta
        assert abs(1 - (1 - beta) * (1 - wrong.item()) - kept.item()) > 10 * FLOAT32


def test_bits_count_every_stored_byte(rng):
    """20 rows of 30: 4 bytes of signs and a 2-byte scale a row; the rest worked by hand."""
    found, left_out = measured(uneven(rng, 20, 30), rank=2)
    elements = 600
    expected = {
        "none": 20 * 4 + 20 * 2,
        "haar": 20 * 4 + 20 * 2 + 8,
        "column_centered": 20 * 4 + 20 * 2 + 30 * 2,
        "row_centered": 20 * 4 + 20 * 2 + 20 * 2,
        "learned": 20 * 4 + 20 * 2 + 30 * 30 * 2,
        "none+rank2": 20 * 4 + 20 * 2 + 2 * 2 * (20 + 30),
    }
    for choice, stored in expected.items():
        assert found[choice].bits_per_weight == pytest.approx(8 * stored / elements, rel=1e-12)
    assert [choice for choice, _ in left_out] == ["hadamard"]


def test_a_shared_rotation_is_paid_once(rng):
    """Two matrices of one input, 20 and 60 rows: each pays by its size."""
    one, two = uneven(rng, 20, 16), uneven(rng, 60, 16)
    figures, _ = WeightSigns().measure([one, two])
    sides = [
        next(figure.stored.side_bytes for figure in found if figure.choice == "learned")
        for found in figures
    ]
    assert sides == [128, 384]
    assert sum(sides) == 2 * 16 * 16


def test_learned_rotation_overfits_random_rows_and_says_so(rng):
    """With fewer rows than dimensions the fitted cosine is far above chance, held-out is not."""
    found, _ = measured(torch.randn((40, 64), generator=rng))
    learned = found["learned"]
    assert learned.cosine_train > 0.95
    assert learned.cosine == pytest.approx(learned.cosine_chance, abs=0.02)
    assert learned.cosine_train == pytest.approx(learned.cosine_train_chance, abs=0.01)


def test_learned_rotation_finds_what_generalizes(rng):
    """Rows on four directions: the rotation fitted on one half serves the other."""
    directions = haar_rotation(32, rng)[:4]
    which = torch.randint(4, (120,), generator=rng)
    matrix = directions[which] + 0.02 * torch.randn((120, 32), generator=rng)
    found, _ = measured(matrix, iterations=30)
    assert found["learned"].cosine > 0.97
    assert found["hadamard"].cosine < 0.85


def test_cubic_work_is_left_out_by_name(rng):
    found, left_out = measured(uneven(rng, 40, 24), max_dim=16)
    assert set(found) == {"none", "hadamard", "column_centered", "row_centered"}
    assert [choice for choice, _ in left_out] == ["haar", "learned", "rank correction"]
    assert "limit of 16" in left_out[0][1]


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_chance_of_beta_is_that_of_random_directions(n, rng):
    rows = torch.randn((20_000, n), generator=rng, dtype=torch.float64)

    def check(sample, expected):
        beta = sample.abs().sum(1).square() / sample.square().sum(1) / n
        error = 5 * (beta.std() / len(beta) ** 0.5).item() + 1e-9
        assert beta.mean().item() == pytest.approx(expected, abs=error)

    check(rows, random_direction_beta(n))
    if n > 1:
        centered = rows - rows.mean(dim=1, keepdim=True)
        check(centered, centered_direction_beta(n))
        cosine = centered.abs().sum(1) / centered.norm(dim=1) / math.sqrt(n)
        error = 5 * (cosine.std() / len(cosine) ** 0.5).item() + 1e-9
        expected = sign_cosine_of_random_direction(n - 1)
        assert cosine.mean().item() == pytest.approx(expected, abs=error)
    if n > 2:
        assert random_direction_beta(n) > sign_cosine_of_random_direction(n) ** 2


@pytest.mark.parametrize("shape", [(300, 200), (128, 128), (64, 512)], ids=str)
@pytest.mark.parametrize("rank", [1, 16, 64])
def test_null_of_the_correction_is_that_of_noise(shape, rank, rng):
    """Within 3%: finite size moves the edge by the power -2/3 of the dimension."""
    gaussian = torch.randn(shape, generator=rng)
    expected = random_top_share(*shape, rank)
    assert top_energy_share(gaussian, rank) == pytest.approx(
        expected, rel=0.08 if rank == 1 else 0.03
    )
    residual = top_energy_share(sign_residual(gaussian), rank)
    assert residual == pytest.approx(expected, rel=0.08 if rank == 1 else 0.03)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    zeros=st.booleans(),
    exponent=st.integers(-30, 15),
    seed=st.integers(0, 99),
)
def test_top_share_of_awkward_matrices_is_that_of_the_svd(rows, columns, zeros, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn((rows, columns), generator=generator, dtype=torch.float64) * 10.0**exponent
    if zeros:
        matrix[:, 0] = 0.0
    sigma = torch.linalg.svdvals(matrix).square()
    for rank in range(1, min(rows, columns) + 1):
        expected = (sigma[:rank].sum() / sigma.sum()).item() if matrix.any() else 1.0
        assert top_energy_share(matrix, rank) == pytest.approx(expected, abs=1e-9)


@given(rows=st.integers(1, 5), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_awkward_matrices_are_measured_within_bounds(rows, n, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn((rows, n), generator=generator).round()
    if not matrix.any():
        with pytest.raises(ZeroMatrixError, match="is zero"):
            measured(matrix)
        return
    found, _ = measured(matrix, iterations=2, rank=1, haar_draws=1)
    for figure in found.values():
        assert 1 / n - FLOAT32 <= figure.beta <= 1 + FLOAT32
        assert 0 <= figure.cosine <= 1 + FLOAT32


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="rank is 0"):
        SignSettings(rank=0)
