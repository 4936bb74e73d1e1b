"""Which ranks an adapter's spectra ask for, and what shrinking to them would save.

A rank found after training says how much of this update fits into it, not which rank training
would have needed. Nor does every spectrum say something: the product of two random factors loses
energy with each direction too, so each module stands beside that null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import pandas as pd
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from gonio.adapters.adapter import Adapter
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.measure import NULL_SAMPLES, spectrum_table
from gonio.adapters.resize import Resized, resize
from gonio.adapters.update import LoraUpdate
from gonio.errors import SettingError
from gonio.linalg.spectrum import energy_rank

__all__ = ["advice_facts", "advise", "hard_threshold", "resize_to"]

CAVEAT = (
    "A rank found after training is how much of this update fits into it, "
    "not the rank training would have needed."
)


def advise(
    adapter: Adapter,
    *,
    energy: float = 0.95,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """A rank for every module by its share of energy, and the facts to judge it by.

    Args:
        adapter: A loaded adapter.
        energy: Share of each module's energy that the recommended rank keeps, in (0, 1].
        samples: Random factor pairs drawn per shape for the null.
        seed: Seed of those draws.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The columns of :func:`gonio.adapters.measure.spectrum_table`, then ``k95``;
        ``hard_threshold_rank`` (singular values above :func:`hard_threshold`, missing where it
        does not apply, which is every module of rank below half of min(m, n));
        ``recommended_rank`` (0 for a zero update)``, discarded_share`` (energy lost by it)``,
        parameters_before`` (r (m + n), or m n for a dense update)``, parameters_saved,
        bytes_saved`` (in the stored precision; missing for a dense update)``, scaling_other``
        (what the same alpha gives under the other of alpha / r and alpha / sqrt(r))``,
        relative_norm`` (Frobenius norm over the median of the nonzero modules) and ``in_null``
        (whether the stable rank lies inside the middle 95% of random factors').

    Raises:
        SettingError: ``energy`` is out of range.
        AdapterError: Every update is zero.
    """
    if not 0.0 < energy <= 1.0:
        raise SettingError(f"the energy to keep must be in (0, 1], found {energy}")
    table = spectrum_table(adapter, samples=samples, seed=seed, progress=progress)
    extra = [
        _row(update, int(rank), energy, adapter.settings.use_rslora)
        for update, rank in zip(adapter.updates.values(), table["numerical_rank"], strict=True)
    ]
    table = pd.concat([table, pd.DataFrame(extra)], axis=1)
    norms = table["frobenius_norm"]
    stable = table["stable_rank"]
    low, high = table["random_lora_stable_rank_low"], table["random_lora_stable_rank_high"]
    return table.assign(
        hard_threshold_rank=table["hard_threshold_rank"].astype("Int64"),
        bytes_saved=table["bytes_saved"].astype("Int64"),
        relative_norm=norms / norms[norms > 0].median(),
        in_null=(stable >= low) & (stable <= high),
    )


def advice_facts(table: pd.DataFrame) -> dict[str, str | int | float | bool]:
    """What the table of :func:`advise` says about the adapter as a whole.

    Args:
        table: The result of :func:`advise`.

    Returns:
        ``modules``, ``modules_zero``; ``rank_largest`` and ``recommended_rank_largest`` (the one
        rank that serves every module); ``parameters_before``, ``parameters_saved``,
        ``bytes_saved`` (of the factored modules); ``discarded_share`` (of all energy);
        ``scaling_least``, ``scaling_largest``; ``norm_ratio`` (largest over least nonzero norm)
        and ``largest_module``; ``modules_in_null`` and ``modules_flatter_than_null`` (stable rank
        inside, above the middle 95% of random factors'); ``spectrum`` and ``caveat``, sentences.
    """
    norms = table["frobenius_norm"]
    squares = norms**2
    nonzero = norms > 0
    flatter = int((table["stable_rank"] > table["random_lora_stable_rank_high"]).sum())
    inside = int(table["in_null"].sum())
    return {
        "modules": len(table),
        "modules_zero": int((~nonzero).sum()),
        "rank_largest": int(table["rank"].max()),
        "recommended_rank_largest": int(table["recommended_rank"].max()),
        "parameters_before": int(table["parameters_before"].sum()),
        "parameters_saved": int(table["parameters_saved"].sum()),
        "bytes_saved": int(table["bytes_saved"].sum()),
        "discarded_share": float((table["discarded_share"] * squares).sum() / squares.sum()),
        "scaling_least": float(table["scaling"].min()),
        "scaling_largest": float(table["scaling"].max()),
        "norm_ratio": float(norms.max() / norms[nonzero].min()),
        "largest_module": str(table["module"].iloc[int(norms.argmax())]),
        "modules_in_null": inside,
        "modules_flatter_than_null": flatter,
        "spectrum": _spectrum_sentence(inside + flatter, int(nonzero.sum())),
        "caveat": CAVEAT,
    }


def resize_to(adapter: Adapter, ranks: Mapping[str, int]) -> Resized:
    """The best adapter with a given rank for each module.

    Args:
        adapter: A loaded adapter.
        ranks: Rank of every module, at least 0; 0 leaves the module out, and a rank above the
            module's own keeps its own.

    Raises:
        SettingError: A module has no rank, a rank belongs to no module, or one is negative.
    """
    missing = [module for module in adapter.updates if module not in ranks]
    unknown = [module for module in ranks if module not in adapter.updates]
    if missing or unknown:
        what = f"no rank for {missing[0]}" if missing else f"no module {unknown[0]}"
        raise SettingError(
            f"the ranks do not fit {adapter.path}: {what}\n"
            f"  {len(adapter.updates)} modules, {len(ranks)} ranks; expected one for each"
        )
    negative = [module for module, rank in ranks.items() if rank < 0]
    if negative:
        raise SettingError(f"the rank of {negative[0]} is {ranks[negative[0]]}, expected >= 0")
    kept: list[LoraUpdate] = []
    tables = []
    for module, update in adapter.updates.items():
        one = resize([update], rank=max(1, ranks[module]))
        if ranks[module] > 0:
            kept += one.updates
            tables.append(one.table)
        else:
            lost = one.table["energy"]
            tables.append(one.table.assign(rank_after=0, parameters_after=0, discarded_energy=lost))
    return Resized(tuple(kept), pd.concat(tables, ignore_index=True))


def hard_threshold(sigma: torch.Tensor, shape: tuple[int, int]) -> float | None:
    """The optimal singular value hard threshold for a matrix with white noise of unknown level.

    It presumes independent noise of one variance in all m n entries, whose level shows in the
    median of all min(m, n) singular values. A product of LoRA factors has only r nonzero values:
    with r below half of min(m, n) the median is zero and says nothing, so there is no threshold.

    Args:
        sigma: Singular values, descending, at most min(m, n); the missing ones are zero.
        shape: ``(m, n)``.

    Returns:
        The threshold, in the unit of ``sigma``; None where the median is zero.

    Source: Gavish and Donoho 2014 (arXiv:1305.5870), equations 11 and 5.
    """
    short, long = min(shape), max(shape)
    padded = torch.zeros(short, dtype=torch.float64)
    padded[: len(sigma)] = sigma
    median = float(torch.quantile(padded, 0.5))
    return _threshold_over_median(short / long) * median if median > 0 else None


@cache
def _threshold_over_median(beta: float) -> float:
    """omega(beta) = lambda(beta) / sqrt(median of the Marchenko-Pastur law of ratio beta)."""
    root = math.sqrt(beta**2 + 14 * beta + 1)
    threshold = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(angle: float) -> float:  # x = low + (high - low) sin^2(angle): no end is singular
        sine, cosine = math.sin(angle), math.cos(angle)
        x = low + (high - low) * sine**2
        if x == 0:  # beta = 1 at the lower end, where the limit is finite
            return (high - low) * cosine**2 / (math.pi * beta)
        return (high - low) ** 2 * (sine * cosine) ** 2 / (math.pi * beta * x)

    middle = brentq(lambda angle: quad(density, 0.0, angle)[0] - 0.5, 0.0, math.pi / 2)
    return threshold / math.sqrt(low + (high - low) * math.sin(middle) ** 2)


def _row(update: LoraUpdate, rank: int, energy: float, use_rslora: bool) -> dict[str, object]:
    sigma = update.singular_values()
    if rank == 0:
        sigma = torch.zeros_like(sigma)
    threshold = hard_threshold(sigma, update.shape)
    recommended = int(energy_rank(sigma, energy))
    relative = sigma / torch.where(sigma[:1] > 0, sigma[:1], 1.0)
    total = float(relative.square().sum())
    is_dense = isinstance(update, DenseUpdate)
    before = math.prod(update.shape) if is_dense else update.rank * sum(update.shape)
    saved = before - recommended * sum(update.shape)
    root = math.sqrt(update.rank)
    return {
        "k95": float(energy_rank(sigma, 0.95)) if rank else math.nan,
        "hard_threshold_rank": None if threshold is None else int((sigma > threshold).sum()),
        "recommended_rank": recommended,
        "discarded_share": float(relative[recommended:].square().sum()) / total if rank else 0.0,
        "parameters_before": before,
        "parameters_saved": saved,
        "bytes_saved": None if is_dense else saved * update.lora_a.element_size(),
        "scaling_other": update.scaling / root if use_rslora else update.scaling * root,
    }


def _spectrum_sentence(flat: int, modules: int) -> str:
    if flat == 0:
        return (
            "Every spectrum is steeper than that of random factors of its shape: "
            "the energy is concentrated."
        )
    return (
        f"{flat} of {modules} spectra are as flat as those of random factors of their shape, or "
        "flatter: they say nothing about a needed rank."
    )
