"""Preference pairs out of a plain text: the true continuation against one from elsewhere.

The text is tiled into windows, each a prompt followed by its true continuation. A wrong
continuation starts at a sentence or line boundary of another window and is cut by the same rule
as the true one, so that neither the start nor the length tells them apart. A window belongs to
training or to the held-out side by a hash of its prompt, and wrong continuations come from the
same side, so that no held-out window is seen in training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gonio.errors import DataError, SettingError
from gonio.training.data import PreferencePair, PreferenceSplit

__all__ = ["PassageShape", "pairs_from_text"]

# White space after a full stop, question or exclamation mark, or any white space with a newline.
_BOUNDARY = re.compile(r"(?<=[.!?])[ \t]+|[ \t]*\n\s*")
_WORD_END = re.compile(r"(?=\s|\Z)")
_ATTEMPTS = 64  # draws of a wrong continuation before a window is given up


@dataclass(frozen=True)
class PassageShape:
    """Sizes of a pair in characters (about four to a token in English).

    Attributes:
        prompt_chars: Shortest prompt; it ends at the first boundary after that many characters.
        response_chars: Shortest continuation; it ends at the first word end after that many.
        held_out_share: Share of the windows kept for evaluation, in (0, 1).
    """

    prompt_chars: int = 120
    response_chars: int = 80
    held_out_share: float = 0.25

    def __post_init__(self) -> None:
        if self.prompt_chars < 1 or self.response_chars < 1:
            raise SettingError(
                f"prompt_chars and response_chars must be positive, found {self.prompt_chars} "
                f"and {self.response_chars}"
            )
        if not 0.0 < self.held_out_share < 1.0:
            raise SettingError(f"held_out_share must lie in (0, 1), found {self.held_out_share}")


@dataclass(frozen=True)
class _Window:
    """One tile: where its prompt starts, where the separator starts and ends, where it ends."""

    start: int
    prompt_end: int
    response_start: int
    end: int


def pairs_from_text(
    text: str, *, train: int, held_out: int, seed: int = 0, shape: PassageShape | None = None
) -> PreferenceSplit:
    """Draw training and held-out preference pairs from one text.

    Args:
        text: The text; runs of white space inside a pair are kept as they are.
        train: Training pairs wanted.
        held_out: Held-out pairs wanted.
        seed: Seed of the split, of which windows are used and of the wrong continuations.
        shape: Sizes of a pair.

    Returns:
        Pairs in an order fixed by the seed; the same for the same arguments.

    Raises:
        DataError: The text is too short, or too repetitive, for that many pairs.
        SettingError: A count is negative.
    """
    if train < 0 or held_out < 0:
        raise SettingError(f"pair counts must not be negative, found {train} and {held_out}")
    shape = shape or PassageShape()
    windows = _tile(text, shape)
    keys = {window: _hash_unit(seed, text[window.start : window.prompt_end]) for window in windows}
    windows.sort(key=lambda window: (keys[window], window.start))
    evaluation = [window for window in windows if keys[window] < shape.held_out_share]
    training = [window for window in windows if keys[window] >= shape.held_out_share]
    generator = torch.Generator().manual_seed(seed)
    return PreferenceSplit(
        train=_draw(text, training, train, "training", shape, generator),
        held_out=_draw(text, evaluation, held_out, "held-out", shape, generator),
    )


def _tile(text: str, shape: PassageShape) -> list[_Window]:
    """Windows in text order, each starting at the first boundary after the one before."""
    boundaries = [(match.start(), match.end()) for match in _BOUNDARY.finditer(text)]
    windows: list[_Window] = []
    start, index = len(text) - len(text.lstrip()), 0
    while True:
        index = _next_boundary(boundaries, index, start + shape.prompt_chars)
        if index == len(boundaries):
            return windows
        prompt_end, response_start = boundaries[index]
        if response_start + shape.response_chars > len(text.rstrip()):
            return windows
        end = _word_end(text, response_start + shape.response_chars)
        windows.append(_Window(start, prompt_end, response_start, end))
        index = _next_boundary(boundaries, index, end)
        if index == len(boundaries):
            return windows
        start = boundaries[index][1]


def _next_boundary(boundaries: Sequence[tuple[int, int]], index: int, position: int) -> int:
    while index < len(boundaries) and boundaries[index][0] < position:
        index += 1
    return index


def _word_end(text: str, position: int) -> int:
    match = _WORD_END.search(text, position)
    return match.start() if match else len(text)


def _draw(
    text: str,
    windows: Sequence[_Window],
    count: int,
    side: str,
    shape: PassageShape,
    generator: torch.Generator,
) -> tuple[PreferencePair, ...]:
    pairs: list[PreferencePair] = []
    seen: set[str] = set()
    for window in windows:
        if len(pairs) == count:
            break
        prompt = text[window.start : window.prompt_end]
        if prompt in seen:
            continue  # boilerplate repeated word for word: one prompt, one pair
        rejected = _wrong_continuation(text, window, windows, shape, generator)
        if rejected is None:
            continue
        seen.add(prompt)
        pairs.append(PreferencePair(prompt, text[window.prompt_end : window.end], rejected))
    if len(pairs) < count:
        raise DataError(
            f"the text gives {len(pairs)} {side} pairs where {count} are wanted "
            f"({len(text):,} characters, {len(windows)} {side} windows of about "
            f"{shape.prompt_chars} + {shape.response_chars} characters)\n"
            "Give a longer text, ask for fewer steps, or use shorter prompts and responses."
        )
    return tuple(pairs)


def _wrong_continuation(
    text: str,
    window: _Window,
    windows: Sequence[_Window],
    shape: PassageShape,
    generator: torch.Generator,
) -> str | None:
    """A continuation from another window of the same side, behind the true one's separator."""
    separator = text[window.prompt_end : window.response_start]
    true = text[window.response_start : window.end]
    for _ in range(_ATTEMPTS if len(windows) > 1 else 0):
        other = windows[int(torch.randint(len(windows), (), generator=generator))]
        if other is window:
            continue
        starts = [
            match.end()
            for match in _BOUNDARY.finditer(text, other.start, other.end)
            if match.end() + shape.response_chars <= other.end
        ]
        if not starts:
            continue
        start = starts[int(torch.randint(len(starts), (), generator=generator))]
        wrong = text[start : min(_word_end(text, start + shape.response_chars), other.end)]
        if wrong != true:
            return separator + wrong
    return None


def _hash_unit(seed: int, text: str) -> float:
    """A number in [0, 1) fixed by seed and text."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2.0**64
