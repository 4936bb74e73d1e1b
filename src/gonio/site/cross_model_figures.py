"""Observed models beside each other: lift of the 1-bit cosine, centering, moment ratios of laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gonio.site.charts import (
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    label_axis,
    shape_by,
    tooltips,
    upright_rule,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.key_figures import TRANSFORMS
from gonio.site.numbers import capitalized, chart_number, rows_of, show

__all__ = ["LAWS", "centering_figure", "cross_model_figure", "moment_reference_figure"]

# (E|x|)^2 / E x^2: the share of energy that signs keep of independent coordinates of this law.
LAWS = {
    "two values, plus and minus": 1.0,
    "sine": 8 / math.pi**2,
    "uniform": 3 / 4,
    "Gaussian": 2 / math.pi,
    "logistic": 12 * math.log(2) ** 2 / math.pi**2,
    "Student t, 5 degrees": 16 / (3 * math.pi**2),
    "Laplace": 1 / 2,
    "Student t, 3 degrees": 4 / math.pi**2,
}
_STAGES = {"key_post": "keys", "key_pre": "keys before rotary embedding", "value": "values"}
_CENTERS = {
    "none": "as they are",
    "channel": "channel means removed",
    "token": "token means removed",
}
_CHOICES = (*reversed(TRANSFORMS), "channel", "token")
_CHOICE_NAMES = {**TRANSFORMS, "channel": "channel means removed", "token": "token means removed"}
_LIFT_HEADINGS = {
    "model": "model",
    "what": "of",
    "choice": "rotation or center",
    "cosine": "1-bit cosine",
    "chance": "chance, c_d",
    "lift": "lift (% of chance)",
    "low": "lowest head",
    "high": "highest head",
    "heads": "heads",
}
_CENTER_HEADINGS = {
    "model": "model",
    "what": "of",
    "center": "center",
    "cosine": "1-bit cosine",
    "chance": "chance, c_d",
    "gain": "lift over none (points)",
    "low": "worst layer",
    "high": "best layer",
    "layers": "layers lifted",
}
_HEADS = ("layer", "head", "what", "transform", "mean_cosine", "chance")


def cross_model_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """1-bit cosine over chance of every observed model under every rotation, as a colored table.

    Args:
        records: ``key-geometry`` records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    rows = [row for entry in records for row in _lifts(entry)]
    if not rows:
        return None
    reach = max(abs(row["lift"]) for row in rows) or 1.0
    panels, said = [], []
    for title in _STAGES.values():
        mine = [row for row in rows if row["what"] == title]
        if mine:
            words = f"{capitalized(title)}, lift over chance: " + "; ".join(
                f"{row['model']}, {row['choice']} {show(row['lift'], 3)}%" for row in mine
            )
            said.append(f"{words}.")
            panels.append(Panel(title, _lift_chart(mine, reach, f"{words}.")))
    return Figure(
        name="cross-model",
        title="Which models do signs fit?",
        description=" ".join(said),
        caption=(
            "Lift: mean 1-bit cosine over the heads of a model, over that of a random direction "
            "of the same size (c_d), minus 1, in percent; printed in every cell. Cells without "
            "color are at chance; one hue is above it, the other below, equal lifts equally "
            "strong. Models differ in head size, so each is compared with its own chance. Learned "
            "rotations are fitted on other tokens than these."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _LIFT_HEADINGS),
        sources=tuple(records),
        theorems=("cos_sign_quant_formula", "srht_achieves_isotropic_floor"),
        is_table_open=True,
    )


def centering_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """What removing a mean does to the 1-bit cosine, by model; None where nothing was centered.

    Args:
        records: ``key-geometry`` records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    rows = [row for entry in records for row in _centered(entry)]
    if not rows:
        return None
    legend = tuple(dict.fromkeys(row["center"] for row in rows))
    said = "; ".join(
        f"{row['model']}, {row['what']}, {row['center']}: {_signed(row['gain'])} points"
        for row in rows
    )
    words = f"Change of the mean 1-bit cosine by centering: {said}. Without centering: 0."
    return Figure(
        name="centering-lift",
        title="Does removing a mean bring keys nearer to their signs?",
        description=words,
        caption=(
            "Mean 1-bit cosine with the mean removed minus that without, in hundredths; lines "
            "reach from the layer that loses most to the one that gains most. Left of the dashed "
            "line centering moves vectors away from their signs. It can still help: the mean of a "
            "channel adds the same to all scores of a query, which softmax ignores, so what counts "
            "is the error of what remains."
        ),
        panels=(Panel("", _center_chart(rows, legend, words)),),
        table=table_from_rows(rows, _CENTER_HEADINGS),
        sources=tuple(records),
        theorems=("cos_sign_quant_formula", "softmax_shift_invariance"),
        legend=legend,
        chance="no change",
        is_table_open=True,
    )


def moment_reference_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Moment ratio of known laws and of the observed models, on one scale.

    Args:
        records: ``key-geometry`` records; those without the table ``layers`` add no points.

    Raises:
        RecordError: The table lacks a column.
    """
    measured = [row for entry in records for row in _ratios(entry)]
    if not measured:
        return None
    laws = [{"name": name, "of": "law", "ratio": ratio} for name, ratio in LAWS.items()]
    rows = [*laws, *measured]
    legend = ("law", *dict.fromkeys(row["of"] for row in measured))
    told = "; ".join(f"{row['name']} {show(row['ratio'], 3)}" for row in laws)
    found = "; ".join(f"{row['name']}, {row['of']} {show(row['ratio'], 3)}" for row in measured)
    words = f"Moment ratio beta of laws about zero: {told}. Measured: {found}."
    return Figure(
        name="moment-reference",
        title="How much do signs keep of known laws?",
        description=words,
        caption=(
            "Moment ratio beta, the squared mean of the absolute value over the mean square: the "
            "share of energy that signs and one scale keep of independent coordinates of that law "
            "(1 loses nothing). Dashed: Gaussian, 2/\N{GREEK SMALL LETTER PI}, the limit of every "
            "random rotation in high dimension. Measured: mean over layers, lines from the lowest "
            "to the highest layer; channels with a mean far from zero raise it."
        ),
        panels=(Panel("", _moment_chart(rows, legend, words)),),
        table=table_from_rows(rows, _MOMENT_HEADINGS),
        sources=tuple(e for e in records if "layers" in e.measurement.tables),
        theorems=(
            "moment_ratio_le_one",
            "gaussian_moment_ratio_floor_eq",
            "uniform_moment_ratio_floor_eq",
            "laplace_moment_ratio_floor_eq",
            "iid_coord_moment_ratio_floor",
        ),
        legend=legend,
        chance=f"Gaussian, {show(2 / math.pi)}",
    )


_MOMENT_HEADINGS = {
    "name": "law or model",
    "of": "of",
    "ratio": "moment ratio, beta",
    "low": "lowest layer",
    "high": "highest layer",
}


def _lifts(entry: SiteRecord) -> list[dict[str, Any]]:
    """One row per stage and choice of a model."""
    frame = entry.table("heads", _HEADS).dropna(subset=["mean_cosine"])
    rows = []
    for what, title in _STAGES.items():
        for choice in _CHOICES:
            mine = frame[(frame["what"] == what) & (frame["transform"] == choice)]
            if len(mine):
                mean, chance = float(mine["mean_cosine"].mean()), float(mine["chance"].mean())
                rows.append(
                    {
                        "model": entry.label,
                        "what": title,
                        "choice": _CHOICE_NAMES[choice],
                        "cosine": chart_number(mean),
                        "chance": chart_number(chance),
                        "lift": chart_number(100 * (mean / chance - 1)),
                        "low": chart_number(mine["mean_cosine"].min()),
                        "high": chart_number(mine["mean_cosine"].max()),
                        "heads": len(mine),
                    }
                )
    return rows


def _centered(entry: SiteRecord) -> list[dict[str, Any]]:
    """One row per stage and center: the change of the mean cosine, and that of single layers."""
    frame = entry.table("heads", _HEADS).dropna(subset=["mean_cosine"])
    rows = []
    for what, title in _STAGES.items():
        mine = frame[frame["what"] == what]
        layers = mine.groupby(["transform", "layer"])["mean_cosine"].mean()
        known = set(mine["transform"])
        for name in ("channel", "token"):
            if not {"none", name} <= known:
                continue
            gains = 100 * (layers.loc[name] - layers.loc["none"])
            cosine = mine.loc[mine["transform"] == name, "mean_cosine"].mean()
            rows.append(
                {
                    "model": entry.label,
                    "what": title,
                    "center": _CENTERS[name],
                    "cosine": chart_number(cosine),
                    "chance": chart_number(mine["chance"].iloc[0]),
                    "gain": chart_number(gains.mean()),
                    "low": chart_number(gains.min()),
                    "high": chart_number(gains.max()),
                    "layers": f"{int((gains > 0).sum())} of {len(gains)}",
                }
            )
    return rows


def _ratios(entry: SiteRecord) -> list[dict[str, Any]]:
    """Moment ratios of a model: mean and range over the layers of each stage."""
    if "layers" not in entry.measurement.tables:
        return []
    frame = entry.table("layers", ("what", "moment_ratio")).dropna(subset=["moment_ratio"])
    grouped = frame.groupby("what")["moment_ratio"].agg(["mean", "min", "max"])
    return [
        {
            "name": entry.label,
            "of": _STAGES[str(row["what"])],
            "ratio": chart_number(row["mean"]),
            "low": chart_number(row["min"]),
            "high": chart_number(row["max"]),
        }
        for row in rows_of(grouped.reset_index())
        if row["what"] in _STAGES
    ]


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{show(value, 3)}"


def _lift_chart(rows: Sequence[Mapping[str, Any]], reach: float, words: str) -> dict[str, Any]:
    import altair as alt

    models = list(dict.fromkeys(row["model"] for row in rows))
    angle = 0 if len(models) == 1 else 30
    names = [_CHOICE_NAMES[name] for name in _CHOICES]
    shown = [name for name in names if any(row["choice"] == name for row in rows)]
    data = [{**row, "text": f"{_signed(row['lift'])}%"} for row in rows]
    base = alt.Chart(data_of(data)).encode(
        x=alt.X(
            "model",
            type="nominal",
            sort=models,
            title=None,
            axis=alt.Axis(
                labelAngle=angle, orient="top", labelLimit=160, domain=False, ticks=False
            ),
        ),
        y=alt.Y(
            "choice",
            type="nominal",
            sort=shown,
            title=None,
            axis=alt.Axis(grid=False, domain=False, ticks=False, labelLimit=150),
        ),
        tooltip=tooltips(
            {name: title for name, title in _LIFT_HEADINGS.items() if name != "what"},
            {"heads": "d"} | dict.fromkeys(("cosine", "chance", "lift", "low", "high"), ".4~g"),
        ),
    )
    scale = alt.Scale(domain=[-reach, reach], domainMid=0)
    # Pale cells: the numbers stay legible in light and dark.
    cells = base.mark_rect(style="cell", opacity=0.4).encode(
        color=alt.Color("lift", type="quantitative", scale=scale, legend=None)
    )
    numbers = base.mark_text(fontSize=12).encode(text=alt.Text("text", type="nominal"))
    return finish(alt.layer(cells, numbers), height=30 * len(shown), description=words)


def _center_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    data = [{**row, "line": f"{row['model']}, {row['what']}"} for row in rows]
    lines = list(dict.fromkeys(row["line"] for row in data))
    base = alt.Chart(data_of(data)).encode(
        y=alt.Y(
            "line",
            type="nominal",
            sort=lines,
            title=None,
            # Model, then what was measured, which may take two lines.
            axis=label_axis("split(replace(datum.label, ' rot', ', rot'), ', ')", grid=False),
        ),
        yOffset=alt.YOffset("center", type="nominal", sort=list(legend)),
        color=color_by("center", legend),
    )
    spans = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low", type="quantitative", title="change (hundredths)"),
        x2=alt.X2("high"),
        opacity=focus_opacity("center", 0.5),
    )
    dots = base.mark_point(filled=True, size=60).encode(
        x=alt.X("gain", type="quantitative"),
        shape=shape_by("center", legend),
        opacity=focus_opacity("center"),
        tooltip=tooltips(
            _CENTER_HEADINGS, dict.fromkeys(("cosine", "chance", "gain", "low", "high"), ".3~g")
        ),
    )
    zero = upright_rule("none", 0)
    chart = alt.layer(zero, spans, dots).add_params(focus_param())
    return finish(chart, height=max(80, 42 * len(lines)), description=words)


def _moment_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    names = list(dict.fromkeys(row["name"] for row in rows))
    axis = alt.Axis(grid=True, labelLimit=170)
    base = alt.Chart(data_of(rows)).encode(
        y=alt.Y("name", type="nominal", sort=names, title=None, axis=axis),
        color=color_by("of", legend),
    )
    lowest = min(row.get("low") or row["ratio"] for row in rows)
    scale = alt.Scale(domain=[math.floor(20 * lowest - 0.4) / 20, 1], nice=False, zero=False)
    spans = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(
            x=alt.X(
                "low",
                type="quantitative",
                scale=scale,
                title="moment ratio, beta",
                axis=alt.Axis(tickCount=6, labelOverlap=True),
            ),
            x2=alt.X2("high"),
            opacity=focus_opacity("of", 0.5),
        )
    )
    dots = base.mark_point(filled=True, size=60).encode(
        x=alt.X("ratio", type="quantitative", scale=scale),
        shape=shape_by("of", legend),
        opacity=focus_opacity("of"),
        tooltip=tooltips(
            {"name": "law or model", "of": "of", "ratio": "beta", "low": "low", "high": "high"},
            dict.fromkeys(("ratio", "low", "high"), ".4~g"),
        ),
    )
    gaussian = upright_rule("gaussian", chart_number(2 / math.pi))
    chart = alt.layer(gaussian, spans, dots).add_params(focus_param())
    return finish(chart, height=22 * len(names), description=words)
