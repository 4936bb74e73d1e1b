"""What compressed keys do to the predictions: perplexity by method and protocol, with all bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import DataTable, Figure, Panel
from gonio.site.numbers import chart_number, is_missing, rows_of, show, show_range

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["perplexity_figure"]

_COLUMNS = (
    *("method", "protocol", "bits_per_element", "side_bits_per_element"),
    *("perplexity", "perplexity_low", "perplexity_high", "perplexity_ratio"),
    *("logit_kl", "same_top1", "scored_tokens", "context_length"),
)
_METHODS = {
    "full": "full precision",
    "sign-learned": "1 bit, learned rotation",
    "sign-hadamard": "1 bit, random Hadamard",
    "sign-haar": "1 bit, random rotation",
    "sign-none": "1 bit, no rotation",
    "zeros": "zeros (keeps nothing)",
}
_PROTOCOLS = {
    "teacher-forced": "every key encoded (teacher-forced)",
    "cache": "through a cache (prefill, then chunks)",
}
_TOLD = {
    "bits_per_element": "bits per element",
    "perplexity": "perplexity",
    "perplexity_low": "interval, low",
    "perplexity_high": "interval, high",
    "logit_kl": "KL (nats per token)",
}
_HEADINGS = (
    *("method", "protocol", "bits per element", "side bits per element"),
    *("perplexity", "95% interval", "ratio to full", "KL (nats per token)"),
    *("same top-1", "tokens scored", "context"),
)


def perplexity_figure(entry: SiteRecord) -> Figure | None:
    """Perplexity by method on a log scale, both protocols, beside full precision.

    Args:
        entry: A ``cache-evaluation`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = _sorted(entry.table("methods", _COLUMNS))
    if not len(frame):
        return None
    legend = tuple(_PROTOCOLS.get(p, p) for p in dict.fromkeys(frame["protocol"]))
    rows = [_row(row) for row in rows_of(frame)]
    drawn = [row for row in rows if row["perplexity"] is not None and row["perplexity"] > 0]
    methods = tuple(dict.fromkeys(row["method"] for row in rows))
    words = f"Perplexity by method. {' '.join(_say(p, drawn) for p in legend)}"
    return Figure(
        name="cache-perplexity",
        title="What does one bit per coordinate cost?",
        description=words,
        caption=(
            "Perplexity (log scale; lower is better) with 95% bootstrap intervals over text "
            "windows. Dashed: full precision, one line per protocol. The row of zeros shows what "
            "a cache that keeps nothing scores: a method near it keeps nothing of use. Bits count "
            "every stored byte that grows with the sequence; side bits are the fixed data."
        ),
        panels=(Panel("", _chart(drawn, methods, legend, words)),),
        table=_table(frame),
        sources=(entry,),
        theorems=("residual_energy_formula", "softmax_linf_l1_lipschitz"),
        legend=legend,
        chance="full precision",
        is_table_open=True,
    )


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods from exact to useless, unknown ones last; the teacher-forced protocol first."""
    methods, protocols = list(_METHODS), list(_PROTOCOLS)
    order = frame.assign(
        _method=[_place(methods, name) for name in frame["method"]],
        _protocol=[_place(protocols, name) for name in frame["protocol"]],
    )
    order = order.sort_values(["_protocol", "_method", "method", "bits_per_element"])
    return order.drop(columns=["_method", "_protocol"])


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = ("perplexity", "perplexity_low", "perplexity_high", "bits_per_element", "logit_kl")
    return {
        "method": _METHODS.get(row["method"], row["method"]),
        "protocol": _PROTOCOLS.get(row["protocol"], row["protocol"]),
        "is_full": row["method"] == "full",
        **{name: chart_number(row[name]) for name in numbers},
    }


def _say(protocol: str, rows: Sequence[Mapping[str, Any]]) -> str:
    mine = [f"{r['method']} {show(r['perplexity'])}" for r in rows if r["protocol"] == protocol]
    return f"{protocol}: {', '.join(mine)}."


def _chart(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    scale = alt.Scale(type="log", nice=True)
    base = alt.Chart(data_of(rows)).encode(
        y=alt.Y(
            "method",
            type="nominal",
            sort=list(methods),
            title=None,
            axis=alt.Axis(labelLimit=170, grid=True),
        ),
        yOffset=alt.YOffset("protocol", type="nominal", sort=list(legend)),
        color=color_by("protocol", legend),
        opacity=focus_opacity("protocol"),
    )
    bounded = "isValid(datum.perplexity_low) && isValid(datum.perplexity_high)"
    interval = (
        base.transform_filter(bounded)
        .mark_rule(strokeWidth=2)
        .encode(
            x=alt.X(
                "perplexity_low",
                type="quantitative",
                scale=scale,
                title="perplexity",
                axis=alt.Axis(tickCount=4, labelOverlap=True),
            ),
            x2=alt.X2("perplexity_high"),
        )
    )
    dots = base.mark_point(filled=True, size=64).encode(
        x=alt.X("perplexity", type="quantitative", scale=scale),
        shape=shape_by("protocol", legend),
        tooltip=tooltips(
            {"method": "method", "protocol": "protocol", **_TOLD}, dict.fromkeys(_TOLD, ".4~g")
        ),
    )
    exact = alt.Chart(data_of([row for row in rows if row["is_full"]]))
    reference = exact.mark_rule(style="chance").encode(x=alt.X("perplexity", type="quantitative"))
    chart = alt.layer(reference, interval, dots).add_params(focus_param())
    return finish(chart, height=max(120, 44 * len(methods)), description=words)


def _table(frame: pd.DataFrame) -> DataTable:
    rows = tuple(
        (
            _METHODS.get(row["method"], row["method"]),
            row["protocol"],
            show(row["bits_per_element"]),
            show(row["side_bits_per_element"]),
            show(row["perplexity"]),
            show_range(row["perplexity_low"], row["perplexity_high"]),
            show(row["perplexity_ratio"]),
            show(row["logit_kl"]),
            _share(row["same_top1"]),
            show(row["scored_tokens"]),
            show(row["context_length"]),
        )
        for row in rows_of(frame)
    )
    return DataTable(_HEADINGS, rows, (False, False, *(True,) * 9))


def _share(value: Any) -> str:
    return show(value) if is_missing(value) else f"{100 * float(value):.1f}%"
