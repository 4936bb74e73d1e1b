"""Bounds on attention outputs beside measured errors: by layer, and their slack by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    layer_axis,
    log_ticks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table
from gonio.site.heat_maps import head_height, layer_heat_map
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bounds_figure", "certificate_figures", "slack_figure"]


_COLUMNS = (
    *("codec", "text", "layer", "head", "value_range", "error"),
    *("bound_norms", "bound_queries", "bound_scores", "bound_weights"),
)
_RUNGS = {
    "weights": "bound from weights",
    "scores": "bound from scores",
    "queries": "bound from each query's norm",
    "norms": "bound from the largest norms",
}
_ERROR = "measured error"
_LEAST = 1e-6  # of the range: below it a bound is rounding, which a log axis would stretch to


def certificate_figures(entry: SiteRecord) -> list[Figure | None]:
    """Both figures of a ``cache-certificate`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    return [bounds_figure(entry), slack_figure(entry)]


def bounds_figure(entry: SiteRecord) -> Figure | None:
    """Error and bounds by layer over the range of values, a panel per codec and text.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = entry.table("heads", _COLUMNS)
    budget = entry.record.settings.get("budget")
    legend = (_ERROR, *_RUNGS.values())
    panels, rows, said = [], [], []
    for title, mine in _groups(frame):
        found = [row for row in _layer_rows(mine) if row["value"] >= _LEAST]
        if not found:
            continue
        words = _say(title, found)
        said.append(words)
        panels.append(Panel(title, _line_chart(found, legend, budget, words)))
        rows += [{**row, "series": f"{title}, {row['series']}"} for row in found]
    if not panels:
        return None
    return Figure(
        name="certificate-bounds",
        title="How far can a compressed cache move attention's outputs?",
        description=" ".join(said),
        caption=(
            "The largest error of an output coordinate in each layer, over all heads and queries "
            "of the text, and four bounds on it; all over the range of the head's values (log "
            "scale). Every bound is a theorem about these tokens, computed in float64; queries, "
            "keys and values are those of the exact model, so errors of other layers are not in "
            "it. At 1 a bound says no more than that outputs are averages of values. Where bounds "
            "are equal, the last of the legend covers the others."
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="layer", series="series", value="value", heading="layer"),
        sources=(entry,),
        theorems=("attention_output_distortion", "softmax_linf_l1_lipschitz"),
        legend=legend,
        chance="" if budget is None else f"budget: {show(budget)}",
    )


def slack_figure(entry: SiteRecord) -> Figure | None:
    """Slack of the bound from weights by layer and head; None where nothing is in error.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    import altair as alt

    frame = entry.table("heads", _COLUMNS)
    frame = frame[frame["error"] > _LEAST * frame["value_range"]]
    if not len(frame):
        return None
    frame = frame.assign(slack=frame["bound_weights"] / frame["error"])
    most = float(frame["slack"].max())
    panels, rows, said = [], [], []
    for title, mine in _groups(frame):
        cells = [
            {
                "layer": int(row["layer"]),
                "head": int(row["head"]),
                "slack": chart_number(row["slack"]),
                "error": chart_number(row["error"] / row["value_range"]),
                "bound": chart_number(row["bound_weights"] / row["value_range"]),
            }
            for row in rows_of(mine)
        ]
        words = (
            f"{title}: slack of {len(mine)} heads from {show(mine['slack'].min(), 3)} to "
            f"{show(mine['slack'].max(), 3)}, median {show(mine['slack'].median(), 3)}."
        )
        said.append(words)
        spec = layer_heat_map(
            cells,
            y=alt.Y("head", type="ordinal", title="head"),
            color=alt.Color(
                "slack",
                type="quantitative",
                scale=alt.Scale(type="log", domain=[1, max(most, 1.1)], nice=False),
                legend=alt.Legend(title="bound / error"),
            ),
            told={
                "layer": "layer",
                "head": "head",
                "slack": "bound / error",
                "error": "error / range",
                "bound": "bound / range",
            },
            formats={"slack": ".3~g", "error": ".3~g", "bound": ".3~g"},
            height=head_height(cells),
            words=words,
        )
        panels.append(Panel(title, spec))
        rows += [{**cell, "series": f"{title}, head {cell['head']}"} for cell in cells]
    return Figure(
        name="certificate-slack",
        title="How much of the bound is slack?",
        description=" ".join(said),
        caption=(
            "The largest bound of a head, from how far its attention weights moved, over its "
            "largest measured error. A bound is never below the error: 1 is the least. Heads "
            "without an error are left out."
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="layer", series="series", value="slack", heading="layer"),
        sources=(entry,),
        theorems=("attention_output_distortion",),
    )


def _groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows by codec and text, with a title."""
    return [
        (f"{codec} codec, {text} tokens", mine)
        for (codec, text), mine in frame.groupby(["codec", "text"], sort=False)
    ]


def _layer_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Largest error and bounds of each layer over the range, one row per series."""
    scale = frame["value_range"].where(frame["value_range"] > 0)
    series = {_ERROR: frame["error"] / scale}
    series |= {title: frame[f"bound_{rung}"] / scale for rung, title in _RUNGS.items()}
    return [
        {"layer": int(row["layer"]), "series": title, "value": chart_number(row["value"])}
        for title, values in series.items()
        for row in rows_of(values.groupby(frame["layer"]).max().dropna().reset_index(name="value"))
    ]


def _say(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    largest: dict[str, float] = {}
    for row in rows:
        largest[row["series"]] = max(row["value"], largest.get(row["series"], 0.0))
    said = ", ".join(f"{series} {show(value, 3)}" for series, value in largest.items())
    return f"Largest over the layers, {title}: {said}."


def _line_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], budget: float | None, words: str
) -> dict[str, Any]:
    import altair as alt

    levels = [row["value"] for row in rows] + ([] if budget is None else [budget])
    heights = [level for level in levels if level] or [1.0]  # a log axis has no zero
    y = alt.Y(
        "value",
        type="quantitative",
        title="over the range of values",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=log_ticks(min(heights), max(heights)), format="~g"),
    )
    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=y,
        color=color_by("series", legend),
        opacity=focus_opacity("series"),
    )
    line = base.mark_line(strokeWidth=1.5)
    points = base.mark_point(filled=True, size=26).encode(
        shape=shape_by("series", legend),
        tooltip=tooltips(
            {"series": "what", "layer": "layer", "value": "over the range"}, {"value": ".3~g"}
        ),
    )
    rule = [] if budget is None else [chance_rule(budget)]
    chart = alt.layer(*rule, line, points).add_params(focus_param())
    return finish(chart, height=280, description=words)
