"""Lloyd-Max quantizers against quadrature, published tables, optimization and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch

from gonio.errors import SettingError, ShapeError
from gonio.quant import Codebook, decode, encode, gaussian_lloyd_max

NORMAL = scipy.stats.norm
# Max 1960, table I, mean squared error as printed. The optima for 16 and 32 levels are 0.009501
# and 0.002505, by quadrature and by direct minimization below: his last digits are not exact.
MAX_1960 = {1: 1.0, 2: 0.3634, 3: 0.1902, 4: 0.1175, 8: 0.03454, 16: 0.009497, 32: 0.002499}


def quadrature_distortion(levels, boundaries):
    """Mean squared error by numerical integration over each cell."""
    edges = [-12.0, *boundaries, 12.0]
    cells = zip(levels, itertools.pairwise(edges), strict=True)
    return sum(
        scipy.integrate.quad(lambda x, y=y: (x - y) ** 2 * NORMAL.pdf(x), low, high)[0]
        for y, (low, high) in cells
    )


@pytest.mark.parametrize(("levels", "printed"), MAX_1960.items())
def test_published_distortions(levels, printed):
    found = gaussian_lloyd_max(levels=levels).distortion
    assert found == pytest.approx(printed, rel=2.5e-3)
    assert found != pytest.approx(gaussian_lloyd_max(levels=levels + 1).distortion, rel=2.5e-3)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 7, 16, 32])
def test_distortion_by_quadrature(levels):
    book = gaussian_lloyd_max(levels=levels)
    measured = quadrature_distortion(book.levels.tolist(), book.boundaries.tolist())
    assert book.distortion == pytest.approx(measured, rel=1e-8)


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_no_nearby_codebook_is_better(levels):
    """BFGS on the levels, started off the optimum, comes back to it."""
    book = gaussian_lloyd_max(levels=levels)

    def cost(y):
        edges = np.concatenate(([-np.inf], (y[1:] + y[:-1]) / 2, [np.inf]))
        mass = np.diff(NORMAL.cdf(edges))
        first = -np.diff(NORMAL.pdf(edges))
        return 1 - 2 * (first * y).sum() + (mass * y * y).sum()

    start = book.levels.numpy() * 1.1 + 0.01
    best = scipy.optimize.minimize(cost, start, options={"gtol": 1e-9})
    assert cost(book.levels.numpy()) <= best.fun + 1e-15
    assert best.fun == pytest.approx(book.distortion, rel=1e-6)
    assert cost(start) > book.distortion * 1.001


@pytest.mark.parametrize("levels", [1, 2, 3, 5, 16, 100, 255, 256])
def test_fixed_point_and_symmetry(levels):
    """Boundaries are midpoints, levels the conditional means by SciPy."""
    book = gaussian_lloyd_max(levels=levels)
    midpoints = (book.levels[1:] + book.levels[:-1]) / 2
    torch.testing.assert_close(book.boundaries, midpoints, rtol=0, atol=1e-12)
    torch.testing.assert_close(book.levels, -book.levels.flip(0), rtol=0, atol=0)
    edges = [-np.inf, *book.boundaries.tolist(), np.inf]
    for place in {0, levels // 3, levels - 1}:
        low, high = edges[place], edges[place + 1]
        mean = scipy.stats.truncnorm(low, high).mean()
        assert float(book.levels[place]) == pytest.approx(mean, abs=1e-9)


def test_one_bit_is_known_in_closed_form():
    book = gaussian_lloyd_max(1)
    assert book.levels.tolist() == pytest.approx([-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)])
    assert book.distortion == pytest.approx(1 - 2 / math.pi, rel=1e-14)
    assert book.boundaries.tolist() == [0.0]


def test_high_rate_limit():
    """Panter and Dite: distortion times L^2 tends to sqrt(3) pi / 2 = 2.72 from below."""
    scaled = [gaussian_lloyd_max(b).distortion * 4**b for b in range(9)]
    assert all(low < high for low, high in itertools.pairwise(scaled))
    limit = math.sqrt(3) * math.pi / 2
    assert 0.99 * limit < scaled[-1] < limit


@pytest.mark.parametrize("bits", [0, 1, 2, 4, 8])
def test_round_trip_reaches_the_distortion(bits, rng):
    book = gaussian_lloyd_max(bits)
    x = torch.randn((400, 500), generator=rng, dtype=torch.float64)
    codes = encode(x, book)
    assert (codes.dtype, codes.shape) == (torch.uint8, x.shape)
    assert int(codes.max()) == 2**bits - 1
    errors = (x - decode(codes, book, dtype=torch.float64)).square()
    standard_error = float(errors.std()) / math.sqrt(errors.numel())
    assert abs(float(errors.mean()) - book.distortion) < 4.5 * standard_error
    nearest = (x[:5].unsqueeze(-1) - book.levels).abs().argmin(dim=-1)
    assert torch.equal(codes[:5].long(), nearest)


def test_edges_of_encode():
    """A boundary belongs to the code above, so 1 bit agrees with sgn(0) = +1."""
    book = gaussian_lloyd_max(1)
    x = torch.tensor([-torch.inf, -1e-30, 0.0, 1e-30, torch.inf])
    assert encode(x, book).tolist() == [0, 0, 1, 1, 1]
    assert encode(x.bfloat16(), book).tolist() == [0, 0, 1, 1, 1]
    assert encode(x[:0], book).shape == (0,)
    turned = torch.linspace(-2, 2, 12).reshape(3, 4).mT
    assert torch.equal(encode(turned, book), encode(turned.contiguous(), book))
    assert decode(torch.zeros(0, dtype=torch.uint8), book).shape == (0,)


def test_callers_cannot_corrupt_the_cache():
    first = gaussian_lloyd_max(2)
    first.levels.zero_()
    assert gaussian_lloyd_max(2).levels.abs().min() > 0.4


@pytest.mark.parametrize(
    "arguments", [{}, {"bits": 2, "levels": 4}, {"bits": 9}, {"bits": -1}, {"levels": 0}], ids=str
)
def test_wrong_settings(arguments):
    with pytest.raises(SettingError):
        gaussian_lloyd_max(**arguments)


def test_wrong_codes_and_codebooks():
    book = gaussian_lloyd_max(levels=3)
    with pytest.raises(SettingError, match="code 3"):
        decode(torch.tensor([3], dtype=torch.uint8), book)
    with pytest.raises(SettingError, match="uint8"):
        decode(torch.tensor([0]), book)
    with pytest.raises(ShapeError, match="boundaries"):
        Codebook(book.levels, book.levels, 0.1)
    with pytest.raises(ShapeError, match="levels"):
        Codebook(book.levels[:0], book.levels, 0.1)
    with pytest.raises(SettingError, match="ascend"):
        Codebook(book.levels.flip(0), book.boundaries, 0.1)
