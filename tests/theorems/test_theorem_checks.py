"""Every check passes, rejects its mutant, and rests on arithmetic that is itself tested."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gammaln

from gonio.quant.sign import sign_cosine
from gonio.theorems import load_catalogue
from gonio.theorems.checks import (
    CHECKS,
    capacity,
    exact,
    floors,
    gains,
    gauge,
    low_rank_energy,
    moments,
    overlap,
    residual,
    rope,
    sign_quantization,
    stable_rank,
    updates,
    weight_rotations,
)
from gonio.theorems.checks.cases import Key, int_matrices, to_tensor
from gonio.theorems.checks.check import (
    bound_margin,
    close_margin,
    exact_margin,
    iff_margin,
    mean_margin,
    z_margin,
)
from gonio.theorems.checks.floors import _square_bounds
from gonio.theorems.checks.spectra import Spectrum
from gonio.theorems.runner import run_check

ENTRY_PARAMS = [
    pytest.param(entry, id=entry.name, marks=pytest.mark.theorem(entry.name))
    for entry in load_catalogue()
    if entry.check is not None
]
few = settings(max_examples=40, deadline=None, database=None, derandomize=True)


@pytest.mark.parametrize("entry", ENTRY_PARAMS)
def test_check_passes_and_rejects_its_mutant(entry):
    result = run_check(entry, examples=40, seed=20)
    assert result.passed, result.counterexample
    assert result.worst_margin >= 0.0
    assert result.counterexample is None
    assert result.examples > 0
    assert result.mutant_rejected, result.mutant
    assert result.mutant_counterexample is not None


def test_names_in_the_registry_are_the_checks_own():
    assert all(name == check.name for name, check in CHECKS.items())


# --- margins --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "value"),
    [
        (exact_margin(Fraction(1, 3), Fraction(2, 6)), 1.0),
        (exact_margin(0, 0), 1.0),
        (exact_margin(3, 4), -0.25),
        (iff_margin(True, True), 1.0),
        (iff_margin(True, False), -1.0),
        (close_margin(0.0, 0.0), 1.0),
        (close_margin(0.25, 1.0), 0.75),
        (close_margin(1.5, 1.0), -0.5),
        (close_margin(math.nan, 1.0), -1.0),
        (close_margin(math.inf, 1.0), -1.0),
        (bound_margin(1.0, 2.0), 0.5),
        (bound_margin(2.0, 1.0), -0.5),
        (bound_margin(1.0 + 1e-12, 1.0, 1e-11), 0.0),
        (bound_margin(0.0, 0.0), 0.0),
        (z_margin(3.0, 1.0, 0.0), 0.5),
        (z_margin(-12.0, 1.0, 0.0), -1.0),
        (
            mean_margin(torch.tensor([0.0, 2.0]).double(), 4.0, 0.0),
            0.5,
        ),  # 3 standard errors of 6 allowed
    ],
)
def test_margins(margin, value):
    assert margin == pytest.approx(value, abs=1e-15)


# --- exact arithmetic against floating point ------------------------------------------------


@few
@given(int_matrices())
def test_exact_rank_is_numpys(rows):
    assert exact.rank(rows) == np.linalg.matrix_rank(np.array(rows, dtype=float))


@few
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=6).filter(any))
def test_exact_cosine_is_the_librarys(entries):
    expected = float(exact.squared_sign_cosine(entries))
    assert sign_cosine(to_tensor(tuple(entries))).item() ** 2 == pytest.approx(expected, rel=1e-14)


@few
@given(int_matrices())
def test_elementary_symmetric_functions_are_those_of_the_eigenvalues(rows):
    gram = exact.gram(rows)
    eigenvalues = np.linalg.eigvalsh(np.array(gram, dtype=float))
    # poly gives det(xI - G): coefficients alternate in sign.
    expected = [(-1) ** k * c for k, c in enumerate(np.poly(eigenvalues))][1:]
    values = [float(x) for x in exact.elementary_symmetric(gram)]
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-9 * max(1.0, *map(abs, expected)))


@few
@given(int_matrices(rows=3, cols=3))
def test_definiteness_is_decided_by_the_smallest_eigenvalue(rows):
    symmetric = tuple(
        tuple(x + y for x, y in zip(row, column, strict=True))
        for row, column in zip(rows, exact.transpose(rows), strict=True)
    )
    smallest = np.linalg.eigvalsh(np.array(symmetric, dtype=float))[0]
    if abs(smallest) < 1e-9:  # eigenvalues of small integer matrices are 0 or clearly not
        assert exact.is_nonnegative_definite(symmetric)
        assert not exact.is_nonnegative_definite(symmetric, strictly=True)
    else:
        assert exact.is_nonnegative_definite(symmetric) == (smallest > 0)
        assert exact.is_nonnegative_definite(symmetric, strictly=True) == (smallest > 0)


@few
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=5))
def test_reflections_are_orthogonal(normal):
    reflection = exact.reflection(normal)
    identity = exact.identity(len(normal))
    assert exact.matmul(reflection, exact.transpose(reflection)) == identity
    assert exact.matmul(reflection, reflection) == identity


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_signed_shifts_average_a_projection_to_a_multiple_of_the_identity(size):
    elements = list(exact.signed_shifts(size))
    assert len(set(elements)) == len(elements) == size * 2**size
    line = [1] + [2] * (size - 1)
    total = [[0] * size for _ in range(size)]
    for element in elements:
        moved = [sign * line[source] for source, sign in element]
        total = [
            [t + x * y for t, y in zip(row, moved, strict=True)]
            for row, x in zip(total, moved, strict=True)
        ]
    share = Fraction(len(elements) * sum(x * x for x in line), size)
    assert total == [[share if i == j else 0 for j in range(size)] for i in range(size)]


def test_pi_lies_between_its_bounds():
    assert exact.PI_LOW < exact.PI_HIGH

    # Machin: pi = 16 arctan(1/5) - 4 arctan(1/239), alternating series, in exact rationals.
    def arctan_of_inverse(n: int, terms: int) -> Fraction:
        return sum(
            (Fraction((-1) ** i, (2 * i + 1) * n ** (2 * i + 1)) for i in range(terms)),
            Fraction(0),
        )

    low = 16 * arctan_of_inverse(5, 60) - 4 * arctan_of_inverse(239, 61)
    high = 16 * arctan_of_inverse(5, 61) - 4 * arctan_of_inverse(239, 60)
    assert exact.PI_LOW < low < high < exact.PI_HIGH


@pytest.mark.parametrize("size", [1, 2, 3, 64, 127, 128])
def test_exact_floor_is_the_gamma_quotient(size):
    logarithm = gammaln(size / 2) - gammaln((size + 1) / 2)
    expected = size / math.pi * math.exp(2 * logarithm)
    low, high = _square_bounds(size)
    assert low <= high
    assert float(low) == pytest.approx(expected, rel=1e-12)


def test_rationals_become_float64():
    assert torch.equal(
        to_tensor(((Fraction(1, 2), 3),)), torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    )
    assert torch.equal(to_tensor((1, 2)), torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert torch.equal(
        Key((1, -2), -560).tensor(), torch.tensor([1.0, -2.0], dtype=torch.float64) * 2.0**-560
    )


# --- checks against the library: a library that is slightly off is noticed -------------------


def _scaled_by(factor):
    return lambda function: lambda *args, **kwargs: factor * function(*args, **kwargs)


def _without_rescaling(_):
    return lambda sigma: sigma.square().sum() / sigma[0].square()


def _zero_is_negative(function):
    def encode(vectors, scale="least_squares"):
        return vectors > 0, function(vectors, scale)[1]

    return encode


@pytest.mark.parametrize(
    ("module", "name", "wrong", "check"),
    [
        (stable_rank, "stable_rank", _without_rescaling, "stable_rank_ignores_scale"),
        (stable_rank, "stable_rank", _scaled_by(1 + 1e-12), "stable_rank_from_singular_values"),
        (low_rank_energy, "stable_rank", _scaled_by(1 + 1e-12), "energy_left_by_rank_k"),
        (updates, "stable_rank", _scaled_by(0.9), "price_of_intent"),
        (overlap, "expected_overlap", _scaled_by(1.05), "overlap_of_random_subspaces"),
        (overlap, "expected_overlap", _scaled_by(1.05), "alignment_with_base"),
        (gains, "expected_gain_residual", _scaled_by(1 + 1e-12), "column_gain_residual"),
        (gains, "expected_gain_residual", _scaled_by(0.99), "gain_residual_beside_chance"),
        (moments, "sign_beta", _scaled_by(1.05), "gaussian_moment_ratio"),
        (moments, "sign_beta", _scaled_by(1.05), "convergence_of_independent_entries"),
        (residual, "population_beta", _scaled_by(1 + 1e-12), "signs_and_correction"),
        (weight_rotations, "sign_cosine", _scaled_by(0.95), "some_rotation_reaches_the_mean"),
        (sign_quantization, "sign_cosine", _scaled_by(1 + 1e-12), "sign_cosine_formula"),
        (sign_quantization, "sign_encode", _zero_is_negative, "sign_cosine_formula"),
        (sign_quantization, "sign_beta", _scaled_by(1 + 1e-12), "sign_residual_energy"),
        (floors, "sign_cosine_of_random_direction", _scaled_by(1.01), "isotropic_floor"),
        (
            floors,
            "sign_cosine_of_random_direction",
            _scaled_by(1 + 1e-11),
            "floor_decreases_to_limit",
        ),
        (gauge, "haar_rotation", _scaled_by(1 + 1e-13), "rotating_keys_and_queries"),
        (gauge, "householder_reflection", _scaled_by(1 + 1e-13), "one_vector_reaches_the_lattice"),
    ],
)
def test_a_wrong_library_breaks_the_check(monkeypatch, module, name, wrong, check):
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    assert not run_check(CHECKS[check], seed=1).passed


# --- parts of a check that its one mutant does not touch -------------------------------------


def test_curvature_is_needed_for_a_smooth_loss():
    """F = -W^2 at W = 0 has no slope, and moving by 1 lowers it by 1/2 all the same."""
    case = updates._Quadratic(((0,),), ((-1,),), ((0,),), ((1,),))
    assert updates._smooth_intent(case) >= 0.0
    assert updates._smooth_intent(case, has_curvature=False) < 0.0


def test_triangle_inequality_is_decided_without_roots():
    assert updates._triangle(16, 4, 4) == 0.0  # 4 = 2 + 2
    assert updates._triangle(17, 4, 4) < 0.0
    assert updates._triangle(15, 4, 4) > 0.0


def test_rotary_blocks_and_turns():
    block = rope._blocks([(3, 4), (0, 1)])
    assert block == ((3, -4, 0, 0), (4, 3, 0, 0), (0, 0, 0, -1), (0, 0, 1, 0))
    assert rope._is_block_form(block)
    assert not rope._is_block_form(((1, 0), (0, 2)))
    assert not rope._is_block_form(((1, 1), (1, 1)))
    turn = rope._rotation([0, 1])
    assert exact.matmul(turn, exact.transpose(turn)) == exact.identity(4)


@pytest.mark.parametrize(("count", "value"), [(1, 1), (2, Fraction(1, 2)), (3, Fraction(1, 2))])
def test_complexity_of_one_weight_by_hand(count, value):
    """E|sum of N signs| is 1, 1 and 3/2."""
    assert capacity._scalar_complexity(count) == value


@pytest.mark.parametrize("name", sorted(moments._LAWS))
def test_moments_of_the_laws_are_those_of_scipy(name):
    law = {"gaussian": stats.norm(), "uniform": stats.uniform(-1, 2), "laplace": stats.laplace()}
    ours = moments._LAWS[name]
    theirs = [law[name].expect(lambda x, k=k: abs(x) ** k) for k in range(1, 5)]
    assert ours.moments == pytest.approx(theirs, rel=1e-6)
    assert ours.density(0.3) == pytest.approx(law[name].pdf(0.3))


def test_known_spectra_are_the_singular_values():
    case = Spectrum((3, 2, 0), (1, -1, 2), (0, 2, 1), 1, ((1,),) * 3, ((1, 0, 2),))
    values = torch.linalg.svdvals(to_tensor(case.matrix()))
    torch.testing.assert_close(values, to_tensor(case.sigma), rtol=0, atol=1e-14)
    assert exact.rank(case.truncated()) == exact.rank(case.competitor()) == 1
    assert (case.energy(), case.energy(start=1), case.energy(stop=1)) == (13, 4, 9)
