"""Numbers by layer beside a null of known spread: gain residuals, cosines between updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gonio.site.adapter_figures import projection_order
from gonio.site.charts import (
    chance_band,
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_param,
    layer_axis,
    series_marks,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cosine_figure", "gain_figure"]

_HEADINGS = {
    "panel": "chart",
    "projection": "projection",
    "median": "median",
    "chance": "chance, median",
    "z_low": "lowest z",
    "z_median": "median z",
    "z_high": "highest z",
    "layers": "layers",
}


@dataclass(frozen=True)
class _Quantity:
    """A quantity with its null: where it is stored, and what the chart's axis says."""

    table: str
    value: str
    chance: str
    z_score: str
    title: str


_GAINS = (
    _Quantity(
        "gains",
        "column_gain_residual",
        "column_gain_residual_chance",
        "column_gain_residual_z_score",
        "column gains",
    ),
    _Quantity(
        "gains",
        "row_gain_residual",
        "row_gain_residual_chance",
        "row_gain_residual_z_score",
        "row gains",
    ),
)
_COSINE = _Quantity("cosines", "cosine", "chance", "z_score", "cosine")


def gain_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Gain residuals in standard deviations of their null; None where no record has them.

    Raises:
        RecordError: A table of gains lacks a column.
    """
    return _figure(
        [entry for entry in records if "gains" in entry.measurement.tables],
        _GAINS,
        name="gain-residual",
        title="Is the update a rescaling of the base weight?",
        caption=(
            "Share of the update that no rescaling of the base weight's columns (or rows) "
            "explains, as its distance from chance in exact standard deviations. The share itself "
            "is near 1 whatever happened: chance alone leaves 1 minus one over the number of rows "
            "(or columns), so only the distance says something. Below the band: closer to a "
            "rescaling than chance. Gray band: two standard deviations. The axis is compressed."
        ),
        theorems=("column_gain_residual",),
    )


def cosine_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Cosine of two adapters' updates in standard deviations of its null.

    Raises:
        RecordError: A table of cosines lacks a column.
    """
    return _figure(
        [entry for entry in records if "cosines" in entry.measurement.tables],
        (_COSINE,),
        name="update-cosine",
        title="Do the adapters push the same way?",
        caption=(
            "Cosine of the two updates of a weight, taken as vectors, in standard deviations of "
            "its null: updates turned at random have cosine 0 with variance one over the number "
            "of weights. Gray band: two standard deviations. The axis is compressed."
        ),
        theorems=(),
    )


def _figure(
    records: Sequence[SiteRecord],
    quantities: Sequence[_Quantity],
    *,
    name: str,
    title: str,
    caption: str,
    theorems: tuple[str, ...],
) -> Figure | None:
    parts = [
        (f"{entry.label}, {quantity.title}", _prepared(entry, quantity))
        for entry in records
        for quantity in quantities
    ]
    parts = [(panel, frame) for panel, frame in parts if len(frame)]
    if not parts:
        return None
    legend = projection_order(p for _, frame in parts for p in frame["projection"])
    z_scores = [float(z) for _, frame in parts for z in frame["z"]]
    domain = (min(*z_scores, -3.0), max(*z_scores, 3.0))
    said = {panel: _describe(panel, frame) for panel, frame in parts}
    return Figure(
        name=name,
        title=title,
        description=" ".join(said.values()),
        caption=caption,
        panels=tuple(
            Panel(panel, _chart(frame, legend, domain, said[panel])) for panel, frame in parts
        ),
        table=table_from_rows(
            [row for panel, frame in parts for row in _summary(panel, frame, legend)], _HEADINGS
        ),
        sources=tuple(records),
        theorems=theorems,
        legend=legend,
        chance="chance, \N{PLUS-MINUS SIGN} 2 sd",
        is_chance_band=True,
    )


def _prepared(entry: SiteRecord, quantity: _Quantity) -> pd.DataFrame:
    """Rows of numbered layers with columns value, chance and z."""
    names = {quantity.value: "value", quantity.chance: "chance", quantity.z_score: "z"}
    frame = entry.table(quantity.table, ("module", "layer", "projection", *names))
    frame = frame[["module", "layer", "projection", *names]].rename(columns=names)
    return (
        frame.dropna(subset=["layer", "z"])
        .astype({"layer": "int64"})
        .sort_values(["layer", "module"])
    )


def _describe(panel: str, frame: pd.DataFrame) -> str:
    outside = int((frame["z"].abs() > 2).sum())
    return (
        f"{panel}, {len(frame)} weights: median {show(frame['value'].median())} beside chance "
        f"{show(frame['chance'].median())}; {outside} lie more than two standard deviations from "
        f"chance, from {show(frame['z'].min(), 3)} to {show(frame['z'].max(), 3)}."
    )


def _summary(panel: str, frame: pd.DataFrame, legend: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for projection in legend:
        mine = frame[frame["projection"] == projection]
        if len(mine):
            rows.append(
                {
                    "panel": panel,
                    "projection": projection,
                    "median": mine["value"].median(),
                    "chance": mine["chance"].median(),
                    "z_low": mine["z"].min(),
                    "z_median": mine["z"].median(),
                    "z_high": mine["z"].max(),
                    "layers": len(mine),
                }
            )
    return rows


def _chart(
    frame: pd.DataFrame, legend: Sequence[str], domain: tuple[float, float], words: str
) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "layer": int(row["layer"]),
            "z": chart_number(row["z"]),
            "value": chart_number(row["value"]),
            "chance": chart_number(row["chance"]),
            "projection": row["projection"],
        }
        for row in rows_of(frame)
    ]
    layers = [row["layer"] for row in rows]
    band = [
        {"layer": layer, "low": -2, "high": 2, "band": "chance"}
        for layer in (min(layers), max(layers))
    ]
    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=alt.Y(
            "z",
            type="quantitative",
            title="distance from chance (sd)",
            scale=alt.Scale(type="symlog", constant=4, domain=list(domain), nice=True),
            axis=alt.Axis(tickCount=7, labelOverlap=True),
        ),
        color=color_by("projection", legend),
        tooltip=tooltips(
            {
                "projection": "projection",
                "layer": "layer",
                "value": "value",
                "chance": "chance",
                "z": "z-score",
            },
            {"layer": "d", "value": ".5~g", "chance": ".5~g", "z": ".3~g"},
        ),
    )
    marks = series_marks(base, "projection", legend)
    shaded = chance_band(band, x="layer", low="low", high="high", group="band")
    chart = alt.layer(shaded, chance_rule(0.0), *marks).add_params(focus_param())
    return finish(chart, height=240, description=words)
