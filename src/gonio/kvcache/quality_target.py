"""The least bits at which a quality is reached: found by stand-ins, confirmed by fitted codecs.

A divergence falls about exponentially with the bits, and so does the logarithm of a perplexity
ratio, which is about as large: its own logarithm, the *level*, is nearly a line. Stand-ins are
cheap and say how steep that line is and about where it meets the target; how high it lies is said
by codecs that are fitted and scored, one of which must reach the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Cache, DynamicCache

from gonio.errors import CodecError, SettingError
from gonio.kvcache.codec import CacheCodec
from gonio.kvcache.positions import window_positions
from gonio.linalg.resampling import paired_bootstrap_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PerplexityMeter", "Trial", "find_least_bits"]

Floats = NDArray[np.float64]

SLOPE = 1.7  # of the level per bit, about what transform codecs show; until stand-ins tell
SLOPES = (0.5, 3.0)  # a line through noise may be of any slope
BASE = 0.3  # bits between two stand-ins, at least
LEAST = 1e-4  # divergence, or logarithm of a ratio, below which levels say nothing
LARGEST_STEP = 1.5  # bits
INSIDE = 0.3  # of a bracket: no trial is closer to its ends


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        bits: Bits per element that were tried.
        ratio: Perplexity over that of full precision.
        bound: What must not exceed the target: the upper end of the ratio's interval.
    """

    bits: float
    ratio: float
    bound: float


class PerplexityMeter:
    """Perplexity over that of full precision, teacher-forced, with a paired interval over windows.

    Full precision is read once, when the meter is made; one number per window is kept of it.

    Args:
        model: The model.
        windows: Token ids ``(num_windows, length)``, at least two for an interval.
        context: Positions that the windows are spread over; 0 leaves all at the start.
        seed: Seed of the bootstrap.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, *, context: int = 0, seed: int = 0
    ) -> None:
        self._model, self._windows, self._seed = model, windows, seed
        self._places = window_positions(len(windows), windows.shape[1], context)
        self._full = self._losses(lambda: DynamicCache(config=model.config))

    def __call__(self, codec: CacheCodec) -> tuple[float, float]:
        """The ratio and the upper end of its 95% interval.

        Raises:
            CodecError: The codec does not fit the model, or its likelihoods are not finite.
        """
        found = self._losses(lambda: codec.new_cache(self._model, prefill="decoded"))
        if not bool(np.isfinite(found).all()):
            raise CodecError("log-likelihoods of a codec are not finite, so nothing can be scored")
        high = paired_bootstrap_interval(found, self._full, seed=self._seed).high
        return math.exp(float((found - self._full).mean())), math.exp(high)

    @torch.no_grad()
    def _losses(self, new_cache: Callable[[], Cache]) -> Floats:
        """Mean negative log-likelihood of each window, nats per token."""
        found = []
        for row, place in zip(self._windows.to(self._model.device), self._places, strict=True):
            at = {} if place is None else {"position_ids": place.to(row.device)}
            logits = self._model(
                input_ids=row[None], past_key_values=new_cache(), use_cache=True, **at
            ).logits[0, :-1]
            found.append(cross_entropy(logits.double(), row[1:]).item())
        return np.array(found)


def find_least_bits(
    measure: Callable[[float], Trial],
    target: float,
    *,
    predict: Callable[[float], float],
    start: float,
    lowest: float,
    highest: float,
    tolerance: float = 0.1,
) -> list[Trial]:
    """Trials up to a codec that reaches a target with about the fewest bits.

    It ends when that codec is within the tolerance of one that misses the target, or of where a
    line through its own level, as steep as that of the stand-ins, meets it.

    Args:
        measure: Fits a codec of given bits and scores it.
        target: Ratio to reach, above 1.
        predict: Divergence of a stand-in of given bits, nats per token.
        start: Bits of the first stand-in.
        lowest: Fewest bits to try.
        highest: Most bits to try.
        tolerance: Bits that may be too many.

    Returns:
        All trials in order; the answer is the one of least bits whose bound is at most the target.

    Raises:
        SettingError: The target is not above 1, or is missed even at the most bits.
    """
    if not 1 < target < math.inf:
        raise SettingError(f"a perplexity ratio is reached above 1, found target {target}")
    crossing, slope = _line(predict, target, start, lowest, highest)
    trials: list[Trial] = []
    failed: Trial | None = None
    passed: Trial | None = None
    misses = 0
    while True:
        margin = tolerance / 2 * 1.5**misses  # a line that is too steep must not be followed long
        low = lowest if failed is None else failed.bits
        high = highest if passed is None else passed.bits
        if failed is not None and passed is not None:
            a, b = _level(failed.bound, target), _level(passed.bound, target)
            share = min(max(a / (a - b), INSIDE), 1 - INSIDE)
            bits = low + share * (high - low)
        else:
            bits = min(max(crossing + margin, low), high)
        trial = measure(bits)
        trials.append(trial)
        if trial.bound <= target:
            passed = trial
        else:
            misses += 1
            failed = trial
        if passed is None and bits >= highest:
            raise SettingError(
                f"a perplexity ratio of {target:g} is not reached at {highest:g} bits per element: "
                f"{trial.ratio:.4g}, and at most {trial.bound:.4g} by its interval\n"
                "Give a larger target, or more calibration tokens for a narrower interval."
            )
        crossing = _crossing(trial, target, slope)
        if passed is not None:
            nearest = max(_crossing(passed, target, slope), low if failed is None else failed.bits)
            if passed.bits - nearest <= tolerance:
                return trials


def _line(
    predict: Callable[[float], float], target: float, start: float, lowest: float, highest: float
) -> tuple[float, float]:
    """Where the divergence of stand-ins is the target's logarithm, and its fall per bit there."""
    first = min(max(start, lowest), highest)
    level = math.log(max(predict(first), LEAST) / math.log(target))
    step = min(max(level / SLOPE, -LARGEST_STEP), LARGEST_STEP)
    if abs(step) < BASE:
        step = math.copysign(BASE, step)
    second = min(max(first + step, lowest), highest)
    if abs(second - first) < BASE / 2:  # at a limit
        return second, SLOPE
    other = math.log(max(predict(second), LEAST) / math.log(target))
    slope = min(max((level - other) / (second - first), SLOPES[0]), SLOPES[1])
    return second + min(max(other / slope, -LARGEST_STEP), LARGEST_STEP), slope


def _crossing(trial: Trial, target: float, slope: float) -> float:
    """Bits at which a line through a trial meets the target."""
    step = _level(trial.bound, target) / slope
    return trial.bits + min(max(step, -LARGEST_STEP), LARGEST_STEP)


def _level(bound: float, target: float) -> float:
    """Zero at the target, about linear in the bits; a ratio below 1 is far below any target."""
    return math.log(max(math.log(bound), LEAST) / math.log(target))
