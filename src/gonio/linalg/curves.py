"""Curves of performance over rank: three forms, least squares, and which form the data can tell.

``log`` is ``a + c / log r``, which has no value at r = 1, where the logarithm is zero; ``power`` is
``a + c r^-b``; ``exponential`` is ``a + c exp(-r / s)``. All tend to a, the value at a rank without
limit, and are linear in a and c, so the one shape that is left (b or s) is searched on a grid and
refined between its neighbors: no starting values, no local minima.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from gonio.errors import SettingError, ShapeError

__all__ = [
    "FORMULAS",
    "CurveComparison",
    "CurveFit",
    "CurveForm",
    "compare_curves",
    "curve_values",
    "fewest_ranks",
    "fit_curve",
    "num_parameters",
    "refit_curves",
]

Floats = NDArray[np.float64]
CurveForm = Literal["log", "power", "exponential"]
FORMULAS: dict[CurveForm, str] = {
    "log": "a + c / log r",
    "power": "a + c r^-b",
    "exponential": "a + c exp(-r / s)",
}
_GRID = 160  # shapes tried; they span all that the ranks can tell from a line or a step
_TELLING_GAP = 2.0  # AICc difference below which Burnham and Anderson keep both models


@dataclass(frozen=True)
class CurveFit:
    """One curve and how well it fits.

    Attributes:
        form: Which curve.
        ranks: Ranks it was fitted to, ascending.
        limit: a, the value at an unlimited rank, in the unit of the values.
        amplitude: c, same unit.
        shape: b of ``power`` (dimensionless), s of ``exponential`` (a rank); None for ``log``.
        residual: Root mean square of the weighted residuals, same unit.
        aicc: Akaike's criterion with the small-sample correction (Hurvich and Tsai 1989), lower
            is better, comparable only between fits to the same ranks; None below
            :func:`fewest_ranks`.
        left_out_error: Root mean square error of every rank's value as predicted from the others;
            None where a fit without one rank has no residual left.
        is_shape_at_edge: The best shape is the largest or smallest that was tried: the ranks
            do not identify it, and with it neither the limit.
    """

    form: CurveForm
    ranks: tuple[int, ...]
    limit: float
    amplitude: float
    shape: float | None
    residual: float
    aicc: float | None
    left_out_error: float | None
    is_shape_at_edge: bool = False

    def predict(self, ranks: ArrayLike) -> Floats:
        """Values of the curve; NaN where it has none (``log`` at r = 1)."""
        return curve_values(self.form, ranks, self.limit, self.amplitude, self.shape)


@dataclass(frozen=True)
class CurveComparison:
    """The three forms on the same ranks.

    Attributes:
        fits: Fits to the ranks above 1, which all forms have values at.
        best: The form with the smallest AICc, else with the smallest left-out error; None where
            neither can be computed.
        is_told_apart: Its AICc is at least 2 below every other and its left-out error smallest.
        sentence: What follows, in words.
    """

    fits: tuple[CurveFit, ...]
    best: CurveForm | None
    is_told_apart: bool
    sentence: str


def curve_values(
    form: CurveForm, ranks: ArrayLike, limit: float, amplitude: float, shape: float | None
) -> Floats:
    """``limit + amplitude * g(r)`` of a form, NaN where g has no value.

    Args:
        form: Which curve.
        ranks: Ranks, at least 1; not necessarily whole.
        limit: a.
        amplitude: c.
        shape: b or s, above 0; not used by ``log``.

    Raises:
        SettingError: A rank is below 1.
    """
    values: Floats = limit + amplitude * _basis(form, _checked_ranks(ranks), shape)
    return values


def fewest_ranks(form: CurveForm) -> int:
    """Fewest distinct ranks that give the form an AICc: parameters, variance, and two more."""
    return num_parameters(form) + 3


def num_parameters(form: CurveForm) -> int:
    """Parameters of a form, and the fewest ranks that determine it: 2 for ``log``, else 3."""
    return 2 if form == "log" else 3


def fit_curve(
    form: CurveForm, ranks: Sequence[int], values: ArrayLike, *, weights: ArrayLike | None = None
) -> CurveFit:
    """The weighted least-squares curve of one form.

    Args:
        form: Which curve; ``log`` leaves rank 1 out, since 1 / log 1 diverges.
        ranks: Distinct ranks, at least 1.
        values: One value per rank, finite.
        weights: Relative weights, above 0: one over the squared standard error where intervals
            exist; equal unless given. Their common scale does not matter.

    Raises:
        ShapeError: Ranks, values and weights differ in number.
        SettingError: Ranks repeat or are below 1, a value is not finite, a weight is not above 0,
            or there are fewer ranks than parameters.
    """
    x, y, w = _checked(ranks, values, weights)
    if form == "log":
        keep = x > 1
        x, y, w = x[keep], y[keep], w[keep]
    count = num_parameters(form)
    if x.size < count:
        raise SettingError(
            f"{FORMULAS[form]} has {count} parameters; {x.size} ranks it has a value at "
            f"({', '.join(f'{rank:g}' for rank in x)}) do not determine it"
        )
    w = w / w.mean()
    limit, amplitude, shape, loss, at_edge = _least_squares(form, x, y, w)
    return CurveFit(
        form,
        tuple(int(rank) for rank in x),
        limit,
        amplitude,
        shape,
        math.sqrt(loss / x.size),
        _aicc(loss, y, count, fewest_ranks(form)),
        _left_out_error(form, x, y, w) if x.size > count else None,
        at_edge,
    )


def refit_curves(
    form: CurveForm, ranks: Sequence[int], values: Floats, *, weights: ArrayLike | None = None
) -> Floats:
    """The coefficients of many fits at once, shapes on the grid only.

    Args:
        form: Which curve.
        ranks: As for :func:`fit_curve`.
        values: ``(samples, ranks)``, in the order of the ranks.
        weights: As for :func:`fit_curve`, one per rank.

    Returns:
        ``(samples, 3)``: limit, amplitude and shape (NaN for ``log``) of every sample.
    """
    x, _, w = _checked(ranks, np.zeros(len(ranks)), weights)
    y = values[:, np.argsort(ranks)]
    if form == "log":
        x, y, w = x[x > 1], y[:, x > 1], w[x > 1]
    w = w / w.sum()
    shapes = np.full(1, np.nan) if form == "log" else _shapes(form, x)
    g = _basis(form, x[None], None if form == "log" else shapes[:, None])
    centered = g - (g @ w)[:, None]
    sizes = (centered**2) @ w  # (shapes,)
    usable = np.where(sizes > 0, sizes, np.inf)
    means = y @ w
    products = ((y - means[:, None]) * w) @ centered.T  # (samples, shapes)
    best = np.argmax(products**2 / usable, axis=1)  # largest drop of the sum of squares
    amplitude = products[np.arange(len(y)), best] / usable[best]
    return np.stack([means - amplitude * (g @ w)[best], amplitude, shapes[best]], axis=1)


def compare_curves(
    ranks: Sequence[int], values: ArrayLike, *, weights: ArrayLike | None = None
) -> CurveComparison:
    """Fit every form to the ranks above 1 and say which the data prefer, if they can tell.

    Args:
        ranks: As for :func:`fit_curve`.
        values: As for :func:`fit_curve`.
        weights: As for :func:`fit_curve`.

    Raises:
        GonioError: As :func:`fit_curve`, but for too few ranks, which the sentence says.

    Source: Burnham and Anderson 2002 (doi:10.1007/b97636), sections 2.4 and 2.6.
    """
    x, y, w = _checked(ranks, values, weights)
    keep = x > 1
    common = [int(rank) for rank in x[keep]]
    fits = tuple(
        fit_curve(form, common, y[keep], weights=w[keep])
        for form in get_args(CurveForm)
        if len(common) >= num_parameters(form)
    )
    needed = max(fewest_ranks(form) for form in get_args(CurveForm))
    if len(common) < needed:
        scored = [fit for fit in fits if fit.left_out_error is not None]
        few = (
            f"{len(common)} ranks above 1 are too few to tell the forms apart: AICc of all three "
            f"needs {needed}"
        )
        if len(scored) < 2:
            return CurveComparison(fits, None, False, f"{few}.")
        best = min(scored, key=_left_out)
        return CurveComparison(
            fits, best.form, False, f"{few}; {FORMULAS[best.form]} predicts left-out ranks best."
        )
    ordered = sorted(fits, key=_score)
    best, second = ordered[0], ordered[1]
    gap = _score(second) - _score(best)
    agrees = min(fits, key=_left_out) is best
    name, other = FORMULAS[best.form], FORMULAS[second.form]
    if gap >= _TELLING_GAP and agrees:
        said = f"{name} fits best: its AICc is {gap:.1f} below that of {other}."
    elif agrees:
        said = f"{name} and {other} cannot be told apart: their AICc differs by {gap:.1f}."
    else:
        said = (
            f"the forms cannot be told apart: AICc prefers {name} by {gap:.1f}, leaving ranks "
            f"out prefers {FORMULAS[min(fits, key=_left_out).form]}."
        )
    return CurveComparison(fits, best.form, gap >= _TELLING_GAP and agrees, said)


def _score(fit: CurveFit) -> float:
    return math.inf if fit.aicc is None else fit.aicc


def _left_out(fit: CurveFit) -> float:
    return math.inf if fit.left_out_error is None else fit.left_out_error


def _basis(form: CurveForm, ranks: Floats, shape: float | Floats | None) -> Floats:
    """What c multiplies; broadcasts over shapes."""
    if form == "log":
        logs = np.log(ranks)
        return np.divide(1.0, logs, out=np.full_like(logs, np.nan), where=logs > 0)
    if shape is None:
        raise SettingError(f"{FORMULAS[form]} needs its shape, b or s")
    found: Floats = ranks**-shape if form == "power" else np.exp(-ranks / shape)
    return found


def _shapes(form: CurveForm, ranks: Floats) -> Floats:
    """Shapes from nearly a line (in log r, in r) to nearly a step after the smallest rank."""
    if form == "power":
        return np.geomspace(0.01, 16.0, _GRID)
    gap = float(np.diff(ranks).min())
    return np.geomspace(0.1 * gap, 20.0 * float(ranks[-1]), _GRID)


def _least_squares(
    form: CurveForm, x: Floats, y: Floats, w: Floats
) -> tuple[float, float, float | None, float, bool]:
    """Limit, amplitude, shape, weighted sum of squares, and whether the shape is at its edge."""
    if form == "log":
        limit, amplitude, loss = _linear(_basis(form, x, None), y, w)
        return limit, amplitude, None, loss, False
    shapes = _shapes(form, x)
    losses = [_linear(_basis(form, x, shape), y, w)[2] for shape in shapes]
    best = int(np.argmin(losses))
    at_edge = best in (0, len(shapes) - 1)
    shape = float(shapes[best])
    if not at_edge:
        refined = minimize_scalar(
            lambda log_shape: _linear(_basis(form, x, math.exp(log_shape)), y, w)[2],
            bounds=(math.log(shapes[best - 1]), math.log(shapes[best + 1])),
            method="bounded",
            options={"xatol": 1e-10},
        )
        if refined.fun < losses[best]:
            shape = math.exp(float(refined.x))
    limit, amplitude, loss = _linear(_basis(form, x, shape), y, w)
    return limit, amplitude, shape, loss, at_edge


def _linear(g: Floats, y: Floats, w: Floats) -> tuple[float, float, float]:
    """Weighted least squares of y on 1 and g: both coefficients and the sum of squares."""
    total = w.sum()
    g_mean, y_mean = (w @ g) / total, (w @ y) / total
    spread = g - g_mean
    size = w @ spread**2
    slope = (w @ (spread * (y - y_mean))) / size if size > 0 else 0.0
    residual = y - y_mean - slope * spread
    return float(y_mean - slope * g_mean), float(slope), float(w @ residual**2)


def _aicc(loss: float, y: Floats, parameters: int, fewest: int) -> float | None:
    """AICc of a Gaussian error of unknown variance, which counts as a parameter."""
    n, k = y.size, parameters + 1
    if n < fewest:
        return None
    floor = n * (np.finfo(np.float64).eps * max(float(np.abs(y).max()), 1e-300)) ** 2
    return float(n * math.log(max(loss, floor) / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _left_out_error(form: CurveForm, x: Floats, y: Floats, w: Floats) -> float:
    errors = []
    for i in range(x.size):
        rest = np.arange(x.size) != i
        limit, amplitude, shape, _, _ = _least_squares(form, x[rest], y[rest], w[rest])
        errors.append(curve_values(form, x[i : i + 1], limit, amplitude, shape)[0] - y[i])
    return float(np.sqrt((w * np.square(errors)).sum() / w.sum()))


def _checked_ranks(ranks: ArrayLike) -> Floats:
    x = np.asarray(ranks, dtype=np.float64)
    if x.size and not bool((x >= 1).all()):
        raise SettingError(f"ranks must be at least 1, found {x.min():g}")
    return x


def _checked(
    ranks: Sequence[int], values: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Ranks ascending with their values and weights."""
    x, y = _checked_ranks(ranks), np.asarray(values, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or not x.shape == y.shape == w.shape:
        raise ShapeError(f"{x.shape} ranks, {y.shape} values and {w.shape} weights do not pair up")
    if np.unique(x).size != x.size:
        raise SettingError(f"ranks repeat: {', '.join(f'{rank:g}' for rank in x)}")
    if not (np.isfinite(y).all() and np.isfinite(w).all() and bool((w > 0).all())):
        raise SettingError("values and weights must be finite, weights above 0")
    order = np.argsort(x)
    return x[order], y[order], w[order]
