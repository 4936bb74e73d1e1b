"""Family A: subspace overlap, its chance level, and how alignment with a base is measured."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import torch
from hypothesis import strategies as st

from gonio.linalg.chance import expected_overlap, overlap_variance
from gonio.linalg.subspaces import subspace_overlap, top_singular_subspaces
from gonio.theorems.checks import exact
from gonio.theorems.checks.cases import (
    IntMatrix,
    IntVector,
    gaussian,
    generator,
    int_vectors,
    seeds,
)
from gonio.theorems.checks.check import Check, Mutant, close_margin, exact_margin, z_margin

__all__ = ["CHECKS"]

_HAAR_SAMPLES = 200


# --- E overlap = max(k, l) / n --------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """Two rational frames (reflections' first columns), and the dimensions of a Haar draw."""

    normals_u: tuple[IntVector, IntVector]
    normals_w: tuple[IntVector, IntVector]
    dim_u: int
    dim_w: int
    haar_dims: tuple[int, int, int]  # k, l, n
    seed: int


@st.composite
def _frames(draw: st.DrawFn) -> _Frames:
    n = draw(st.integers(1, 4))
    pair = st.tuples(int_vectors(n, bound=2), int_vectors(n, bound=2))
    haar_n = draw(st.integers(1, 16))
    return _Frames(
        draw(pair),
        draw(pair),
        draw(st.integers(1, n)),
        draw(st.integers(1, n)),
        (draw(st.integers(1, haar_n)), draw(st.integers(1, haar_n)), haar_n),
        draw(seeds),
    )


def _integer_frame(normals: tuple[IntVector, IntVector], count: int) -> tuple[IntMatrix, int]:
    """First columns of a product of two reflections as integers over one denominator."""
    rotation = exact.rotation(normals)
    frame = exact.columns(rotation, count)
    denominator = lcm(*(Fraction(x).denominator for row in frame for x in row))
    return tuple(tuple(int(x * denominator) for x in row) for row in frame), denominator


def _group_mean_overlap(case: _Frames) -> Fraction:
    u, u_denominator = _integer_frame(case.normals_u, case.dim_u)
    w, w_denominator = _integer_frame(case.normals_w, case.dim_w)
    u_columns = exact.transpose(u)
    total, count = 0, 0
    for element in exact.signed_shifts(len(u)):
        moved = tuple(tuple(sign * x for x in w[source]) for source, sign in element)
        total += int(exact.frobenius_squared(exact.matmul(u_columns, moved)))
        count += 1
    smaller = min(case.dim_u, case.dim_w)
    return Fraction(total, count * (u_denominator * w_denominator) ** 2 * smaller)


def _group_margin(case: _Frames, ambient: int) -> float:
    """Whether the mean over signed shifts is ``max(k, l) / ambient``."""
    expected = Fraction(max(case.dim_u, case.dim_w), ambient)
    return exact_margin(_group_mean_overlap(case), expected)


def _haar_margin(case: _Frames) -> float:
    """The simulated mean against the closed form, in units of the exact standard error."""
    k, other, n = case.haar_dims
    normal = gaussian(_HAAR_SAMPLES, n, other, source=generator(case.seed))
    frames = torch.linalg.qr(normal).Q
    fixed = torch.eye(n, k, dtype=torch.float64).expand(_HAAR_SAMPLES, n, k)
    error = subspace_overlap(fixed, frames).mean().item() - expected_overlap(k, other, n)
    return z_margin(error, (overlap_variance(k, other, n) / _HAAR_SAMPLES) ** 0.5)


def _expected_overlap(case: _Frames) -> float:
    return min(_group_margin(case, len(case.normals_u[0])), _haar_margin(case))


# --- overlap of an update with its base, over chance -----------------------------------------


@dataclass(frozen=True)
class _Base:
    """A base weight of ``rows x cols``, the k compared, and the seed of random updates."""

    rows: int
    cols: int
    k: int
    seed: int


@st.composite
def _bases(draw: st.DrawFn) -> _Base:
    rows, cols = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    return _Base(rows, cols, draw(st.integers(1, min(rows, cols))), draw(seeds))


def _mean_ratio_margin(case: _Base, ratio: float) -> float:
    """z-score of the mean overlap over chance of updates that know nothing of the base."""
    source = generator(case.seed)
    base = gaussian(case.rows, case.cols, source=source)
    updates = gaussian(_HAAR_SAMPLES, case.rows, case.cols, source=source)
    theirs = top_singular_subspaces(base, case.k)[2]
    mine = torch.linalg.svd(updates, full_matrices=False).Vh[:, : case.k].mT
    overlaps = subspace_overlap(mine, theirs.expand_as(mine))
    chance = expected_overlap(case.k, case.k, case.cols)
    variance = overlap_variance(case.k, case.k, case.cols) / _HAAR_SAMPLES
    return z_margin(overlaps.mean().item() / chance - ratio, variance**0.5 / chance)


def _alignment_is_measured(case: _Base) -> float:
    """Chance gives ratio 1, and the base itself gives overlap 1."""
    base = gaussian(case.rows, case.cols, source=generator(case.seed))
    theirs = top_singular_subspaces(base, case.k)[2]
    again = top_singular_subspaces(-3.0 * base, case.k)[2]
    aligned = subspace_overlap(theirs, again).item()
    # Directions of nearly equal singular values turn with rounding over their gap.
    return min(_mean_ratio_margin(case, 1.0), close_margin(abs(aligned - 1.0), 1e-6))


CHECKS = (
    Check(
        name="overlap_of_random_subspaces",
        arithmetic="simulation",
        tried="rational frames averaged over signed shifts; 200 Haar frames in up to R^16",
        cases=_frames(),
        margin=_expected_overlap,
        mutant=Mutant(
            "The expected overlap is max(k, l) / (n + 1).",
            lambda case: _group_margin(case, len(case.normals_u[0]) + 1),
        ),
    ),
    Check(
        name="alignment_with_base",
        arithmetic="simulation",
        tried="200 random updates of bases up to 10 x 10 against chance; the base against itself",
        cases=_bases(),
        margin=_alignment_is_measured,
        mutant=Mutant(
            "Updates that know nothing of the base already overlap it at 1.5 times chance.",
            lambda case: _mean_ratio_margin(case, 1.5),
        ),
    ),
)
