"""What compressed caches do: perplexity by method, recall of a hidden passage, and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
    are_bounded,
    chance_rule,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    label_axis,
    log_ticks,
    series_marks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.degradation_figures import context_figure, pairs_figure
from gonio.site.figure import DataTable, Figure, Panel, pivot_table, table_from_rows
from gonio.site.memory_figures import allocation_check_figure, memory_breakdown_figure
from gonio.site.method_names import METHODS, PROTOCOLS, method_name, protocol_name
from gonio.site.numbers import capitalized, chart_number, is_missing, rows_of, show, show_range

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluation_figures", "memory_figure", "perplexity_figure", "recall_figure"]

_COLUMNS = (
    *("method", "protocol", "bits_per_element", "side_bits_per_element"),
    *("perplexity", "perplexity_low", "perplexity_high", "perplexity_ratio"),
    *("logit_kl", "same_top1", "scored_tokens", "context_length"),
)
_RECALL = ("method", "context_length", "depth", "is_present")
_RECALL_HEADINGS = {
    "method": "method",
    "context_length": "context",
    "depth": "depth",
    "correct_top1": "recalled",
    "correct_top1_low": "interval, low",
    "correct_top1_high": "interval, high",
    "copied": "copied by greedy decoding",
    "nll": "NLL (nats per token)",
}
_MIB = 2.0**20
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


def evaluation_figures(entry: SiteRecord) -> list[Figure | None]:
    """Every figure of a ``cache-evaluation`` record; None where the record lacks its table.

    Raises:
        RecordError: A table lacks a column, or the record has no table of methods.
    """
    makers = (
        *(perplexity_figure, context_figure, pairs_figure, recall_figure),
        *(memory_figure, memory_breakdown_figure, allocation_check_figure),
    )
    return [make(entry) for make in makers]


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
    legend = tuple(protocol_name(p) for p in dict.fromkeys(frame["protocol"]))
    rows = [_row(row) for row in rows_of(frame)]
    drawn = [row for row in rows if row["perplexity"] is not None and row["perplexity"] > 0]
    methods = tuple(dict.fromkeys(row["method"] for row in rows))
    words = f"Perplexity by method. {' '.join(_say(p, drawn) for p in legend)}"
    return Figure(
        name="cache-perplexity",
        title="What does a compressed cache cost?",
        description=words,
        caption=(
            "Perplexity (log scale; lower is better) with 95% bootstrap intervals over text "
            "windows. Dashed: full precision, one line per protocol. The row of zeros shows what "
            "a cache that keeps nothing scores: a method near it keeps nothing of use. Bits count "
            "every stored byte that grows with the sequence, over the keys, the values or both: "
            "whatever the method codes; side bits are the fixed data."
        ),
        panels=(Panel("", _chart(drawn, methods, legend, words)),),
        table=_table(frame),
        sources=(entry,),
        theorems=("residual_energy_formula", "softmax_linf_l1_lipschitz"),
        legend=legend,
        chance="full precision",
        is_table_open=True,
    )


def recall_figure(entry: SiteRecord) -> Figure | None:
    """Share of a hidden passage that comes back, by depth; None without that table.

    Raises:
        RecordError: The table lacks a column.
    """
    if "recall" not in entry.measurement.tables:
        return None
    frame = entry.table("recall", (*_RECALL, *_RECALL_HEADINGS))
    rows = [_named(row) for row in rows_of(frame)]
    absent = [row for row in rows if not row["is_present"] and row["method"] == METHODS["full"]]
    found = [row for row in rows if row["is_present"]]
    if not found:
        return None
    legend = tuple(dict.fromkeys(row["method"] for row in found))
    chance = sum(row["correct_top1"] for row in absent) / len(absent) if absent else 0.0
    panels, said = [], []
    for length in dict.fromkeys(row["context_length"] for row in found):
        mine = [row for row in found if row["context_length"] == length]
        words = f"Context of {show(length)} tokens: {'; '.join(_say_recall(mine, legend))}."
        said.append(words)
        title = f"{show(length)} tokens of context"
        panels.append(Panel(title, _recall_chart(mine, legend, chance, words)))
    cells = [
        {**row, "depth": row["depth"] if row["is_present"] else "passage absent"} for row in rows
    ]
    return Figure(
        name="cache-recall",
        title="Does a passage come back from far away?",
        description=f"Share of a hidden passage that is recalled, by depth. {' '.join(said)} "
        f"Without the passage: {show(chance, 2)}.",
        caption=(
            "A passage of random words is hidden in the text (depth 0: at its start, 1: right "
            "before the end), and its first tokens come again. Shown: the share of the rest that "
            "the model predicts first, reading it through the cache; bars: 95% intervals over "
            "passages. Dashed: the same text "
            "without the passage in full precision, which is what can be guessed."
        ),
        panels=tuple(panels),
        table=table_from_rows(cells, _RECALL_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance=f"passage absent: {show(chance, 2)}",
    )


def memory_figure(entry: SiteRecord) -> Figure | None:
    """Memory of the whole cache by context length; None without that table.

    Raises:
        RecordError: The table lacks a column.
    """
    if "memory" not in entry.measurement.tables:
        return None
    frame = entry.table("memory", ("method", "seq_len", "total_bytes", "bf16_bytes"))
    if not len(frame):
        return None
    rows: list[dict[str, Any]] = [
        {
            "method": method_name(row["method"]),
            "seq_len": int(row["seq_len"]),
            "mib": chart_number(row["total_bytes"] / _MIB),
            "exact": chart_number(row["bf16_bytes"] / _MIB),
        }
        for row in rows_of(frame)
    ]
    legend = tuple(dict.fromkeys(row["method"] for row in rows))
    longest = max(row["seq_len"] for row in rows)
    last = [row for row in rows if row["seq_len"] == longest]
    said = ", ".join(f"{row['method']} {show(row['mib'])} MiB" for row in last)
    words = (
        f"Memory by context length. At {show(longest)} tokens: {said}; "
        f"in bfloat16 {show(last[0]['exact'])} MiB."
    )
    exact = [{**row, "method": "bfloat16", "mib": row["exact"]} for row in rows]
    return Figure(
        name="cache-memory",
        title="How much memory does it take?",
        description=words,
        caption=(
            "Keys, values, raw tokens and fixed side data of one sequence, both axes on a log "
            "scale. Dashed: everything in bfloat16. Fixed side data weighs on short contexts."
        ),
        panels=(Panel("", _memory_chart(rows, exact[: len(exact) // len(legend)], legend, words)),),
        table=pivot_table(
            [*rows, *exact], index="seq_len", series="method", value="mib", heading="tokens"
        ),
        sources=(entry,),
        legend=legend,
        chance="bfloat16",
    )


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods from exact to useless, unknown ones last; the teacher-forced protocol first."""
    methods, protocols = list(METHODS), list(PROTOCOLS)
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
        "method": method_name(row["method"]),
        "protocol": protocol_name(row["protocol"]),
        "is_full": row["method"] == "full",
        **{name: chart_number(row[name]) for name in numbers},
    }


def _say(protocol: str, rows: Sequence[Mapping[str, Any]]) -> str:
    mine = [f"{r['method']} {show(r['perplexity'])}" for r in rows if r["protocol"] == protocol]
    return f"{capitalized(protocol)}: {', '.join(mine)}."


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
            axis=label_axis(),
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
            method_name(row["method"]),
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


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "method": method_name(row["method"])}


def _say_recall(rows: Sequence[Mapping[str, Any]], legend: Sequence[str]) -> list[str]:
    """Mean over depths of every method."""
    said = []
    for method in legend:
        shares = [row["correct_top1"] for row in rows if row["method"] == method]
        if shares:
            said.append(f"{method} {_share(sum(shares) / len(shares))}")
    return said


def _recall_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], chance: float, words: str
) -> dict[str, Any]:
    import altair as alt

    numbers = ("depth", "correct_top1", "correct_top1_low", "correct_top1_high", "nll")
    data = [
        {"method": row["method"], **{name: chart_number(row[name]) for name in numbers}}
        for row in rows
    ]
    base = alt.Chart(data_of(data)).encode(
        x=alt.X("depth", type="quantitative", scale=alt.Scale(domain=[0, 1], padding=8)),
        y=alt.Y(
            "correct_top1", type="quantitative", title="recalled", scale=alt.Scale(domain=[0, 1])
        ),
        color=color_by("method", legend),
        tooltip=tooltips(
            {"method": "method", "depth": "depth", "correct_top1": "recalled", "nll": "NLL"},
            dict.fromkeys(("depth", "correct_top1", "nll"), ".3~g"),
        ),
    )
    bars = base.mark_rule().encode(
        y=alt.Y("correct_top1_low", type="quantitative"),
        y2=alt.Y2("correct_top1_high"),
        opacity=focus_opacity("method", 0.5),
    )
    bounds = [bars] if are_bounded(data, "correct_top1_low", "correct_top1_high") else []
    chart = alt.layer(chance_rule(chance), *bounds, *series_marks(base, "method", legend))
    return finish(chart.add_params(focus_param()), height=240, description=words)


def _memory_chart(
    rows: Sequence[Mapping[str, Any]],
    exact: Sequence[Mapping[str, Any]],
    legend: Sequence[str],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    scale = alt.Scale(type="log", nice=False)
    lengths = sorted({row["seq_len"] for row in rows})
    sizes = [size for row in (*rows, *exact) if (size := row["mib"])]
    x_axis = alt.X(
        "seq_len",
        type="quantitative",
        scale=scale,
        title="tokens of context",
        axis=alt.Axis(values=lengths, format=",d", grid=False, labelOverlap=True),
    )
    y_axis = alt.Y(
        "mib",
        type="quantitative",
        scale=scale,
        title="memory (MiB)",
        axis=alt.Axis(values=log_ticks(min(sizes), max(sizes)), format=",~r"),
    )
    base = alt.Chart(data_of(rows)).encode(
        x=x_axis,
        y=y_axis,
        color=color_by("method", legend),
        tooltip=tooltips(
            {"method": "method", "seq_len": "tokens", "mib": "MiB"},
            {"seq_len": "d", "mib": ".4~g"},
        ),
    )
    reference = alt.Chart(data_of(exact)).mark_line(style="chance").encode(x=x_axis, y=y_axis)
    chart = alt.layer(reference, *series_marks(base, "method", legend))
    return finish(chart.add_params(focus_param()), height=280, description=words)
