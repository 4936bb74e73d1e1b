"""Where in a long context calibration windows stand.

Keys are cached after rotary embedding, so their law depends on their position. Attention scores
depend on differences of positions only: a short window may be read at any place, and windows at
many places show the keys of a long context at the cost of short ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from gonio.errors import SettingError

__all__ = ["check_context", "window_positions"]


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
