"""The codebook of a random direction's coordinate, against scipy's Beta law and known cases."""

import math

import pytest
import torch
from scipy import stats

from gonio.errors import SettingError
from gonio.quant.scalar import gaussian_lloyd_max, sphere_lloyd_max


@pytest.mark.parametrize("dim", [3, 5, 64, 1000])
@pytest.mark.parametrize("levels", [2, 5, 16, 256])
def test_sphere_codebook_is_stationary_for_the_beta_law(dim, levels):
    """Each level is its cell's mean under scipy's Beta law, each border the midpoint."""
    book = sphere_lloyd_max(dim, levels=levels)
    law = stats.beta((dim - 1) / 2, (dim - 1) / 2, loc=-math.sqrt(dim), scale=2 * math.sqrt(dim))
    midpoints = (book.levels[1:] + book.levels[:-1]) / 2
    torch.testing.assert_close(book.boundaries, midpoints, rtol=0, atol=1e-11)
    edges = [-math.sqrt(dim), *book.boundaries.tolist(), math.sqrt(dim)]
    for cell in {0, levels // 3, levels - 1}:
        low, high = edges[cell], edges[cell + 1]
        mean = law.expect(lambda x: x, lb=low, ub=high, conditional=True)
        assert book.levels[cell].item() == pytest.approx(mean, abs=1e-7)
        assert book.levels[cell].item() != pytest.approx(mean * 1.001 + 1e-4, abs=1e-7)


def test_sphere_codebook_knows_its_limits():
    uniform = sphere_lloyd_max(3, levels=4)  # the coordinate of a direction in R^3 is uniform
    expected = math.sqrt(3) * torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(uniform.levels, expected, rtol=0, atol=1e-12)
    assert uniform.distortion == pytest.approx(1 / 16, abs=1e-12)
    far, normal = sphere_lloyd_max(10**6, 3), gaussian_lloyd_max(3)
    torch.testing.assert_close(far.levels, normal.levels, rtol=0, atol=1e-5)
    with pytest.raises(SettingError, match="d >= 3"):
        sphere_lloyd_max(2, 2)
    with pytest.raises(SettingError, match="either bits or levels"):
        sphere_lloyd_max(64)
