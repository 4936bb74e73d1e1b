"""The spectrum of every update of an adapter, beside what random factors give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache, lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gonio.adapters.adapter import Adapter
from gonio.adapters.batches import batched_spectra, spectra_of
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError
from gonio.linalg.chance import random_lora_singular_values, random_matrix_singular_values
from gonio.linalg.lowrank import FactoredSpectrum
from gonio.linalg.spectrum import (
    effective_rank,
    energy_rank,
    frobenius_norm,
    numerical_rank,
    spectral_norm,
    stable_rank,
)

__all__ = [
    "NULL_SAMPLES",
    "RandomLora",
    "numerical_rank_of",
    "random_lora",
    "singular_value_table",
    "spectrum_table",
]

NULL_SAMPLES = 500
_FEWEST_DENSE = 40
_DENSE_WORK = 40_000_000  # squared sides: about a second of eigenvalues
_MEASURED: tuple[str, ...] = (
    "frobenius_norm",
    "spectral_norm",
    "stable_rank",
    "effective_rank",
    "numerical_rank",
)
_MEASURED += ("k90", "k99", "error_bound")


@dataclass(frozen=True)
class RandomLora:
    """What Gaussian factors of one shape give: the null of a spectrum.

    Attributes:
        stable_rank: Mean stable rank.
        stable_rank_low: 2.5% quantile over the samples.
        stable_rank_high: 97.5% quantile over the samples.
        effective_rank: Mean effective rank.
        k90: Mean number of directions that hold 90% of the energy.
        k99: The same for 99%.
    """

    stable_rank: float
    stable_rank_low: float
    stable_rank_high: float
    effective_rank: float
    k90: float
    k99: float


class _Resolved(NamedTuple):
    """Singular values ``(N, q)``, their error bounds and the numerical rank ``(N,)``."""

    sigma: torch.Tensor
    error: torch.Tensor
    rank: torch.Tensor


_CHANCE = tuple(f"random_lora_{field.name}" for field in fields(RandomLora))


def spectrum_table(
    adapter: Adapter,
    *,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Singular-value summary of every update, one row per module.

    The product ``B @ A`` is never formed: singular values come from rank-by-rank cores, in
    float64, a batch for every shape. A zero update has norm and numerical rank 0 and its ratios
    are NaN.

    Args:
        adapter: A loaded adapter.
        samples: Random factor pairs drawn per shape for the chance columns.
        seed: Seed of those draws.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Columns ``module, layer`` (nullable integer)``, projection, out_features, in_features,
        rank, scaling, frobenius_norm, spectral_norm, stable_rank, effective_rank,
        numerical_rank, k90, k99, error_bound`` (largest absolute error of a singular value, in
        the unit of the update) and the chance columns ``random_lora_stable_rank`` with
        ``_low`` and ``_high`` (95% of the null), ``random_lora_effective_rank``,
        ``random_lora_k90``, ``random_lora_k99``; for a dense update these are of a Gaussian
        matrix of its shape.

    Raises:
        AdapterError: Every update is zero, so that there is nothing to measure.

    Source: Rudelson and Vershynin 2007 (stable rank); Roy and Vetterli 2007 (effective rank).
    Theorem: ``stableRank_le_rank``.
    """
    updates = list(adapter.updates.values())
    measured = np.empty((len(updates), len(_MEASURED)))
    chance = np.empty((len(updates), len(_CHANCE)))
    by_length: dict[int, list[tuple[list[int], _Resolved]]] = {}
    done = 0
    for batch, spectra in batched_spectra(updates):
        first = updates[batch[0]]
        smaller, larger = sorted(first.shape)  # the law is that of the transposed product
        rank = 0 if first.kind == "dense" else first.rank
        found = batch, _resolve(first.shape, spectra)
        by_length.setdefault(spectra.sigma.shape[-1], []).append(found)
        chance[batch] = astuple(_null(larger, smaller, rank, samples, seed))
        for i in batch:
            done += 1
            if progress:
                progress(updates[i].module, done, len(updates))
    for members in by_length.values():
        batches, parts = zip(*members, strict=True)
        measured[list(chain(*batches))] = _summaries(*map(torch.cat, zip(*parts, strict=True)))
    table = _table(updates, measured, chance)
    _require_energy(adapter, table["spectral_norm"].tolist())
    return table


def singular_value_table(adapter: Adapter) -> pd.DataFrame:
    """Every singular value of every update with its error bound, one row per value.

    Args:
        adapter: A loaded adapter.

    Returns:
        Columns ``module, layer`` (nullable integer)``, projection, index`` (from 1)``, sigma,
        error_bound`` (absolute; both in the unit of the update)``, energy_share`` (the squared
        value over the sum of squares) and ``cumulative_energy`` (of this and all larger values,
        in (0, 1]). A zero update has zeros and its shares are NaN.

    Raises:
        AdapterError: Every update is zero, so that there is nothing to measure.
    """
    updates = list(adapter.updates.values())
    parts: dict[int, pd.DataFrame] = {}
    largest = []
    for i, spectrum in spectra_of(updates):
        sigma = _resolved(updates[i], spectrum).numpy()
        largest.append(float(sigma[0]))
        with np.errstate(invalid="ignore"):
            energies = (sigma / sigma[0]) ** 2
            shares = energies / energies.sum()
        parts[i] = pd.DataFrame(
            {
                "module": updates[i].module,
                "layer": updates[i].layer,
                "projection": updates[i].projection,
                "index": np.arange(1, len(sigma) + 1),
                "sigma": sigma,
                "error_bound": spectrum.error.numpy(),
                "energy_share": shares,
                "cumulative_energy": shares.cumsum().clip(max=1.0),
            }
        ).astype({"layer": "Int64"})
    _require_energy(adapter, largest)
    return pd.concat([parts[i] for i in range(len(updates))], ignore_index=True)


def random_lora(
    out_features: int, in_features: int, rank: int, *, samples: int = NULL_SAMPLES, seed: int = 0
) -> RandomLora:
    """Spectral quantities of the product of two Gaussian factors, by exact sampling.

    Scaling does not matter: every quantity here is a ratio.

    Args:
        out_features: Rows m.
        in_features: Columns n.
        rank: Inner dimension r.
        samples: Number of draws.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    return _summary(
        random_lora_singular_values(
            out_features, in_features, rank, samples=samples, generator=generator
        )
    )


def _random_dense(
    out_features: int, in_features: int, _: int, *, samples: int, seed: int
) -> RandomLora:
    """The same of a Gaussian matrix; large ones vary so little that fewer are drawn."""
    count = min(samples, max(_FEWEST_DENSE, _DENSE_WORK // min(out_features, in_features) ** 2))
    generator = torch.Generator().manual_seed(seed)
    return _summary(
        random_matrix_singular_values(out_features, in_features, samples=count, generator=generator)
    )


def _summary(sigma: torch.Tensor) -> RandomLora:
    """Means and quantiles over samples ``(samples, q)``."""
    stable = stable_rank(sigma).double()
    low, high = torch.quantile(stable, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return RandomLora(
        stable_rank=float(stable.mean()),
        stable_rank_low=low,
        stable_rank_high=high,
        effective_rank=float(effective_rank(sigma).mean()),
        k90=float(energy_rank(sigma, 0.9).double().mean()),
        k99=float(energy_rank(sigma, 0.99).double().mean()),
    )


def numerical_rank_of(
    update: LoraUpdate, sigma: torch.Tensor, error: torch.Tensor | None = None
) -> int:
    """Singular values above float32 noise, ``max(m, n) * eps32 * sigma_1``; 0 for a zero update.

    float32 whatever the factors are stored in: smaller directions are lost when the update is
    added to a weight in the precision models are merged in. Values within their error of zero
    never count, so that factors whose product cancels have rank 0.

    Args:
        update: The update.
        sigma: Its singular values.
        error: Bound on the error of each; :meth:`LoraUpdate.noise_floor` when omitted.
    """
    relative = int(numerical_rank(sigma, update.shape, dtype=torch.float32))
    floor = update.noise_floor() if error is None else error
    return min(relative, int((sigma > floor).sum()))


def _resolved(update: LoraUpdate, spectrum: FactoredSpectrum) -> torch.Tensor:
    """The singular values, or zeros where rounding explains all of them."""
    is_zero = numerical_rank_of(update, spectrum.sigma, spectrum.error) == 0
    return torch.zeros_like(spectrum.sigma) if is_zero else spectrum.sigma


def _require_energy(adapter: Adapter, largest: Sequence[float]) -> None:
    """Refuse an adapter whose updates are all zero."""
    if not any(value > 0 for value in largest):
        raise AdapterError(
            f"nothing to measure: all {len(largest)} updates of {adapter.path} are zero\n"
            "  LoRA starts at zero; this adapter was saved before its first training step."
        )


def _resolve(shape: tuple[int, int], spectra: FactoredSpectrum) -> _Resolved:
    """Spectra of N updates of one shape with what is resolved of them."""
    resolved = (spectra.sigma > spectra.error).sum(dim=-1)
    rank = numerical_rank(spectra.sigma, shape, dtype=torch.float32).minimum(resolved)
    return _Resolved(spectra.sigma, spectra.error, rank)


def _summaries(sigma: torch.Tensor, error: torch.Tensor, rank: torch.Tensor) -> NDArray[np.float64]:
    """The columns ``_MEASURED`` of N updates from :class:`_Resolved`, float64, ``(N, 8)``."""
    is_zero = rank == 0
    sigma = torch.where(is_zero.unsqueeze(-1), 0.0, sigma)
    ratios = torch.full((4, len(sigma)), math.nan, dtype=torch.float64)
    if not bool(is_zero.all()):
        others = sigma[~is_zero]
        ratios[:, ~is_zero] = torch.stack(
            [
                stable_rank(others),
                effective_rank(others),
                energy_rank(others, 0.9).double(),
                energy_rank(others, 0.99).double(),
            ]
        )
    stable, effective, k90, k99 = ratios
    norms = frobenius_norm(sigma), spectral_norm(sigma)
    columns = (*norms, stable, effective, rank.double(), k90, k99, error.amax(dim=-1))
    return torch.stack(columns, dim=-1).numpy()


def _table(
    updates: Sequence[LoraUpdate], measured: NDArray[np.float64], chance: NDArray[np.float64]
) -> pd.DataFrame:
    """One row per update: what it is, what was measured and what chance gives."""
    columns: dict[str, object] = {
        "module": _texts(tuple(update.module for update in updates)),
        "layer": pd.array([update.layer for update in updates], dtype="Int64"),
        "projection": _texts(tuple(update.projection for update in updates)),
        "out_features": [update.out_features for update in updates],
        "in_features": [update.in_features for update in updates],
        "rank": [update.rank for update in updates],
        "scaling": [update.scaling for update in updates],
        **dict(zip(_MEASURED, measured.T, strict=True)),
        **dict(zip(_CHANCE, chance.T, strict=True)),
    }
    columns["numerical_rank"] = measured[:, _MEASURED.index("numerical_rank")].astype(np.int64)
    return pd.DataFrame(columns)


@lru_cache(maxsize=8)  # the modules of one adapter are those of the next
def _texts(texts: tuple[str, ...]) -> Any:
    """A column of text; a table made with it has a copy."""
    return pd.array(texts, dtype="str")


@cache
def _null(larger: int, smaller: int, rank: int, samples: int, seed: int) -> RandomLora:
    """The null of a shape, drawn once for all adapters of a fleet; rank 0 is a dense update."""
    draw = random_lora if rank else _random_dense
    return draw(larger, smaller, rank, samples=samples, seed=seed)
