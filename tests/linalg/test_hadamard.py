"""Hadamard matrices by definition, against SciPy, and the transform against the matrix."""

import math

import pytest
import scipy.linalg
import torch

from gonio.errors import ShapeError
from gonio.linalg import hadamard_matrix, hadamard_transform, has_hadamard, randomized_hadamard

F64 = torch.float64
EPS = torch.finfo(F64).eps
PALEY_I = [4, 12, 20, 24, 32, 44, 60, 72, 84]  # q = d - 1 prime, 3 mod 4
PALEY_II = [28, 36, 76, 124, 148]  # q = d/2 - 1 prime, 1 mod 4, and d - 1 not prime
HEAD_DIMS = [1, 2, 8, 16, 40, 48, 64, 80, 88, 96, 104, 112, 120, 128, 160, 192, 224, 256, 576]


@pytest.mark.parametrize("d", sorted({*PALEY_I, *PALEY_II, *HEAD_DIMS}))
def test_rows_are_orthogonal_signs(d):
    """By definition, in integers: entries +-1 and H H^T = d I."""
    scaled = hadamard_matrix(d, dtype=F64) * math.sqrt(d)
    signs = scaled.round().long()
    torch.testing.assert_close(scaled, signs.double(), rtol=0, atol=4 * EPS)
    assert bool((signs.abs() == 1).all())
    assert torch.equal(signs @ signs.mT, d * torch.eye(d, dtype=torch.int64))
    signs[0, 0] *= -1
    assert d == 1 or not torch.equal(signs @ signs.mT, d * torch.eye(d, dtype=torch.int64))


@pytest.mark.parametrize("d", [1, 2, 4, 64, 256])
def test_powers_of_two_are_sylvester(d):
    expected = torch.from_numpy(scipy.linalg.hadamard(d)).double() / math.sqrt(d)
    torch.testing.assert_close(hadamard_matrix(d, dtype=F64), expected, rtol=2 * EPS, atol=0)


@pytest.mark.parametrize("d", [*HEAD_DIMS, 1024, 4096, 12 * 256])
def test_transform_is_the_matrix(d, rng):
    x = torch.randn((2, 3, d), generator=rng, dtype=F64)
    expected = x @ hadamard_matrix(d, dtype=F64).mT
    size = float(x.norm(dim=-1).max())
    atol = 8 * math.sqrt(d) * EPS * size
    found = hadamard_transform(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=atol)
    assert d <= 2 or float((hadamard_transform(x.flip(-1)) - expected).abs().max()) > atol


def test_transform_keeps_shape_and_dtype(rng):
    x = torch.randn((5, 4, 96), generator=rng)
    assert hadamard_transform(x.transpose(0, 1)).shape == (4, 5, 96)
    assert hadamard_transform(x[0, 0]).shape == (96,)
    assert hadamard_transform(x).dtype == torch.float32
    assert hadamard_transform(x.bfloat16()).dtype == torch.float32
    assert hadamard_transform(x[:0]).shape == (0, 4, 96)
    torch.testing.assert_close(
        hadamard_transform(x.bfloat16()), hadamard_transform(x.bfloat16().float())
    )


def test_callers_cannot_corrupt_the_construction():
    for d in (64, 12):
        first = hadamard_matrix(d)
        kept = first.clone()
        first.zero_()
        assert torch.equal(hadamard_matrix(d), kept)


@pytest.mark.parametrize("d", [64, 80])
def test_randomized_hadamard_flips_columns(d):
    matrix = randomized_hadamard(d, torch.Generator().manual_seed(1), dtype=F64)
    ratio = matrix / hadamard_matrix(d, dtype=F64)
    signs = ratio[0].round()
    torch.testing.assert_close(ratio, signs.expand(d, d), rtol=0, atol=4 * EPS)
    assert set(signs.tolist()) == {-1.0, 1.0}
    again = randomized_hadamard(d, torch.Generator().manual_seed(1), dtype=F64)
    assert torch.equal(matrix, again)
    assert not torch.equal(matrix, randomized_hadamard(d, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(
    ("d", "words"),
    [
        (0, "nearest orders 1"),
        (3, "none exists"),
        (66, "nearest orders 64 and 68"),
        (92, "nearest orders 88 and 96"),
        (100, "no construction is known here"),
    ],
)
def test_orders_without_a_construction_name_the_cure(d, words):
    assert not has_hadamard(d)
    for function in (hadamard_matrix, lambda order: hadamard_transform(torch.ones(2, order))):
        with pytest.raises(ShapeError, match="haar_rotation") as caught:
            function(d)
        assert words in str(caught.value)


def test_every_claimed_order_can_be_built():
    orders = [d for d in range(1, 260) if has_hadamard(d)]
    assert all(d in orders for d in [1, 2, *range(4, 49, 4)])
    assert not any(d > 2 and d % 4 for d in orders)
    for d in orders:
        matrix = hadamard_matrix(d, dtype=F64)
        torch.testing.assert_close(
            matrix @ matrix.mT, torch.eye(d, dtype=F64), rtol=0, atol=16 * d * EPS
        )
