"""Spectra and truncations of many updates at once, a batch for every shape.

The factors are read where they lie; only rank-by-rank matrices are stacked, a bounded number at
a time. An update that is not its two factors gives its own decomposition.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gonio.adapters.update import LoraUpdate, with_factors
from gonio.kernels.spectra import stacked_spectrum
from gonio.linalg.lowrank import FactoredSpectrum, factored_truncation

__all__ = ["batched_spectra", "spectra_of", "truncations_of"]

_STACKED = 1 << 21  # numbers in one stack of rank-by-rank matrices: 16 MB in float64


def spectra_of(updates: Sequence[LoraUpdate]) -> Iterator[tuple[int, FactoredSpectrum]]:
    """The singular values of every update with their error bounds, in the unit of the update.

    Args:
        updates: Updates of any shapes.

    Yields:
        Position in ``updates`` and spectrum, shape by shape.
    """
    for batch, spectra in batched_spectra(updates):
        yield from zip(batch, _members(spectra), strict=True)


def batched_spectra(
    updates: Sequence[LoraUpdate],
) -> Iterator[tuple[list[int], FactoredSpectrum]]:
    """The spectra of :func:`spectra_of`, those of one kind, shape and rank in one stack.

    Args:
        updates: Updates of any shapes.

    Yields:
        Positions in ``updates`` and their spectra, with one leading dimension of that length.
    """
    for batch in _batches(updates, [update.rank for update in updates]):
        if not _is_factored(updates[batch[0]]):
            for i in batch:
                own = _own_spectrum(updates[i], updates[i].singular_values())
                yield [i], FactoredSpectrum(own.sigma[None], own.error[None], own.by_gram[None])
            continue
        found = stacked_spectrum(
            [updates[i].lora_b for i in batch],
            [updates[i].lora_a for i in batch],
            torch.tensor([updates[i].scaling for i in batch], dtype=torch.float64),
        )
        yield batch, found


def truncations_of(
    updates: Sequence[LoraUpdate], ranks: Sequence[int]
) -> Iterator[tuple[int, LoraUpdate, FactoredSpectrum]]:
    """The best approximation of every update by its own rank, with scaling 1.

    Args:
        updates: Updates of any shapes.
        ranks: Directions to keep of each, at least 0; none has more than ``min(m, n, r)``.

    Yields:
        Position in ``updates``, the truncated update (of no direction for rank 0) and the
        spectrum before, shape by shape.
    """
    for batch in _batches(updates, ranks):
        rank = ranks[batch[0]]
        if not _is_factored(updates[batch[0]]):
            yield from ((i, *_own_truncation(updates[i], rank)) for i in batch)
            continue
        found = factored_truncation(
            [updates[i].lora_b for i in batch],
            [updates[i].lora_a for i in batch],
            rank,
            torch.tensor([updates[i].scaling for i in batch], dtype=torch.float64),
        )
        pairs = zip(found.lora_b.unbind(), found.lora_a.unbind(), strict=True)
        for i, (lora_b, lora_a), spectrum in zip(
            batch, pairs, _members(found.spectrum), strict=True
        ):
            yield i, with_factors(updates[i], lora_b, lora_a), spectrum


def _batches(updates: Sequence[LoraUpdate], ranks: Sequence[int]) -> Iterator[list[int]]:
    """Positions of updates of one kind, shape and rank to keep, few enough for one stack."""
    groups: dict[object, list[int]] = {}
    for i, (update, rank) in enumerate(zip(updates, ranks, strict=True)):
        groups.setdefault((type(update), *update.shape, update.rank, rank), []).append(i)
    for group in groups.values():
        size = max(1, _STACKED // updates[group[0]].rank ** 2)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _is_factored(update: LoraUpdate) -> bool:
    return type(update).svd is LoraUpdate.svd


def _members(spectrum: FactoredSpectrum) -> Iterator[FactoredSpectrum]:
    parts = (spectrum.sigma, spectrum.error, spectrum.by_gram)
    return itertools.starmap(FactoredSpectrum, zip(*(part.unbind() for part in parts), strict=True))


def _own_spectrum(update: LoraUpdate, sigma: Tensor) -> FactoredSpectrum:
    error = torch.full_like(sigma, update.noise_floor())
    return FactoredSpectrum(sigma, error, torch.tensor(False))


def _own_truncation(update: LoraUpdate, rank: int) -> tuple[LoraUpdate, FactoredSpectrum]:
    left, sigma, right = update.svd()
    root = sigma[:rank].sqrt()
    kept = with_factors(update, left[:, :rank] * root, root[:, None] * right[:rank])
    return kept, _own_spectrum(update, sigma)
