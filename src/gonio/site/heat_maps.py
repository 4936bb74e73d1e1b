"""Heat maps with the layers of a model along the horizontal axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gonio.site.charts import data_of, finish, tooltips

__all__ = ["head_height", "layer_heat_map", "octave_color"]

_RATIO_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def layer_heat_map(
    rows: Sequence[Mapping[str, Any]],
    *,
    y: Any,
    color: Any,
    told: Mapping[str, str],
    formats: Mapping[str, str],
    height: int,
    words: str,
    layers: Sequence[int] | None = None,
    unmeasured: Sequence[Mapping[str, Any]] = (),
    why: str = "",
) -> dict[str, Any]:
    """The specification of a heat map, a cell per row.

    Args:
        rows: Cells with the field ``layer``.
        y: Altair's vertical channel.
        color: Altair's color channel.
        told: Fields of the tooltip and their labels.
        formats: Formats of the numbers among them.
        height: Of the plotting area, in pixels.
        words: The chart in words.
        layers: All layers of the axis; those of the cells unless given.
        unmeasured: Cells without a value, drawn in gray.
        why: What their tooltips say.
    """
    import altair as alt

    layers = sorted({row["layer"] for row in rows}) if layers is None else layers
    step = 1 if len(layers) <= 12 else 5 if len(layers) <= 60 else 10
    ticks = [layer for layer in layers if layer % step == 0]
    # Without a gap, rounding can put the first band outside the axis, which then loses its label.
    scale = alt.Scale(domain=list(layers), paddingInner=0.001)
    x = alt.X(
        "layer",
        type="ordinal",
        scale=scale,
        axis=alt.Axis(values=ticks, labelAngle=0, grid=False),
    )
    chart = (
        alt.Chart(data_of(rows))
        .mark_rect(style="cell")
        .encode(x=x, y=y, color=color, tooltip=tooltips(told, formats))
    )
    if unmeasured:
        # The gray of chance, which no color of the scale has.
        blank = alt.Chart(data_of([{**row, "value": why} for row in unmeasured]))
        gray = blank.mark_rect(style=["cell", "chance-band"]).encode(
            x=x, y=y, tooltip=tooltips({"layer": "layer", "value": "value"})
        )
        chart = alt.layer(gray, chart)
    return finish(chart, height=height, description=words)


def octave_color(low: float, high: float, title: str) -> Any:
    """The color of a ratio by its field ``octaves``, its logarithm to base 2; 1 is neutral.

    Half and twice are equally far from 1; the legend shows the ratios.

    Args:
        low: Lower end of the scale, in octaves.
        high: Upper end, in octaves.
        title: What is divided by what.
    """
    import altair as alt

    octaves = [math.log2(ratio) for ratio in _RATIO_TICKS]
    return alt.Color(
        "octaves",
        type="quantitative",
        scale=alt.Scale(domain=[low, high], domainMid=0),
        legend=alt.Legend(
            title=title,
            values=[octave for octave in octaves if low <= octave <= high],
            labelExpr="format(pow(2, datum.value), '.2~r')",
        ),
    )


def head_height(rows: Sequence[Mapping[str, Any]]) -> int:
    """Pixels for a map with one line per ``head``."""
    return min(320, max(60, 24 * len({row["head"] for row in rows})))
