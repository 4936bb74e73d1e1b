"""Merging adapters entry by entry: TIES and DARE on the updates, then the best low rank.

Both act on the updates ``s_i B_i A_i``, not on their factors: pruning or signing the entries of A
and B, as PEFT's ``ties`` and ``dare_linear`` do, would add cross terms ``B_i A_j``. The entries are
those of PEFT's ``ties_svd``, ``dare_linear_svd`` and ``dare_ties_svd``. A merged update has full
rank, so it is formed, one module at a time, and truncated; what that discards is measured.

An adapter without a module has the zero update there. Zero entries neither vote on a sign nor
count in a mean, so with TIES a module of one adapter is its own trimmed update times its weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from gonio.adapters.adapter import Adapter
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.merge import merge
from gonio.adapters.resize import Resized
from gonio.adapters.update import LoraUpdate, with_factors
from gonio.errors import SettingError

__all__ = ["MajoritySign", "dare_merge", "disjoint_mean", "ties_merge"]

MajoritySign = Literal["total", "frequency"]

_BLOCK = 1 << 22  # entries of an update handled at once, 32 MiB in float64


@dataclass(frozen=True)
class _Term:
    """One adapter's part in a module.

    Attributes:
        number: Which adapter it is of, from 0.
        weight: That adapter's weight.
        left: ``scaling * B``, float64; the whole update if it is dense.
        right: ``A``, float64; None if the update is dense.
    """

    number: int
    weight: float
    left: Tensor
    right: Tensor | None

    @classmethod
    def of(cls, number: int, weight: float, update: LoraUpdate) -> _Term:
        if isinstance(update, DenseUpdate):
            return cls(number, weight, update.matrix(), None)
        lora_b, lora_a = update.lora_b.double(), update.lora_a.double()
        return cls(number, weight, update.scaling * lora_b, lora_a)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], (self.left if self.right is None else self.right).shape[1]

    def entries(self, rows: slice) -> Tensor:
        """Some rows of the update."""
        return self.left[rows] if self.right is None else self.left[rows] @ self.right


def ties_merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    density: float,
    rank: int,
    *,
    majority_sign: MajoritySign = "total",
) -> Resized:
    """Trim every update to its largest entries, elect signs, average what agrees with them.

    Signs are elected among the trimmed updates before they are weighted, and the weighted sum of
    the agreeing entries is divided by their number, as in PEFT: weights of 1 give the method of
    the paper, weights of w multiply its result, and a negative weight does not change the vote.

    Args:
        adapters: At least one, of one base model; ranks and target modules may differ.
        weights: One finite number per adapter; 1 for each unless given.
        density: Share of each update's entries to keep, in (0, 1], rounded down to a whole number
            of entries. Of equal magnitudes at the limit all are kept.
        rank: Largest rank of a merged module, at least 1.
        majority_sign: Whether the sign of an entry is that of the sum (``total``) or of the
            number of positive and negative values (``frequency``); a draw is positive.

    Returns:
        The truncated updates; energies are of the merged update before and after truncation.
        ``rank_before`` and ``parameters_before`` are those of the factors merged.

    Raises:
        SettingError: A setting is out of range, or weights and adapters differ in number.
        AdapterError: No adapter is given, or two differ in the shape of a module.

    Source: Yadav et al. 2023 (arXiv:2306.01708), algorithm 1.
    """
    _check(density, rank)
    _check_sign(majority_sign)

    def combine(module: str, terms: Sequence[_Term]) -> Iterator[Tensor]:
        limits = [_limit(term, density) for term in terms]
        for rows in _row_blocks(terms[0].shape):
            blocks = [term.entries(rows) for term in terms]
            trimmed = [
                torch.where(block.abs() >= limit, block, 0.0)
                for block, limit in zip(blocks, limits, strict=True)
            ]
            yield disjoint_mean(trimmed, [term.weight for term in terms], majority_sign)

    return _merge(adapters, weights, rank, combine)


def dare_merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    density: float,
    rank: int,
    *,
    seed: int,
    then: Literal["linear", "ties"] = "linear",
    majority_sign: MajoritySign = "total",
) -> Resized:
    """Drop entries of every update at random, rescale the rest by 1 / density, and merge.

    The expectation of the linear merge is the exact weighted sum; its noise has energy
    ``sum_i w_i^2 (1 - density) / density |D_i|_F^2``, most of which truncation removes.

    Args:
        adapters: At least one, of one base model; ranks and target modules may differ.
        weights: One finite number per adapter; 1 for each unless given.
        density: Probability to keep an entry, in (0, 1].
        rank: Largest rank of a merged module, at least 1.
        seed: Of the draws; each module of each adapter has a stream of its own, so that neither
            the order of modules nor the presence of others changes what is dropped.
        then: ``linear`` adds the weighted updates; ``ties`` elects signs and averages as
            :func:`ties_merge` does, without its trimming.
        majority_sign: As for :func:`ties_merge`; used by ``ties`` only.

    Returns:
        As :func:`ties_merge`.

    Raises:
        SettingError: A setting is out of range, or weights and adapters differ in number.
        AdapterError: No adapter is given, or two differ in the shape of a module.

    Source: Yu et al. 2023 (arXiv:2311.03099), section 3.2.
    """
    _check(density, rank)
    _check_sign(majority_sign)
    if then not in ("linear", "ties"):
        raise SettingError(f"then must be linear or ties, found {then!r}")

    def combine(module: str, terms: Sequence[_Term]) -> Iterator[Tensor]:
        streams = [_stream(seed, term.number, module) for term in terms]
        numbers = [term.weight for term in terms]
        for rows in _row_blocks(terms[0].shape):
            dropped = [
                _dropped(term.entries(rows), density, stream)
                for term, stream in zip(terms, streams, strict=True)
            ]
            if then == "ties":
                yield disjoint_mean(dropped, numbers, majority_sign)
            else:
                yield torch.stack(
                    [weight * block for weight, block in zip(numbers, dropped, strict=True)]
                ).sum(dim=0)

    return _merge(adapters, weights, rank, combine)


def disjoint_mean(
    blocks: Sequence[Tensor], weights: Sequence[float], majority_sign: MajoritySign = "total"
) -> Tensor:
    """Mean of the weighted entries whose sign is the elected one; 0 where none is.

    Args:
        blocks: Task tensors of one shape, trimmed entries zero.
        weights: One number per tensor.
        majority_sign: How a sign is elected; see :func:`ties_merge`.
    """
    votes = sum(blocks) if majority_sign == "total" else sum(block.sign() for block in blocks)
    elected = torch.where(torch.as_tensor(votes) >= 0, 1.0, -1.0)
    total, count = torch.zeros_like(blocks[0]), torch.zeros_like(blocks[0])
    for block, weight in zip(blocks, weights, strict=True):
        agrees = block.sign() == elected
        total += torch.where(agrees, weight * block, 0.0)
        count += agrees
    return total / count.clamp(min=1.0)


def _merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    rank: int,
    combine: Callable[[str, Sequence[_Term]], Iterator[Tensor]],
) -> Resized:
    """Form each module's merged update from blocks of rows, and truncate it."""
    chosen = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    rows, kept = [], []
    for stacked in merge(adapters, weights):  # refuses what cannot be merged
        terms = [
            _Term.of(number, weight, adapter.updates[stacked.module])
            for number, (adapter, weight) in enumerate(zip(adapters, chosen, strict=True))
            if stacked.module in adapter.updates
        ]
        dense = torch.empty(stacked.shape, dtype=torch.float64)
        for block, merged in zip(
            _row_blocks(stacked.shape), combine(stacked.module, terms), strict=True
        ):
            dense[block] = merged
        energy = float(dense.square().sum())
        if not bool(dense.any()):
            rows.append(_row(stacked, 0, energy, 0.0))
            continue
        kept.append(_truncated(stacked, dense, rank))
        rows.append(_row(stacked, kept[-1].rank, energy, _residual_energy(dense, kept[-1])))
    return Resized(tuple(kept), pd.DataFrame(rows))


def _truncated(like: LoraUpdate, dense: Tensor, rank: int) -> LoraUpdate:
    """The best approximation of a dense update, by the eigenvectors of its smaller Gram matrix.

    One factor is an orthonormal basis U, the other ``U^T dense``: the loss of digits in the Gram
    matrix touches only directions whose energy is below rounding, a share of about 1e-16.
    """
    size = float(dense.abs().max())
    is_tall = dense.shape[0] > dense.shape[1]
    wide = (dense.mT if is_tall else dense) / size
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    noise = max(dense.shape) * torch.finfo(torch.float64).eps * float(values[-1])
    k = min(rank, int((values > noise).sum()))
    basis = vectors[:, -k:].flip(-1)
    rest = basis.mT @ wide
    root = torch.linalg.vector_norm(rest, dim=1).sqrt()  # shared evenly between the factors
    left, right = basis * root * math.sqrt(size), rest / root[:, None] * math.sqrt(size)
    lora_b, lora_a = (right.mT, left.mT) if is_tall else (left, right)
    return with_factors(like, lora_b, lora_a)


def _residual_energy(dense: Tensor, kept: LoraUpdate) -> float:
    """``|dense - lora_b @ lora_a|_F^2``, measured rather than taken from the spectrum."""
    term = _Term.of(0, 1.0, kept)
    blocks = _row_blocks(kept.shape)
    return sum(float((dense[rows] - term.entries(rows)).square().sum()) for rows in blocks)


def _row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of rows with about :data:`_BLOCK` entries each."""
    step = max(1, _BLOCK // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _limit(term: _Term, density: float) -> float:
    """The magnitude of the last entry that a density keeps; infinite when it keeps none."""
    blocks = _row_blocks(term.shape)
    magnitudes = torch.cat([term.entries(rows).abs().flatten() for rows in blocks])
    keep = int(density * magnitudes.numel())
    if keep == 0:
        return math.inf
    return float(magnitudes.kthvalue(magnitudes.numel() - keep + 1).values)


def _dropped(block: Tensor, density: float, stream: torch.Generator) -> Tensor:
    draws = torch.rand(block.shape, generator=stream, dtype=torch.float64)
    return torch.where(draws < density, block / density, 0.0)


def _stream(seed: int, number: int, module: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {number} {module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def _row(stacked: LoraUpdate, rank: int, energy: float, left: float) -> dict[str, object]:
    size = sum(stacked.shape)
    return {
        "module": stacked.module,
        "layer": stacked.layer,
        "projection": stacked.projection,
        "rank_before": stacked.rank,
        "rank_after": rank,
        "parameters_before": stacked.rank * size,
        "parameters_after": rank * size,
        "energy": energy,
        "discarded_energy": left,
    }


def _check(density: float, rank: int) -> None:
    if not 0.0 < density <= 1.0:
        raise SettingError(f"density must be in (0, 1], found {density}")
    if rank < 1:
        raise SettingError(f"rank must be at least 1, found {rank}")


def _check_sign(majority_sign: str) -> None:
    if majority_sign not in get_args(MajoritySign):
        raise SettingError(f"majority_sign must be total or frequency, found {majority_sign!r}")
