"""The angle between keys and their signs by layer, beside a study's rule for bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    layer_axis,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table
from gonio.site.numbers import capitalized, chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["sign_angle_figure"]

_HEADS = ("layer", "what", "transform", "mean_cosine", "chance")
_TRANSFORMS = {"none": "keys as they are", "learned": "under the learned rotation"}
_CUTOFF = 44.0  # degrees: the study's border between 2 and 3 bits
_WIDE_HEAD = 512  # heads of this size got 1 bit in the study, whatever their angle
_RULE = ("1 bit: heads of 512", "2 bits: up to 44°", "3 bits: above 44°")


def sign_angle_figure(entry: SiteRecord) -> Figure | None:
    """Angle between keys and their own signs by layer, colored by the study's rule for bits.

    As they are and under the learned rotation; None without keys as they are.

    Raises:
        RecordError: The record lacks a table or a column.
    """
    frame = entry.table("heads", _HEADS).dropna(subset=["mean_cosine"])
    frame = frame[frame["what"] == "key_post"]
    names = [name for name in _TRANSFORMS if name in set(frame["transform"])]
    if "none" not in names:
        return None
    spectra = entry.table("spectra", ("what", "top_chance"))
    sizes = spectra.loc[spectra["what"] == "key_post", "top_chance"]
    head_dim = round(1 / float(sizes.iloc[0]))
    chance = _degrees(float(frame["chance"].iloc[0]))
    by_transform = {
        name: _angle_rows(frame[frame["transform"] == name], head_dim) for name in names
    }
    every = [row for rows in by_transform.values() for row in rows]
    legend = tuple(rule for rule in _RULE if any(row["rule"] == rule for row in every))
    edges = [chance, _CUTOFF, *(row[end] for row in every for end in ("low", "high"))]
    domain = (math.floor(min(edges)) - 1, math.ceil(max(edges)) + 1)
    panels, said = [], []
    for name, rows in by_transform.items():
        words = _describe_angles(_TRANSFORMS[name], rows)
        said.append(words)
        panels.append(Panel(_TRANSFORMS[name], _angle_chart(rows, legend, chance, domain, words)))
    return Figure(
        name="sign-angles",
        title="How far are keys from their signs?",
        description=f"{' '.join(said)} A random direction has {show(chance, 3)} degrees.",
        caption=(
            "Angle in degrees between a key and its signs: the arc cosine of the mean 1-bit cosine "
            "over the heads of a layer; bars reach from the head nearest to its signs to the "
            "farthest. The squared sine is the energy that one bit per coordinate loses. Colors: "
            "the rule of the moe-gauge study, 2 bits up to 44 degrees (line), 3 above, 1 for heads "
            "of 512 coordinates at any angle. No theorem supports this cutoff, which was found on "
            "other models: the angle is that of one basis, and a rotation, which loses nothing, "
            "moves it. It is shown for comparison, not as a budget."
        ),
        panels=tuple(panels),
        table=pivot_table(
            [
                {**row, "series": f"{_TRANSFORMS[name]} (degrees)"}
                for name, rows in by_transform.items()
                for row in rows
            ],
            index="layer",
            series="series",
            value="angle",
            heading="layer",
        ),
        sources=(entry,),
        theorems=("cos_sign_quant_formula", "residual_energy_formula"),
        legend=legend,
        chance=f"random direction, {show(chance, 3)}°",
    )


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def _angle_rows(frame: pd.DataFrame, head_dim: int) -> list[dict[str, Any]]:
    """One row per layer: the angle of the mean cosine, those of the extreme heads, the rule."""
    by_layer = frame.groupby("layer")["mean_cosine"].agg(["mean", "min", "max"]).reset_index()
    rows = []
    for row in rows_of(by_layer):
        angle = _degrees(row["mean"])
        wide = head_dim >= _WIDE_HEAD
        rows.append(
            {
                "layer": int(row["layer"]),
                "angle": chart_number(angle),
                "low": chart_number(_degrees(row["max"])),
                "high": chart_number(_degrees(row["min"])),
                "lost": chart_number(math.sin(math.radians(angle)) ** 2),
                "rule": _RULE[0] if wide else _RULE[1] if angle <= _CUTOFF else _RULE[2],
            }
        )
    return rows


def _describe_angles(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    angles = [row["angle"] for row in rows]
    above = sum(angle > _CUTOFF for angle in angles)
    return (
        f"{capitalized(title)}: from {show(min(angles), 3)} to {show(max(angles), 3)} "
        f"degrees; {above} of {len(angles)} layers above {show(_CUTOFF)}."
    )


def _angle_chart(
    rows: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    chance: float,
    domain: tuple[int, int],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(), color=color_by("rule", legend), opacity=focus_opacity("rule")
    )
    spread = base.mark_rule(strokeWidth=1.25).encode(
        y=alt.Y("low", type="quantitative", scale=scale, title="angle to the signs (degrees)"),
        y2=alt.Y2("high"),
        opacity=focus_opacity("rule", 0.5),
    )
    dots = base.mark_point(filled=True, size=44).encode(
        y=alt.Y("angle", type="quantitative"),
        shape=shape_by("rule", legend),
        tooltip=tooltips(
            {
                "layer": "layer",
                "angle": "angle (degrees)",
                "low": "nearest head",
                "high": "farthest head",
                "lost": "energy that signs lose",
                "rule": "the study's rule",
            },
            {"layer": "d", **dict.fromkeys(("angle", "low", "high", "lost"), ".3~g")},
        ),
    )
    cutoff = (
        alt.Chart(data_of([{"cutoff": _CUTOFF}]))
        .mark_rule(style="median", strokeWidth=1)
        .encode(y=alt.Y("cutoff", type="quantitative"))
    )
    chart = alt.layer(chance_rule(chance), cutoff, spread, dots).add_params(focus_param())
    return finish(chart, height=260, description=words)
