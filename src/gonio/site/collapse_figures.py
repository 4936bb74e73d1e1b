"""How far vectors have collapsed onto a line, and the tails of their coordinates, by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
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
from gonio.site.figure import Figure, Panel, pivot_table
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STAGES", "collapse_figure", "tail_figure"]

STAGES = {
    "key_post": "keys after rotary embedding",
    "key_pre": "keys before rotary embedding",
    "value": "values",
}


@dataclass(frozen=True)
class _Quantity:
    """A column of the table ``layers``, and what known laws give."""

    column: str
    title: str
    axis: str
    chance: str | float  # a column, or one number
    references: Mapping[str, float] = field(default_factory=dict)
    domain: tuple[float, float] | None = None
    is_named_below: bool = False  # on which side of their lines references have their names


_ANGLES = (
    _Quantity("phase_angle", "To the main line", "angle (degrees)", "angle_chance", domain=(0, 90)),
    _Quantity(
        "lattice_angle",
        "To the corner of that line",
        "angle (degrees)",
        "angle_chance",
        domain=(0, 90),
    ),
)
_TAILS = (
    _Quantity(
        "moment_ratio",
        "Moment ratio",
        "(E|x|)² / E x²",
        "moment_ratio_chance",
        {"uniform": 3 / 4, "Gaussian": 2 / math.pi, "Laplace": 1 / 2},
    ),
    _Quantity(
        "excess_kurtosis",
        "Excess kurtosis",
        "excess kurtosis",
        0.0,
        {"uniform": -1.2, "Gaussian": 0.0, "Laplace": 3.0},
        is_named_below=True,
    ),
    _Quantity(
        "top_channel_energy",
        "Energy of the strongest 1% of channels",
        "share of energy",
        "top_channel_chance",
    ),
)


def collapse_figure(entry: SiteRecord) -> Figure | None:
    """Angles to the main direction of a head and to its corner of the cube, by layer.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    chance = float(entry.table("layers", ("angle_chance",))["angle_chance"].iloc[0])
    return _layer_figure(
        entry,
        _ANGLES,
        name="phase-collapse",
        title="How far have keys collapsed onto a line?",
        caption=(
            "Median angle in degrees between a vector and the line that holds most of its head's "
            "energy (left), and the corner of the cube that has the line's signs (right). At 0 all "
            "vectors of a head are multiples of one; dashed: a line at random. Lines are found on "
            "calibration text, angles measured on evaluation text. What all keys of a head have in "
            "common shifts the scores of a query alike, and softmax ignores it: a small angle is "
            "energy that a codec pays for and attention does not see."
        ),
        chance=f"random line, {show(chance, 3)}°",
        theorems=("softmax_shift_invariance",),
    )


def tail_figure(entry: SiteRecord) -> Figure | None:
    """Moment ratio, kurtosis and strongest channels by layer, beside laws with known values.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    return _layer_figure(
        entry,
        _TAILS,
        name="tails",
        title="How heavy are the tails of the coordinates?",
        caption=(
            "Means over the channels and heads of a layer; the kurtosis is about each channel's "
            "own mean, the moment ratio about zero. Dashed: what uniform, Gaussian and Laplace "
            "laws about zero give, or channels of equal energy. Heavier tails have a lower ratio "
            "and a higher kurtosis; a mean far from zero raises the ratio. The ratio of a channel "
            "is the share of its energy that its signs keep under one scale of its own."
        ),
        chance="known laws, equal channels",
        theorems=(
            "moment_ratio_le_one",
            "gaussian_moment_ratio_floor_eq",
            "uniform_moment_ratio_floor_eq",
            "laplace_moment_ratio_floor_eq",
        ),
    )


def _layer_figure(
    entry: SiteRecord,
    quantities: Sequence[_Quantity],
    *,
    name: str,
    title: str,
    caption: str,
    chance: str,
    theorems: tuple[str, ...],
) -> Figure | None:
    columns = [q.column for q in quantities]
    columns += [q.chance for q in quantities if isinstance(q.chance, str)]
    frame = entry.table("layers", ("layer", "what", *columns))
    frame = frame[frame["what"].isin(STAGES)]
    if not len(frame):
        return None
    legend = tuple(STAGES[what] for what in STAGES if what in set(frame["what"]))
    panels, rows, said = [], [], []
    for quantity in quantities:
        words = _describe(quantity, frame)
        said.append(words)
        panels.append(Panel(quantity.title, _layer_chart(quantity, frame, legend, words)))
        rows += [
            {
                "layer": int(row["layer"]),
                "series": f"{quantity.title}, {STAGES[row['what']]}",
                "value": row[quantity.column],
            }
            for row in rows_of(frame)
        ]
    return Figure(
        name=name,
        title=title,
        description=" ".join(said),
        caption=caption,
        panels=tuple(panels),
        table=pivot_table(rows, index="layer", series="series", value="value", heading="layer"),
        sources=(entry,),
        theorems=theorems,
        legend=legend,
        chance=chance,
    )


def _describe(quantity: _Quantity, frame: pd.DataFrame) -> str:
    said = []
    for what, group in frame.groupby("what", sort=False):
        values = group[quantity.column]
        said.append(
            f"{STAGES[str(what)]} {show(values.min(), 3)} to {show(values.max(), 3)}, mean "
            f"{show(values.mean(), 3)}"
        )
    references = [f"{name} {show(value, 3)}" for name, value in quantity.references.items()]
    if not references:
        references = [f"chance {show(_chance(quantity, frame), 3)}"]
    return f"{quantity.title}: {'; '.join(said)} ({', '.join(references)})."


def _chance(quantity: _Quantity, frame: pd.DataFrame) -> float:
    chance = quantity.chance
    return float(frame[chance].iloc[0]) if isinstance(chance, str) else chance


def _layer_chart(
    quantity: _Quantity, frame: pd.DataFrame, legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "layer": int(row["layer"]),
            "stage": STAGES[row["what"]],
            "value": chart_number(row[quantity.column]),
        }
        for row in rows_of(frame.dropna(subset=[quantity.column]))
    ]
    domain = {} if quantity.domain is None else {"domain": list(quantity.domain)}
    scale = alt.Scale(zero=False, **domain)
    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=alt.Y("value", type="quantitative", title=quantity.axis, scale=scale),
        color=color_by("stage", legend),
        tooltip=tooltips(
            {"stage": "of", "layer": "layer", "value": quantity.title.lower()},
            {"layer": "d", "value": ".4~g"},
        ),
    )
    references = quantity.references or {"": _chance(quantity, frame)}
    marks = [chance_rule(value) for value in references.values()]
    named = [{"name": name, "y": value} for name, value in quantity.references.items()]
    if named:
        labels = alt.Chart(data_of(named)).mark_text(
            style="chance-label",
            align="right",
            baseline="top" if quantity.is_named_below else "bottom",
            dy=3 if quantity.is_named_below else -2,
        )
        marks.append(
            labels.encode(
                x=alt.value("width"),
                y=alt.Y("y", type="quantitative"),
                text=alt.Text("name", type="nominal"),
            )
        )
    chart = alt.layer(*marks, *series_marks(base, "stage", legend))
    return finish(chart.add_params(focus_param()), height=220, description=words)
