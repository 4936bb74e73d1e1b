"""Spectra of keys and values: eigenvalues of their second moments, and effective ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gonio.site.charts import (
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    shape_by,
    tooltips,
)
from gonio.site.collapse_figures import STAGES
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table
from gonio.site.heat_maps import head_height, layer_heat_map, octave_color
from gonio.site.numbers import capitalized, chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["eigenvalue_figure", "rank_heatmap"]

_DEPTHS = ("first", "middle", "last")
_MOST_POINTS = 24  # drawn of one spectrum
_POWERS = "format(datum.value, datum.value < 0.001 ? '~e' : '~g')"


def eigenvalue_figure(entry: SiteRecord) -> Figure | None:
    """Eigenvalues of the second moment, a line per layer, colored by depth.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = entry.table("eigenvalues", ("layer", "what", "index", "share"))
    frame = frame[frame["what"].isin(STAGES) & (frame["share"] > 0)]
    if not len(frame):
        return None
    names = _depth_names(sorted(set(frame["layer"])))
    frame = frame.assign(depth=frame["layer"].map(names), rank=frame["index"] + 1)
    legend = tuple(dict.fromkeys(names.values()))
    floor = 10 ** math.floor(math.log10(float(frame["share"].min())))
    panels, rows, said = [], [], []
    for what, title in STAGES.items():
        mine = frame[frame["what"] == what]
        if not len(mine):
            continue
        dim = int(mine["rank"].max())
        words = _describe_spectrum(title, mine, dim)
        said.append(words)
        medians = mine.groupby(["depth", "rank"], sort=False)["share"].median().reset_index()
        panels.append(Panel(title, _spectrum_chart(mine, medians, legend, dim, floor, words)))
        rows += [
            {"index": row["rank"], "series": f"{title}, {row['depth']}", "value": row["share"]}
            for row in rows_of(medians)
        ]
    return Figure(
        name="cache-spectra",
        title="In how many directions do they live?",
        description=" ".join(said),
        caption=(
            "Eigenvalues of the second moment (about zero, not the mean) over their sum, averaged "
            "over the heads of a layer; both axes on a log scale. Thin: one layer; thick: the "
            "median of a third of the depth. Dashed: all directions alike. What lies right of an "
            "index is the energy that the best basis of so many directions misses. Rotary "
            "embedding turns directions by position, which spreads what all tokens had in common."
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="index", series="series", value="value", heading="index"),
        sources=(entry,),
        theorems=("residual_topk_eckart_young",),
        legend=legend,
        chance="all directions alike",
    )


def rank_heatmap(entry: SiteRecord) -> Figure | None:
    """Effective rank of every head's second moment over the size of the head.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    columns = ("layer", "head", "what", "effective_rank", "top_share", "top_chance")
    frame = entry.table("spectra", columns).dropna(subset=["effective_rank"])
    frame = frame[frame["what"].isin(STAGES)]
    if not len(frame):
        return None
    frame = frame.assign(octaves=np.log2(frame["effective_rank"] * frame["top_chance"]))
    lowest = min(float(frame["octaves"].min()), -1.0)
    panels, rows, said = [], [], []
    for what, title in STAGES.items():
        mine = frame[frame["what"] == what]
        if not len(mine):
            continue
        ranks, dim = mine["effective_rank"], round(1 / float(mine["top_chance"].iloc[0]))
        words = (
            f"{capitalized(title)}: effective rank of {len(mine)} heads from "
            f"{show(ranks.min(), 3)} to {show(ranks.max(), 3)}, mean {show(ranks.mean(), 3)}, of "
            f"{dim} if all directions were alike."
        )
        said.append(words)
        panels.append(Panel(title, _rank_chart(mine, lowest, words)))
        rows += [
            {
                "layer": int(row["layer"]),
                "series": f"{title}, head {row['head']}",
                "value": row["effective_rank"],
            }
            for row in rows_of(mine)
        ]
    return Figure(
        name="cache-ranks",
        title="The effective rank of every head",
        description=" ".join(said),
        caption=(
            "Exponential of the entropy of the eigenvalues of a head's second moment, over the "
            "size of a head. The neutral color is 1, all directions alike; equal factors have "
            "equally strong colors, and all maps share the scale. The share of the largest "
            "eigenvalue is in the tooltips."
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="layer", series="series", value="value", heading="layer"),
        sources=(entry,),
    )


def _depth_names(layers: Sequence[int]) -> dict[int, str]:
    """Which third of the depth each layer is in, with the range of layers."""
    names = {}
    for title, part in zip(_DEPTHS, np.array_split(np.asarray(layers), 3), strict=True):
        for layer in part:
            span = str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}"
            names[int(layer)] = f"{title} layers ({span})"
    return names


def _describe_spectrum(title: str, frame: pd.DataFrame, dim: int) -> str:
    totals = frame.sort_values("rank").groupby("layer")["share"]
    half = totals.apply(lambda shares: int((shares.cumsum() < 0.5).sum()) + 1)
    return (
        f"{capitalized(title)}: the largest of {dim} eigenvalues holds "
        f"{show(totals.max().min(), 2)} to {show(totals.max().max(), 2)} of the energy of a layer; "
        f"half of it takes at most {show(half.max())}."
    )


def _spectrum_chart(
    frame: pd.DataFrame,
    medians: pd.DataFrame,
    legend: Sequence[str],
    dim: int,
    floor: float,
    words: str,
) -> dict[str, Any]:
    import altair as alt

    ticks = [2**n for n in range(dim.bit_length())]
    kept = set(np.unique(np.geomspace(1, dim, _MOST_POINTS).round()).astype(int).tolist())
    kept |= set(ticks)
    lines, middles = (
        [
            {**row, "share": chart_number(row["share"])}
            for row in rows_of(table.loc[table["rank"].isin(kept), columns])
        ]
        for table, columns in (
            (frame, ["layer", "depth", "rank", "share"]),
            (medians, ["depth", "rank", "share"]),
        )
    )
    x = alt.X(
        "rank",
        type="quantitative",
        title="index",
        scale=alt.Scale(type="log", domain=[1, dim], nice=False),
        axis=alt.Axis(grid=False, labelFlush=False, values=ticks),
    )
    y = alt.Y(
        "share",
        type="quantitative",
        title="share of energy",
        scale=alt.Scale(type="log", domain=[floor, 1], nice=False),
        axis=alt.Axis(tickCount=5, labelExpr=_POWERS),
    )
    thin = (
        alt.Chart(data_of(lines))
        .mark_line(strokeWidth=0.7)
        .encode(
            x=x,
            y=y,
            detail=alt.Detail("layer", type="nominal"),
            color=color_by("depth", legend),
            opacity=focus_opacity("depth", 0.4),
            tooltip=tooltips(
                {"layer": "layer", "rank": "index", "share": "share of energy"},
                {"layer": "d", "rank": "d", "share": ".3~g"},
            ),
        )
    )
    thick = (
        alt.Chart(data_of(middles))
        .mark_line(strokeWidth=2.2)
        .encode(x=x, y=y, color=color_by("depth", legend), opacity=focus_opacity("depth"))
    )
    # Shapes tell the thirds apart without color, at the ticks, where they do not hide the lines.
    dots = (
        alt.Chart(data_of([row for row in middles if row["rank"] in ticks]))
        .mark_point(filled=True, size=40)
        .encode(
            x=x,
            y=y,
            color=color_by("depth", legend),
            shape=shape_by("depth", legend),
            opacity=focus_opacity("depth"),
        )
    )
    chart = alt.layer(chance_rule(1 / dim), thin, thick, dots).add_params(focus_param())
    return finish(chart, height=260, description=words)


def _rank_chart(frame: pd.DataFrame, lowest: float, words: str) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "layer": int(row["layer"]),
            "head": int(row["head"]),
            "octaves": chart_number(row["octaves"]),
            "rank": chart_number(row["effective_rank"]),
            "top": chart_number(row["top_share"]),
        }
        for row in rows_of(frame)
    ]
    return layer_heat_map(
        rows,
        y=alt.Y("head", type="ordinal", title="head", axis=alt.Axis(grid=False)),
        color=octave_color(lowest, 0, "rank / size"),
        told={
            "layer": "layer",
            "head": "head",
            "rank": "effective rank",
            "top": "share of the largest eigenvalue",
        },
        formats={"rank": ".3~g", "top": ".3~g"},
        height=head_height(rows),
        words=words,
    )
