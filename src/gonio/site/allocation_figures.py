"""Where bits of a cache go under each policy, and what that does to the perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gonio.site.charts import (
    are_bounded,
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    layer_axis,
    series_marks,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table, table_from_rows
from gonio.site.numbers import chart_number, is_missing, rows_of, show

__all__ = ["allocated_bits_figure", "allocation_figures", "allocation_quality_figure"]

_UNITS = ("policy", "layer", "part", "bits")
_POLICIES = (
    *("method", "bits_per_element", "key_bits", "value_bits", "logit_kl"),
    *("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"),
)
_NAMES = {
    "uniform": "uniform",
    "collapse-angle": "collapse-angle rule, scaled",
    "shared": "halves, shared by the metric",
    "metric": "predicted damage",
    "searched": "searched on the model",
}
_PARTS = ("keys", "values")


def allocation_figures(records: Sequence[SiteRecord]) -> list[Figure | None]:
    """Quality against bits over all ``cache-allocation`` records, and bits by layer of each.

    Raises:
        RecordError: A record lacks a table or a column.
    """
    return [allocation_quality_figure(records), *(allocated_bits_figure(r) for r in records)]


def allocated_bits_figure(entry: SiteRecord) -> Figure | None:
    """Bits per element of every layer, a line per policy, keys and values apart.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    rows = [
        {
            "layer": int(row["layer"]),
            "part": str(row["part"]),
            "policy": _NAMES.get(row["policy"], str(row["policy"])),
            "bits": chart_number(row["bits"]),
        }
        for row in rows_of(entry.table("units", _UNITS))
    ]
    if not rows:
        return None
    legend = _legend(row["policy"] for row in rows)
    panels, said, cells = [], [], []
    for part in _PARTS:
        mine = [row for row in rows if row["part"] == part]
        words = f"Bits of {part} by layer. {'; '.join(_span(name, mine) for name in legend)}."
        said.append(words)
        panels.append(Panel(part, _layers_chart(mine, legend, words)))
        cells += [{**row, "series": f"{part}, {row['policy']}"} for row in mine]
    return Figure(
        name="allocation-bits",
        title="Where do the bits go?",
        description=" ".join(said),
        caption=(
            "Bits per element of codes in each layer; every policy spends the same total. Inside "
            "a layer the metric shares them over the coordinates of all heads."
        ),
        panels=tuple(panels),
        table=pivot_table(cells, index="layer", series="series", value="bits", heading="layer"),
        sources=(entry,),
        legend=legend,
    )


def allocation_quality_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Perplexity ratio at each total of stored bits, policies side by side; None without records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    found = [_quality_row(row) for e in records for row in rows_of(e.table("policies", _POLICIES))]
    rows = [row for row in found if row["method"] != "full" and not is_missing(row["ratio"])]
    if not rows:
        return None
    rows.sort(key=lambda row: row["bits"])
    legend = _legend(row["policy"] for row in rows)
    told = "; ".join(
        f"{row['policy']} {show(row['ratio'])} at {show(row['bits'], 3)} bits" for row in rows
    )
    words = f"Perplexity over full precision by stored bits and policy: {told}."
    columns = {
        "policy": "policy",
        "bits": "bits",
        "key_bits": "bits, keys",
        "value_bits": "bits, values",
        "ratio": "perplexity ratio",
        "low": "interval, low",
        "high": "interval, high",
        "kl": "KL (nats per token)",
    }
    return Figure(
        name="allocation-quality",
        title="What does sharing bits by search gain?",
        description=words,
        caption=(
            "Perplexity over that of full precision (log scale) on windows that nothing was "
            "chosen on, with 95% bootstrap intervals over them. Dashed: full precision. Intervals "
            "are of each policy alone; the record compares policies window by window, which is "
            "narrower. Bits count all that is stored, keys and values together."
        ),
        panels=(Panel("", _quality_chart(rows, legend, words)),),
        table=table_from_rows(rows, columns),
        sources=tuple(records),
        legend=legend,
        chance="full precision",
    )


def _legend(names: Any) -> tuple[str, ...]:
    """Policies in their fixed order, unknown ones last."""
    known = list(_NAMES.values())
    found = dict.fromkeys(names)
    return tuple(sorted(found, key=lambda n: known.index(n) if n in known else len(known)))


def _span(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    bits = [row["bits"] for row in rows if row["policy"] == name]
    return f"{name} {show(min(bits), 3)} to {show(max(bits), 3)}"


def _quality_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": row["method"],
        "policy": _NAMES.get(row["method"], str(row["method"])),
        "bits": chart_number(row["bits_per_element"]),
        "key_bits": chart_number(row["key_bits"]),
        "value_bits": chart_number(row["value_bits"]),
        "ratio": chart_number(row["perplexity_ratio"]),
        "low": chart_number(row["perplexity_ratio_low"]),
        "high": chart_number(row["perplexity_ratio_high"]),
        "kl": chart_number(row["logit_kl"]),
    }


def _layers_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=alt.Y("bits", type="quantitative", title="bits per element"),
        color=color_by("policy", legend),
        tooltip=tooltips({"policy": "policy", "layer": "layer", "bits": "bits"}, {"bits": ".3~g"}),
    )
    chart = alt.layer(*series_marks(base, "policy", legend)).add_params(focus_param())
    return finish(chart, height=220, description=words)


def _quality_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    seen = [row[name] for row in rows for name in ("ratio", "low", "high")]
    known = [1.0, *(value for value in seen if value is not None)]
    scale = alt.Scale(type="log", nice=False, domain=[min(known) / 1.01, max(known) * 1.01])
    told = {"policy": "policy", "bits": "bits", "ratio": "ratio", "kl": "KL"}
    data = [{**row, "budget": show(row["bits"], 3)} for row in rows]  # ascending
    base = alt.Chart(data_of(data)).encode(
        x=alt.X(
            "budget",
            type="ordinal",
            sort=None,
            title="bits per element",
            axis=alt.Axis(labelAngle=0),
        ),
        xOffset=alt.XOffset("policy", type="nominal", sort=list(legend)),
        y=alt.Y("ratio", type="quantitative", scale=scale, title="perplexity over full precision"),
        color=color_by("policy", legend),
        tooltip=tooltips(told, dict.fromkeys(("bits", "ratio", "kl"), ".4~g")),
    )
    intervals = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=1.5)
        .encode(
            y=alt.Y("low", type="quantitative", scale=scale),
            y2=alt.Y2("high"),
            opacity=focus_opacity("policy", 0.6),
        )
    )
    _, points = series_marks(base, "policy", legend)
    bounds = [intervals] if are_bounded(rows) else []
    chart = alt.layer(chance_rule(1.0), *bounds, points).add_params(focus_param())
    return finish(chart, height=280, description=words)
