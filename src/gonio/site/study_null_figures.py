"""Figures of a study beside what chance alone gives: adapters compared, gains, and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gonio.site.charts import (
    are_bounded,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.first_study import FIRST_STUDY, cited, first_study
from gonio.site.numbers import chart_number, is_missing, rows_of, show

__all__ = ["alignment_figure", "depth_figure", "study_gain_figure"]

_Rows = Sequence[Mapping[str, Any]]

_COMPARED = {
    "cosine": ("Cosine of the updates", 0.0),
    "left_overlap_ratio": ("Overlap of what they write, over chance", 1.0),
    "right_overlap_ratio": ("Overlap of what they read, over chance", 1.0),
}


def alignment_figure(entry: SiteRecord) -> Figure | None:
    """Every two adapters of a model compared; None where no model has two.

    Raises:
        RecordError: A table lacks a column.
    """
    if "alignment" not in entry.measurement.tables:
        return None
    columns = ("model", "first", "second", "relation", "modules", "k", "cosine_z_score", *_COMPARED)
    rows = [
        {**row, "label": row["model"], "series": row["relation"]}
        for row in rows_of(entry.table("alignment", columns))
    ]
    panels, said = [], []
    for name, (title, chance) in _COMPARED.items():
        points = [{**row, "value": row[name], "chance": chance} for row in rows]
        points = [row for row in points if not is_missing(row["value"])]
        if not points:
            continue
        words = f"{title}, {len(points)} pairs of adapters: " + "; ".join(
            f"{relation} {show(_mean(points, relation), 3)} on average"
            for relation in _series(points)
        )
        panels.append(Panel(title, _dots(points, _series(rows), title.lower(), words)))
        said.append(words)
    return Figure(
        name="study-alignment",
        title="Do two trainings of a model turn the same directions?",
        description=". ".join(said) + ".",
        caption=(
            "One point per pair of adapters of a model, mean over modules; overlaps compare the "
            f"top {rows[0]['k']} directions. Ticks: what updates turned at random give "
            "(cosine 0, overlap 1). One seed gives both trainings the same random A to start "
            "from, which alone aligns what they read; pairs of other seeds are free of that. "
            f"The {FIRST_STUDY} published no such comparison."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _ALIGNMENT_HEADINGS),
        sources=(entry,),
        theorems=("random_subspace_expected_overlap",),
        legend=_series(rows),
        chance="chance",
    )


_ALIGNMENT_HEADINGS = {
    "first": "one",
    "second": "other",
    "relation": "relation",
    "modules": "modules",
    "cosine": "cosine",
    "cosine_z_score": "z-score",
    "left_overlap_ratio": "written, over chance",
    "right_overlap_ratio": "read, over chance",
}


def study_gain_figure(entry: SiteRecord) -> Figure | None:
    """What gains of rows or columns explain of the updates; None where no matrix was trained.

    Raises:
        RecordError: A table lacks a column.
    """
    if "gains" not in entry.measurement.tables:
        return None
    columns = ("model", "recipe", "seeds", "side", "residual", "low", "high", "chance", "z_score")
    rows = [
        {**row, "label": row["model"], "series": row["recipe"]}
        for row in rows_of(entry.table("gains", columns))
    ]
    for row in first_study()["gains"]["rows"]:
        label, series = f"{row['model']} ({FIRST_STUDY})", row["recipe"]
        rows.append({**row, "label": label, "series": series})
    legend = _series(rows)
    panels, said = [], []
    for side in dict.fromkeys(row["side"] for row in rows):
        points = [_explained(row) for row in rows if row["side"] == side]
        title = f"{str(side).capitalize()} gains"
        words = f"{title}: explained energy over chance, " + "; ".join(
            f"{row['label']} {row['series']} {show(row['value'], 3)}" for row in points
        )
        panels.append(Panel(title, _dots(points, legend, "explained, over chance", words)))
        said.append(words)
    return Figure(
        name="study-gains",
        title="Are the updates rescalings of the base weights?",
        description=". ".join(said) + ". Chance is 1.",
        caption=(
            "Share of an update's energy that the best rescaling of the base weight's columns (or "
            "rows) explains, over what it explains of an update turned at random (ticks: 1); "
            "mean over modules and seeds, bars: Student's interval over seeds, cut off at the "
            "edge of the chart. The share that stays unexplained, in the table, is near 1 "
            "whatever happened, and so it was in the first study, which drew a conclusion from "
            f"it; its chance levels follow from its weights' shapes, 3072 x 1024. {cited('gains')}"
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _GAIN_HEADINGS),
        sources=(entry,),
        theorems=("column_gain_residual",),
        legend=legend,
        chance="chance",
    )


_GAIN_HEADINGS = {
    "label": "model",
    "series": "recipe",
    "side": "gains of",
    "residual": "unexplained",
    "low": "low",
    "high": "high",
    "chance": "chance",
    "z_score": "z-score",
}


def depth_figure(entry: SiteRecord) -> Figure | None:
    """Overlap of neighboring layers' updates; None where no model has three layers.

    Raises:
        RecordError: A table lacks a column.
    """
    if "depth" not in entry.measurement.tables:
        return None
    columns = ("cell", "recipe", "side", "layers", "nearest", "nearest_chance", "nearest_p_value")
    rows = [
        {
            **row,
            "label": row["cell"],
            "series": row["recipe"],
            "value": row["nearest"],
            "chance": row["nearest_chance"],
        }
        for row in rows_of(entry.table("depth", (*columns, "smallest_p")))
    ]
    legend = _series(rows)
    panels, said = [], []
    for side in dict.fromkeys(row["side"] for row in rows):
        points = [row for row in rows if row["side"] == side]
        title = f"{_SIDES.get(str(side), str(side)).capitalize()} directions"
        words = f"{title}: overlap of neighboring layers, " + "; ".join(
            f"{row['label']} {show(row['value'], 3)}, in random order {show(row['chance'], 3)}, "
            f"p {show(row['nearest_p_value'], 2)}"
            for row in points
        )
        panels.append(Panel(title, _dots(points, legend, "overlap of neighbors", words)))
        said.append(words)
    return Figure(
        name="study-depth",
        title="Do neighboring layers' updates share directions?",
        description=". ".join(said) + ".",
        caption=(
            "Mean overlap of the updates of neighboring layers, a point per training; ticks: the "
            "same layers in random order. p: share of orders that give at least as much; of n "
            "layers it cannot be below 2/n!, and the table says what that is. Rank correlation: "
            "of overlap with distance in layers. Decay: layers over which the overlap falls by a "
            f"factor e, where it falls. The {FIRST_STUDY}'s correlators are of activations, not "
            "of updates, and are not drawn beside."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _DEPTH_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="chance",
    )


_SIDES = {"left": "written (left)", "right": "read (right)"}
_DEPTH_HEADINGS = {
    "label": "training",
    "side": "side",
    "layers": "layers",
    "nearest": "neighbors",
    "nearest_chance": "random order",
    "nearest_p_value": "p",
    "smallest_p": "smallest possible p",
    "rank_correlation": "rank correlation",
    "rank_p_value": "p (rank)",
    "decay_length": "decay",
}


def _series(rows: _Rows) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(row["series"]) for row in rows))


def _mean(rows: _Rows, series: str) -> float:
    values = [float(row["value"]) for row in rows if row["series"] == series]
    return sum(values) / len(values)


def _explained(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the gains explain over what they explain of a random update."""
    expected = 1.0 - row["chance"]
    found = {name: (1.0 - row[name]) / expected for name in ("low", "high") if name in row}
    return {
        **row,
        "value": (1.0 - row["residual"]) / expected,
        "low": found.get("high"),
        "high": found.get("low"),
        "chance": 1.0,
    }


def _dots(rows: _Rows, legend: Sequence[str], title: str, words: str) -> dict[str, Any]:
    """A line per label, in it a point per row with its interval and its chance level."""
    import altair as alt

    numbers = ("value", "low", "high", "chance")
    points = [
        {name: chart_number(row.get(name)) for name in numbers}
        | {"label": row["label"], "series": row["series"], "pair": _named(row)}
        for row in rows
    ]
    labels = list(dict.fromkeys(str(row["label"]) for row in points))
    drawn = [row[name] for row in points for name in ("value", "chance")]
    known = [0.0, *(float(value) for value in drawn if value is not None)]
    scale = alt.Scale(domain=[min(known), max(known)], nice=False, padding=10)
    axis = alt.Axis(tickCount=6, labelFlush=False, labelOverlap=True)
    lines = alt.Axis(grid=False, ticks=False, labelLimit=240)
    base = alt.Chart(data_of(points)).encode(
        y=alt.Y("label", type="nominal", sort=labels, title=None, axis=lines)
    )
    lanes = len({(row["label"], row["series"]) for row in points}) // len(labels)
    if lanes > 1:
        base = base.encode(yOffset=alt.YOffset("series", type="nominal", sort=list(legend)))
    nulls = base.mark_tick(style="chance-tick", thickness=2).encode(
        x=alt.X("chance", type="quantitative", scale=scale)
    )
    bars = base.transform_filter("isValid(datum.low)").mark_rule(clip=True, strokeWidth=1.25)
    marks = base.mark_point(filled=True, size=50).encode(
        x=alt.X("value", type="quantitative", title=title, scale=scale, axis=axis),
        shape=shape_by("series", legend),
        color=color_by("series", legend),
        opacity=focus_opacity("series"),
        tooltip=tooltips(
            {"pair": "training", "series": "series", "value": title, "chance": "chance"},
            {"value": ".4~g", "chance": ".4~g"},
        ),
    )
    bars = bars.encode(
        x=alt.X("low", type="quantitative", scale=scale),
        x2=alt.X2("high"),
        color=color_by("series", legend),
        opacity=focus_opacity("series", 0.6),
    )
    bounds = [bars] if are_bounded(points) else []
    chart = alt.layer(nulls, *bounds, marks).add_params(focus_param())
    return finish(chart, height=(14 + 8 * lanes) * len(labels) + 10, description=words)


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['first']}, {row['second']}" if "first" in row else str(row["label"])
