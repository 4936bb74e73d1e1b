"""Small Altair pieces every chart is made of, so that all charts read the same way.

No chart sets a color: series take the page's palette in legend order, and whatever stands for
chance carries the style ``chance`` (dashed, neutral), which the page defines for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "SHAPES",
    "are_bounded",
    "chance_band",
    "chance_rule",
    "color_by",
    "data_of",
    "finish",
    "focus_opacity",
    "focus_param",
    "label_axis",
    "layer_axis",
    "log_ticks",
    "series_marks",
    "shape_by",
    "tooltips",
    "upright_rule",
]

SHAPES = ("circle", "square", "cross", "diamond", "triangle-up", "triangle-down", "triangle-right")
# Label of an axis: a long name goes on in a second line after its last comma.
_TWO_LINES = (
    "length(datum.label) > 27 "
    "? split(replace(datum.label, regexp(', ([^,]*)$'), '|$1'), '|') : datum.label"
)
_SCHEMA_KEYS = ("$schema", "config", "usermeta")


def data_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Inline data of a chart."""
    import altair as alt

    return alt.InlineData(values=[dict(row) for row in rows])


def color_by(field: str, legend: Sequence[str]) -> Any:
    """Color of a series: its place in the legend chooses the palette entry."""
    import altair as alt

    return alt.Color(field, type="nominal", scale=alt.Scale(domain=list(legend)), legend=None)


def shape_by(field: str, legend: Sequence[str]) -> Any:
    """Shape of a series' points, so that color is never the only difference."""
    import altair as alt

    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(legend))]
    return alt.Shape(
        field, type="nominal", scale=alt.Scale(domain=list(legend), range=shapes), legend=None
    )


def focus_param() -> Any:
    """The parameter ``focus``: the series a reader picked in the legend, or null."""
    import altair as alt

    return alt.param(name="focus", value=None)


def focus_opacity(field: str, full: float = 1.0) -> Any:
    """Opacity that keeps the picked series and fades the others."""
    import altair as alt

    test = f"focus === null || datum[{field!r}] === focus"
    return alt.condition(test, alt.value(full), alt.value(0.12))


def layer_axis(title: str = "layer") -> Any:
    """The horizontal axis of everything that is drawn by layer."""
    import altair as alt

    return alt.X(
        "layer",
        type="quantitative",
        title=title,
        scale=alt.Scale(nice=False, zero=False, padding=8),
        # Of a model of few layers there are ticks between the layers, whatever the least step.
        axis=alt.Axis(
            tickMinStep=1,
            labelExpr="datum.value % 1 ? '' : format(datum.value, 'd')",
            grid=False,
            labelFlush=False,
        ),
    )


def label_axis(lines: str = _TWO_LINES, *, grid: bool = True) -> Any:
    """An axis of names, each beside the middle of its row, whatever its number of lines.

    Args:
        lines: Vega expression for the label, text or an array of lines.
        grid: Whether the rows have lines.
    """
    import altair as alt

    offset = f"isArray({lines}) ? 6 - 6 * length({lines}) : 0"  # Vega centers the first line only
    return alt.Axis(
        grid=grid, labelLimit=170, labelExpr=lines, labelOffset=alt.ExprRef(expr=offset)
    )


def are_bounded(rows: Sequence[Mapping[str, Any]], low: str = "low", high: str = "high") -> bool:
    """Whether any row has an interval; a layer without a row has no extent, which Vega notes."""
    return any(row.get(low) is not None and row.get(high) is not None for row in rows)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values of a log axis between two positive numbers: few, whatever the range.

    Powers of ten over more than two decades, else 1, 2 and 5 times these; at least one.
    """
    steps = (1,) if high > 100 * low else (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    inside = [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]
    stride = max(1, math.ceil(len(inside) / 6))
    return inside[::stride] or [low]


def chance_rule(y: float) -> Any:
    """A horizontal line at a chance level."""
    import altair as alt

    return (
        alt.Chart(data_of([{"chance": y}]))
        .mark_rule(style="chance")
        .encode(y=alt.Y("chance", type="quantitative"))
    )


def upright_rule(name: str, x: float | None) -> Any:
    """A vertical line at a chance level or another reference.

    Args:
        name: What the level is, a field of the chart's data.
        x: The level.
    """
    import altair as alt

    line = alt.Chart(data_of([{name: x}])).mark_rule(style="chance")
    return line.encode(x=alt.X(name, type="quantitative"))


def chance_band(
    rows: Sequence[Mapping[str, Any]], *, x: str, low: str, high: str, group: str
) -> Any:
    """An area between two fields: the interval of what chance gives."""
    import altair as alt

    return (
        alt.Chart(data_of(rows))
        .mark_area(style="chance-band")
        .encode(
            x=alt.X(x, type="quantitative"),
            y=alt.Y(low, type="quantitative"),
            y2=alt.Y2(high),
            detail=alt.Detail(group, type="nominal"),
        )
    )


def series_marks(base: Any, field: str, legend: Sequence[str]) -> list[Any]:
    """A thin line and shaped points per series; both fade when another series is picked.

    Args:
        base: Chart with data and the encodings x, y and color.
        field: Field that names the series.
        legend: Series names in palette order.
    """
    line = base.mark_line(strokeWidth=1.25).encode(opacity=focus_opacity(field, 0.5))
    points = base.mark_point(filled=True, size=26).encode(
        opacity=focus_opacity(field), shape=shape_by(field, legend)
    )
    return [line, points]


def tooltips(fields: Mapping[str, str], formats: Mapping[str, str] | None = None) -> list[Any]:
    """Tooltip entries.

    Args:
        fields: Field name to label.
        formats: Number format by field; ``.4~g`` for numbers named here without one.
    """
    import altair as alt

    formats = formats or {}
    return [
        alt.Tooltip(name, title=title, type="quantitative", format=formats[name])
        if name in formats
        else alt.Tooltip(name, title=title, type="nominal")
        for name, title in fields.items()
    ]


def finish(chart: Any, *, height: int, description: str) -> dict[str, Any]:
    """The specification of a chart that fills its container's width.

    Args:
        chart: An Altair chart.
        height: Height of the plotting area in pixels.
        description: The chart in words; becomes the drawing's accessible name.
    """
    # Validation takes as long as all the rest; tests validate every chart, readers need not.
    spec: dict[str, Any] = chart.properties(
        width="container", height=height, description=description
    ).to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in _SCHEMA_KEYS}
