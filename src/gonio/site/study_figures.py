"""Figures of a study's geometry, each beside the first study's numbers where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
    are_bounded,
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    layer_axis,
    series_marks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.first_study import FIRST_STUDY, cited, first_study, mean_line
from gonio.site.numbers import chart_number, is_missing, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "overlap_figure",
    "step_figure",
    "width_figure",
]


def width_figure(entry: SiteRecord) -> Figure | None:
    """Stable rank against the width of the model; None where no matrix was trained.

    Raises:
        RecordError: A table lacks a column.
    """
    if "stable_rank" not in entry.measurement.tables:
        return None
    columns = ("model", "recipe", "width", "seeds", "stable_rank", "low", "high", "chance")
    rows = [
        {**row, "series": row["recipe"], "label": f"{row['model']}, {row['seeds']} seeds"}
        for row in rows_of(entry.table("stable_rank", columns))
        if not is_missing(row["width"])
    ]
    if not rows:
        return None
    for row in first_study()["stable_rank"]["rows"]:
        label = f"{row['model']}, seed {row['seed']}"
        rows.append({**row, "series": f"{row['recipe']}, {FIRST_STUDY}", "label": label})
    legend = tuple(dict.fromkeys(str(row["series"]) for row in rows))
    says = _trends(entry)
    words = (
        f"Stable rank by model width in {len(legend)} series, random factors as ticks: "
        + "; ".join(
            f"{row['label']} ({row['series']}): {show(row['stable_rank'], 3)}" for row in rows
        )
        + f". {says}"
    )
    return Figure(
        name="study-width",
        title="Stable rank by width",
        description=words,
        caption=(
            "Points: mean over the updates and seeds of a model; bars: Student's interval over "
            "seeds, cut off at the edge where few seeds leave it wider than the chart. Ticks: "
            "random factors of the same shapes. Thin line: the mean of the first study, near which "
            "all its widths lie. Series are moved a little sideways. "
            f"{says} {cited('stable_rank')}"
        ),
        panels=(Panel("", _width_chart(rows, legend, words)),),
        table=table_from_rows(rows, _WIDTH_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="random factors",
    )


_WIDTH_HEADINGS = {
    "label": "model",
    "series": "recipe",
    "width": "width",
    "stable_rank": "stable rank",
    "low": "low",
    "high": "high",
    "chance": "random factors",
}


def step_figure(entry: SiteRecord) -> Figure | None:
    """Stable rank by training step, a chart per model; None where it was not followed.

    Raises:
        RecordError: A table lacks a column.
    """
    if "steps" not in entry.measurement.tables:
        return None
    columns = ("model", "recipe", "seed", "step", "stable_rank", "chance")
    steps = entry.table("steps", columns)
    steps = steps.assign(series=_series(steps))
    legend = tuple(dict.fromkeys(steps["series"]))
    transients = rows_of(entry.table("transients", ("cell", "first", "last", "course")))
    words = "; ".join(
        f"{row['cell']}: {show(row['first'], 3)} at the first measured step, "
        f"{show(row['last'], 3)} at the last, random factors {show(row['chance'], 3)}"
        for row in transients
    )
    panels = []
    for model, group in steps.groupby("model", sort=False):
        said = f"Stable rank by step of {model}, {group['series'].nunique()} trainings."
        panels.append(Panel(str(model), _step_chart(group, legend, said)))
    return Figure(
        name="study-steps",
        title="Is the low stable rank a passing state?",
        description=f"Stable rank by step. {words}.",
        caption=(
            "Mean over the updates of a training at each measured step; dashed: random factors of "
            "the same shapes and rank. The table compares the first measured step with the last: "
            "the change has a bootstrap interval over layers. A run of another length or rate may "
            f"end elsewhere. {_reading(entry)}"
        ),
        panels=tuple(panels),
        table=table_from_rows(transients, _STEP_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="random factors",
    )


def _reading(entry: SiteRecord) -> str:
    """What the record concludes about the course of the stable rank, in its own words."""
    found = [v.value for v in entry.measurement.record.values if v.name == _TRANSIENT]
    return str(found[0]) if found else ""


_TRANSIENT = "is_the_stable_rank_a_transient"
_STEP_HEADINGS = {
    "cell": "training",
    "first_step": "first step",
    "first": "stable rank",
    "last_step": "last step",
    "last": "stable rank at last",
    "change": "change",
    "low": "low",
    "high": "high",
    "chance": "random factors",
}


def overlap_figure(entry: SiteRecord) -> Figure | None:
    """Overlap of what updates read with the base, by layer: recipe by seed, beside chance.

    Raises:
        RecordError: A table lacks a column.
    """
    if "layers" not in entry.measurement.tables:
        return None
    columns = ("model", "recipe", "seed", "side", "layer", "k", "overlap_ratio")
    found = entry.table("layers", columns)
    found = found[found["side"] == "right"]
    if not len(found):
        return None
    published = first_study()["overlap"]
    k = int(found["k"].iloc[0])
    charts = {
        f"{model}, k {k}": rows_of(group) for model, group in found.groupby("model", sort=False)
    }
    charts[f"{published['model']}, k {published['k']} ({FIRST_STUDY})"] = published["rows"]
    traces = {
        title: [
            {
                "layer": int(row["layer"]),
                "ratio": chart_number(row["overlap_ratio"]),
                "series": f"{row['recipe']}, seed {row['seed']}",
            }
            for row in rows
        ]
        for title, rows in charts.items()
    }
    legend = tuple(dict.fromkeys(str(row["series"]) for rows in traces.values() for row in rows))
    panels, table, said = [], [], []
    for title, rows in traces.items():
        summary = _summaries(title, rows)
        words = f"{title}: overlap over chance by layer, " + ", ".join(
            f"{row['series']} mean {show(row['mean'], 3)}" for row in summary
        )
        panels.append(Panel(title, _overlap_chart(rows, legend, words)))
        table += summary
        said.append(words)
    return Figure(
        name="study-overlap",
        title="Overlap with the base model by layer",
        description=". ".join(said) + ". Chance is 1.",
        caption=(
            "Right (input) side: overlap of the update's top k directions with the base weight's, "
            "over what random subspaces give (chance is 1), mean over the projections of a layer. "
            f"Each trace is one training. {cited('overlap')}"
        ),
        panels=tuple(panels),
        table=table_from_rows(table, _OVERLAP_HEADINGS),
        sources=(entry,),
        theorems=("random_subspace_expected_overlap",),
        legend=legend,
        chance="chance = 1",
    )


_OVERLAP_HEADINGS = {
    "model": "model",
    "series": "training",
    "layers": "layers",
    "mean": "mean over chance",
    "low": "lowest",
    "high": "highest",
}


def _summaries(title: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for series in dict.fromkeys(row["series"] for row in rows):
        values = [row["ratio"] for row in rows if row["series"] == series]
        found.append(
            {
                "model": title,
                "series": series,
                "layers": len(values),
                "mean": sum(values) / len(values),
                "low": min(values),
                "high": max(values),
            }
        )
    return found


def _trends(entry: SiteRecord) -> str:
    """What the record says of the trend with width, in words."""
    if "trends" not in entry.measurement.tables:
        return "No trend: it needs models of at least two widths."
    rows = rows_of(entry.table("trends", ("recipe", "quantity", "slope", "p_value", "says")))
    shown = [row for row in rows if row["quantity"] == "stable_rank"]
    slopes = "; ".join(
        f"{row['recipe']} {show(row['slope'], 3)} per doubling (p {show(row['p_value'], 2)})"
        for row in shown
    )
    return f"Trend over models: {slopes}. {shown[0]['says']}."


def _series(table: pd.DataFrame) -> pd.Series[str]:
    return table["recipe"].astype(str) + ", seed " + table["seed"].astype(str)


def _width_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    names = ("width", "stable_rank", "low", "high", "chance")
    points = [
        {name: chart_number(row.get(name)) for name in names}
        | {"series": row["series"], "label": row["label"], "x": _beside(row, legend)}
        for row in rows
    ]
    top = 1.1 * max(max(row["stable_rank"] or 0, row["chance"] or 0) for row in points)
    plain = alt.Chart(data_of(points)).encode(
        x=alt.X(
            "x",
            type="quantitative",
            title="hidden size (log scale)",
            scale=alt.Scale(type="log", base=2, nice=False, padding=16),
            axis=alt.Axis(grid=False, format="d"),
        )
    )
    base = plain.encode(color=color_by("series", legend))
    scale = alt.Scale(domain=[0, top], nice=True)
    nulls = plain.transform_filter("isValid(datum.chance)").mark_tick(
        style="chance-tick", orient="horizontal", size=14, thickness=2
    )
    bars = base.transform_filter("isValid(datum.low)").mark_rule(clip=True, strokeWidth=1.25)
    marks = base.mark_point(filled=True, size=60).encode(
        y=alt.Y("stable_rank", type="quantitative", title="stable rank", scale=scale),
        shape=shape_by("series", legend),
        opacity=focus_opacity("series"),
        tooltip=tooltips(
            {"label": "model", "series": "recipe", "width": "width", "stable_rank": "stable rank"},
            {"width": "d", "stable_rank": ".4~g"},
        ),
    )
    nulls = nulls.encode(y=alt.Y("chance", type="quantitative", scale=scale))
    bars = bars.encode(
        y=alt.Y("low", type="quantitative", scale=scale),
        y2=alt.Y2("high"),
        opacity=focus_opacity("series", 0.6),
    )
    bounds = [bars] if are_bounded(points) else []
    chart = alt.layer(nulls, *bounds, mean_line(), marks).add_params(focus_param())
    return finish(chart, height=280, description=words)


def _beside(row: Mapping[str, Any], legend: Sequence[str]) -> float:
    """The width, moved a little sideways by series so that bars do not cover each other."""
    place = legend.index(str(row["series"])) - (len(legend) - 1) / 2
    return float(row["width"] * 2.0 ** (0.05 * place))


def _step_chart(frame: pd.DataFrame, legend: Sequence[str], words: str) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "step": int(row["step"]),
            "stable_rank": chart_number(row["stable_rank"]),
            "series": row["series"],
        }
        for row in rows_of(frame)
    ]
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "step",
            type="quantitative",
            scale=alt.Scale(nice=False, zero=False, padding=8),
            axis=alt.Axis(tickMinStep=1, format="d", grid=False),
        ),
        y=alt.Y(
            "stable_rank",
            type="quantitative",
            title="stable rank",
            scale=alt.Scale(domainMin=1, zero=False),
        ),
        color=color_by("series", legend),
        tooltip=tooltips(
            {"series": "training", "step": "step", "stable_rank": "stable rank"},
            {"step": "d", "stable_rank": ".4~g"},
        ),
    )
    rule = chance_rule(float(frame["chance"].mean()))
    chart = alt.layer(rule, *series_marks(base, "series", legend)).add_params(focus_param())
    return finish(chart, height=200, description=words)


def _overlap_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=alt.Y(
            "ratio",
            type="quantitative",
            title="overlap / chance",
            scale=alt.Scale(domainMin=0, nice=True),
        ),
        color=color_by("series", legend),
        tooltip=tooltips(
            {"series": "training", "layer": "layer", "ratio": "overlap / chance"},
            {"layer": "d", "ratio": ".3~g"},
        ),
    )
    marks = series_marks(base, "series", legend)
    chart = alt.layer(chance_rule(1.0), *marks).add_params(focus_param())
    return finish(chart, height=220, description=words)
