"""A figure as data: chart specifications, the words around them, and the numbers in a table.

A chart never stands alone: its figure carries a text description, a caption that says what chance
gives and what the intervals are, a table that holds what the chart shows, and the records it came
from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gonio.site.collection import SiteRecord
from gonio.site.numbers import show

__all__ = ["Choice", "DataTable", "Figure", "Panel", "pivot_table", "table_from_rows"]


@dataclass(frozen=True)
class Panel:
    """One chart of a figure.

    Attributes:
        title: What distinguishes it from the figure's other charts; empty for a single chart.
        spec: Vega-Lite specification without colors of its own (the page's theme gives them).
    """

    title: str
    spec: Mapping[str, Any]

    @property
    def json(self) -> str:
        """The specification as JSON that is safe inside a ``script`` element."""
        text = json.dumps(self.spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class DataTable:
    """A table as text, ready to print; the first column heads its rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


@dataclass(frozen=True)
class Choice:
    """A selector above the charts: it sets the chart parameter ``param`` in every panel."""

    param: str
    label: str
    options: tuple[str, ...]
    selected: str


@dataclass(frozen=True)
class Figure:
    """Charts that share a legend, a caption and a table.

    Attributes:
        name: Anchor on its page (after ``figure-``); letters, digits and hyphens.
        title: What is shown, a noun phrase.
        description: The charts in words, for people who do not see them: kinds of axes, range,
            chance level, trend.
        caption: What to know when reading: unit, chance, interval, what is left out.
        panels: The charts.
        table: What they show, in numbers.
        sources: The records the numbers come from.
        theorems: Catalogue names of the statements the reading rests on.
        legend: Series names in palette order; empty when color does not tell series apart.
        chance: Legend text of the chance mark, empty when none is drawn.
        is_chance_band: Chance is drawn as a band, not as a line.
        choice: An optional selector.
        gradient: Lowest value, chance and highest value of a color scale, empty if none.
        is_table_open: Show the table without being asked.
        finding: What the figure shows in one sentence, computed from its numbers; may be empty.
    """

    name: str
    title: str
    description: str
    caption: str
    panels: tuple[Panel, ...]
    table: DataTable
    sources: tuple[SiteRecord, ...]
    theorems: tuple[str, ...] = ()
    legend: tuple[str, ...] = ()
    chance: str = ""
    is_chance_band: bool = False
    choice: Choice | None = None
    gradient: tuple[str, ...] = ()
    is_table_open: bool = False
    finding: str = ""


def table_from_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> DataTable:
    """A table of the given fields.

    Args:
        rows: Values by field name; missing ones become dashes.
        columns: Field name to heading, in order.
    """
    cells = tuple(tuple(show(row.get(field)) for field in columns) for row in rows)
    numeric = tuple(
        all(not isinstance(row.get(field), str) for row in rows) and bool(rows) for field in columns
    )
    return DataTable(tuple(columns.values()), cells, numeric)


def pivot_table(
    rows: Iterable[Mapping[str, Any]], *, index: str, series: str, value: str, heading: str
) -> DataTable:
    """One line per value of ``index``, one column per value of ``series``, in order of appearance.

    Args:
        rows: Long rows; a repeated cell keeps the last.
        index: Field that heads the lines.
        series: Field that heads the columns.
        value: Field in the cells.
        heading: Heading of the first column.
    """
    cells: dict[tuple[Any, str], Any] = {}
    for row in rows:
        cells[row[index], str(row[series])] = row[value]
    names = list(dict.fromkeys(name for _, name in cells))
    lines = sorted({key for key, _ in cells})
    body = tuple((show(line), *(show(cells.get((line, name))) for name in names)) for line in lines)
    return DataTable((heading, *names), body, (True,) * (1 + len(names)))
