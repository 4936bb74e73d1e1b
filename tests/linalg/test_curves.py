"""Curves over rank: known parameters come back, the right form wins, and too little is said so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from gonio.errors import SettingError, ShapeError
from gonio.linalg.curves import (
    compare_curves,
    curve_values,
    fewest_ranks,
    fit_curve,
    num_parameters,
    refit_curves,
)

RANKS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64]
SHAPES = {"log": None, "power": 0.7, "exponential": 5.0}


@pytest.mark.parametrize("form", SHAPES)
@settings(max_examples=25)
@given(
    limit=st.floats(-100, 100),
    amplitude=st.sampled_from([-30.0, -0.01, 0.4, 20.0]),
    seed=st.integers(0, 100),
)
def test_exact_data_give_their_parameters_back(form, limit, amplitude, seed):
    order = np.random.default_rng(seed).permutation(len(RANKS))
    ranks = [RANKS[i] for i in order if form != "log" or RANKS[i] > 1]
    values = curve_values(form, ranks, limit, amplitude, SHAPES[form])
    fit = fit_curve(form, ranks, values)
    assert fit.limit == pytest.approx(limit, abs=1e-3 * abs(amplitude))
    assert fit.amplitude == pytest.approx(amplitude, rel=1e-3)
    if SHAPES[form] is not None:
        assert fit.shape == pytest.approx(SHAPES[form], rel=1e-3)
    assert not fit.is_shape_at_edge
    assert np.allclose(fit.predict(ranks), values, atol=1e-4 * abs(amplitude), rtol=0)


@pytest.mark.parametrize("form", ["power", "exponential"])
def test_noisy_data_give_scipy_s_least_squares(form):
    """A second optimizer, with weights; and the near miss without them."""
    rng = np.random.default_rng(0)
    ranks = np.array(RANKS)
    errors = 0.02 + 0.1 * rng.random(len(ranks))
    values = curve_values(form, ranks, 2.0, -1.5, SHAPES[form]) + errors * rng.normal(size=11)
    wanted, _ = curve_fit(
        lambda r, a, c, s: curve_values(form, r, a, c, s),
        *(ranks, values),
        p0=(2, -1, SHAPES[form]),
        sigma=errors,
    )
    fit = fit_curve(form, RANKS, values, weights=errors**-2)
    assert (fit.limit, fit.amplitude, fit.shape) == pytest.approx(tuple(wanted), rel=1e-3)
    unweighted = fit_curve(form, RANKS, values)
    assert abs(unweighted.limit - wanted[0]) > 1e-3
    scaled = fit_curve(form, RANKS, values, weights=1e6 * errors**-2)
    assert scaled.limit == pytest.approx(fit.limit, rel=1e-6)


def test_the_logarithmic_form_diverges_at_one_and_leaves_it_out():
    assert np.isnan(curve_values("log", [1], 0.0, 1.0, None)).all()
    values = curve_values("log", [2, 4, 8, 16], 3.0, -1.0, None)
    fit = fit_curve("log", [1, 2, 4, 8, 16], [99.0, *values])
    assert fit.ranks == (2, 4, 8, 16)
    assert (fit.limit, fit.amplitude) == pytest.approx((3.0, -1.0), rel=1e-9)


@pytest.mark.parametrize("form", SHAPES)
def test_the_right_form_wins_and_the_wrong_ones_do_not(form):
    rng = np.random.default_rng(1)
    ranks = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    values = curve_values(form, ranks, 1.0, -2.0, SHAPES[form]) + 2e-3 * rng.normal(size=11)
    found = compare_curves(ranks, values)
    assert found.best == form
    assert found.is_told_apart
    assert "fits best" in found.sentence


def test_what_cannot_be_told_is_not_told():
    rng = np.random.default_rng(2)
    noise = compare_curves([2, 4, 8, 16, 32, 64, 128], rng.normal(size=7))
    assert not noise.is_told_apart
    few = compare_curves([1, 2, 4, 8], [0.1, 0.5, 0.7, 0.8])
    assert not few.is_told_apart
    assert "3 ranks above 1 are too few" in few.sentence
    assert compare_curves([1, 2], [0.1, 0.2]).best is None
    assert fewest_ranks("power") == num_parameters("power") + 3 == 6
    assert fit_curve("power", [2, 4, 8, 16, 32], [1, 2, 3, 4, 4.5]).aicc is None


def test_aicc_and_left_out_errors_by_hand():
    ranks = [2, 4, 8, 16, 32]
    values = np.array([0.3, 0.8, 0.9, 1.1, 1.15])
    fit = fit_curve("log", ranks, values)
    design = np.stack([np.ones(5), 1 / np.log(ranks)], axis=1)
    solution, loss, _, _ = np.linalg.lstsq(design, values, rcond=None)
    assert (fit.limit, fit.amplitude) == pytest.approx(tuple(solution), rel=1e-9)
    wanted = 5 * np.log(loss[0] / 5) + 2 * 3 + 2 * 3 * 4 / (5 - 3 - 1)
    assert fit.aicc == pytest.approx(wanted, rel=1e-9)
    hat = design @ np.linalg.pinv(design)  # leverage gives every left-out residual at once
    residuals = (values - design @ solution) / (1 - np.diag(hat))
    assert fit.left_out_error == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-9)


@pytest.mark.parametrize("form", SHAPES)
def test_many_refits_are_the_single_ones_up_to_the_grid(form):
    rng = np.random.default_rng(3)
    values = curve_values(form, [2, *RANKS[1:]], 2.0, -1.5, SHAPES[form])[1:]
    samples = values + 0.01 * rng.normal(size=(5, 10))
    weights = 0.5 + rng.random(10)
    found = refit_curves(form, RANKS[1:], samples, weights=weights)
    for row, sample in zip(found, samples, strict=True):
        fit = fit_curve(form, RANKS[1:], sample, weights=weights)
        assert row[0] == pytest.approx(fit.limit, abs=0.03)
        assert row[1] == pytest.approx(fit.amplitude, rel=0.05)
        assert np.isnan(row[2]) if form == "log" else row[2] == pytest.approx(fit.shape, rel=0.1)


def test_equal_values_are_a_flat_line():
    fit = fit_curve("power", RANKS, np.full(11, 3.0))
    assert fit.limit == pytest.approx(3.0)
    assert fit.residual == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("ranks", "values", "weights", "error"),
    [
        ([1, 2], [1.0, 2.0], None, SettingError),
        ([1, 2, 2, 4], [1.0, 2.0, 3.0, 4.0], None, SettingError),
        ([0, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], None, SettingError),
        ([1, 2, 3, 4], [1.0, 2.0, 3.0], None, ShapeError),
        ([1, 2, 3, 4], [1.0, 2.0, 3.0, np.nan], None, SettingError),
        ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], [1, 1, 1, 0], SettingError),
    ],
)
def test_bad_data_are_refused(ranks, values, weights, error):
    with pytest.raises(error):
        fit_curve("power", ranks, values, weights=weights)
