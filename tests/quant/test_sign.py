"""One-bit quantization by its defining properties, in NumPy and by simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.linalg import haar_rotation, sign_cosine_of_random_direction
from gonio.quant import population_beta, sign_beta, sign_cosine, sign_decode, sign_encode

F64 = torch.float64
EPS = torch.finfo(F64).eps


@settings(derandomize=True, deadline=None)
@given(
    d=st.integers(1, 40),
    scale=st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]),
    seed=st.integers(0, 2**31),
)
def test_cosine_is_the_angle_to_the_signs(d, scale, seed):
    """Against NumPy's inner product with the signs, at any scale, within its bounds."""
    vector = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    plain = vector.numpy()
    signs = np.where(plain >= 0, 1.0, -1.0)
    expected = plain @ signs / (np.linalg.norm(plain) * math.sqrt(d))
    found = float(sign_cosine(vector * scale))
    assert found == pytest.approx(expected, rel=4 * d * EPS)
    assert found * 1.001 != pytest.approx(expected, rel=4 * d * EPS)
    assert 1 / math.sqrt(d) - 8 * EPS <= found <= 1 + 8 * EPS
    assert float(sign_beta(vector * scale)) == pytest.approx(expected**2, rel=8 * d * EPS)


@pytest.mark.parametrize("d", [1, 5, 64])
def test_least_squares_scale_is_best_and_keeps_beta(d, rng):
    vectors = torch.randn((7, d), generator=rng, dtype=F64)
    signs, scale = sign_encode(vectors)
    assert (signs.dtype, signs.shape, scale.shape) == (torch.bool, (7, d), (7, 1))
    energy = vectors.square().sum(-1)
    lost = (vectors - sign_decode(signs, scale)).square().sum(-1)
    torch.testing.assert_close(1 - lost / energy, sign_beta(vectors), rtol=0, atol=8 * d * EPS)
    for rival in (0.99, 1.01):
        worse = (vectors - sign_decode(signs, rival * scale)).square().sum(-1)
        assert bool((worse > lost).all())


@pytest.mark.parametrize("d", [1, 5, 64])
def test_unbiased_scale_keeps_the_inner_product(d, rng):
    vectors = torch.randn((7, d), generator=rng, dtype=F64)
    decoded = sign_decode(*sign_encode(vectors, scale="unbiased"))
    energy = vectors.square().sum(-1)
    torch.testing.assert_close((vectors * decoded).sum(-1), energy, rtol=8 * d * EPS, atol=0)
    plain = sign_decode(*sign_encode(vectors))
    kept = (vectors * plain).sum(-1) / energy
    torch.testing.assert_close(kept, sign_beta(vectors), rtol=8 * d * EPS, atol=0)


def test_unbiased_under_a_random_rotation(rng):
    """Query times decoded key, averaged over Haar rotations, is query times key."""
    key, query = torch.randn((2, 8), generator=rng, dtype=F64)
    rotation = haar_rotation(8, rng, batch=(20_000,), dtype=F64)
    decoded = sign_decode(*sign_encode(rotation @ key, scale="unbiased"))
    scores = ((rotation @ query) * decoded).sum(-1)
    error = float(scores.std()) / math.sqrt(len(scores))
    assert abs(float(scores.mean() - query @ key)) < 4.5 * error


def test_population_beta_weights_by_energy(rng):
    """A long axis vector outweighs short corners: beta near 1/d, mean beta near 1."""
    vectors = torch.ones((2, 100, 16), dtype=F64)
    vectors[:, 0] = 0
    vectors[:, 0, 0] = 1e8
    beta = population_beta(vectors)
    torch.testing.assert_close(beta, torch.full((2,), 1 / 16, dtype=F64), rtol=1e-8, atol=0)
    assert float(sign_beta(vectors).mean()) > 0.99
    gaussian = torch.randn((30, 16), generator=rng, dtype=F64)
    lost = (gaussian - sign_decode(*sign_encode(gaussian))).square().sum()
    expected = 1 - lost / gaussian.square().sum()
    torch.testing.assert_close(population_beta(gaussian), expected, rtol=64 * EPS, atol=0)
    gaussian[3] = 0
    assert bool(population_beta(gaussian * 1e-300).isfinite())


def test_isotropic_cosine(rng):
    cosines = sign_cosine(torch.randn((50_000, 5), generator=rng, dtype=F64))
    error = float(cosines.std()) / math.sqrt(len(cosines))
    assert abs(float(cosines.mean()) - sign_cosine_of_random_direction(5)) < 4.5 * error
    assert abs(float(cosines.mean()) - sign_cosine_of_random_direction(6)) > 4.5 * error


def test_zero_vectors_and_zero_entries():
    vectors = torch.tensor([[0.0, 0.0], [-3.0, 0.0]])
    for function in (sign_cosine, sign_beta):
        with pytest.raises(ZeroMatrixError, match="1 of the 2"):
            function(vectors)
    assert sign_cosine(vectors, zero_value=1.0).tolist() == pytest.approx([1.0, 0.5**0.5])
    assert sign_beta(vectors, zero_value=0.25).tolist() == pytest.approx([0.25, 0.5])
    for scale in ("least_squares", "unbiased"):
        signs, factor = sign_encode(vectors, scale=scale)
        assert signs.tolist() == [[True, True], [False, True]]
        assert factor[0].item() == 0.0
        assert factor[1].item() == (1.5 if scale == "least_squares" else 3.0)
    with pytest.raises(ZeroMatrixError, match="population"):
        population_beta(torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_upcast(dtype, rng):
    """4096 float16 entries of 30: their squares sum to 3.7e6, beyond float16."""
    vectors = torch.full((2, 4096), 30.0, dtype=dtype)
    assert sign_cosine(vectors).dtype == torch.float32
    torch.testing.assert_close(sign_cosine(vectors), torch.ones(2))
    assert sign_encode(vectors)[1].flatten().tolist() == [30.0, 30.0]


def test_refusals():
    with pytest.raises(SettingError, match="least_squares"):
        sign_encode(torch.ones(3), scale="best")
    with pytest.raises(SettingError, match="bool"):
        sign_decode(torch.ones(3), torch.ones(1))
    with pytest.raises(ShapeError):
        sign_cosine(torch.ones(3, 0))
    with pytest.raises(ShapeError):
        population_beta(torch.ones(3))
