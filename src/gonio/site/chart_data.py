"""From what was measured, in whatever form it comes, to an Altair chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gonio.errors import RecordError
from gonio.records import Measurement, make_measurement
from gonio.site.collection import SiteRecord, collect
from gonio.site.dependencies import require_site_packages
from gonio.site.explorer import Explorer
from gonio.site.figure import Figure
from gonio.site.publish import print_spec

__all__ = ["Data", "chart_of", "plot", "plot_one", "records_of"]

_Part = Measurement | str | Path | pd.DataFrame | Mapping[str, pd.DataFrame]
Data = _Part | Sequence[_Part]
Plot = Callable[[Data], Any]

_HELP = """{title}

    Args:
        data: Records of kind ``{kind}``, or DataFrames; one alone is the table ``{table}``. See
            :mod:`gonio.site.plots`.

    Returns:
        An Altair chart.

    Raises:
        RecordError: There is nothing to draw, or a table lacks a column.
        MissingDependencyError: The ``site`` extra is not installed.
    """


def plot(
    name: str,
    make: Callable[[Sequence[SiteRecord]], Figure | Explorer | None],
    kind: str,
    table: str,
    title: str,
) -> Plot:
    """A function that draws one chart of all records of a kind.

    Args:
        name: Its name.
        make: Figure of some records; None where there is nothing to draw.
        kind: Kind of record.
        table: What a DataFrame stands for.
        title: What the chart shows, the first line of the function's help.
    """

    def drawn(data: Data) -> Any:
        require_site_packages()
        made = make(records_of(data, kind, table))
        figure = made.figure if isinstance(made, Explorer) else made
        return chart_of(_kept([figure], name, kind, table)[0])

    return _named(drawn, name, kind, table, title)


def plot_one(
    name: str, make: Callable[[SiteRecord], Figure | None], kind: str, table: str, title: str
) -> Plot:
    """A function that draws the records of a kind below each other.

    Args:
        name: Its name.
        make: Figure of one record; None where there is nothing to draw.
        kind: Kind of record.
        table: What a DataFrame stands for.
        title: What the chart shows, the first line of the function's help.
    """

    def drawn(data: Data) -> Any:
        require_site_packages()
        kept = _kept([make(entry) for entry in records_of(data, kind, table)], name, kind, table)
        return chart_of(kept[0] if len(kept) == 1 else kept)

    return _named(drawn, name, kind, table, title)


def chart_of(figure: Figure | Sequence[Figure]) -> Any:
    """A figure of the site, or several below each other, as an Altair chart.

    Args:
        figure: From any of the functions that make figures.
    """
    import altair as alt

    return alt.Chart.from_dict(print_spec(figure))


def records_of(data: Data, kind: str, table: str) -> tuple[SiteRecord, ...]:
    """The records of one kind in ``data``.

    Args:
        data: See :mod:`gonio.site.plots`.
        kind: Kind of record; other kinds are left out.
        table: What a DataFrame stands for.

    Raises:
        RecordError: A path holds no record, or nothing is of that kind.
    """
    several = isinstance(data, Sequence) and not isinstance(data, str)
    parts: Sequence[Any] = data if several else [data]  # type: ignore[assignment]  # by `several`
    collection = collect([_source(part, kind, table) for part in parts])
    records = collection.of_kind(kind)
    if not records:
        found = sorted({entry.record.kind for entry in collection.records})
        raise RecordError(
            f"no record of kind {kind} is among the data; found {', '.join(found) or 'none'}"
        )
    return records


def _source(part: Any, kind: str, table: str) -> Measurement | str | Path:
    """A measurement of bare tables; paths and measurements as they are."""
    if isinstance(part, pd.DataFrame):
        part = {table: part}
    if isinstance(part, Mapping):
        return make_measurement(kind, "DataFrame", settings={}, values=[], tables=dict(part))
    found: Measurement | str | Path = part
    return found


def _kept(figures: Sequence[Figure | None], name: str, kind: str, table: str) -> list[Figure]:
    kept = [figure for figure in figures if figure is not None]
    if not kept:
        raise RecordError(
            f"{name} has nothing to draw: the data of kind {kind} hold no rows for it, or lack the "
            f"table {table!r}"
        )
    return kept


def _named(drawn: Plot, name: str, kind: str, table: str, title: str) -> Plot:
    drawn.__name__ = drawn.__qualname__ = name
    drawn.__doc__ = _HELP.format(title=title, kind=kind, table=table)
    return drawn
