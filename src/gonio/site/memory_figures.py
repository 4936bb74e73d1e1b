"""Memory of a compressed cache: what it is made of, and what is really allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gonio.site.charts import (
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    label_axis,
    tooltips,
    upright_rule,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Choice, Figure, Panel, table_from_rows
from gonio.site.method_names import method_name
from gonio.site.numbers import chart_number, is_missing, rows_of, show

__all__ = ["allocation_check_figure", "memory_breakdown_figure"]

_MIB = 2.0**20
_PARTS = {
    "key_bytes": "keys",
    "value_bytes": "values",
    "side_bytes": "fixed side data",
}
_COLUMNS = ("method", "seq_len", "total_bytes", "bf16_bytes", *_PARTS)
_HEADINGS = {
    "method": "method",
    "tokens": "tokens",
    **{name: f"{title} (MiB)" for name, title in _PARTS.items()},
    "total": "total (MiB)",
    "exact": "bfloat16 (MiB)",
    "share": "share of bfloat16",
}
_CHECK = {
    "method": "method",
    "tokens": "tokens",
    "dtype": "raw tokens in",
    "reported": "reported (MiB)",
    "allocated": "allocated (MiB)",
    "ratio": "allocated over reported",
}


def memory_breakdown_figure(entry: SiteRecord) -> Figure | None:
    """Keys, values and side data by method at a chosen context length; None without that table.

    Args:
        entry: A ``cache-evaluation`` record.

    Raises:
        RecordError: The table lacks a column.
    """
    if "memory" not in entry.measurement.tables:
        return None
    frame = entry.table("memory", _COLUMNS)
    rows = [_row(row) for row in rows_of(frame)]
    if not rows:
        return None
    lengths = sorted({row["tokens"] for row in rows})
    options = tuple(show(length) for length in lengths)
    shown = options[len(options) // 2]
    legend = tuple(_PARTS.values())
    words = _describe(rows, lengths[-1])
    return Figure(
        name="cache-memory-parts",
        title="What is the memory spent on?",
        description=words,
        caption=(
            "One sequence of the chosen length: bytes of keys and values (codes, scales and raw "
            "tokens) and fixed side data (rotations, means, tables), stacked in this order from "
            "the left, as a share of the whole cache in bfloat16 (dashed). Side data weighs on "
            "short contexts; what a method leaves alone is as large as before."
        ),
        panels=(Panel("", _chart(rows, legend, shown, words)),),
        table=table_from_rows(rows, _HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="bfloat16",
        choice=Choice("length", "Tokens of context", options, shown),
    )


def allocation_check_figure(entry: SiteRecord) -> Figure | None:
    """Bytes really behind full caches over those reported; None without that table.

    Args:
        entry: A ``cache-evaluation`` record.

    Raises:
        RecordError: The table lacks a column.
    """
    if "allocation" not in entry.measurement.tables:
        return None
    columns = ("method", "seq_len", "dtype", "reported_bytes", "allocated_bytes")
    frame = entry.table("allocation", (*columns, "allocated_over_reported"))
    rows = [
        {
            "method": method_name(row["method"]),
            "tokens": int(row["seq_len"]),
            "dtype": row["dtype"],
            "reported": chart_number(row["reported_bytes"] / _MIB),
            "allocated": chart_number(row["allocated_bytes"] / _MIB),
            "ratio": chart_number(row["allocated_over_reported"]),
        }
        for row in rows_of(frame)
        if not is_missing(row["allocated_over_reported"])
    ]
    if not rows:
        return None
    words = "Bytes behind a full cache over those reported: " + "; ".join(
        f"{row['method']} {show(row['ratio'])}" for row in rows
    )
    return Figure(
        name="cache-allocation-check",
        title="Does a cache hold only the bytes it reports?",
        description=f"{words}. Equal is 1.",
        caption=(
            f"Bytes behind caches that {show(rows[0]['tokens'])} tokens have filled, over the "
            "bytes reported for so many tokens. Dashed: 1, nothing is hidden. Raw tokens are in "
            "the data type of the run, so these bytes are not those of the chart above. The bytes "
            "of every cache were copied and read back: a codec that remembers more is refused."
        ),
        panels=(Panel("", _check_chart(rows, f"{words}. Equal is 1.")),),
        table=table_from_rows(rows, _CHECK),
        sources=(entry,),
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": method_name(row["method"]),
        "tokens": int(row["seq_len"]),
        **{name: chart_number(row[name] / _MIB) for name in _PARTS},
        "total": chart_number(row["total_bytes"] / _MIB),
        "exact": chart_number(row["bf16_bytes"] / _MIB),
        "share": chart_number(row["total_bytes"] / row["bf16_bytes"]),
    }


def _describe(rows: Sequence[Mapping[str, Any]], length: int) -> str:
    told = [
        f"{row['method']} "
        + ", ".join(f"{title} {show(row[name], 3)}" for name, title in _PARTS.items())
        for row in rows
        if row["tokens"] == length
    ]
    exact = next(row["exact"] for row in rows if row["tokens"] == length)
    return (
        f"Memory in MiB at {show(length)} tokens, where bfloat16 takes {show(exact, 3)}: "
        f"{'; '.join(told)}."
    )


def _chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], shown: str, words: str
) -> dict[str, Any]:
    import altair as alt

    methods = list(dict.fromkeys(row["method"] for row in rows))
    data = []
    for row in rows:
        start = 0.0
        for place, (name, title) in enumerate(_PARTS.items()):
            end = start + row[name] / row["exact"]
            data.append(
                {
                    "method": row["method"],
                    "length": show(row["tokens"]),
                    "part": title,
                    "place": place,
                    "mib": row[name],
                    "from": chart_number(start),
                    "to": chart_number(end),
                    "share": chart_number(end - start),
                }
            )
            start = end
    edge = max([1.0, *(row["to"] for row in data)])
    bars = (
        alt.Chart(data_of(data))
        .transform_filter("datum.length === length")
        .mark_bar(style="cell")
        .encode(
            y=alt.Y(
                "method",
                type="nominal",
                sort=methods,
                title=None,
                axis=label_axis(grid=False),
            ),
            x=alt.X(
                "from",
                type="quantitative",
                title="share of bfloat16",
                scale=alt.Scale(domain=[0, edge], nice=False),
                axis=alt.Axis(format="%", tickCount=5),
            ),
            x2=alt.X2("to"),
            color=color_by("part", legend),
            opacity=focus_opacity("part"),
            tooltip=tooltips(
                {
                    "method": "method",
                    "length": "tokens",
                    "part": "part",
                    "mib": "MiB",
                    "share": "share of bfloat16",
                },
                {"mib": ".4~g", "share": ".2%"},
            ),
        )
    )
    whole = upright_rule("whole", 1)
    params = (focus_param(), alt.param(name="length", value=shown))
    return finish(
        alt.layer(bars, whole).add_params(*params),
        height=max(70, 30 * len(methods)),
        description=words,
    )


def _check_chart(rows: Sequence[Mapping[str, Any]], words: str) -> dict[str, Any]:
    import altair as alt

    ratios = [row["ratio"] for row in rows]
    scale = alt.Scale(domain=[0, max(1.1, 1.05 * max(ratios))], nice=False)
    dots = (
        alt.Chart(data_of(rows))
        .mark_point(filled=True, size=60, style="mean")
        .encode(
            y=alt.Y(
                "method",
                type="nominal",
                sort=[row["method"] for row in rows],
                title=None,
                axis=label_axis(),
            ),
            x=alt.X(
                "ratio",
                type="quantitative",
                title="allocated over reported",
                scale=scale,
                axis=alt.Axis(tickCount=3),
            ),
            tooltip=tooltips(
                _CHECK, {"tokens": "d"} | dict.fromkeys(("reported", "allocated", "ratio"), ".4~g")
            ),
        )
    )
    equal = upright_rule("equal", 1)
    return finish(alt.layer(equal, dots), height=max(60, 28 * len(rows)), description=words)
