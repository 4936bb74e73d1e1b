"""Keys and the corners of the cube: 1-bit cosine by layer and head under each rotation."""

from __future__ import annotations

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
from gonio.site.heat_maps import head_height, layer_heat_map
from gonio.site.numbers import capitalized, chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TRANSFORMS", "convergence_figure", "cosine_heatmap", "cosine_lines"]

_HEADS = ("layer", "head", "what", "transform", "mean_cosine", "low", "high", "beta", "chance")
_THEOREMS = ("cos_sign_quant_formula", "srht_achieves_isotropic_floor")
_SHARES = (0.9, 0.99)  # of the lift that a learned rotation ends with, upward
_STARTS = {"hadamard": "random Hadamard", "random": "random rotation"}
TRANSFORMS = {
    "learned": "learned rotation",
    "hadamard": "random Hadamard",
    "haar": "random rotation",
    "none": "no rotation",
}
_TITLES = {**TRANSFORMS, "channel": "channel means removed", "token": "token means removed"}
_OTHERS = {"key_pre": "keys before rotary embedding", "value": "values"}  # beside keys after it


def cosine_heatmap(entry: SiteRecord) -> Figure:
    """One heat map of layers and heads per transform, colored by the distance from chance.

    All transforms of keys after rotary embedding; of keys before it and of values, the learned
    rotation and none.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = _heads(entry)
    maps = _maps(entry)
    cosines = [value for _, mine in maps for value in mine["mean_cosine"]]
    low, high = min(cosines), max(cosines)
    chance = float(frame["chance"].iloc[0])
    domain = (min(low, chance), chance, max(high, chance))
    panels, said, rows = [], [], []
    for title, mine in maps:
        words = _describe(title, mine)
        said.append(words)
        panels.append(Panel(title, _heat_chart(mine, domain, words)))
        rows += [
            {"layer": r["layer"], "series": f"{title}, head {r['head']}", "value": r["mean_cosine"]}
            for r in rows_of(mine)
        ]
    return Figure(
        name="cosine-heads",
        title="The 1-bit cosine of every head",
        description=f"{' '.join(said)} A random direction gives {show(chance)}.",
        caption=(
            "Mean cosine of the angle between a key and its signs, after rotary embedding unless "
            "said otherwise, or between a value and its signs. The neutral color is chance, "
            f"c_d = {show(chance)}; one hue is worse than chance, the other better. All "
            "maps share the scale. Intervals are in the tooltips and the record."
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="layer", series="series", value="value", heading="layer"),
        sources=(entry,),
        theorems=_THEOREMS,
        gradient=tuple(show(value, 3) for value in domain),
    )


def cosine_lines(entry: SiteRecord) -> Figure:
    """Mean 1-bit cosine of keys after rotary embedding by layer, a line per transform.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = _heads(entry)
    chance = float(frame["chance"].iloc[0])
    transforms = _present(frame)
    legend = tuple(_TITLES.get(name, name) for name in transforms)
    means = frame.groupby(["transform", "layer"])[["mean_cosine", "low", "high"]].mean()
    rows = [
        {
            "layer": int(layer),
            "transform": _TITLES.get(name, name),
            "mean": chart_number(means.loc[(name, layer), "mean_cosine"]),
            "low": chart_number(means.loc[(name, layer), "low"]),
            "high": chart_number(means.loc[(name, layer), "high"]),
        }
        for name in transforms
        for layer in sorted(frame.loc[frame["transform"] == name, "layer"].unique())
    ]
    said = "; ".join(f"{title}: mean {show(_mean(rows, title), 4)}" for title in legend)
    words = f"Mean 1-bit cosine by layer. {said}. Chance, a random direction: {show(chance)}."
    return Figure(
        name="cosine-layers",
        title="The 1-bit cosine by layer",
        description=words,
        caption=(
            "Mean over the heads of a layer. Shaded: the mean of the heads' 95% bootstrap "
            "intervals, as wide as if their errors moved together. Dashed: c_d, what a uniformly "
            "random direction gives. Learned rotations are fitted on other tokens than these."
        ),
        panels=(Panel("", _line_chart(rows, legend, chance, words)),),
        table=pivot_table(rows, index="layer", series="transform", value="mean", heading="layer"),
        sources=(entry,),
        theorems=_THEOREMS,
        legend=legend,
        chance=f"random direction, c_d = {show(chance)}",
    )


def convergence_figure(entry: SiteRecord) -> Figure | None:
    """Mean 1-bit cosine of the learned rotation by iteration; None without that table.

    Raises:
        RecordError: The table lacks a column.
    """
    if "convergence" not in entry.measurement.tables:
        return None
    frame = entry.table("convergence", ("start", "iteration", "layer", "mean_cosine"))
    if not len(frame):
        return None
    chance = float(_heads(entry)["chance"].iloc[0])
    grouped = frame.groupby(["start", "iteration"])["mean_cosine"]
    titles = {start: f"from a {_STARTS.get(start, start)}" for start in frame["start"]}
    legend = tuple(titles[start] for start in sorted(titles))
    rows = [
        {
            "iteration": int(row["iteration"]),
            "start": titles[row["start"]],
            "mean": chart_number(row["mean"]),
            "low": chart_number(row["min"]),
            "high": chart_number(row["max"]),
        }
        for row in rows_of(grouped.agg(["mean", "min", "max"]).reset_index())
    ]
    runs = int(grouped.size().max())
    thresholds = _thresholds(rows, chance)
    reached = "; ".join(
        f"{row['name']} ({show(row['y'])}) at iteration {row['reached']}" for row in thresholds
    )
    words = " ".join(_describe_run(title, rows) for title in legend)
    words += f" Thresholds: {reached}." if thresholds else ""
    return Figure(
        name="rotation-convergence",
        title="How fast a rotation is learned",
        description=f"{words} Chance, a random direction: {show(chance)}.",
        caption=(
            f"Mean 1-bit cosine on the keys the rotation is learned from, over {runs} runs "
            "(layers and seeds) per start; shaded: the whole range of the runs. Dashed: the floor, "
            "c_d, what a rotation at random gives."
            + (
                f" Thin lines: shares of the way from c_d to the best mean; {reached}."
                * bool(reached)
            )
        ),
        panels=(Panel("", _convergence_chart(rows, legend, chance, thresholds, words)),),
        table=pivot_table(
            rows, index="iteration", series="start", value="mean", heading="iteration"
        ),
        sources=(entry,),
        theorems=_THEOREMS,
        legend=legend,
        chance=f"random direction, c_d = {show(chance)}",
    )


def _thresholds(rows: Sequence[Mapping[str, Any]], chance: float) -> list[dict[str, Any]]:
    """Shares of the lift over chance, and the first iteration at which some start is there."""
    best = max(row["mean"] for row in rows)
    if best <= chance:
        return []
    found = []
    for share in _SHARES:
        level = chance + share * (best - chance)
        reached = min(row["iteration"] for row in rows if row["mean"] >= level)
        name = f"{show(100 * share)}% of the lift"
        found.append({"name": name, "y": chart_number(level), "reached": reached})
    return found


def _heads(entry: SiteRecord, what: str = "key_post") -> pd.DataFrame:
    frame = entry.table("heads", _HEADS).dropna(subset=["mean_cosine"])
    return frame[frame["what"] == what].sort_values(["transform", "layer", "head"])


def _maps(entry: SiteRecord) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each heat map."""
    frame = _heads(entry)
    maps = [(_TITLES.get(t, t), frame[frame["transform"] == t]) for t in _present(frame)]
    for what, name in _OTHERS.items():
        frame = _heads(entry, what)
        for transform in ("learned", "none"):
            mine = frame[frame["transform"] == transform]
            if len(mine):
                maps.append((f"{name}, {_TITLES[transform]}", mine))
    return maps


def _present(frame: pd.DataFrame) -> tuple[str, ...]:
    """The transforms of a table, ours first and in our order."""
    names = set(frame["transform"])
    return (*(t for t in _TITLES if t in names), *sorted(names - set(_TITLES)))


def _mean(rows: Sequence[Mapping[str, Any]], title: str) -> float:
    values = [row["mean"] for row in rows if row["transform"] == title]
    return float(sum(values) / len(values))


def _describe(title: str, frame: pd.DataFrame) -> str:
    values = frame["mean_cosine"]
    return (
        f"{title}: 1-bit cosine of {len(frame)} heads from {show(values.min(), 3)} to "
        f"{show(values.max(), 3)}, mean {show(values.mean(), 3)}."
    )


def _describe_run(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    mine = [row for row in rows if row["start"] == title]
    first, last = mine[0], mine[-1]
    return (
        f"{capitalized(title)}: mean 1-bit cosine {show(first['mean'], 3)} at iteration "
        f"{first['iteration']}, {show(last['mean'], 3)} at iteration {last['iteration']}."
    )


def _heat_chart(
    frame: pd.DataFrame, domain: tuple[float, float, float], words: str
) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "layer": int(row["layer"]),
            "head": int(row["head"]),
            "cosine": chart_number(row["mean_cosine"]),
            "low": chart_number(row["low"]),
            "high": chart_number(row["high"]),
            "beta": chart_number(row["beta"]),
        }
        for row in rows_of(frame)
    ]
    low, middle, high = domain
    scale = alt.Scale(domain=[low, high], domainMid=middle)
    numbers = ("cosine", "low", "high", "beta")
    return layer_heat_map(
        rows,
        y=alt.Y("head", type="ordinal", title="head", axis=alt.Axis(grid=False)),
        color=alt.Color("cosine", type="quantitative", scale=scale, legend=None),
        told={
            "layer": "layer",
            "head": "head",
            "cosine": "mean 1-bit cosine",
            "low": "interval, low",
            "high": "interval, high",
            "beta": "beta",
        },
        formats=dict.fromkeys(numbers, ".4~g"),
        height=head_height(rows),
        words=words,
    )


def _line_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], chance: float, words: str
) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(), color=color_by("transform", legend), opacity=focus_opacity("transform")
    )
    y_axis = alt.Y(
        "mean", type="quantitative", title="mean 1-bit cosine", scale=alt.Scale(zero=False)
    )
    band = base.mark_area(line=False).encode(
        y=alt.Y("low", type="quantitative"),
        y2=alt.Y2("high"),
        opacity=focus_opacity("transform", 0.22),
    )
    line = base.mark_line(strokeWidth=2).encode(y=y_axis)
    points = base.mark_point(filled=True, size=26).encode(
        y=y_axis,
        shape=shape_by("transform", legend),
        tooltip=tooltips(
            {
                "transform": "rotation",
                "layer": "layer",
                "mean": "mean 1-bit cosine",
                "low": "interval, low",
                "high": "interval, high",
            },
            {"layer": "d", "mean": ".4~g", "low": ".4~g", "high": ".4~g"},
        ),
    )
    chart = alt.layer(band, chance_rule(chance), line, points).add_params(focus_param())
    return finish(chart, height=300, description=words)


def _convergence_chart(
    rows: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    chance: float,
    thresholds: Sequence[Mapping[str, Any]],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    x_axis = alt.X(
        "iteration",
        type="quantitative",
        scale=alt.Scale(nice=False, padding=6),
        axis=alt.Axis(
            tickMinStep=1,
            tickCount=10,
            grid=False,
            labelFlush=False,
            labelOverlap=True,
            labelSeparation=4,
            format="d",
        ),
    )
    base = alt.Chart(data_of(rows)).encode(
        x=x_axis, color=color_by("start", legend), opacity=focus_opacity("start")
    )
    band = base.mark_area().encode(
        y=alt.Y("low", type="quantitative"),
        y2=alt.Y2("high"),
        opacity=focus_opacity("start", 0.18),
    )
    y = alt.Y("mean", type="quantitative", title="mean 1-bit cosine", scale=alt.Scale(zero=False))
    line = base.mark_line(strokeWidth=1.5).encode(y=y)
    dots = base.mark_point(filled=True, size=26).encode(
        y=y,
        shape=shape_by("start", legend),
        tooltip=tooltips(
            {"start": "start", "iteration": "iteration", "mean": "mean 1-bit cosine"},
            {"iteration": "d", "mean": ".4~g"},
        ),
    )
    level = alt.Y("y", type="quantitative")
    name = alt.Text("name", type="nominal")
    rules = alt.Chart(data_of(thresholds)).mark_rule(style="median", strokeWidth=0.75)
    # The curve ends near the highest level, so names stand before it: above left, or below right.
    above = alt.Chart(data_of(thresholds[-1:])).mark_text(
        style="chance-label", align="left", baseline="bottom", dy=-2
    )
    below = alt.Chart(data_of(thresholds[:-1])).mark_text(
        style="chance-label", align="right", baseline="top", dy=3
    )
    marks = [
        rules.encode(y=level),
        above.encode(y=level, x=alt.value(4), text=name),
        below.encode(y=level, x=alt.value("width"), text=name),
    ]
    layers = [band, chance_rule(chance), *(marks if thresholds else []), line, dots]
    chart = alt.layer(*layers).add_params(focus_param())
    return finish(chart, height=260, description=words)
