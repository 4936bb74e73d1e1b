"""Where in a long context calibration windows stand, and a warning where nothing was calibrated.

Keys are cached after rotary embedding, so their law depends on their position. Attention scores
depend on differences of positions only: a short window may be read at any place, and windows at
many places show the keys of a long context at the cost of short ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PretrainedConfig

from gonio.errors import SettingError

__all__ = [
    "PLACED",
    "PositionWarning",
    "Reach",
    "check_context",
    "window_positions",
    "without_position_warnings",
]

PLACED = ("transform", "entropy")  # methods that are fitted to the law of keys at their positions


class PositionWarning(UserWarning):
    """A cache holds keys of positions that its codec was not calibrated at."""


class Reach:
    """Warns once when a cache grows past the positions of its codec.

    Args:
        method: What the codec is called in the warning.
        positions: How many it was calibrated at, from the first.
        left_padding: Tokens of the cache before position 0.
    """

    def __init__(self, method: str, positions: int, left_padding: int = 0) -> None:
        self._method, self._positions, self._before = method, positions, left_padding
        self._has_warned = False

    def note(self, tokens: int) -> None:
        """Take notice of the number of tokens that the cache has been given."""
        tokens -= self._before
        if self._has_warned or tokens <= self._positions:
            return
        self._has_warned = True
        warnings.warn(
            f"the cache has reached position {tokens - 1}, and its {self._method} codec was "
            f"calibrated at positions 0 to {self._positions - 1}: keys turn with their position, "
            "and later ones are decoded to little of use\nCalibrate with stage='pre_rope' "
            "(--stage pre_rope), or at more positions with context=N (--context N).",
            PositionWarning,
            stacklevel=3,
        )


def window_positions(count: int, length: int, context: int) -> list[Tensor | None]:
    """Position ids of windows spread evenly over a context.

    Args:
        count: Number of windows.
        length: Tokens per window.
        context: Positions that the windows are spread over; no more than ``length`` leaves all of
            them at the start.

    Returns:
        For each window ``(1, length)`` int64, or None where the window stands at the start.
    """
    last = max(context - length, 0)
    starts = [round(index * last / max(count - 1, 1)) for index in range(count)]
    return [torch.arange(start, start + length)[None] if start else None for start in starts]


@contextmanager
def without_position_warnings() -> Iterator[None]:
    """Inside the block no cache warns: for whoever has said so, or counts bytes only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PositionWarning)
        yield


def check_context(config: PretrainedConfig, context: int) -> None:
    """Refuse a context that the model has no positions for.

    Raises:
        SettingError: ``context`` is negative or longer than the model's.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context < 0 or (limit is not None and context > limit):
        raise SettingError(
            f"context must be 0 to the {limit or 'number of'} positions of the model, "
            f"found {context}"
        )
