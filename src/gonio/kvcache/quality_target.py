"""The least bits at which a quality is reached: a bracket, narrowed where the answer should be.

A perplexity ratio falls about exponentially towards 1 with the bits, so its double logarithm is
nearly a line and a secant finds the place in few trials; each trial is a calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gonio.errors import SettingError

__all__ = ["Trial", "find_least_bits"]

SLOPE = 1.1  # of log(log ratio) per bit, about what transform codecs show
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


def find_least_bits(
    measure: Callable[[float], Trial],
    target: float,
    *,
    start: float,
    lowest: float,
    highest: float,
    tolerance: float = 0.05,
) -> list[Trial]:
    """Trials that bracket the least bits whose bound is at most a target.

    Args:
        measure: Makes and scores a codec of given bits.
        target: Ratio to reach, above 1.
        start: Bits of the first trial.
        lowest: Fewest bits to try.
        highest: Most bits to try.
        tolerance: Width of the bracket at which the search ends, in bits.

    Returns:
        All trials in order; the answer is the one of least bits whose bound is at most the target.

    Raises:
        SettingError: The target is not above 1, or is missed even at the most bits.
    """
    if not 1 < target < math.inf:
        raise SettingError(f"a perplexity ratio is reached above 1, found target {target}")
    trials: list[Trial] = []
    failed: Trial | None = None
    passed: Trial | None = None
    bits = min(max(start, lowest), highest)
    while True:
        trial = measure(bits)
        trials.append(trial)
        if trial.bound <= target:
            passed = trial
        elif failed is None or trial.bits > failed.bits:
            failed = trial
        if passed is None and bits >= highest:
            raise SettingError(
                f"a perplexity ratio of {target:g} is not reached at {highest:g} bits per element: "
                f"{trial.ratio:.4g}, and at most {trial.bound:.4g} by its interval\n"
                "Give a larger target, or more calibration tokens for a narrower interval."
            )
        low = lowest if failed is None else failed.bits
        high = highest if passed is None else passed.bits
        if passed is not None and (high <= lowest or high - low <= tolerance):
            return trials
        bits = _next(target, trial, low, high, failed, passed)


def _next(
    target: float,
    last: Trial,
    low: float,
    high: float,
    failed: Trial | None,
    passed: Trial | None,
) -> float:
    """Where the bound should meet the target, inside the bracket."""
    if failed is not None and passed is not None:
        a, b = _level(failed.bound, target), _level(passed.bound, target)
        share = min(max(a / (a - b), INSIDE), 1 - INSIDE)
        return low + share * (high - low)
    step = _level(last.bound, target) / SLOPE
    step += math.copysign(0.1, step)  # past the line, so that a bracket closes
    wanted = last.bits + min(max(step, -LARGEST_STEP), LARGEST_STEP)
    return min(max(wanted, low), high)


def _level(bound: float, target: float) -> float:
    """Zero at the target, about linear in the bits; a ratio below 1 is far below any target."""
    return math.log(max(math.log(bound), 1e-4) / math.log(target))
