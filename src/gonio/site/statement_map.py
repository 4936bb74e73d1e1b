"""How the statements hang together: what follows from what, and which figures rest on which.

The dependency graph is a list with rails: every statement stands below all that it follows from,
and each dependency is a line along the left edge from one to the other. A list of names can be
read at any width and by keyboard; a drawing of sixty boxes could not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gonio.site.figure import Figure
from gonio.site.numbers import slug
from gonio.site.statements import Card

__all__ = ["Arc", "CrossLinks", "FigureColumn", "Graph", "cross_links", "dependency_graph"]

_LANE = 9.0  # units of the drawing between neighboring rails


@dataclass(frozen=True)
class Arc:
    """One dependency.

    Attributes:
        source: Name of the statement that is used.
        target: Name of the statement that follows from it.
        path: The line, in units of lanes across and rows down.
    """

    source: str
    target: str
    path: str


@dataclass(frozen=True)
class Graph:
    """The statements that depend on others, or that others depend on, and the lines between.

    Attributes:
        rows: Every statement below what it follows from; related ones together.
        arcs: The dependencies.
        width: Width of the rails, in units of the drawing.
        alone: Statements without any dependency.
    """

    rows: tuple[Card, ...]
    arcs: tuple[Arc, ...]
    width: float
    alone: tuple[Card, ...]


@dataclass(frozen=True)
class FigureColumn:
    """A figure as a column of the matrix.

    Attributes:
        name: Anchor of the figure without its prefix.
        title: What it shows.
        page: File of its page; empty where no record of the site draws it.
    """

    name: str
    title: str
    page: str


@dataclass(frozen=True)
class CrossLinks:
    """Which figure rests on which statement.

    Attributes:
        columns: The figures, those of a page together.
        pages: File of each page and the number of its columns, in the order of the columns.
        rows: A statement and, for each column, whether the figure rests on it.
        apart: Drawn figures that rest on no statement.
    """

    columns: tuple[FigureColumn, ...]
    pages: tuple[tuple[str, int], ...]
    rows: tuple[tuple[Card, tuple[bool, ...]], ...]
    apart: tuple[FigureColumn, ...]


def dependency_graph(cards: Sequence[Card]) -> Graph:
    """The graph of the cards' prerequisites.

    Args:
        cards: All of them; no circle of prerequisites (the catalogue refuses one).
    """
    by_name = {card.entry.name: card for card in cards}
    touched = {name for card in cards for name in (*card.entry.prerequisites, *card.dependents)}
    order: list[str] = []
    for group in _groups(cards):
        waiting = [name for name in group if name in touched]
        while waiting:
            ready = next(
                name
                for name in waiting
                if not set(by_name[name].entry.prerequisites) & set(waiting)
            )
            waiting.remove(ready)
            order.append(ready)
    place = {name: number for number, name in enumerate(order)}
    spans = [(place[p], place[n], p, n) for n in order for p in by_name[n].entry.prerequisites]
    lanes = _lanes([(first, last) for first, last, _, _ in spans])
    width = _LANE * (1 + max(lanes, default=0) + 1)
    arcs = tuple(
        Arc(source, target, _path(width, width - _LANE * (lane + 1), first, last))
        for (first, last, source, target), lane in zip(spans, lanes, strict=True)
    )
    alone = tuple(card for card in cards if card.entry.name not in touched)
    return Graph(tuple(by_name[name] for name in order), arcs, width, alone)


def _groups(cards: Sequence[Card]) -> list[list[str]]:
    """Names of the statements that are connected, largest group first."""
    neighbors = {card.entry.name: {*card.entry.prerequisites, *card.dependents} for card in cards}
    seen: set[str] = set()
    groups = []
    for start in neighbors:
        if start in seen:
            continue
        found, frontier = {start}, [start]
        while frontier:
            fresh = neighbors[frontier.pop()] - found
            found |= fresh
            frontier += sorted(fresh)
        seen |= found
        groups.append([name for name in neighbors if name in found])
    return sorted(groups, key=len, reverse=True)


def _lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """The nearest free rail for each span of rows, short spans first."""
    taken: list[list[tuple[int, int]]] = []
    chosen = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda n: (spans[n][1] - spans[n][0], spans[n])):
        first, last = spans[number]
        lane = 0
        while lane < len(taken) and any(a < last and first < b for a, b in taken[lane]):
            lane += 1
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        chosen[number] = lane
    return chosen


def _path(right: float, left: float, first: int, last: int) -> str:
    """Out of the lower part of one row, along the rail, into the upper part of another."""
    return f"M{right:g} {first + 0.62:g}H{left:g}V{last + 0.38:g}H{right:g}"


def cross_links(cards: Sequence[Card], figures: Iterable[tuple[str, Figure]]) -> CrossLinks:
    """The matrix of statements and figures.

    Args:
        cards: The statements; what they name as a figure that no record draws is a column too.
        figures: File of the page and figure, in the order of the pages.
    """
    known = {card.entry.name for card in cards}
    resting = _named_figures(cards)
    undrawn = dict.fromkeys(sorted(resting))
    columns: list[FigureColumn] = []
    apart: list[FigureColumn] = []
    for page, figure in figures:
        column = FigureColumn(figure.name, figure.title, page)
        undrawn.pop(figure.name, None)
        resting.setdefault(figure.name, set()).update(known & set(figure.theorems))
        (columns if resting[figure.name] else apart).append(column)
    columns += [FigureColumn(name, name.replace("-", " "), "") for name in undrawn]
    pages: dict[str, int] = {}
    for column in columns:
        pages[column.page] = pages.get(column.page, 0) + 1
    marked = [
        (card, tuple(card.entry.name in resting[column.name] for column in columns))
        for card in cards
    ]
    rows = tuple((card, marks) for card, marks in marked if any(marks))
    return CrossLinks(tuple(columns), tuple(pages.items()), rows, tuple(apart))


def _named_figures(cards: Sequence[Card]) -> dict[str, set[str]]:
    """Statements by the figure that the catalogue says relies on them, drawn or not."""
    found: dict[str, set[str]] = {}
    for card in cards:
        for use in card.entry.uses:
            kind, _, rest = use.partition(":")
            if kind == "figure":
                found.setdefault(slug(rest), set()).add(card.entry.name)
    return found
