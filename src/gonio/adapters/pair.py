"""Two adapters beside each other: shared directions, angles and the cosine of the updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gonio.adapters.compare import DEFAULT_KS, check_ks, overlap_columns
from gonio.adapters.folder import Adapter
from gonio.adapters.measure import NULL_SAMPLES, numerical_rank_of
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError
from gonio.linalg.lowrank import factored_inner_product
from gonio.linalg.spectrum import frobenius_norm
from gonio.linalg.subspaces import principal_angles

__all__ = ["PairComparison", "compare_adapters", "random_smallest_angle"]


@dataclass(frozen=True)
class PairComparison:
    """What :func:`compare_adapters` found.

    Attributes:
        overlaps: One row per shared module, side and k: ``module, layer, projection, side,
            dimension, k, k_from`` (``fixed`` or ``numerical_rank``)``, overlap, chance,
            overlap_ratio, z_score, smallest_angle`` (radians)``, smallest_angle_chance``.
        cosines: One row per shared module: ``cosine`` of the two updates as vectors, its chance
            0 and its ``z_score``, and both Frobenius norms.
        only_first: Modules only the first adapter changes.
        only_second: Modules only the second adapter changes.
        left_out: ``(module, why)`` for shared modules with a zero update, and for every k above
            the smaller numerical rank.
    """

    overlaps: pd.DataFrame
    cosines: pd.DataFrame
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def compare_adapters(
    first: Adapter,
    second: Adapter,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> PairComparison:
    """Overlap of the top directions of two adapters' updates, module by module.

    Beside the given k, the smaller of the two numerical ranks is used. Neither product is formed.

    Args:
        first: A loaded adapter.
        second: Another one of the same base model.
        ks: Numbers of top directions, each at least 1.
        samples: Random subspace pairs drawn per shape for the chance of the smallest angle.
        seed: Seed of those draws.
        progress: Called as ``progress(what, done, total)``.

    Raises:
        AdapterError: No module is changed by both, shapes differ, or every pair has a zero update.
        SettingError: A k is below 1.

    Theorem: ``random_subspace_expected_overlap``.
    """
    ks = check_ks(ks)
    shared = [module for module in first.updates if module in second.updates]
    _check_shared(first, second, shared)
    overlaps: list[dict[str, object]] = []
    cosines: list[dict[str, object]] = []
    left_out: list[tuple[str, str]] = []
    angle = _CachedAngles(samples, seed)
    for done, module in enumerate(shared, start=1):
        one, two = _Spectrum.of(first.updates[module]), _Spectrum.of(second.updates[module])
        reasons = ["zero update"]
        if one is not None and two is not None:
            rows, reasons = _module_rows(one, two, ks, angle)
            overlaps += rows
            cosines.append(_cosine_row(one, two))
        left_out += [(module, reason) for reason in reasons]
        if progress:
            progress(module, done, len(shared))
    if not overlaps:
        where = f"{first.path} and {second.path}"
        raise AdapterError(f"nothing to compare: in every shared module of {where} one is zero")
    return PairComparison(
        overlaps=pd.DataFrame(overlaps).astype({"layer": "Int64"}),
        cosines=pd.DataFrame(cosines).astype({"layer": "Int64"}),
        only_first=_difference(first, second),
        only_second=_difference(second, first),
        left_out=tuple(left_out),
    )


def random_smallest_angle(
    k: int, other: int, dimension: int, *, samples: int = NULL_SAMPLES, seed: int = 0
) -> float:
    """Mean smallest principal angle of uniformly random k- and l-dimensional subspaces of R^n.

    One subspace may be fixed; the other is the span of a Gaussian (n, l) matrix, of which only
    the first k rows and the triangular factor of the rest (Bartlett) are drawn.

    Args:
        k: Dimension of one subspace.
        other: Dimension l of the other.
        dimension: n.
        samples: Number of draws.
        seed: Seed of the draws.

    Returns:
        Radians; 0 when k + l > n, where the subspaces always meet.
    """
    if k + other > dimension:
        return 0.0
    rng = np.random.default_rng(seed)
    top = torch.from_numpy(rng.standard_normal((samples, k, other)))
    rest = torch.from_numpy(rng.standard_normal((samples, other, other))).triu(1)
    degrees = dimension - k - np.arange(other)
    chi = np.sqrt(rng.chisquare(degrees, size=(samples, other)))
    rest = rest + torch.diag_embed(torch.from_numpy(chi))
    frame = torch.linalg.qr(torch.cat([top, rest], dim=-2)).Q
    cosine = torch.linalg.matrix_norm(frame[:, :k], ord=2).clamp(max=1.0)
    return float(torch.acos(cosine).mean())


class _CachedAngles:
    """Chance of the smallest angle, computed once per shape."""

    def __init__(self, samples: int, seed: int) -> None:
        self._settings = samples, seed
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, k: int, dimension: int) -> float:
        if (k, dimension) not in self._known:
            samples, seed = self._settings
            self._known[k, dimension] = random_smallest_angle(
                k, k, dimension, samples=samples, seed=seed
            )
        return self._known[k, dimension]


@dataclass(frozen=True)
class _Spectrum:
    """Singular subspaces of a nonzero update."""

    update: LoraUpdate
    left: Tensor
    right: Tensor
    rank: int
    norm: float

    @classmethod
    def of(cls, update: LoraUpdate) -> _Spectrum | None:
        """None when the update is zero."""
        left, sigma, right = update.svd()
        rank = numerical_rank_of(update, sigma)
        if rank == 0:
            return None
        return cls(update, left, right.mT, rank, float(frobenius_norm(sigma)))


def _difference(first: Adapter, second: Adapter) -> tuple[str, ...]:
    return tuple(module for module in first.updates if module not in second.updates)


def _check_shared(first: Adapter, second: Adapter, shared: Sequence[str]) -> None:
    if not shared:
        raise AdapterError(
            f"no module is changed by both {first.path} and {second.path}\n"
            f"  the first changes {next(iter(first.updates))}, ...\n"
            f"  the second changes {next(iter(second.updates))}, ...\n"
            "Compare adapters of the same base model."
        )
    for module in shared:
        shapes = first.updates[module].shape, second.updates[module].shape
        if shapes[0] != shapes[1]:
            raise AdapterError(
                f"the updates of {module} have different shapes\n"
                f"  {shapes[0]} in {first.path}, {shapes[1]} in {second.path}\n"
                "Compare adapters of the same base model."
            )


def _module_rows(
    one: _Spectrum, two: _Spectrum, ks: Sequence[int], angle: Callable[[int, int], float]
) -> tuple[list[dict[str, object]], list[str]]:
    """Overlap rows of one module, and why a k is left out."""
    rank = min(one.rank, two.rank)
    chosen = [*((k, "fixed") for k in ks if k <= rank), (rank, "numerical_rank")]
    rows: list[dict[str, object]] = []
    for k, source in chosen:
        for side, mine, theirs in (("left", one.left, two.left), ("right", one.right, two.right)):
            basis_u, basis_v = mine[:, :k], theirs[:, :k]
            rows.append(
                {
                    "module": one.update.module,
                    "layer": one.update.layer,
                    "projection": one.update.projection,
                    "side": side,
                    "dimension": mine.shape[0],
                    "k": k,
                    "k_from": source,
                    **overlap_columns(basis_u, basis_v),
                    "smallest_angle": float(principal_angles(basis_u, basis_v)[0]),
                    "smallest_angle_chance": angle(k, mine.shape[0]),
                }
            )
    reasons = [f"k = {k} exceeds the smaller numerical rank {rank}" for k in ks if k > rank]
    return rows, reasons


def _cosine_row(one: _Spectrum, two: _Spectrum) -> dict[str, object]:
    """Cosine of the updates; turned at random on both sides its variance is exactly 1/(m n)."""
    first, second = one.update, two.update
    inner = factored_inner_product(first.lora_b, first.lora_a, second.lora_b, second.lora_a)
    cosine = float(inner) * first.scaling * second.scaling / (one.norm * two.norm)
    cosine = max(-1.0, min(1.0, cosine))
    return {
        "module": first.module,
        "layer": first.layer,
        "projection": first.projection,
        "cosine": cosine,
        "chance": 0.0,
        "z_score": cosine * math.sqrt(first.out_features * first.in_features),
        "frobenius_norm_first": one.norm,
        "frobenius_norm_second": two.norm,
    }
