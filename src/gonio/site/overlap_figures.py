"""Subspace overlap as a multiple of chance, by layer: with the base model, and between adapters."""

from __future__ import annotations

from collections.abc import Sequence
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
from gonio.site.figure import Choice, Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SIDES",
    "TICKS",
    "base_overlap_figure",
    "overlap_options",
    "overlap_rows",
    "pair_overlap_figure",
]

_COLUMNS = (
    *("module", "layer", "projection", "side", "dimension", "k", "k_from"),
    *("overlap", "chance", "overlap_ratio", "z_score"),
)
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # chance is among them
SIDES = {"left": "left (output) side", "right": "right (input) side"}
_READING = (
    "Overlap: mean squared cosine of the principal angles between the top k directions, divided "
    "by what uniformly random subspaces give (k over the dimension), so 1 is chance. Gray band: "
    "chance plus or minus two exact standard deviations. The axis is compressed (square root) "
    "and the same in every chart."
)


def base_overlap_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Overlap of each update with its base weight, a chart per adapter and side.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    return _overlap_figure(
        records,
        name="base-overlap",
        title="Which of the base model's directions does the update use?",
        caption=_READING,
    )


def pair_overlap_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Overlap of two adapters' updates, a chart per pair and side.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    return _overlap_figure(
        records,
        name="pair-overlap",
        title="Do the adapters turn the same directions?",
        caption=_READING,
    )


def _overlap_figure(
    records: Sequence[SiteRecord], *, name: str, title: str, caption: str
) -> Figure | None:
    frames = {entry.label: overlap_rows(entry) for entry in records}
    frames = {label: frame for label, frame in frames.items() if len(frame)}
    if not frames:
        return None
    legend = projection_order(p for frame in frames.values() for p in frame["projection"])
    options = overlap_options(frames.values())
    top = max(float(frame["overlap_ratio"].max()) for frame in frames.values())
    panels, rows, said = [], [], []
    for label, frame in frames.items():
        for side, side_title in SIDES.items():
            mine = frame[frame["side"] == side]
            if not len(mine):
                continue
            words = _describe(f"{label}, {side_title}", mine, options[0])
            said.append(words)
            panels.append(
                Panel(f"{label}, {side_title}", _chart(mine, legend, (options[0], top), words))
            )
            rows += _summary(label, side, mine, legend, options)
    return Figure(
        name=name,
        title=title,
        description=" ".join(said),
        caption=caption,
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=tuple(records),
        theorems=("random_subspace_expected_overlap",),
        legend=legend,
        chance="chance = 1, \N{PLUS-MINUS SIGN} 2 sd",
        is_chance_band=True,
        choice=Choice("k", "Directions compared, k", options, options[0]),
    )


_HEADINGS = {
    "adapter": "adapter",
    "side": "side",
    "k": "k",
    "projection": "projection",
    "median": "median ratio",
    "low": "lowest",
    "high": "highest",
    "above": "layers above chance + 2 sd",
    "layers": "layers",
}


def overlap_rows(entry: SiteRecord) -> pd.DataFrame:
    """Rows of numbered layers, with k as text and the null's standard deviation as a ratio.

    Raises:
        RecordError: The record lacks the table ``overlaps`` or a column.
    """
    frame = entry.table("overlaps", _COLUMNS).dropna(subset=["layer", "overlap_ratio"])
    frame = frame.astype({"layer": "int64"}).sort_values(["layer", "module", "k"])
    fixed = frame["k_from"] == "fixed"
    named = frame["k_from"].astype(str).str.replace("_", " ")
    z_score = frame["z_score"].astype("float64")
    spread = (frame["overlap_ratio"].astype("float64") - 1.0) / z_score.where(z_score != 0)
    return frame.assign(choice=frame["k"].astype(str).where(fixed, named), spread=spread.abs())


def overlap_options(frames: Any) -> tuple[str, ...]:
    """Every choice of k in some tables: numbers first, ascending."""
    names = {str(name) for frame in frames for name in frame["choice"]}
    return tuple(sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n)))


def _describe(title: str, frame: pd.DataFrame, option: str) -> str:
    ratios = frame.loc[frame["choice"] == option, "overlap_ratio"]
    return (
        f"{title}, k {option}: overlap over chance by layer, median {show(ratios.median(), 3)}, "
        f"from {show(ratios.min(), 3)} to {show(ratios.max(), 3)}; chance is 1."
    )


def _summary(
    label: str, side: str, frame: pd.DataFrame, legend: Sequence[str], options: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for option in options:
        for projection in legend:
            mine = frame[(frame["choice"] == option) & (frame["projection"] == projection)]
            if not len(mine):
                continue
            ratios = mine["overlap_ratio"]
            rows.append(
                {
                    "adapter": label,
                    "side": side,
                    "k": option,
                    "projection": projection,
                    "median": ratios.median(),
                    "low": ratios.min(),
                    "high": ratios.max(),
                    "above": int((mine["z_score"] > 2).sum()),
                    "layers": len(mine),
                }
            )
    return rows


def _band_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Chance plus or minus two standard deviations, per layer, dimension and k."""
    spread = frame.groupby(["choice", "dimension", "layer"])["spread"].mean().dropna()
    bands = rows_of(spread.reset_index())
    rows = [
        {
            "k": row["choice"],
            "dimension": int(row["dimension"]),
            "layer": int(row["layer"]),
            "low": chart_number(max(0.0, 1.0 - 2.0 * row["spread"])),
            "high": chart_number(1.0 + 2.0 * row["spread"]),
        }
        for row in bands
    ]
    return sorted(rows, key=lambda row: (row["k"], row["dimension"], row["layer"]))


def _chart(
    frame: pd.DataFrame, legend: Sequence[str], shown: tuple[str, float], words: str
) -> dict[str, Any]:
    """One side of one adapter; ``shown`` is the k shown first and the top of the shared axis."""
    import altair as alt

    option, top = shown
    rows = [
        {
            "layer": int(row["layer"]),
            "ratio": chart_number(row["overlap_ratio"]),
            "overlap": chart_number(row["overlap"]),
            "z": chart_number(row["z_score"]),
            "projection": row["projection"],
            "k": row["choice"],
        }
        for row in rows_of(frame)
    ]
    chosen = alt.param(name="k", value=option)
    base = (
        alt.Chart(data_of(rows))
        .transform_filter("datum.k === k")
        .encode(
            x=layer_axis(),
            y=alt.Y(
                "ratio",
                type="quantitative",
                title="overlap / chance",
                scale=alt.Scale(type="sqrt", domain=[0, top], nice=True),
                axis=alt.Axis(
                    values=[tick for tick in TICKS if tick <= 1.25 * top], labelOverlap="greedy"
                ),
            ),
            color=color_by("projection", legend),
            tooltip=tooltips(
                {
                    "projection": "projection",
                    "layer": "layer",
                    "ratio": "overlap / chance",
                    "overlap": "overlap",
                    "z": "z-score",
                },
                {"layer": "d", "ratio": ".3~g", "overlap": ".3~g", "z": ".3~g"},
            ),
        )
    )
    marks = series_marks(base, "projection", legend)
    band = chance_band(_band_rows(frame), x="layer", low="low", high="high", group="dimension")
    layers = [band.transform_filter("datum.k === k"), chance_rule(1.0), *marks]
    chart = alt.layer(*layers).add_params(focus_param(), chosen)
    return finish(chart, height=240, description=words)
