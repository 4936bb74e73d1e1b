"""Fleets: mean stable rank of many adapters, by training step or adapter by adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
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
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fleet_figure"]

_LOW, _HIGH = "stable_rank_layers_low", "stable_rank_layers_high"
_COLUMNS = ("adapter", "path", "step", "stable_rank", "stable_rank_chance", _LOW, _HIGH)
_HEADINGS = {
    "adapter": "adapter",
    "step": "step",
    "mean": "mean stable rank",
    "low": "interval, low",
    "high": "interval, high",
    "chance": "random factors",
}
_INTERVAL = (
    "Bars: 95% bootstrap intervals over layers, all modules of a layer together; they say how much "
    "an adapter's layers vary, not how another run would turn out."
)


def fleet_figure(entry: SiteRecord) -> Figure:
    """Mean stable rank by step for checkpoints, else a strip of modules for each adapter.

    Raises:
        RecordError: The record lacks a table or a column.
    """
    frame = entry.table("adapters", _COLUMNS)
    rows = [
        {
            "adapter": row["adapter"],
            "run": PurePath(row["path"]).parent.name,
            "step": chart_number(row["step"]),
            "mean": chart_number(row["stable_rank"]),
            "low": chart_number(row[_LOW]),
            "high": chart_number(row[_HIGH]),
            "chance": chart_number(row["stable_rank_chance"]),
        }
        for row in rows_of(frame)
    ]
    steps = [row for row in rows if row["step"] is not None]
    is_sequence = len({row["step"] for row in steps}) > 1
    low, high = frame["stable_rank"].min(), frame["stable_rank"].max()
    words = (
        f"Mean stable rank of {len(rows)} adapters, from {show(low, 3)} to {show(high, 3)}; random "
        f"factors of the same shapes give {show(frame['stable_rank_chance'].mean(), 3)}."
    )
    legend = tuple(dict.fromkeys(row["run"] for row in steps)) if is_sequence else ()
    if is_sequence:
        spec = _step_chart(steps, legend, words)
        left_out = len(rows) - len(steps)
        reading = f"Mean over the modules of each checkpoint. {_INTERVAL}"
        if left_out:
            reading += f" {left_out} adapters without a step are only in the table."
    else:
        modules = entry.table("modules", ("adapter", "module", "stable_rank"))
        spec = _strip_chart(rows, modules, words)
        reading = f"Thin marks: modules; dots: their mean. {_INTERVAL}"
    return Figure(
        name="fleet",
        title="Stable rank by training step" if is_sequence else "Stable rank of each adapter",
        description=words,
        caption=reading,
        panels=(Panel("", spec),),
        table=table_from_rows(rows, _HEADINGS),
        sources=(entry,),
        theorems=("stableRank_le_rank",),
        legend=legend,
        chance="mean of random factors of the same shapes",
    )


def _step_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "step",
            type="quantitative",
            title="training step",
            scale=alt.Scale(nice=False, zero=False, padding=8),
            axis=alt.Axis(tickMinStep=1, format="~s", grid=False),
        )
    )
    y = alt.Y(
        "mean",
        type="quantitative",
        title="mean stable rank",
        scale=alt.Scale(domainMin=1, zero=False),
    )
    color = color_by("run", legend)
    chance = base.mark_line(style="chance").encode(
        y=alt.Y("chance", type="quantitative"), detail=alt.Detail("run", type="nominal")
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(
        y=alt.Y("low", type="quantitative"),
        y2=alt.Y2("high"),
        color=color,
        opacity=focus_opacity("run", 0.6),
    )
    line = base.mark_line(strokeWidth=1.5).encode(y=y, color=color, opacity=focus_opacity("run"))
    dots = base.mark_point(filled=True, size=40).encode(
        y=y,
        color=color,
        shape=shape_by("run", legend),
        opacity=focus_opacity("run"),
        tooltip=_tooltips(),
    )
    layers = alt.layer(chance, bars, line, dots).add_params(focus_param())
    return finish(layers, height=260, description=words)


def _strip_chart(
    rows: Sequence[Mapping[str, Any]], modules: pd.DataFrame, words: str
) -> dict[str, Any]:
    import altair as alt

    order = [row["adapter"] for row in rows]
    strips = [
        {
            "adapter": row["adapter"],
            "module": row["module"],
            "stable_rank": chart_number(row["stable_rank"]),
        }
        for row in rows_of(modules.dropna(subset=["stable_rank"]))
    ]
    y = alt.Y("adapter", type="nominal", sort=order, title=None, axis=alt.Axis(grid=False))
    scale = alt.Scale(domainMin=1, zero=False)
    ticks = (
        alt.Chart(data_of(strips))
        .mark_tick(thickness=1, opacity=0.3, height=9)
        .encode(
            x=alt.X("stable_rank", type="quantitative", title="stable rank", scale=scale),
            y=y,
            tooltip=tooltips(
                {"module": "module", "stable_rank": "stable rank"}, {"stable_rank": ".4~g"}
            ),
        )
    )
    base = alt.Chart(data_of(rows)).encode(y=y)
    chance = base.mark_tick(thickness=1.5, style="chance-tick").encode(
        x=alt.X("chance", type="quantitative")
    )
    bars = base.mark_rule(strokeWidth=2, style="mean").encode(
        x=alt.X("low", type="quantitative"), x2=alt.X2("high")
    )
    dots = base.mark_point(filled=True, size=44, style="mean", opacity=1).encode(
        x=alt.X("mean", type="quantitative"), tooltip=_tooltips()
    )
    height = max(40, (24 if len(rows) <= 20 else 14) * len(rows))
    return finish(alt.layer(ticks, chance, bars, dots), height=height, description=words)


def _tooltips() -> list[Any]:
    names = {key: title for key, title in _HEADINGS.items() if key != "step"}
    return tooltips(names, dict.fromkeys(("mean", "low", "high", "chance"), ".4~g"))
