"""Shared directions of an adapter's updates by their distance in depth, beside chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.adapter_figures import projection_order
from gonio.site.charts import (
    are_bounded,
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    series_marks,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["depth_correlator_figure"]

_ALL = "all"
_COLUMNS = ("projection", "side", "distance", "pairs", "correlation", "low", "high")
_DECAYS = (
    *("projection", "side", "layers", "decay_length", "decay_low", "decay_high"),
    *("nearest", "nearest_chance", "nearest_p_value", "rank_correlation", "reason"),
)
_SIDES = {"left": "what updates write (left)", "right": "what updates read (right)"}
_HEADINGS = {
    "adapter": "adapter",
    "side": "side",
    "projection": "projection",
    "layers": "layers",
    "nearest": "correlation, nearest pairs",
    "nearest_chance": "layers shuffled",
    "nearest_p_value": "p",
    "decay_length": "decay length (layers)",
    "decay_low": "interval, low",
    "decay_high": "interval, high",
    "rank_correlation": "rank correlation with distance",
    "reason": "why no decay length",
}


def depth_correlator_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Correlation of updates by their distance in layers, a chart per adapter and side.

    Args:
        records: ``adapter-spectrum`` records; those without the table ``depth`` are left out.

    Raises:
        RecordError: A table lacks a column.
    """
    drawn = [entry for entry in records if "depth" in entry.measurement.tables]
    frames = {entry.label: entry.table("depth", _COLUMNS) for entry in drawn}
    frames = {label: frame for label, frame in frames.items() if len(frame)}
    if not frames:
        return None
    found = {name for frame in frames.values() for name in frame["projection"]}
    legend = (*([_ALL] if _ALL in found else []), *projection_order(found - {_ALL}))
    panels, rows, said = [], [], []
    for label, frame in frames.items():
        for side, title in _SIDES.items():
            mine = frame[frame["side"] == side]
            if not len(mine):
                continue
            words = _describe(f"{label}, {title}", mine, legend)
            said.append(words)
            panels.append(Panel(f"{label}, {title}", _chart(mine, legend, words)))
    for entry in drawn:
        decays = entry.table("depth_decay", _DECAYS)
        rows += [{**row, "adapter": entry.label} for row in rows_of(decays)]
    return Figure(
        name="depth-correlator",
        title="Do neighboring layers turn the same directions?",
        description=" ".join(said),
        caption=(
            "Overlap of the top directions of one projection's updates in two layers, on a scale "
            "where random subspaces have 0 (dashed) and equal ones 1, by the number of layers "
            "between them: mean over pairs, bars 95% bootstrap intervals over pairs (which share "
            "layers). All: mean over projections. The table has the length of an exponential "
            "decay where one is seen, and one-sided p-values over random orders of the layers."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=tuple(drawn),
        theorems=("random_subspace_expected_overlap",),
        legend=legend,
        chance="random subspaces: 0",
    )


def _describe(title: str, frame: pd.DataFrame, legend: Sequence[str]) -> str:
    name = legend[0]
    mine = frame[frame["projection"] == name].sort_values("distance")
    if not len(mine):
        return f"{title}: {frame['projection'].nunique()} projections; chance is 0."
    first, last = mine.iloc[0], mine.iloc[-1]
    label = "mean over projections" if name == _ALL else name
    return (
        f"{title}, {label}: correlation {show(first['correlation'], 3)} at distance "
        f"{show(first['distance'])}, {show(last['correlation'], 3)} at {show(last['distance'])}; "
        "chance is 0."
    )


def _chart(frame: pd.DataFrame, legend: Sequence[str], words: str) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "distance": int(row["distance"]),
            "projection": row["projection"],
            "pairs": int(row["pairs"]),
            **{name: chart_number(row[name]) for name in ("correlation", "low", "high")},
        }
        for row in rows_of(frame)
    ]
    y = alt.Y("correlation", type="quantitative", title="correlation (0 is chance)")
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "distance",
            type="quantitative",
            title="distance (layers)",
            scale=alt.Scale(nice=False, zero=False, padding=8),
            axis=alt.Axis(tickMinStep=1, format="d", grid=False, labelFlush=False),
        ),
        color=color_by("projection", legend),
    )
    bars = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=1.25)
        .encode(
            y=alt.Y("low", type="quantitative"),
            y2=alt.Y2("high"),
            opacity=focus_opacity("projection", 0.35),
        )
    )
    told = base.encode(
        y=y,
        tooltip=tooltips(
            {
                "projection": "projection",
                "distance": "distance",
                "correlation": "correlation",
                "low": "interval, low",
                "high": "interval, high",
                "pairs": "pairs",
            },
            {"distance": "d", "pairs": "d"} | dict.fromkeys(("correlation", "low", "high"), ".3~g"),
        ),
    )
    marks = series_marks(told, "projection", legend)
    bounds = [bars] if are_bounded(rows) else []
    chart = alt.layer(chance_rule(0.0), *bounds, *marks).add_params(focus_param())
    return finish(chart, height=240, description=words)
