"""Performance by rank: measured gains, fitted curves, and what the spectrum predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gonio.linalg.curves import curve_values
from gonio.site.charts import chance_rule, color_by, data_of, finish, tooltips
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, is_missing, rows_of, show

__all__ = ["sweep_figure"]

_RANKS = ("rank", "gain", "gain_low", "gain_high", "chosen_share")
_CURVES = ("form", "formula", "limit", "limit_low", "limit_high", "amplitude", "shape")
_SPECTRUM = ("rank", "relative_error")
_MEASURED = "measured"
_STEPS = 60  # points of a drawn curve


def sweep_figure(entry: SiteRecord) -> Figure | None:
    """Gain by rank with the three curves and, of a truncated adapter, its Eckart-Young error.

    Raises:
        RecordError: The record lacks a table or a column.
    """
    rows = [_point(row) for row in rows_of(entry.table("ranks", _RANKS))]
    if not rows:
        return None
    curves = rows_of(entry.table("curves", _CURVES))
    legend = (_MEASURED, *(str(row["formula"]) for row in curves))
    lines = [point for row in curves for point in _line(row, rows[0]["rank"], rows[-1]["rank"])]
    told = "; ".join(f"{show(row['gain'], 3)} at rank {row['rank']}" for row in rows)
    metric = str(entry.record.settings.get("metric", "gain"))
    verdict = entry.record.value("curve").value
    words = f"Gain over the base model ({metric}) by rank: {told}. {verdict}"
    panels = [Panel("gain over the base model", _gain_chart(rows, lines, legend, words))]
    columns = {
        "rank": "rank",
        "gain": "gain (nats)",
        "low": "interval, low",
        "high": "interval, high",
        "share": "recommended in",
    }
    caption = (
        f"Mean gain ({metric}, nats; larger is better) over held-out units with 95% bootstrap "
        "intervals over units and seeds, of each rank alone: ranks are judged on the same units, "
        "so their differences vary less. Dashed: the base model. a + c / log r has no value at "
        f"r = 1. {_limits(curves)} Recommended rank: {_recommendation(entry)}."
    )
    how = "trained at each rank"
    if "spectrum" in entry.record.tables:
        how = "cut to each rank"
        errors = [_error(row) for row in rows_of(entry.table("spectrum", _SPECTRUM))]
        errors = [row for row in errors if not is_missing(row["error"])]
        if errors:
            about = (
                "Relative error of the best approximation by rank, from the spectrum: "
                f"{show(errors[0]['error'], 3)} at rank 0 to {show(errors[-1]['error'], 3)}."
            )
            panels.append(Panel("error of the update", _error_chart(errors, about)))
            words = f"{words} {about}"
            by_rank = {row["rank"]: row["error"] for row in errors}
            rows = [{**row, "error": by_rank.get(row["rank"])} for row in rows]
            columns["error"] = "relative error"
            caption += (
                " Error: root of the sum of the squared singular values left out, over the norm of "
                "the update."
            )
    return Figure(
        name="adapter-sweep",
        title=f"Which rank is enough for {entry.label}, {how}?",
        description=words,
        caption=caption,
        panels=tuple(panels),
        table=table_from_rows(rows, columns),
        sources=(entry,),
        theorems=("residual_topk_eckart_young",) if len(panels) > 1 else (),
        legend=legend,
        chance="the base model",
    )


def _recommendation(entry: SiteRecord) -> str:
    found = entry.record.value("recommended_rank")
    if found.value is None:
        return "none, since no rank gains anything"
    interval = found.interval
    within = f" ({show(interval.low)} to {show(interval.high)})" if interval else ""
    return f"{found.value}{within}"


def _limits(curves: Sequence[Mapping[str, Any]]) -> str:
    """What every curve gives an unlimited rank, with its interval over refits."""
    told = []
    for row in curves:
        low, high = (chart_number(row[f"limit_{side}"]) for side in ("low", "high"))
        within = "" if low is None else f" ({show(low, 3)} to {show(high, 3)})"
        told.append(f"{show(row['limit'], 3)}{within} for {row['formula']}")
    return f"Fitted limits a: {'; '.join(told)}." if told else ""


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rank": int(row["rank"]),
        "gain": chart_number(row["gain"]),
        "low": chart_number(row["gain_low"]),
        "high": chart_number(row["gain_high"]),
        "share": chart_number(row["chosen_share"]),
        "series": _MEASURED,
    }


def _error(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"rank": int(row["rank"]), "error": chart_number(row["relative_error"])}


def _line(row: Mapping[str, Any], first: int, last: int) -> list[dict[str, Any]]:
    """Points of a fitted curve between the ranks it was fitted to."""
    start = max(first, 2) if row["form"] == "log" else first
    if start >= last:
        return []
    ranks = [start * (last / start) ** (i / (_STEPS - 1)) for i in range(_STEPS)]
    shape = None if is_missing(row["shape"]) else float(row["shape"])
    values = curve_values(row["form"], ranks, float(row["limit"]), float(row["amplitude"]), shape)
    return [
        {"rank": chart_number(rank), "gain": chart_number(value), "series": str(row["formula"])}
        for rank, value in zip(ranks, values, strict=True)
        if math.isfinite(value)
    ]


def _rank_axis(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    ranks = sorted({row["rank"] for row in rows})
    return alt.X(
        "rank",
        type="quantitative",
        title="rank",
        scale=alt.Scale(type="log", base=2, nice=False, padding=10),
        axis=alt.Axis(values=ranks, format="d", grid=False, labelFlush=False),
    )


def _gain_chart(
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    axis = _rank_axis(rows)
    gain = alt.Y("gain", type="quantitative", title="gain (nats)")
    color = color_by("series", legend)
    told = {"rank": "rank", "gain": "gain", "low": "low", "high": "high", "share": "recommended in"}
    points = alt.Chart(data_of(rows)).encode(
        x=axis,
        y=gain,
        color=color,
        tooltip=tooltips(told, {"gain": ".4~g", "low": ".4~g", "high": ".4~g", "share": ".0%"}),
    )
    intervals = (
        points.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=1.5)
        .encode(y=alt.Y("low", type="quantitative"), y2=alt.Y2("high"))
    )
    fitted = (
        alt.Chart(data_of(lines)).mark_line(strokeWidth=1.5).encode(x=axis, y=gain, color=color)
    )
    layers = [chance_rule(0.0), fitted, intervals, points.mark_point(filled=True, size=40)]
    return finish(alt.layer(*layers), height=260, description=words)


def _error_chart(rows: Sequence[Mapping[str, Any]], words: str) -> dict[str, Any]:
    import altair as alt

    named = [{**row, "series": _MEASURED} for row in rows]
    base = alt.Chart(data_of(named)).encode(
        x=alt.X("rank", type="quantitative", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
        y=alt.Y("error", type="quantitative", title="relative error"),
        color=color_by("series", (_MEASURED,)),
        tooltip=tooltips({"rank": "rank", "error": "error"}, {"error": ".4~g"}),
    )
    return finish(
        alt.layer(base.mark_line(strokeWidth=1.5), base.mark_point(filled=True, size=26)),
        height=260,
        description=words,
    )
