"""Overlap with the base model by projection type: the layers of each beside chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.adapter_figures import projection_order
from gonio.site.charts import (
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
from gonio.site.figure import Choice, Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, show
from gonio.site.overlap_figures import SIDES, TICKS, overlap_options, overlap_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["projection_overlap_figure"]

_HEADINGS = {
    "adapter": "adapter",
    "side": "side",
    "k": "k",
    "projection": "projection",
    "mean": "mean over chance",
    "lower": "lower quartile",
    "upper": "upper quartile",
    "spread": "chance, sd of the mean",
    "layers": "layers",
}


def projection_overlap_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Mean overlap over chance of every projection type, a chart per side.

    Args:
        records: ``adapter-base-overlap`` records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    frames = {entry.label: overlap_rows(entry) for entry in records}
    frames = {label: frame for label, frame in frames.items() if len(frame)}
    if not frames:
        return None
    legend = tuple(frames)
    options = overlap_options(frames.values())
    rows = [row for label, frame in frames.items() for row in _rows(label, frame)]
    top = max(2.0, *(1.02 * max(row["upper"], row["mean"], row["chance_high"]) for row in rows))
    panels, said = [], []
    for side, title in SIDES.items():
        mine = [row for row in rows if row["side"] == side]
        if not mine:
            continue
        words = _describe(title, mine, options[0])
        said.append(words)
        panels.append(Panel(title, _chart(mine, legend, (options[0], top), words)))
    return Figure(
        name="projection-overlap",
        title="Which projections follow the base model?",
        description=" ".join(said),
        caption=(
            "Overlap with the base weight over that of random subspaces (chance is 1, dashed): "
            "mean over the layers of a projection; thick bars hold the middle half of the layers. "
            "Gray: two standard deviations of the mean of as many random layers. The axis is "
            "compressed (square root)."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=tuple(records),
        theorems=("random_subspace_expected_overlap",),
        legend=legend,
        chance="chance = 1, \N{PLUS-MINUS SIGN} 2 sd of the mean",
        is_chance_band=True,
        choice=Choice("k", "Directions compared, k", options, options[0]),
    )


def _rows(label: str, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per side, k and projection."""
    rows = []
    for (side, k, projection), mine in frame.groupby(["side", "choice", "projection"], sort=False):
        ratio = mine["overlap_ratio"].astype("float64")
        spread = float((mine["spread"].pow(2).sum() ** 0.5) / len(mine))
        rows.append(
            {
                "adapter": label,
                "side": side,
                "k": k,
                "projection": projection,
                "mean": chart_number(ratio.mean()),
                "lower": chart_number(ratio.quantile(0.25)),
                "upper": chart_number(ratio.quantile(0.75)),
                "spread": chart_number(spread),
                "chance_low": chart_number(max(0.0, 1 - 2 * spread)),
                "chance_high": chart_number(1 + 2 * spread),
                "layers": len(mine),
            }
        )
    return rows


def _describe(title: str, rows: Sequence[Mapping[str, Any]], option: str) -> str:
    told = [
        f"{row['adapter']} {row['projection']} {show(row['mean'], 3)}"
        for row in rows
        if row["k"] == option
    ]
    return f"{title}, k {option}, mean overlap over chance: {'; '.join(told)}; chance is 1."


def _chart(
    rows: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    shown: tuple[str, float],
    words: str,
) -> dict[str, Any]:
    """One side; ``shown`` is the k shown first and the top of the shared axis."""
    import altair as alt

    option, top = shown
    order = list(projection_order(str(row["projection"]) for row in rows))
    ticks = [tick for tick in TICKS if tick <= top]
    scale = alt.Scale(type="sqrt", domain=[0, top], nice=False)
    base = (
        alt.Chart(data_of(rows))
        .transform_filter("datum.k === k")
        .encode(
            y=alt.Y(
                "projection",
                type="nominal",
                sort=order,
                title=None,
                axis=alt.Axis(grid=False, labelLimit=130),
            ),
            yOffset=alt.YOffset("adapter", type="nominal", sort=list(legend)),
        )
    )
    band = base.mark_rule(style="chance-bar").encode(
        x=alt.X(
            "chance_low",
            type="quantitative",
            scale=scale,
            title="overlap / chance",
            axis=alt.Axis(values=ticks, labelOverlap=True),
        ),
        x2=alt.X2("chance_high"),
    )
    bars = base.mark_rule(strokeWidth=3).encode(
        x=alt.X("lower", type="quantitative"),
        x2=alt.X2("upper"),
        color=color_by("adapter", legend),
        opacity=focus_opacity("adapter", 0.5),
    )
    dots = base.mark_point(filled=True, size=56).encode(
        x=alt.X("mean", type="quantitative"),
        color=color_by("adapter", legend),
        shape=shape_by("adapter", legend),
        opacity=focus_opacity("adapter"),
        tooltip=tooltips(
            {key: title for key, title in _HEADINGS.items() if key != "k"},
            {"layers": "d"} | dict.fromkeys(("mean", "lower", "upper", "spread"), ".3~g"),
        ),
    )
    chance = upright_rule("chance", 1)
    params = (focus_param(), alt.param(name="k", value=option))
    height = max(30, 16 * len(legend)) * len(order)
    return finish(
        alt.layer(band, chance, bars, dots).add_params(*params), height=height, description=words
    )
