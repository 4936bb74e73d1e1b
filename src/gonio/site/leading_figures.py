"""The first tokens of a window, whether they are sinks or not: attention and norms by layer."""

from __future__ import annotations

import math
from typing import Any

from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.heat_maps import layer_heat_map, octave_color
from gonio.site.numbers import capitalized, chart_number, is_missing, rows_of, show

__all__ = ["leading_figure"]

_COLUMNS = ("layer", "position", "attention", "chance", "key_norm", "value_norm")
_RATIOS = {
    "lift": "attention received, over chance",
    "key_norm": "norms of keys, over the median",
    "value_norm": "norms of values, over the median",
}
_HEADINGS = {
    "layer": "layer",
    "position": "position",
    "attention": "attention received",
    "chance": "if spread evenly",
    "key_norm": "key norm / median",
    "value_norm": "value norm / median",
}


def leading_figure(entry: SiteRecord) -> Figure | None:
    """Attention and norms of the first positions by layer; None where the record has no table.

    Raises:
        RecordError: The table lacks a column.
    """
    if not len(entry.measurement.tables.get("leading_tokens", ())):
        return None
    rows = rows_of(entry.table("leading_tokens", _COLUMNS))
    found = {what: [_cell(row, name) for row in rows] for name, what in _RATIOS.items()}
    found = {
        what: [cell for cell in cells if cell["octaves"] is not None]
        for what, cells in found.items()
    }
    octaves = [abs(float(cell["octaves"])) for cells in found.values() for cell in cells]
    panels, said = [], []
    for what, cells in found.items():
        if not cells:
            continue
        most = max(cells, key=lambda cell: abs(float(cell["octaves"])))
        words = (
            f"{capitalized(what)}: farthest from 1 at position {most['position']} of layer "
            f"{most['layer']}, {show(most['ratio'], 3)}."
        )
        said.append(words)
        panels.append(Panel(what, _chart(cells, max(1.0, *octaves), words)))
    if not panels:
        return None
    return Figure(
        name="leading-tokens",
        title="How unusual are the first tokens?",
        description=" ".join(said),
        caption=(
            "The first positions of a window, whether they count as sinks or not: the mean weight "
            "that later queries of all heads give them, over what evenly spread attention would, "
            "and the norms of their keys (after rotary embedding) and values over the median of "
            "the window, as geometric means over heads and windows. The neutral color is 1, and "
            "equal factors have equally strong colors in all three."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=(entry,),
    )


def _cell(row: dict[str, Any], name: str) -> dict[str, Any]:
    """What is drawn; a position without a ratio, or with a ratio of zero, has no color."""
    value, scale = (row["attention"], row["chance"]) if name == "lift" else (row[name], 1.0)
    ratio = None if is_missing(value) or is_missing(scale) else value / scale
    return {
        "layer": int(row["layer"]),
        "position": int(row["position"]),
        "ratio": chart_number(ratio),
        "octaves": chart_number(math.log2(ratio)) if ratio else None,
    }


def _chart(cells: list[dict[str, Any]], reach: float, words: str) -> dict[str, Any]:
    import altair as alt

    return layer_heat_map(
        cells,
        y=alt.Y("position", type="ordinal", title="position"),
        color=octave_color(-reach, reach, "ratio"),
        told={"layer": "layer", "position": "position", "ratio": "ratio"},
        formats={"ratio": ".3~g"},
        height=22 * len({cell["position"] for cell in cells}),
        words=words,
    )
