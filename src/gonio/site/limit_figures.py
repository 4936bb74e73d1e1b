"""Errors of codecs beside the limits of rate-distortion theory at the same bits."""

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
    series_marks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["limit_excess_figure", "limit_figure"]

_COLUMNS = ("part", "layer", "bits", "error", "gaussian", "shannon", "over_gaussian")
_CODEC, _GAUSSIAN, _SHANNON = "codec", "Gaussian limit, D(R)", "Shannon lower bound"
_LEGEND = (_CODEC, _GAUSSIAN, _SHANNON)
_FIELDS = {_CODEC: "error", _GAUSSIAN: "gaussian", _SHANNON: "shannon"}
_PARTS = {
    "keys": "Keys: error of attention scores",
    "values": "Values: error after the output projection",
}
_HEADINGS = {
    "part": "part",
    "codec": "codec",
    "bits": "bits per element",
    "error": "error (dB)",
    "gaussian": "Gaussian limit (dB)",
    "shannon": "Shannon bound (dB)",
    "over_gaussian": "over Gaussian (dB)",
    "over_shannon": "over Shannon (dB)",
    "excess_bits": "excess over Shannon (bits)",
}
_DB_PER_BIT = 20 * math.log10(2)


def limit_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Mean squared error of every codec against its bits, beside both limits.

    Args:
        records: ``cache-calibration`` records; those without the table ``limits`` are left out.

    Raises:
        RecordError: The table lacks a column.
    """
    drawn = [entry for entry in records if "limits" in entry.measurement.tables]
    rows = [row for entry in drawn for row in _totals(entry)]
    if not rows:
        return None
    panels, said = [], []
    for part, title in _PARTS.items():
        mine = [row for row in rows if row["part"] == part]
        if mine:
            words = f"{title}, all layers: " + "; ".join(
                f"{row['codec']} at {show(row['bits'], 3)} bits {show(row['error'], 3)} dB, "
                f"{show(row['over_shannon'], 2)} dB over the Shannon bound"
                for row in mine
            )
            said.append(f"{words}.")
            panels.append(Panel(title, _total_chart(mine, f"{words}.")))
    return Figure(
        name="cache-limit",
        title="How near is a codec to what any codec can do?",
        description=" ".join(said),
        caption=(
            "Mean squared error on held-out text in the metric a codec minimizes (0 dB: an error "
            "of 1), over all layers, by stored bits per element of these layers. Dashed: reverse "
            "water-filling at the same bits. Gaussian: as if coordinates were Gaussian with their "
            "variances; no bound where they are not, and a codec may pass it. Shannon: from their "
            "entropies; a bound for independent coordinates, with entropies estimated. Limits "
            "speak of errors, not of perplexity, so they are drawn here and not in the frontier "
            f"of perplexities. {_DB_PER_BIT:.2f} dB are about one bit per coordinate in use."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=tuple(drawn),
        legend=_LEGEND,
        chance="limits at the same bits",
        is_table_open=True,
    )


def limit_excess_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Error over the Shannon lower bound in dB by layer, a line per codec.

    Args:
        records: ``cache-calibration`` records; those without the table ``limits`` are left out.

    Raises:
        RecordError: The table lacks a column.
    """
    drawn = [entry for entry in records if "limits" in entry.measurement.tables]
    rows = [row for entry in drawn for row in _layers(entry)]
    if not rows:
        return None
    rows.sort(key=lambda row: (row["part"], row["asked"], row["codec"], row["layer"]))
    legend = tuple(dict.fromkeys(row["codec"] for row in rows))
    panels, said = [], []
    for part, title in _PARTS.items():
        mine = [row for row in rows if row["part"] == part]
        if mine:
            words = f"{title}, dB over the Shannon lower bound by layer: " + "; ".join(
                _span(name, mine) for name in legend if any(r["codec"] == name for r in mine)
            )
            said.append(f"{words}.")
            panels.append(Panel(title, _layer_chart(mine, legend, f"{words}. The bound is 0.")))
    return Figure(
        name="cache-limit-layers",
        title="Which layers are far from the limit?",
        description=" ".join(said),
        caption=(
            "Error of each layer over the Shannon lower bound at the bits of that layer, in dB. "
            "Dashed: the bound. Below it an estimate of the entropy, or the independence of "
            "coordinates, is off. Bits and both limits are in the tooltips and the record."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _LAYER_HEADINGS),
        sources=tuple(drawn),
        legend=legend,
        chance="Shannon lower bound",
    )


_LAYER_HEADINGS = {
    "part": "part",
    "codec": "codec",
    "layer": "layer",
    "bits": "bits per element",
    "over_gaussian": "over Gaussian (dB)",
    "over_shannon": "over Shannon (dB)",
}


def _codec(entry: SiteRecord, part: str) -> str:
    """What tells a codec apart: the model, its method, and the bits asked for."""
    settings: Mapping[str, Any] = entry.record.settings
    if part == "values" and isinstance(settings.get("values"), Mapping):
        chosen = settings["values"]
    else:
        chosen = settings
    method = " ".join(
        show(chosen[name]) for name in ("method", "bits") if chosen.get(name) is not None
    )
    method += " bits" if method and chosen.get("bits") is not None else ""
    label = str(settings.get("model", "")).rpartition("/")[2]
    return f"{label}, {method}" if method else entry.label


def _totals(entry: SiteRecord) -> list[dict[str, Any]]:
    """One row per part: sums over layers, as means per layer in dB."""
    frame: pd.DataFrame = entry.table("limits", (*_COLUMNS, "over_shannon"))
    rows = []
    known = frame.dropna(subset=list(_FIELDS.values()))
    for part, mine in known.groupby("part", sort=False):
        sums = {name: float(mine[name].mean()) for name in _FIELDS.values()}
        db = {name: 10 * math.log10(value) for name, value in sums.items() if value > 0}
        if len(db) < len(sums):
            continue
        over = db["error"] - db["shannon"]
        rows.append(
            {
                "part": str(part),
                "codec": _codec(entry, str(part)),
                "bits": chart_number(mine["bits"].mean()),
                **{name: chart_number(value) for name, value in db.items()},
                "over_gaussian": chart_number(db["error"] - db["gaussian"]),
                "over_shannon": chart_number(over),
                "excess_bits": chart_number(over / _DB_PER_BIT),
            }
        )
    return sorted(rows, key=lambda row: (row["part"], row["bits"]))


def _layers(entry: SiteRecord) -> list[dict[str, Any]]:
    frame = entry.table("limits", (*_COLUMNS, "over_shannon"))
    numbers = ("bits", "over_gaussian", "over_shannon")
    asked = chart_number(frame["bits"].mean())
    return [
        {
            "part": row["part"],
            "codec": _codec(entry, row["part"]),
            "layer": int(row["layer"]),
            "asked": asked,
            **{name: chart_number(row[name]) for name in numbers},
        }
        for row in rows_of(frame.dropna(subset=["over_shannon"]))
    ]


def _span(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    values = [row["over_shannon"] for row in rows if row["codec"] == name]
    return f"{name} {show(min(values), 2)} to {show(max(values), 2)}"


def _total_chart(rows: Sequence[Mapping[str, Any]], words: str) -> dict[str, Any]:
    import altair as alt

    data = [
        {"codec": row["codec"], "bits": row["bits"], "series": series, "db": row[field]}
        for row in rows
        for series, field in _FIELDS.items()
    ]
    data.sort(key=lambda row: (_LEGEND.index(row["series"]), row["bits"]))
    base = alt.Chart(data_of(data)).encode(
        x=alt.X(
            "bits",
            type="quantitative",
            title="bits per element",
            scale=alt.Scale(zero=False, nice=True, padding=8),
            axis=alt.Axis(grid=False, tickCount=5),
        ),
        y=alt.Y(
            "db",
            type="quantitative",
            title="mean squared error (dB)",
            scale=alt.Scale(zero=False, nice=True),
        ),
        color=color_by("series", _LEGEND),
        opacity=focus_opacity("series"),
    )
    limits = base.transform_filter(f"datum.series !== '{_CODEC}'").mark_line(
        strokeDash=[5, 4], strokeWidth=1.5, style="chance"
    )
    line = base.transform_filter(f"datum.series === '{_CODEC}'").mark_line(strokeWidth=1.5)
    dots = base.mark_point(filled=True, size=48).encode(
        shape=shape_by("series", _LEGEND),
        tooltip=tooltips(
            {"codec": "codec", "series": "what", "bits": "bits per element", "db": "dB"},
            {"bits": ".4~g", "db": ".4~g"},
        ),
    )
    return finish(
        alt.layer(limits, line, dots).add_params(focus_param()), height=260, description=words
    )


def _layer_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=alt.Y("over_shannon", type="quantitative", title="over the Shannon bound (dB)"),
        color=color_by("codec", legend),
        tooltip=tooltips(
            _LAYER_HEADINGS,
            {"layer": "d"} | dict.fromkeys(("bits", "over_gaussian", "over_shannon"), ".3~g"),
        ),
    )
    marks = series_marks(base, "codec", legend)
    chart = alt.layer(chance_rule(0.0), *marks).add_params(focus_param())
    return finish(chart, height=220, description=words)
