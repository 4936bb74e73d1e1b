"""Complexity of low-rank classes: every sign matrix of tiny cases, random members, bounds."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import SettingError, ShapeError
from gonio.linalg.complexity import (
    complexity_bound,
    printed_full_bound,
    printed_lora_bound,
    sampled_complexity,
    supremum,
)

CLASSES = ("spectral", "frobenius", "factors")


def exact(kind, inputs, outputs, rank, radius):
    """The mean over every sign matrix."""
    examples = len(inputs)
    every = itertools.product((-1.0, 1.0), repeat=examples * outputs)
    signs = torch.tensor(list(every), dtype=torch.float64).view(-1, examples, outputs)
    suprema = supremum(kind, signs.mT @ inputs, rank, radius)
    return float(suprema.mean()) / examples


def member(kind, m, n, rank, radius, rng):
    """A random matrix of the class, on its boundary."""
    lora_b = torch.randn(m, rank, generator=rng, dtype=torch.float64)
    lora_a = torch.randn(rank, n, generator=rng, dtype=torch.float64)
    product = lora_b @ lora_a
    size = {
        "spectral": torch.linalg.matrix_norm(product, 2),
        "frobenius": product.norm(),
        "factors": lora_b.norm() * lora_a.norm(),
    }[kind]
    return radius * product / size


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (3, 2), (3, 3)], ids=str)
def test_no_member_exceeds_the_supremum_and_one_reaches_it(kind, shape, rng):
    m, n = shape
    correlations = torch.randn(m, n, generator=rng, dtype=torch.float64)
    for rank in (1, 2, 5):
        best = float(supremum(kind, correlations, rank, 1.7))
        for _ in range(300):
            inner = float((member(kind, m, n, rank, 1.7, rng) * correlations).sum())
            assert inner <= best * (1 + 1e-12)
        left, sigma, right = torch.linalg.svd(correlations, full_matrices=False)
        weights = torch.zeros_like(sigma)
        if kind == "spectral":
            weights[:rank] = 1
        elif kind == "frobenius":
            weights[:rank] = sigma[:rank] / sigma[:rank].norm()
        else:
            weights[0] = 1
        reached = 1.7 * (left * weights) @ right
        assert float((reached * correlations).sum()) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
@given(
    examples=st.integers(1, 4),
    n=st.integers(1, 4),
    outputs=st.integers(1, 2),
    rank=st.integers(1, 3),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    seed=st.integers(0, 100),
)
def test_the_closed_form_bounds_the_mean_over_all_signs(
    kind, examples, n, outputs, rank, scale, seed
):
    rng = torch.Generator().manual_seed(seed)
    inputs = scale * torch.randn(examples, n, generator=rng, dtype=torch.float64)
    if seed % 3 == 0:
        inputs[0] = 0
    found = exact(kind, inputs, outputs, rank, 0.5)
    shape = (outputs, n)
    frobenius = float(inputs.norm())
    loose = complexity_bound(kind, examples, shape, rank, 0.5, frobenius_norm=frobenius)
    top = float(torch.linalg.matrix_norm(inputs, 2))
    bound = complexity_bound(
        kind, examples, shape, rank, 0.5, frobenius_norm=frobenius, spectral_norm=top
    )
    assert found <= bound * (1 + 1e-9)
    assert bound <= loose * (1 + 1e-12)


def test_monte_carlo_agrees_with_all_signs_and_with_its_own_spread(rng):
    inputs = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    for kind in CLASSES:
        wanted = exact(kind, inputs, 2, 2, 1.0)
        draws = sampled_complexity(kind, inputs, 2, 2, 1.0, draws=2000, generator=rng)
        error = float(draws.std()) / math.sqrt(len(draws))
        assert float(draws.mean()) == pytest.approx(wanted, abs=4.5 * error)
        assert abs(float(draws.mean()) * 1.2 - wanted) > 4.5 * error  # a wrong constant is told


def test_one_output_is_the_classical_bound(rng):
    """With m = r = 1 at most radius |X|_F / N, and within Khintchine's constant of it."""
    inputs = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    bound = complexity_bound("spectral", 6, (1, 3), 1, 2.0, frobenius_norm=float(inputs.norm()))
    assert bound == pytest.approx(2.0 * float(inputs.norm()) / 6, rel=1e-12)
    found = exact("spectral", inputs, 1, 1, 2.0)
    assert bound / math.sqrt(2) <= found <= bound


def test_the_matrix_bound_is_the_smaller_one_for_wide_ranks(rng):
    inputs = torch.randn(2000, 40, generator=rng, dtype=torch.float64)
    known = {"frobenius_norm": float(inputs.norm())}
    known["spectral_norm"] = float(torch.linalg.matrix_norm(inputs, 2))
    bound = complexity_bound("factors", 2000, (40, 40), 40, 1.0, **known)
    assert bound < math.sqrt(40) * known["frobenius_norm"] / 2000
    draws = sampled_complexity("factors", inputs, 40, 40, 1.0, draws=5, generator=rng)
    assert float(draws.max()) < bound


def test_the_printed_bounds_and_what_is_wrong_with_them():
    """One weight of size at most 1 on three inputs equal to 1: 1/2, where 0.39 is printed."""
    printed = printed_lora_bound(1.0, 1, (1, 1), 3)
    assert printed == pytest.approx(math.sqrt(2 * math.log(2)) / 3)
    ones = torch.ones(3, 1, dtype=torch.float64)
    assert exact("spectral", ones, 1, 1, 1.0) == pytest.approx(0.5)
    assert printed < 0.5
    assert complexity_bound("spectral", 3, (1, 1), 1, 1.0, frobenius_norm=3**0.5) > 0.5
    assert printed_full_bound((3, 4), 12) == 1.0


def test_settings_out_of_range_are_refused(rng):
    inputs = torch.zeros(2, 2)
    with pytest.raises(SettingError, match="no class"):
        supremum("nuclear", inputs, 1, 1.0)
    with pytest.raises(SettingError):
        supremum("spectral", inputs, 0, 1.0)
    with pytest.raises(SettingError):
        supremum("spectral", inputs, 1, -1.0)
    with pytest.raises(SettingError):
        complexity_bound("spectral", 0, (1, 1), 1, 1.0, frobenius_norm=1.0)
    with pytest.raises(SettingError):
        printed_lora_bound(1.0, 0, (1, 1), 3)
    with pytest.raises(SettingError):
        printed_full_bound((1, 1), 0)
    with pytest.raises(SettingError):
        sampled_complexity("spectral", inputs, 1, 1, 1.0, draws=0, generator=rng)
    with pytest.raises(ShapeError):
        sampled_complexity("spectral", inputs[0], 1, 1, 1.0, draws=1, generator=rng)
