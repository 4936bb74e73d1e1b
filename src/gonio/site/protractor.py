"""The home page's drawing: the angle between a key and its signs, to scale, on a protractor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gonio.site.collection import SiteRecord
from gonio.site.key_figures import TRANSFORMS
from gonio.site.numbers import show

__all__ = ["Hand", "Protractor", "make_protractor"]

RADIUS = 300.0
_LEGIBLE = 5.2  # degrees between neighboring labels


@dataclass(frozen=True)
class Hand:
    """One hand of the protractor.

    Attributes:
        label: What was measured.
        degrees: Angle from the horizontal.
        is_chance: Drawn dashed: what a random direction gives.
        tip: Where the hand ends, in the drawing's coordinates.
        text: Where its label stands.
        place: Place in the palette.
    """

    label: str
    degrees: float
    is_chance: bool
    tip: tuple[float, float]
    text: tuple[float, float]
    place: int


@dataclass(frozen=True)
class Protractor:
    """A quarter circle with hands, and the same in words."""

    hands: tuple[Hand, ...]
    ticks: tuple[tuple[float, float, float, float], ...]
    numerals: tuple[tuple[float, float, str], ...]
    description: str
    source: SiteRecord | None


def make_protractor(records: Sequence[SiteRecord]) -> Protractor:
    """Mean angle between keys and their 1-bit codes, from the first ``key-geometry`` record.

    The angle is the arc cosine of the mean 1-bit cosine over layers and heads. Without a record
    the protractor has no hands.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    source = records[0] if records else None
    cosines = _cosines(source) if source else {}
    angles = {name: math.degrees(math.acos(min(1.0, c))) for name, c in cosines.items()}
    order = sorted(angles, key=lambda name: angles[name])
    spread = _spread([angles[name] for name in order])
    hands = tuple(
        Hand(
            label=f"{name} {show(angles[name], 3)}\N{DEGREE SIGN}",
            degrees=angles[name],
            is_chance=name == "chance",
            tip=_point(angles[name], RADIUS * 0.93),
            text=_point(label_at, RADIUS * 1.05),
            place=list(TRANSFORMS.values()).index(name) + 1 if name != "chance" else 0,
        )
        for name, label_at in zip(order, spread, strict=True)
    )
    said = ", ".join(hand.label for hand in hands)
    words = "A protractor from 0 to 90 degrees."
    if hands:
        words += f" Mean angle between a key and its signs: {said}."
    return Protractor(hands, _ticks(), _numerals(), words, source)


def _cosines(entry: SiteRecord) -> dict[str, float]:
    """Mean cosine by transform title; a random rotation stands where chance does, so it is left."""
    frame = entry.table("heads", ("what", "transform", "mean_cosine", "chance"))
    frame = frame[frame["what"] == "key_post"]
    means = frame.groupby("transform")["mean_cosine"].mean()
    found = {
        title: float(means[name])
        for name, title in TRANSFORMS.items()
        if name in means.index and name != "haar" and math.isfinite(means[name])
    }
    return {**found, "chance": float(frame["chance"].iloc[0])} if found else {}


def _spread(angles: Sequence[float]) -> list[float]:
    """Label angles: the hands' own, pushed apart upward and then back below 90 degrees."""
    placed: list[float] = []
    for angle in angles:
        placed.append(max(angle, placed[-1] + _LEGIBLE) if placed else angle)
    ceiling = 90.0
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - _LEGIBLE
    return placed


def _point(degrees: float, radius: float) -> tuple[float, float]:
    turn = math.radians(degrees)
    return round(radius * math.cos(turn), 2), round(-radius * math.sin(turn), 2)


def _ticks() -> tuple[tuple[float, float, float, float], ...]:
    ticks = []
    for degrees in range(91):
        inner = 0.93 if degrees % 15 == 0 else 0.955 if degrees % 5 == 0 else 0.975
        ticks.append((*_point(degrees, RADIUS * inner), *_point(degrees, RADIUS)))
    return tuple(ticks)


def _numerals() -> tuple[tuple[float, float, str], ...]:
    return tuple((*_point(d, RADIUS * 0.86), str(d)) for d in range(15, 90, 15))
