"""Weight matrices under one bit: attention and feed-forward, and experts under shared rotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, is_missing, rows_of, show

__all__ = ["expert_gap_figure", "weight_sign_figure"]

_COLUMNS = (
    *("projection", "expert", "layer", "choice", "cosine", "cosine_chance"),
    *("beta", "bits_per_weight"),
)
_CHOICES = {
    "learned": "learned rotation",
    "hadamard": "Hadamard",
    "haar": "random rotation",
    "none": "no rotation",
    "column_centered": "column means removed",
    "row_centered": "row means removed",
}
# Parts of names of feed-forward projections, over the architectures known here.
_FEED_FORWARD = (
    *("mlp", "ffn", "feed_forward", "expert", "gate_proj", "up_proj", "down_proj", "fc1", "fc2"),
    *("c_fc", "dense_h_to_4h", "dense_4h_to_h", "wi", "wo"),
)
_GROUPS = {False: "Attention", True: "Feed-forward"}
_HEADINGS = {
    "model": "model",
    "group": "part",
    "projection": "projection",
    "choice": "rotation or center",
    "cosine": "1-bit cosine",
    "chance": "chance",
    "lift": "lift (% of chance)",
    "low": "lowest matrix",
    "high": "highest matrix",
    "beta": "beta",
    "bits": "bits per weight",
    "matrices": "matrices",
}
_GAP_HEADINGS = {
    "model": "model",
    "projection": "projection",
    "series": "rows",
    "mean": "own minus shared (points)",
    "low": "lowest expert",
    "high": "highest expert",
    "experts": "experts",
}
_REAL, _NULL = "the experts", "rows dealt at random"


def weight_sign_figure(entry: SiteRecord) -> Figure | None:
    """1-bit cosine over chance of every projection type, attention and feed-forward apart.

    Args:
        entry: A ``weight-signs`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    rows = _sign_rows(entry)
    if not rows:
        return None
    known = {row["choice"] for row in rows}
    legend = tuple(name for name in _CHOICES.values() if name in known)
    edges = [row[end] for row in rows for end in ("low", "high")]
    domain = (min([*edges, 0.0]), max([*edges, 0.0]))
    panels, said = [], []
    for title in _GROUPS.values():
        mine = [row for row in rows if row["group"] == title]
        if mine:
            words = f"{title}, 1-bit cosine over chance: " + "; ".join(
                f"{row['projection']}, {row['choice']} {show(row['lift'], 2)}%" for row in mine
            )
            said.append(f"{words}.")
            panels.append(Panel(title, _sign_chart(mine, legend, domain, f"{words}.")))
    return Figure(
        name="weight-signs",
        title="Do signs fit weights?",
        description=" ".join(said),
        caption=(
            "Mean cosine of the rows of a matrix with their signs over that of random directions "
            "of the same size, minus 1, in percent: mean over layers and experts, lines from the "
            "lowest to the highest matrix. Dashed: chance. A learned rotation is judged on rows "
            "it was not fitted on. The table has the bits per weight of each, the rotation "
            f"counted. Model: {entry.label}."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=(entry,),
        theorems=("cos_sign_quant_formula",),
        legend=legend,
        chance="random directions",
    )


def expert_gap_figure(entry: SiteRecord) -> Figure | None:
    """What a rotation of an expert's own gains over a shared one; None without experts.

    Args:
        entry: A ``weight-signs`` record.

    Raises:
        RecordError: The table lacks a column.
    """
    if "experts" not in entry.measurement.tables:
        return None
    frame = entry.table("experts", ("layer", "projection", "expert", "gap", "null_gap"))
    cells = [
        {
            "projection": row["projection"],
            "layer": int(row["layer"]),
            "expert": int(row["expert"]),
            "series": series,
            "gap": chart_number(100 * row[column]),
        }
        for row in rows_of(frame)
        for series, column in ((_REAL, "gap"), (_NULL, "null_gap"))
        if not is_missing(row[column])
    ]
    if not cells:
        return None
    rows = _gap_rows(cells, entry.label)
    legend = (_REAL, _NULL)
    told = "; ".join(
        f"{row['projection']}, {row['series']}: {show(row['mean'], 2)}" for row in rows
    )
    words = f"Energy kept by an expert's own rotation minus a shared one, in points: {told}."
    return Figure(
        name="expert-gap",
        title="Does every expert need a rotation of its own?",
        description=words,
        caption=(
            "Beta (the share of energy that signs keep) of held-out rows under a rotation learned "
            "on their expert minus that under one learned on all experts of the layer, in "
            "hundredths. Small marks: experts; large: their mean. Below 0 (dashed) the shared one "
            "is better: it saw more rows. The same rows dealt at random to as many groups say "
            f"what that alone gives. Model: {entry.label}."
        ),
        panels=(Panel("", _gap_chart(cells, rows, legend, words)),),
        table=table_from_rows(rows, _GAP_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="no gap",
        is_table_open=True,
    )


def _group(projection: str) -> str:
    return _GROUPS[any(part in projection for part in _FEED_FORWARD)]


def _sign_rows(entry: SiteRecord) -> list[dict[str, Any]]:
    """One row per projection and choice."""
    frame = entry.table("matrices", _COLUMNS)
    frame = frame[frame["choice"].isin(_CHOICES)].dropna(subset=["cosine"])
    frame = frame.assign(lift=100 * (frame["cosine"] / frame["cosine_chance"] - 1))
    rows = []
    for projection in projection_order(frame["projection"]):
        for choice, title in _CHOICES.items():
            mine = frame[(frame["projection"] == projection) & (frame["choice"] == choice)]
            if not len(mine):
                continue
            rows.append(
                {
                    "model": entry.label,
                    "group": _group(projection),
                    "projection": projection,
                    "choice": title,
                    "cosine": chart_number(mine["cosine"].mean()),
                    "chance": chart_number(mine["cosine_chance"].mean()),
                    "lift": chart_number(mine["lift"].mean()),
                    "low": chart_number(mine["lift"].min()),
                    "high": chart_number(mine["lift"].max()),
                    "beta": chart_number(mine["beta"].mean()),
                    "bits": chart_number(mine["bits_per_weight"].mean()),
                    "matrices": len(mine),
                }
            )
    return rows


def _gap_rows(cells: Sequence[Mapping[str, Any]], label: str) -> list[dict[str, Any]]:
    rows = []
    for projection in projection_order(str(cell["projection"]) for cell in cells):
        for series in (_REAL, _NULL):
            gaps = [
                cell["gap"]
                for cell in cells
                if cell["projection"] == projection and cell["series"] == series
            ]
            if gaps:
                rows.append(
                    {
                        "model": label,
                        "projection": projection,
                        "series": series,
                        "mean": chart_number(sum(gaps) / len(gaps)),
                        "low": min(gaps),
                        "high": max(gaps),
                        "experts": len(gaps),
                    }
                )
    return rows


def _rows_axis(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    order = list(projection_order(str(row["projection"]) for row in rows))
    axis = alt.Axis(grid=True, labelLimit=150, tickBand="extent")
    return alt.Y("projection", type="nominal", sort=order, title=None, axis=axis)


def _zero() -> Any:

    return upright_rule("zero", 0)


def _sign_chart(
    rows: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    domain: tuple[float, float],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    scale = alt.Scale(domain=list(domain), nice=True)
    base = alt.Chart(data_of(rows)).encode(
        y=_rows_axis(rows),
        yOffset=alt.YOffset("choice", type="nominal", sort=list(legend)),
        color=color_by("choice", legend),
    )
    spans = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X(
            "low",
            type="quantitative",
            scale=scale,
            title="lift over chance (%)",
            axis=alt.Axis(tickCount=5, labelOverlap=True),
        ),
        x2=alt.X2("high"),
        opacity=focus_opacity("choice", 0.5),
    )
    dots = base.mark_point(filled=True, size=40).encode(
        x=alt.X("lift", type="quantitative", scale=scale),
        shape=shape_by("choice", legend),
        opacity=focus_opacity("choice"),
        tooltip=tooltips(
            {name: title for name, title in _HEADINGS.items() if name not in ("model", "group")},
            {"matrices": "d"}
            | dict.fromkeys(("cosine", "chance", "lift", "low", "high", "beta", "bits"), ".4~g"),
        ),
    )
    chart = alt.layer(_zero(), spans, dots).add_params(focus_param())
    count = len({row["projection"] for row in rows})
    return finish(chart, height=max(40, 11 * len(legend)) * count, description=words)


def _gap_chart(
    cells: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    y = _rows_axis(rows)
    offset = alt.YOffset("series", type="nominal", sort=list(legend))
    color = color_by("series", legend)
    shape = shape_by("series", legend)
    experts = (
        alt.Chart(data_of(cells))
        .mark_point(filled=True, size=14)
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X(
                "gap",
                type="quantitative",
                title="own minus shared (hundredths)",
                axis=alt.Axis(tickCount=6, labelOverlap=True),
            ),
            color=color,
            shape=shape,
            opacity=focus_opacity("series", 0.45),
            tooltip=tooltips(
                {
                    "projection": "projection",
                    "layer": "layer",
                    "expert": "expert",
                    "series": "rows",
                    "gap": "gap (hundredths)",
                },
                {"layer": "d", "expert": "d", "gap": ".3~g"},
            ),
        )
    )
    means = (
        alt.Chart(data_of(rows))
        .mark_point(filled=True, size=80)
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X("mean", type="quantitative"),
            color=color,
            shape=shape,
            opacity=focus_opacity("series"),
            tooltip=tooltips(
                _GAP_HEADINGS, {"experts": "d"} | dict.fromkeys(("mean", "low", "high"), ".3~g")
            ),
        )
    )
    count = len({row["projection"] for row in rows})
    chart = alt.layer(_zero(), experts, means).add_params(focus_param())
    return finish(chart, height=48 * count, description=words)
