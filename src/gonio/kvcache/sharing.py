"""A way to share bits in four numbers, from equal bits to those of the metric; and its search.

The metric of :mod:`gonio.kvcache.sensitivity` says which layers should have more bits,
and it errs: it describes small and independent errors. So it gives directions only, and how far to
go along each is found by trying on the whole compressed model. Effects of single units are not
measured: they are smaller than their noise, and depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache

from gonio.kvcache.allocation import allocate_quanta, equal_quanta
from gonio.kvcache.budget_problem import BudgetProblem
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.evaluate import score_tokens
from gonio.kvcache.positions import window_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "DivergenceMeter",
    "Sharing",
    "SharingTrial",
    "search_sharing",
    "sharing_quanta",
    "target_quanta",
]

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

STEPS = {"tilt": 0.2, "keys": 0.5, "values": 0.5, "ends": 0.3}
LIMITS = {"tilt": (-1.5, 1.5), "keys": (0.0, 1.0), "values": (0.0, 1.0), "ends": (-0.6, 1.5)}
FINEST = 0.2  # of a first step: the search ends


@dataclass(frozen=True)
class Sharing:
    """Where bits go, as departures from equal bits.

    Attributes:
        tilt: Bits per element that keys have above the mean, and values below it.
        keys: How far the layers of keys go from equal bits (0) to those of least predicted damage
            at the same total (1).
        values: The same of values.
        ends: Bits per element that the first and the last layer have above that.
    """

    tilt: float = 0.0
    keys: float = 0.0
    values: float = 0.0
    ends: float = 0.0


@dataclass(frozen=True)
class SharingTrial:
    """One trial of a search.

    Attributes:
        sharing: What was tried.
        divergence: Mean KL(full || compressed), nats per token.
    """

    sharing: Sharing
    divergence: float


def sharing_quanta(sharing: Sharing, problem: BudgetProblem, total: int) -> Counts:
    """Quanta of each unit under a sharing, of sum ``total``.

    Raises:
        SettingError: The total does not fit the units.
    """
    quantum = problem.units[0].curve.quantum_bits
    is_value = np.array([unit.part == "values" for unit in problem.units])
    elements = problem.elements.astype(np.float64)
    wanted = total * elements / elements.sum()
    for side, sign, mix in ((False, 1, sharing.keys), (True, -1, sharing.values)):
        mine = np.flatnonzero(is_value == side)
        low, high = problem.least[mine], problem.most[mine]
        budget = wanted[mine].sum() + sign * sharing.tilt * elements[mine].sum() / quantum
        budget = min(max(budget, low.sum()), high.sum())
        equal = budget * elements[mine] / elements[mine].sum()
        damages = [problem.units[place].damages for place in mine]
        best = allocate_quanta(damages, round(budget), low.tolist())
        wanted[mine] = equal + mix * (best - equal)
    layers = np.array([unit.layer for unit in problem.units])
    is_end = (layers == 0) | (layers == layers.max())
    wanted += np.where(is_end, sharing.ends * elements / quantum, 0.0)
    return target_quanta(wanted, problem, total)


def target_quanta(wanted: Floats, problem: BudgetProblem, total: int) -> Counts:
    """Whole quanta in proportion to what is wanted, within the limits of the units.

    Args:
        wanted: Of each unit.
        problem: The units.
        total: Sum of the quanta, see :meth:`BudgetProblem.total`.
    """
    sizes = np.maximum(wanted, 1e-3).tolist()
    return equal_quanta(sizes, total, problem.least.tolist(), problem.most.tolist())


def search_sharing(
    measure: Callable[[Sharing], float],
    *,
    starts: Sequence[Sharing] = (),
    most: int = 20,
) -> list[SharingTrial]:
    """Trials of a coordinate search from equal bits, in which only improvements are kept.

    Each number in turn goes a step further, back where that is worse, and takes half steps where
    neither helps.

    Args:
        measure: Divergence of a sharing.
        starts: Tried after equal bits; the search goes on from the best.
        most: Trials, at most.

    Returns:
        All trials in order, equal bits first; none is better than the least of them.
    """
    trials: list[SharingTrial] = []
    seen: set[Sharing] = set()

    def trial(sharing: Sharing) -> bool:
        """Whether it was tried now and is the best so far."""
        if sharing in seen or len(trials) >= most:
            return False
        seen.add(sharing)
        least = min((each.divergence for each in trials), default=math.inf)
        trials.append(SharingTrial(sharing, measure(sharing)))
        return trials[-1].divergence < least

    best = Sharing()
    for sharing in (best, *starts):
        best = sharing if trial(sharing) else best
    steps, signs = dict(STEPS), dict.fromkeys(STEPS, 1.0)
    while len(trials) < most and any(steps[name] >= FINEST * STEPS[name] for name in steps):
        for name in steps:
            for sign in (signs[name], -signs[name]):
                if trial(_moved(best, name, sign * steps[name])):
                    best, signs[name] = trials[-1].sharing, sign
                    break
            else:
                steps[name] /= 2
    return trials


class DivergenceMeter:
    """Mean divergence of codecs from full precision, teacher-forced, on the same windows.

    Keeps the exact logits: 4 bytes times the vocabulary for every token.

    Args:
        model: The model.
        windows: Token ids ``(num_windows, length)``, best not those the codecs were fitted to.
        context: Positions that the windows are spread over; 0 leaves all at the start.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, *, context: int = 0) -> None:
        self._model = model
        self._windows = list(
            zip(windows, window_positions(len(windows), windows.shape[1], context), strict=True)
        )
        self._exact = [
            self._logits(row, place, DynamicCache(config=model.config))
            for row, place in self._windows
        ]

    def __call__(self, codec: CacheCodec) -> float:
        """Mean KL(full || compressed), nats per token.

        Raises:
            CodecError: The codec does not fit the model, or its logits are not finite.
        """
        found = []
        for (row, place), exact in zip(self._windows, self._exact, strict=True):
            logits = self._logits(row, place, codec.new_cache(self._model, prefill="decoded"))
            found.append(score_tokens(logits, exact, row[1:].to(logits.device))["logit_kl"])
        return torch.cat(found).mean().item()

    @torch.no_grad()
    def _logits(self, row: Tensor, place: Tensor | None, cache: Cache) -> Tensor:
        ids = row[None].to(self._model.device)
        at = {} if place is None else {"position_ids": place.to(ids.device)}
        found = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **at)
        logits: Tensor = found.logits[0, :-1]
        return logits


def _moved(sharing: Sharing, name: str, step: float) -> Sharing:
    """One number a step further, within its limits."""
    low, high = LIMITS[name]
    moved = min(max(getattr(sharing, name) + step, low), high)
    return replace(sharing, **{name: round(moved, 4)})
