"""Whole spectra: every singular value of every update, and ratios to chance by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from gonio.errors import SettingError
from gonio.linalg.chance import random_lora_singular_values
from gonio.site.adapter_figures import projection_order
from gonio.site.charts import (
    chance_band,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    log_ticks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table
from gonio.site.heat_maps import octave_color
from gonio.site.numbers import capitalized, chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SPECTRUM_TABLE", "ratio_heatmap", "spectrum_figure"]

SPECTRUM_TABLE = "singular_values"
_COLUMNS = ("module", "layer", "projection", "index", "sigma", "cumulative_energy")
_SHAPE = ["out_features", "in_features", "rank"]
_QUANTITIES = {
    "ratio": "singular value / largest",
    "energy": "cumulative energy",
}
_NULL_SAMPLES = 400
_MOST_POINTS = 64  # drawn of one spectrum
_LARGEST_NULL_RANK = 256  # above it the null is neither cheap nor of interest
_LOG_BELOW = 0.01  # ratios that a linear axis cannot show


def spectrum_figure(
    records: Sequence[SiteRecord], *, color: Literal["projection", "layer"] = "projection"
) -> Figure | None:
    """Singular values of every update over the first, and their energy, a line per module.

    Args:
        records: Records with the tables ``modules`` and :data:`SPECTRUM_TABLE`; others are left
            out.
        color: What the color of a line tells: the projection (with the median of each as a thick
            line) or the layer (with one thick median).

    Raises:
        RecordError: A table lacks a column.
        SettingError: An unknown ``color``.
    """
    if color not in ("projection", "layer"):
        raise SettingError(f"color is {color!r}, expected projection or layer")
    drawn = [entry for entry in records if SPECTRUM_TABLE in entry.measurement.tables]
    if not drawn:
        return None
    frames = {entry.label: _prepared(entry) for entry in drawn}
    names = projection_order(p for frame in frames.values() for p in frame["projection"])
    # One scale for all: charts of two adapters stand beside each other.
    lowest = min(_lowest_ratio(frame) for frame in frames.values())
    panels, rows, said = [], [], []
    for label, frame in frames.items():
        medians, nulls = _medians(frame, color), _null_rows(frame)
        words = _describe(label, frame)
        said.append(words)
        for field, title in _QUANTITIES.items():
            chart = _fan_chart(frame, medians, nulls, field, (color, names, lowest))
            spec = finish(chart, height=250, description=f"{title.capitalize()}. {words}")
            panels.append(Panel(f"{label}: {title}", spec))
        rows += [
            {"line": row["x"], "series": f"{label} {row['series']}", "value": row["ratio"]}
            for row in medians
        ]
    return Figure(
        name="spectrum",
        title="Singular values of every update",
        description=" ".join(said),
        caption=(
            "Each thin line is one weight matrix: its singular values over the largest (left), and "
            "the share of its squared Frobenius norm that the values up to here hold (right). "
            f"Thick: median{' by projection' if color == 'projection' else ' over all of them'}. "
            "Gray band: at each index, 95% of what Gaussian factors of the same shapes give, from "
            "the lowest to the highest of the shapes."
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="line", series="series", value="value", heading="index"),
        sources=tuple(drawn),
        legend=names if color == "projection" else (),
        chance="random factors, 95%",
        is_chance_band=True,
    )


def ratio_heatmap(records: Sequence[SiteRecord], column: str = "stable_rank") -> Figure | None:
    """A column of the modules by layer and projection, over its chance where it has one.

    Args:
        records: Records with the table ``modules``.
        column: A numeric column; divided by ``random_lora_COLUMN`` where that exists.

    Raises:
        RecordError: A record lacks the table or the column.
    """
    import pandas as pd

    null = f"random_lora_{column}"
    parts = []
    for entry in records:
        table = entry.table("modules", ("module", "layer", "projection", column))
        value = table[column].astype("float64")
        chance = table[null].astype("float64") if null in table.columns else None
        ratio = value if chance is None else value / chance
        parts.append(table.assign(value=ratio, adapter=entry.label))
    if not parts:
        return None
    frame = pd.concat(parts, ignore_index=True).dropna(subset=["layer", "value"])
    if not len(frame):
        return None
    frame = frame.astype({"layer": "int64"})
    is_ratio = all(null in entry.measurement.tables["modules"].columns for entry in records)
    title = column.replace("_", " ") + (" / chance" if is_ratio else "")
    scale = _color_scale(frame["value"], is_ratio)
    panels = [
        Panel(str(label), _heat_chart(mine, title, scale))
        for label, mine in frame.groupby("adapter", sort=False)
    ]
    low, high = show(frame["value"].min(), 3), show(frame["value"].max(), 3)
    return Figure(
        name=f"{column.replace('_', '-')}-heatmap",
        title=f"{capitalized(title)} by layer and projection",
        description=f"{title} of {len(frame)} updates, from {low} to {high}.",
        caption=(
            "Each cell is one weight matrix."
            + (
                " Chance: the mean over Gaussian factors of the same shape; 1 is chance, and half "
                "and twice chance have equally strong colors."
                if is_ratio
                else ""
            )
        ),
        panels=tuple(panels),
        table=pivot_table(
            [
                {**row, "series": f"{row['adapter']} {row['projection']}"}
                for row in rows_of(frame[["adapter", "layer", "projection", "value"]])
            ],
            index="layer",
            series="series",
            value="value",
            heading="layer",
        ),
        sources=tuple(records),
    )


def _prepared(entry: SiteRecord) -> pd.DataFrame:
    """One row per singular value drawn: ratio, energy, x, and the shape of its module."""
    table = entry.table(SPECTRUM_TABLE, _COLUMNS)
    shapes = entry.table("modules", ("module", *_SHAPE)).set_index("module")[_SHAPE]
    frame = table.join(shapes, on="module").astype({"index": "int64"})
    first = frame.groupby("module", sort=False)["sigma"].transform("max")
    frame = frame.assign(ratio=frame["sigma"] / first.where(first > 0))
    frame = frame.dropna(subset=["ratio"]).rename(columns={"cumulative_energy": "energy"})
    last = int(frame["index"].max())
    kept = np.unique(np.geomspace(1, last, _MOST_POINTS).round()) if last > _MOST_POINTS else None
    if kept is not None:
        frame = frame[frame["index"].isin(kept)]
    is_one_rank = frame["rank"].nunique() == 1
    return frame.assign(x=frame["index"] if is_one_rank else frame["index"] / frame["rank"])


def _lowest_ratio(frame: pd.DataFrame) -> float:
    return float(frame.loc[frame["ratio"] > 0, "ratio"].min())


def _medians(frame: pd.DataFrame, color: str) -> list[dict[str, Any]]:
    """Median over modules at each index, by projection or over all."""
    series = frame["projection"] if color == "projection" else "all modules"
    columns = ["ratio", "energy"]
    medians = frame.assign(series=series).groupby(["series", "x"], sort=False)[columns].median()
    return _chart_rows(medians.reset_index(), ["series", "x", *columns])


def _null_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """95% of random factors at each index: one band per rank, over all shapes of that rank."""
    found: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    is_one_rank = frame["rank"].nunique() == 1
    shapes = frame[_SHAPE].drop_duplicates().itertuples(index=False)
    kept = set(frame["index"])
    for m, n, rank in (map(int, shape) for shape in shapes):
        if rank > _LARGEST_NULL_RANK:
            continue
        generator = torch.Generator().manual_seed(0)
        sigma = random_lora_singular_values(m, n, rank, samples=_NULL_SAMPLES, generator=generator)
        energy = sigma.square().cumsum(1) / sigma.square().sum(1, keepdim=True)
        levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
        ends = [torch.quantile(q, levels, dim=0) for q in (sigma / sigma[:, :1], energy)]
        for place in range(sigma.shape[1]):
            values = tuple(float(end[side, place]) for end in ends for side in (0, 1))
            found.setdefault((rank, place + 1), []).append(values)
    return [
        {
            "rank": rank,
            "x": index if is_one_rank else chart_number(index / rank),
            **{
                f"{field}_{end}": chart_number(choose(values[2 * i + j] for values in shapes_of))
                for i, field in enumerate(_QUANTITIES)
                for j, (end, choose) in enumerate((("low", min), ("high", max)))
            },
        }
        for (rank, index), shapes_of in found.items()
        if index in kept
    ]


def _chart_rows(frame: pd.DataFrame, columns: list[str]) -> list[dict[str, Any]]:
    return [
        {name: cell if isinstance(cell, str) else chart_number(cell) for name, cell in row.items()}
        for row in rows_of(frame[columns])
    ]


def _describe(label: str, frame: pd.DataFrame) -> str:
    last = frame.sort_values("index").groupby("module")["ratio"].last()
    return (
        f"{label}: {frame['module'].nunique()} updates; the last singular value over the first is "
        f"{show(last.median(), 3)} in the median, from {show(last.min(), 3)} to "
        f"{show(last.max(), 3)}."
    )


def _fan_chart(
    frame: pd.DataFrame,
    medians: list[dict[str, Any]],
    nulls: list[dict[str, Any]],
    field: str,
    drawing: tuple[str, Sequence[str], float],
) -> Any:
    """Thin lines, thick medians and the null; ``drawing``: color, its names, the lowest ratio."""
    import altair as alt

    color, names, lowest = drawing
    is_one_rank = frame["rank"].nunique() == 1
    is_log = field == "ratio" and lowest < _LOG_BELOW
    shown = frame[frame["ratio"] > 0] if is_log else frame
    fields = ["module", "layer", "projection", "index", "x", field]
    rows = _chart_rows(shown.round({field: 4}) if not is_log else shown, fields)
    x = alt.X(
        "x",
        type="quantitative",
        title="index" if is_one_rank else "index / rank",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(
            grid=False,
            labelFlush=False,
            **({"values": _ticks(frame), "format": "d"} if is_one_rank else {}),
        ),
    )
    y_scale = alt.Scale(domain=[0, 1])
    y_axis = alt.Axis()
    if is_log:
        y_scale = alt.Scale(type="log", domain=[lowest, 1], nice=False)
        y_axis = alt.Axis(values=log_ticks(lowest, 1), format="~g")
    y = alt.Y(field, type="quantitative", title=_QUANTITIES[field], scale=y_scale, axis=y_axis)
    lines = (
        alt.Chart(data_of(rows))
        .mark_line(strokeWidth=0.6)
        .encode(
            x=x,
            y=y,
            detail=alt.Detail("module", type="nominal"),
            color=_fan_color(color, names),
            opacity=focus_opacity("projection", 0.28),
            tooltip=tooltips(
                {"module": "module", "index": "index", field: _QUANTITIES[field]},
                {"index": "d", field: ".4~g"},
            ),
        )
    )
    middle = alt.Chart(data_of(medians)).mark_line(strokeWidth=2).encode(x=x, y=y)
    if color == "projection":
        middle = middle.encode(color=color_by("series", names), opacity=focus_opacity("series"))
        dots = middle.mark_point(filled=True, size=26).encode(shape=shape_by("series", names))
    else:
        middle = middle.mark_line(strokeWidth=2, style="median")
    layers = [lines, middle, *([dots] if color == "projection" else [])]
    if nulls:
        low, high = f"{field}_low", f"{field}_high"
        layers.insert(0, chance_band(nulls, x="x", low=low, high=high, group="rank"))
    return alt.layer(*layers).add_params(focus_param())


def _ticks(frame: pd.DataFrame) -> list[int]:
    """The first index and about five others, at multiples of a power of two."""
    last = int(frame["index"].max())
    step = 2 ** max(0, math.ceil(math.log2(last / 5)))
    return [1, *(n for n in range(step, last + 1, step) if n > 1)]


def _fan_color(color: str, names: Sequence[str]) -> Any:
    import altair as alt

    if color == "projection":
        return color_by("projection", names)
    return alt.Color("layer", type="quantitative", legend=None)


def _color_scale(values: pd.Series[float], is_ratio: bool) -> tuple[float, float]:
    """Ends of the colors: r and 1/r about chance for a ratio, the range of others."""
    low, high = float(values.min()), float(values.max())
    if not is_ratio:
        return low, high
    reach = max(1 / low, high, 1.01)
    return 1 / reach, reach


def _heat_chart(frame: pd.DataFrame, title: str, scale: tuple[float, float]) -> dict[str, Any]:
    import altair as alt

    fields = ["module", "layer", "projection", "value"]
    if title.endswith("/ chance"):
        frame = frame.assign(octaves=np.log2(frame["value"]))
        fields.append("octaves")
        color = octave_color(math.log2(scale[0]), math.log2(scale[1]), title)
    else:
        colors, legend = alt.Scale(domain=list(scale)), alt.Legend(title=title)
        color = alt.Color("value", type="quantitative", scale=colors, legend=legend)
    order = projection_order(frame["projection"])
    layers = sorted(set(frame["layer"]))
    step = 1 if len(layers) <= 12 else 5 if len(layers) <= 60 else 10
    chart = (
        alt.Chart(data_of(_chart_rows(frame, fields)))
        .mark_rect(style="cell")
        .encode(
            x=alt.X(
                "layer",
                type="ordinal",
                title="layer",
                axis=alt.Axis(
                    values=[n for n in layers if n % step == 0], labelAngle=0, grid=False
                ),
            ),
            y=alt.Y(
                "projection",
                type="nominal",
                sort=list(order),
                title=None,
                axis=alt.Axis(grid=False, domain=False, ticks=False),
            ),
            color=color,
            tooltip=tooltips({"module": "module", "value": title}, {"value": ".4~g"}),
        )
    )
    words = f"{title}, {len(frame)} updates by layer and projection."
    return finish(chart, height=max(60, 22 * len(order)), description=words)
