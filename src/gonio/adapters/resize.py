"""Changing an adapter's ranks after training: the best approximation, from the factors alone.

Keeping the top k singular directions discards exactly ``sum_{i > k} sigma_i^2``, and nothing of
rank k discards less (Eckart & Young 1936). A rank chosen after training is not the rank that
training would have needed.

Theorem: ``residual_topk_eckart_young``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gonio.adapters.adapter import Adapter
from gonio.adapters.allocation import allocate_parameters, ranks_for_energy
from gonio.adapters.batches import spectra_of, truncations_of
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.update import LoraUpdate
from gonio.errors import SettingError
from gonio.linalg.lowrank import factored_frobenius_norm

__all__ = ["Resized", "difference_norm", "resize", "stored_parameters", "truncate"]


@dataclass(frozen=True)
class Resized:
    """Updates of new ranks and what they lost.

    Attributes:
        updates: The kept updates, scaling 1; a module of rank 0 is left out.
        table: One row per module: ``module``, ``layer``, ``projection``, ``rank_before``,
            ``rank_after``, ``parameters_before``, ``parameters_after``, ``energy`` (squared
            Frobenius norm) and ``discarded_energy`` (same unit), as the spectrum predicts it.
    """

    updates: tuple[LoraUpdate, ...]
    table: pd.DataFrame

    @property
    def discarded_share(self) -> float:
        """Discarded energy over all energy, in [0, 1]; 0 for an adapter without energy."""
        total = float(self.table["energy"].sum())
        return float(self.table["discarded_energy"].sum()) / total if total > 0 else 0.0


def resize(
    adapter: Adapter | Sequence[LoraUpdate],
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
) -> Resized:
    """The best adapter of smaller ranks, by exactly one of three rules.

    Args:
        adapter: An adapter, or updates of distinct modules.
        rank: Every module's rank, at least 1; a module of smaller rank keeps its own.
        energy: Share of each module's energy to keep, in (0, 1].
        parameters: Total parameters allowed; ranks then minimise the total discarded energy.

    Returns:
        The resized updates and the predicted loss per module.

    Raises:
        SettingError: Not exactly one rule is given, or it is out of range.
    """
    rules = {"rank": rank, "energy": energy, "parameters": parameters}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise SettingError(f"give exactly one of rank, energy and parameters, found {given}")
    updates = tuple(adapter.updates.values()) if isinstance(adapter, Adapter) else tuple(adapter)
    if rank is not None:
        if rank < 1:
            raise SettingError(f"rank must be at least 1, found {rank}")
        ranks = [min(rank, update.rank, *update.shape) for update in updates]
    else:
        spectra = _spectra(updates)
        if energy is not None:
            ranks = ranks_for_energy(spectra, energy)
        else:
            assert parameters is not None
            costs = [sum(update.shape) for update in updates]
            ranks = allocate_parameters(spectra, costs, parameters)
    kept: dict[int, LoraUpdate] = {}
    rows: dict[int, dict[str, object]] = {}
    for i, truncated, spectrum in truncations_of(updates, ranks):
        rows[i] = _row(updates[i], spectrum.sigma.numpy(), ranks[i])
        if ranks[i] > 0:
            kept[i] = truncated
    table = pd.DataFrame([rows[i] for i in sorted(rows)])
    return Resized(tuple(kept[i] for i in sorted(kept)), table)


def truncate(update: LoraUpdate, rank: int) -> LoraUpdate:
    """The best approximation of an update of at most ``rank``, with scaling 1."""
    ((_, truncated, _),) = truncations_of([update], [rank])
    return truncated


def difference_norm(first: LoraUpdate, second: LoraUpdate | None) -> float:
    """Frobenius norm of the difference of two updates of one shape, from the factors.

    Args:
        first: An update.
        second: Another of the same shape; None for no update at all.
    """
    if isinstance(first, DenseUpdate):
        if second is None:
            return first.frobenius_norm
        product = second.lora_b.double() @ second.lora_a.double()
        return float(torch.linalg.vector_norm(first.matrix() - second.scaling * product))
    if second is None:
        return float(factored_frobenius_norm(first.lora_b, first.lora_a, first.scaling))
    lora_b = torch.cat(
        [first.scaling * first.lora_b.double(), -second.scaling * second.lora_b.double()], dim=1
    )
    lora_a = torch.cat([first.lora_a.double(), second.lora_a.double()], dim=0)
    return float(factored_frobenius_norm(lora_b, lora_a))


def stored_parameters(update: LoraUpdate) -> int:
    """Numbers an update is stored as: both factors, or the matrix of a dense one."""
    m, n = update.shape
    return m * n if isinstance(update, DenseUpdate) else update.rank * (m + n)


def _spectra(updates: Sequence[LoraUpdate]) -> list[NDArray[np.float64]]:
    found = {i: spectrum.sigma.numpy() for i, spectrum in spectra_of(updates)}
    return [found[i] for i in range(len(updates))]


def _row(update: LoraUpdate, sigma: NDArray[np.float64], k: int) -> dict[str, object]:
    squares = sigma**2
    return {
        "module": update.module,
        "layer": update.layer,
        "projection": update.projection,
        "rank_before": update.rank,
        "rank_after": k,
        "parameters_before": stored_parameters(update),
        "parameters_after": k * sum(update.shape),
        "energy": float(squares.sum()),
        "discarded_energy": float(squares[k:].sum()),
    }
