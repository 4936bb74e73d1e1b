"""The spectrum of every update of an adapter, beside what random factors give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch

from gonio.adapters.folder import Adapter
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError
from gonio.linalg.chance import random_lora_singular_values
from gonio.linalg.spectrum import (
    effective_rank,
    energy_rank,
    frobenius_norm,
    numerical_rank,
    spectral_norm,
    stable_rank,
)

__all__ = ["NULL_SAMPLES", "RandomLora", "numerical_rank_of", "random_lora", "spectrum_table"]

NULL_SAMPLES = 500
_MISSING = math.nan


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


def spectrum_table(
    adapter: Adapter,
    *,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Singular-value summary of every update, one row per module.

    The product ``B @ A`` is never formed: singular values come from the rank-by-rank core, in
    float64. A zero update has norm and numerical rank 0 and its ratios are NaN.

    Args:
        adapter: A loaded adapter.
        samples: Random factor pairs drawn per shape for the chance columns.
        seed: Seed of those draws.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Columns ``module, layer`` (nullable integer)``, projection, out_features, in_features,
        rank, scaling, frobenius_norm, spectral_norm, stable_rank, effective_rank,
        numerical_rank, k90, k99`` and the chance columns ``random_lora_stable_rank`` with
        ``_low`` and ``_high`` (95% of the null), ``random_lora_effective_rank``,
        ``random_lora_k90``, ``random_lora_k99``.

    Raises:
        AdapterError: Every update is zero, so that there is nothing to measure.

    Source: Rudelson and Vershynin 2007 (stable rank); Roy and Vetterli 2007 (effective rank).
    Theorem: ``stableRank_le_rank``.
    """
    nulls: dict[tuple[int, int, int], RandomLora] = {}
    rows = []
    for done, update in enumerate(adapter.updates.values(), start=1):
        key = (update.out_features, update.in_features, update.rank)
        if key not in nulls:
            nulls[key] = random_lora(*key, samples=samples, seed=seed)
        rows.append(_row(update, nulls[key]))
        if progress:
            progress(update.module, done, len(adapter.updates))
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    if not bool((table["spectral_norm"] > 0).any()):
        raise AdapterError(
            f"nothing to measure: all {len(table)} updates of {adapter.path} are zero\n"
            "  LoRA starts at zero; this adapter was saved before its first training step."
        )
    return table


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
    sigma = random_lora_singular_values(
        out_features, in_features, rank, samples=samples, generator=generator
    )
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


def numerical_rank_of(update: LoraUpdate, sigma: torch.Tensor) -> int:
    """Singular values above float32 noise, ``max(m, n) * eps32 * sigma_1``; 0 for a zero update.

    float32 whatever the factors are stored in: smaller directions are lost when the update is
    added to a weight in the precision models are merged in. Values below
    :meth:`LoraUpdate.noise_floor` never count, so that factors whose product cancels have rank 0.
    """
    relative = int(numerical_rank(sigma, update.shape, dtype=torch.float32))
    return min(relative, int((sigma > update.noise_floor()).sum()))


def _row(update: LoraUpdate, null: RandomLora) -> dict[str, object]:
    sigma = update.singular_values()
    rank = numerical_rank_of(update, sigma)
    is_zero = rank == 0
    sigma = torch.zeros_like(sigma) if is_zero else sigma
    return {
        "module": update.module,
        "layer": update.layer,
        "projection": update.projection,
        "out_features": update.out_features,
        "in_features": update.in_features,
        "rank": update.rank,
        "scaling": update.scaling,
        "frobenius_norm": float(frobenius_norm(sigma)),
        "spectral_norm": float(spectral_norm(sigma)),
        "stable_rank": _MISSING if is_zero else float(stable_rank(sigma)),
        "effective_rank": _MISSING if is_zero else float(effective_rank(sigma)),
        "numerical_rank": rank,
        "k90": _MISSING if is_zero else float(energy_rank(sigma, 0.9)),
        "k99": _MISSING if is_zero else float(energy_rank(sigma, 0.99)),
        "random_lora_stable_rank": null.stable_rank,
        "random_lora_stable_rank_low": null.stable_rank_low,
        "random_lora_stable_rank_high": null.stable_rank_high,
        "random_lora_effective_rank": null.effective_rank,
        "random_lora_k90": null.k90,
        "random_lora_k99": null.k99,
    }
