"""Figures of a study's behavior: geometry against it, and what biases alone reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gonio.linalg.association import what_points_can_say
from gonio.site.charts import (
    are_bounded,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    shape_by,
    tooltips,
    upright_rule,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.first_study import FIRST_STUDY, first_study
from gonio.site.numbers import capitalized, chart_number, is_missing, rows_of, show

__all__ = ["behavior_figure", "bitfit_figure"]

_FARTHEST = 2.0  # a share of next to nothing can be any number

_PAIRS = (
    ("stable_rank", "stable rank", "held_out_margin", "held-out margin (nats)"),
    ("stable_rank", "stable rank", "held_out_kl_to_base", "KL to the base (nats/token)"),
    ("right_overlap_ratio", "overlap / chance", "held_out_margin", "held-out margin (nats)"),
)
# The first study's scales are its own (its reward margin, and a log-ratio it calls KL).
_PUBLISHED = (
    ("stable_rank", "stable rank", "reward_margin", "reward margin"),
    ("stable_rank", "stable rank", "log_ratio", "log-ratio (printed as KL)"),
    ("overlap_ratio", "overlap / chance", "reward_margin", "reward margin"),
)


def behavior_figure(entry: SiteRecord) -> Figure | None:
    """Geometry against behavior, one point per training; None where no matrix was trained.

    Raises:
        RecordError: A table lacks a column.
    """
    columns = ("model", "recipe", "seed", *dict.fromkeys(n for p in _PAIRS for n in (p[0], p[2])))
    cells = [
        {**row, "series": row["recipe"], "label": f"{row['model']}, seed {row['seed']}"}
        for row in rows_of(entry.table("cells", columns))
        if not is_missing(row["stable_rank"])
    ]
    if not cells:
        return None
    published = [
        {**row, "series": f"dpo, {FIRST_STUDY}", "label": f"{row['model']}, seed {row['seed']}"}
        for row in first_study()["behavior"]["rows"]
    ]
    legend = tuple(dict.fromkeys(str(row["series"]) for row in [*cells, *published]))
    panels, said = [], []
    for rows, pairs, suffix in ((cells, _PAIRS, ""), (published, _PUBLISHED, f" ({FIRST_STUDY})")):
        for x, x_title, y, y_title in pairs:
            title = f"{capitalized(y_title)} by {x_title}{suffix}"
            words = f"{title}: {len(rows)} points."
            chart = _scatter(rows, legend, (x, x_title), (y, y_title), words)
            panels.append(Panel(title, chart))
            said.append(words)
    table = _associations(entry)
    caption = (
        "One point per training; seeds of one model are not independent. Correlations within a "
        "recipe, over models and over trainings, stand in the table. "
        f"{_what_it_says(table)}{_first_study_says()}"
    )
    return Figure(
        name="study-behavior",
        title="Geometry against behavior",
        description=" ".join(said) + f" {_what_it_says(table)}",
        caption=caption,
        panels=tuple(panels),
        table=table_from_rows(table or cells, _ASSOCIATIONS if table else _POINTS),
        sources=(entry,),
        legend=legend,
    )


_ASSOCIATIONS = {
    "recipe": "recipe",
    "unit": "over",
    "geometry": "geometry",
    "behavior": "behavior",
    "n": "n",
    "pearson": "Pearson",
    "pearson_low": "low",
    "pearson_high": "high",
    "pearson_p": "p",
    "spearman": "Spearman",
    "spearman_p": "p (Spearman)",
    "smallest_p": "smallest possible p",
}
_POINTS = {"label": "training", "series": "recipe"} | {
    name: title for pair in _PAIRS for name, title in (pair[:2], pair[2:])
}


def bitfit_figure(entry: SiteRecord) -> Figure | None:
    """Loss reduction of biases alone over that of DPO; None where one of the two is missing.

    Raises:
        RecordError: A table lacks a column.
    """
    if "bitfit" not in entry.measurement.tables:
        return None
    columns = ("model", "seed", "measure", "bitfit_reduction", "dpo_reduction", "share", "reason")
    rows = [
        {
            **row,
            "label": f"{row['model']}, seed {row['seed']}",
            "series": str(row["measure"]).replace("_", "-"),
        }
        for row in rows_of(entry.table("bitfit", columns))
    ]
    published = first_study()["bitfit"]
    start = published["first_loss"]
    bitfit, dpo = start - published["bitfit_loss"], start - published["dpo_loss"]
    rows.append(
        {
            "label": f"{published['model']} ({FIRST_STUDY})",
            "series": "training",
            "bitfit_reduction": bitfit,
            "dpo_reduction": dpo,
            "share": bitfit / dpo,
            "reason": "",
        }
    )
    legend = tuple(dict.fromkeys(str(row["series"]) for row in rows))
    words = "Share of DPO's loss reduction that biases reach: " + "; ".join(
        f"{row['label']}, {row['series']}: {show(row['share'], 3)}"
        for row in rows
        if not is_missing(row["share"])
    )
    return Figure(
        name="study-bitfit",
        title="Share of the loss reduction that biases reach",
        description=f"{words}.",
        caption=(
            "Loss reduction (from log 2) of BitFit over that of DPO with the same model and seed; "
            "1 would be all of it, below 0 the loss rose. Training: mean of the last quarter of "
            "the steps. Held-out: the same pairs under both; lines are bootstrap intervals over "
            "pairs. Bars end at the edge of the chart; there is none where DPO lowered no loss. "
            f"{FIRST_STUDY.capitalize()}: {first_study()['url']} "
            f"({', '.join(published['files'])}), last losses as published."
        ),
        panels=(Panel("", _bars(rows, legend, words)),),
        table=table_from_rows(rows, _BITFIT_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="all of DPO's reduction",
        is_table_open=True,
    )


_BITFIT_HEADINGS = {
    "label": "model",
    "series": "loss",
    "bitfit_reduction": "BitFit (nats)",
    "dpo_reduction": "DPO (nats)",
    "share": "share",
    "low": "low",
    "high": "high",
    "reason": "remark",
}


def _associations(entry: SiteRecord) -> list[dict[str, Any]]:
    if "associations" not in entry.measurement.tables:
        return []
    rows = rows_of(entry.table("associations", ("recipe", "unit", "n", "pearson", "pearson_p")))
    return [
        {**row, **{name: str(row[name]).replace("_", " ") for name in ("geometry", "behavior")}}
        for row in rows
    ]


def _what_it_says(rows: Sequence[Mapping[str, Any]]) -> str:
    models = [int(row["n"]) for row in rows if row["unit"] == "models"]
    if not models:
        return "Fewer than three models: no correlation is told. "
    return f"Over models: {what_points_can_say(max(models))}. "


def _first_study_says() -> str:
    """The published correlations, and what five points allow."""
    found = first_study()["behavior"]
    outside = [
        row["pair"] for row in found["published"] if not row["low"] <= row["pearson"] <= row["high"]
    ]
    text = f"{FIRST_STUDY.capitalize()} ({first_study()['url']}, {', '.join(found['files'])}): "
    text += what_points_can_say(len(found["rows"])) + "."
    if outside:
        text += (
            f" The interval published for {', '.join(outside).replace('_', ' ')} does not contain "
            "its own estimate."
        )
    return text


def _scatter(
    rows: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    x: tuple[str, str],
    y: tuple[str, str],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    points = [
        {
            "x": chart_number(row[x[0]]),
            "y": chart_number(row[y[0]]),
            "series": row["series"],
            "label": row["label"],
        }
        for row in rows
    ]
    scale = alt.Scale(zero=False, nice=True, padding=8)
    chart = (
        alt.Chart(data_of(points))
        .mark_point(filled=True, size=60)
        .encode(
            x=alt.X("x", type="quantitative", title=x[1], scale=scale),
            y=alt.Y("y", type="quantitative", title=y[1], scale=scale),
            color=color_by("series", legend),
            shape=shape_by("series", legend),
            opacity=focus_opacity("series"),
            tooltip=tooltips(
                {"label": "training", "series": "recipe", "x": x[1], "y": y[1]},
                {"x": ".4~g", "y": ".4~g"},
            ),
        )
        .add_params(focus_param())
    )
    return finish(chart, height=210, description=words)


def _bars(rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str) -> dict[str, Any]:
    import altair as alt

    points = [
        {name: chart_number(row.get(name)) for name in ("share", "low", "high")}
        | {"label": row["label"], "series": row["series"]}
        for row in rows
    ]
    labels = list(dict.fromkeys(str(row["label"]) for row in points))
    base = alt.Chart(data_of(points)).encode(
        y=alt.Y("label", type="nominal", sort=labels, title=None, axis=alt.Axis(grid=False)),
        yOffset=alt.YOffset("series", type="nominal", sort=list(legend)),
    )
    shown = [value for row in points for value in (row["share"], row["low"], row["high"])]
    known = [float(value) for value in shown if value is not None]
    domain = [max(-_FARTHEST, min([0.0, *known])), min(_FARTHEST, max([1.0, *known]))]
    scale = alt.Scale(domain=domain, nice=True)
    bars = base.mark_bar(opacity=0.75, clip=True).encode(
        x=alt.X(
            "share",
            type="quantitative",
            title="share of DPO's loss reduction",
            scale=scale,
            axis=alt.Axis(tickCount=8, labelFlush=False, labelOverlap=True),
        ),
        color=color_by("series", legend),
        tooltip=tooltips({"label": "model", "series": "loss", "share": "share"}, {"share": ".3~g"}),
    )
    intervals = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, clip=True)
    whole = upright_rule("all", 1.0)
    intervals = intervals.encode(x=alt.X("low", type="quantitative"), x2=alt.X2("high"))
    bounds = [intervals] if are_bounded(points) else []
    return finish(alt.layer(bars, *bounds, whole), height=40 * len(labels) + 10, description=words)
