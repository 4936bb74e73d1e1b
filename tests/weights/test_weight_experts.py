"""Planted experts: where a shared rotation loses, where one Hadamard matrix serves all."""

import doctest

import numpy as np
import pytest
import torch

from gonio.errors import ShapeError
from gonio.linalg import bootstrap_interval, haar_rotation, hadamard_matrix
from gonio.quant import sign_cosine
from gonio.weights import expert_gaps, shared_rotation_of_directions


def planted(n, count, rng, noise=0.02, rows=40):
    """``count`` experts of ``rows`` rows in R^n, each on one of orthogonal directions."""
    directions = haar_rotation(n, rng)[:count]
    lengths = torch.randn((count, rows, 1), generator=rng)
    spread = noise * torch.randn((count, rows, n), generator=rng)
    return lengths * directions[:, None] + spread, directions


@pytest.mark.parametrize("n", [18, 22])
def test_planted_experts_leave_a_gap_where_no_hadamard_matrix_exists(n, rng):
    """Own rotations keep nearly all; no shared one is found that does. The random deal has none."""
    experts, _ = planted(n, n, rng)
    table = expert_gaps(experts, iterations=30)
    interval = bootstrap_interval(table["gap"].tolist())
    assert interval.low > 0.045  # 0.05 before shared rotations were learned better
    assert table["null_gap"].mean() < 0.01
    assert table["beta_own"].min() > 0.97
    assert table["beta_others"].mean() < table["beta_shared"].mean() < 0.94


@pytest.mark.parametrize("n", [4, 12, 16, 20])
def test_one_hadamard_rotation_serves_a_full_set_of_directions(n, rng):
    """The exception that refutes the gap: n orthogonal directions, cosine 1 for all at once."""
    experts, directions = planted(n, n, rng, noise=0.0)
    rotation = shared_rotation_of_directions(directions.mT)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(n), rtol=0, atol=1e-5)
    cosine = sign_cosine(experts @ rotation.mT)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-5)
    # Near miss: the Hadamard matrix alone, not turned to the directions.
    assert sign_cosine(experts @ hadamard_matrix(n).mT).mean() < 0.95
    table = expert_gaps(experts, iterations=10)
    assert table["gap"].abs().max() < 1e-4
    assert table["beta_shared"].min() > 0.9999


def test_the_exception_holds_with_noise_and_fewer_experts(rng):
    experts, _ = planted(16, 5, rng)
    assert expert_gaps(experts, iterations=30)["gap"].abs().max() < 0.01


def test_no_rotation_serves_three_orthogonal_directions_of_space(rng):
    """By brute force in R^3: own rotations reach 1, the best of 20,000 shared ones does not."""
    rotations = haar_rotation(3, rng, batch=(20_000,))
    worst = sign_cosine(rotations.mT).amin(dim=-1)  # the columns are the turned directions
    assert worst.max() < 0.97
    experts = torch.eye(3)[:, None] * torch.tensor([1.0, -2.0, 0.5, 3.0])[None, :, None]
    table = expert_gaps(experts, iterations=30)
    assert table["beta_own"].min() > 0.999
    assert table["gap"].mean() > 0.05


def test_equal_experts_have_no_gap_beyond_the_null(rng):
    """Isotropic experts: own and shared rotations do equally badly on held-out rows."""
    experts = torch.randn((6, 64, 16), generator=rng)
    table = expert_gaps(experts, iterations=15)
    excess = bootstrap_interval((table["gap"] - table["null_gap"]).tolist())
    assert excess.low < 0.0 < excess.high
    assert table["gap_train"].mean() > 0.03  # the fitted rows alone would show a gap
    assert abs(table["gap_train"].mean() - table["null_gap_train"].mean()) < 0.02


def test_figures_are_on_held_out_rows_and_repeat(rng):
    experts, _ = planted(18, 3, rng, noise=0.3, rows=10)
    first, second = (expert_gaps(experts, iterations=5, seed=3) for _ in range(2))
    assert first.equals(second)
    assert not first.equals(expert_gaps(experts, iterations=5, seed=4))
    np.testing.assert_allclose(first["gap"], first["beta_own"] - first["beta_shared"], atol=1e-6)


def numpy_rotation(train, start):
    """One step of the alternation written out, or the start where its mean cosine is higher."""

    def cosine(rotation):
        turned = train @ rotation.T
        return (np.abs(turned).sum(1) / np.linalg.norm(turned, axis=1)).mean()

    left, _, right = np.linalg.svd(np.where(train @ start.T >= 0, 1.0, -1.0).T @ train)
    return max(start, left @ right, key=cosine)


def test_betas_are_those_of_a_numpy_step_on_held_out_rows(rng):
    """The same split and start; own, other and shared rotations judged in NumPy."""
    experts = planted(18, 2, rng, noise=0.3, rows=60)[0].double()
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(60, generator=generator)
    torch.randperm(120, generator=generator)  # the null's deal
    start = haar_rotation(18, generator).double().numpy()
    rows = experts[:, order].numpy()
    train, held_out = rows[:, :30], rows[:, 30:]

    def beta(rotation, which):
        turned = which @ rotation.T
        return (np.abs(turned).sum(1) ** 2).sum() / 18 / np.square(turned).sum()

    own = [numpy_rotation(one, start) for one in train]
    shared = numpy_rotation(train.reshape(60, 18), start)
    table = expert_gaps(experts, iterations=1, seed=7)
    for at in (0, 1):
        expected = {
            "beta_own": beta(own[at], held_out[at]),
            "beta_others": beta(own[1 - at], held_out[at]),
            "beta_shared": beta(shared, held_out[at]),
            "gap_train": beta(own[at], train[at]) - beta(shared, train[at]),
        }
        found = table.loc[at, list(expected)].to_dict()
        assert found == pytest.approx(expected, abs=1e-6)  # the start is rounded to float32


def test_documented_example_holds():
    from gonio.weights import experts

    found = doctest.testmod(experts)
    assert (found.attempted > 0, found.failed) == (True, 0)


@pytest.mark.parametrize("shape", [(1, 8, 4), (3, 1, 4), (8, 4)], ids=str)
def test_too_little_to_split_is_refused(shape):
    with pytest.raises(ShapeError, match="at least two experts"):
        expert_gaps(torch.ones(shape))
