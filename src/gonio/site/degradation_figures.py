"""How predictions degrade through a compressed cache: by context, by position, pair by pair."""

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
    upright_rule,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.method_names import METHODS, method_name, protocol_name
from gonio.site.numbers import chart_number, is_missing, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["context_figure", "pairs_figure"]

_RATIO = ("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high", "logit_kl")
_LENGTHS = ("protocol", "context_length", "method", "scored_tokens", *_RATIO)
_POSITIONS = (*_LENGTHS, "context_from", "context_to")
_PAIRS = (
    *("protocol", "context_length", "first", "second", "windows"),
    *("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"),
    *("logit_kl_difference", "logit_kl_difference_low", "logit_kl_difference_high"),
)
_HEADINGS = {
    "panel": "protocol",
    "method": "method",
    "by": "by",
    "tokens": "tokens of context",
    "ratio": "perplexity over full",
    "low": "interval, low",
    "high": "interval, high",
    "kl": "KL (nats per token)",
    "scored": "tokens scored",
}
_PAIR_HEADINGS = {
    "pair": "first over second",
    "panel": "protocol",
    "ratio": "perplexity, first over second",
    "low": "interval, low",
    "high": "interval, high",
    "kl": "KL, first minus second",
    "kl_low": "interval, low",
    "kl_high": "interval, high",
}
_LENGTH, _POSITION = "context length", "tokens read before"


def context_figure(entry: SiteRecord) -> Figure | None:
    """Perplexity over full precision by tokens read before, and by context length if it varied.

    Args:
        entry: A ``cache-evaluation`` record; None where it has neither table.

    Raises:
        RecordError: A table lacks a column.
    """
    rows = [*_rows(entry, "positions", _POSITIONS), *_rows(entry, "lengths", _LENGTHS)]
    if not rows:
        return None
    known = [name for name in METHODS.values() if any(row["method"] == name for row in rows)]
    legend = tuple(dict.fromkeys([*known, *(row["method"] for row in rows)]))
    panels, said = [], []
    for title, mine in _panels(rows):
        words = f"{title}: {'; '.join(_say(name, mine) for name in legend if _of(name, mine))}."
        said.append(words)
        panels.append(Panel(title, _chart(mine, legend, words)))
    return Figure(
        name="cache-degradation",
        title="Does the damage grow with the context?",
        description=f"Perplexity over full precision. {' '.join(said)}",
        caption=(
            "Perplexity over that of full precision on the same tokens (log scale; 1, dashed, is "
            "no loss) by how many tokens of the window come before the scored one, in doubling "
            "ranges marked at their middle, or by the length of the window. Bars: 95% bootstrap "
            "intervals over windows. Zeros: a cache that keeps nothing."
        ),
        panels=tuple(panels),
        table=table_from_rows(rows, _HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="full precision",
    )


def pairs_figure(entry: SiteRecord) -> Figure | None:
    """Every two codecs on the same windows; None without that table.

    Args:
        entry: A ``cache-evaluation`` record.

    Raises:
        RecordError: The table lacks a column.
    """
    if "pairs" not in entry.measurement.tables:
        return None
    rows = [_pair(row) for row in rows_of(entry.table("pairs", _PAIRS))]
    rows = [row for row in rows if row["ratio"] is not None]
    if not rows:
        return None
    legend = tuple(dict.fromkeys(row["panel"] for row in rows))
    words = "Perplexity of the first codec over the second on the same windows: " + "; ".join(
        f"{row['pair']}, {row['panel']}: {show(row['ratio'], 3)}" for row in rows
    )
    return Figure(
        name="cache-pairs",
        title="Which of two caches predicts better?",
        description=f"{words}. Equal is 1.",
        caption=(
            "Perplexity through the first codec over that through the second, window by window "
            "(log scale), with 95% bootstrap intervals over windows: narrower than what two "
            "separate intervals would suggest. Right of the dashed line (equal) the second is "
            "better. Codecs may differ in bits, which the figures above and the record state."
        ),
        panels=(Panel("", _pair_chart(rows, legend, f"{words}. Equal is 1.")),),
        table=table_from_rows(rows, _PAIR_HEADINGS),
        sources=(entry,),
        legend=legend,
        chance="equal",
    )


def _rows(entry: SiteRecord, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of compressed methods with a ratio; lengths only where there are several."""
    if name not in entry.measurement.tables:
        return []
    frame: pd.DataFrame = entry.table(name, columns)
    if name == "lengths" and frame["context_length"].nunique() < 2:
        return []
    by = _LENGTH if name == "lengths" else _POSITION
    rows = []
    for row in rows_of(frame):
        if row["method"] == "full" or is_missing(row["perplexity_ratio"]):
            continue
        length = int(row["context_length"])
        if name == "lengths":
            ends, title = (length / 2, 2 * length), protocol_name(row["protocol"])
        else:
            ends = (int(row["context_from"]), int(row["context_to"]))
            title = f"{protocol_name(row['protocol'])}, window of {show(length)} tokens"
        rows.append(
            {
                "panel": title,
                "by": by,
                "method": method_name(row["method"]),
                "tokens": chart_number((ends[0] * ends[1]) ** 0.5),
                "from": ends[0],
                "to": ends[1],
                "ratio": chart_number(row["perplexity_ratio"]),
                "low": chart_number(row["perplexity_ratio_low"]),
                "high": chart_number(row["perplexity_ratio_high"]),
                "kl": chart_number(row["logit_kl"]),
                "scored": int(row["scored_tokens"]),
            }
        )
    return rows


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    keys = dict.fromkeys((row["panel"], row["by"]) for row in rows)
    return [
        (
            panel if by == _POSITION else f"{panel}, by context length",
            [row for row in rows if (row["panel"], row["by"]) == (panel, by)],
        )
        for panel, by in keys
    ]


def _of(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["method"] == name]


def _say(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    mine = sorted(_of(name, rows), key=lambda row: row["tokens"])
    first, last = mine[0], mine[-1]
    if len(mine) == 1:
        return f"{name} {show(first['ratio'], 3)}"
    return (
        f"{name} {show(first['ratio'], 3)} near {show(first['tokens'], 2)} tokens, "
        f"{show(last['ratio'], 3)} near {show(last['tokens'], 2)}"
    )


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    length = show(row["context_length"])
    return {
        "pair": f"{method_name(row['first'])} / {method_name(row['second'])}",
        "panel": f"{protocol_name(row['protocol'])}, {length} tokens",
        "ratio": chart_number(row["perplexity_ratio"]),
        "low": chart_number(row["perplexity_ratio_low"]),
        "high": chart_number(row["perplexity_ratio_high"]),
        "kl": chart_number(row["logit_kl_difference"]),
        "kl_low": chart_number(row["logit_kl_difference_low"]),
        "kl_high": chart_number(row["logit_kl_difference_high"]),
    }


def _chart(rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str) -> dict[str, Any]:
    import altair as alt

    ends = [row[end] for row in rows for end in ("from", "to")]
    ticks = [2**n for n in range(30) if min(ends) <= 2**n <= max(ends)]
    if len(ticks) < 2:
        ticks = sorted({round(row["tokens"]) for row in rows})
    scale = alt.Scale(type="log", domain=[min(ends), max(ends)], nice=False, padding=8)
    y_scale = alt.Scale(type="log", nice=True)
    ratios = [row["high"] or row["ratio"] for row in rows]
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "tokens",
            type="quantitative",
            title=f"{rows[0]['by']} (log scale)",
            scale=scale,
            axis=alt.Axis(values=ticks, format=",d", grid=False, labelOverlap=True),
        ),
        color=color_by("method", legend),
    )
    y = alt.Y(
        "ratio",
        type="quantitative",
        title="perplexity over full",
        scale=y_scale,
        axis=alt.Axis(values=log_ticks(1, 10 * max(ratios)), format=",~g", labelOverlap=True),
    )
    bars = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=1.5)
        .encode(
            y=alt.Y("low", type="quantitative", scale=y_scale),
            y2=alt.Y2("high"),
            opacity=focus_opacity("method", 0.4),
        )
    )
    told = base.encode(
        y=y,
        tooltip=tooltips(
            {name: title for name, title in _HEADINGS.items() if name not in ("panel", "by")},
            {"tokens": ".3~g", "scored": "d"}
            | dict.fromkeys(("ratio", "low", "high", "kl"), ".3~g"),
        ),
    )
    marks = series_marks(told, "method", legend)
    bounds = [bars] if are_bounded(rows) else []
    chart = alt.layer(chance_rule(1.0), *bounds, *marks).add_params(focus_param())
    return finish(chart, height=240, description=words)


def _pair_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    edges = [row[end] or row["ratio"] for row in rows for end in ("low", "high")]
    ticks = log_ticks(min(1, *edges) / 10, 10 * max(1, *edges))
    scale = alt.Scale(type="log", nice=True)
    # Two lines per label, or more: pairs of long names do not fit beside a narrow chart.
    label = "replace(datum.label, regexp(', keys and values', 'g'), '|keys and values')"
    base = alt.Chart(data_of(rows)).encode(
        y=alt.Y(
            "pair",
            type="nominal",
            sort=pairs,
            title=None,
            axis=label_axis(f"split(replace({label}, ' / ', '|'), '|')"),
        ),
        yOffset=alt.YOffset("panel", type="nominal", sort=list(legend)),
        color=color_by("panel", legend),
    )
    bars = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=2)
        .encode(
            x=alt.X("low", type="quantitative", scale=scale, title="perplexity, first over second"),
            x2=alt.X2("high"),
            opacity=focus_opacity("panel", 0.5),
        )
    )
    dots = base.mark_point(filled=True, size=60).encode(
        x=alt.X(
            "ratio",
            type="quantitative",
            scale=scale,
            title="perplexity, first over second",
            axis=alt.Axis(values=ticks, format=",~g", labelOverlap=True),
        ),
        shape=shape_by("panel", legend),
        opacity=focus_opacity("panel"),
        tooltip=tooltips(
            _PAIR_HEADINGS,
            dict.fromkeys(("ratio", "low", "high", "kl", "kl_low", "kl_high"), ".3~g"),
        ),
    )
    equal = upright_rule("equal", 1)
    chart = alt.layer(equal, *([bars] if are_bounded(rows) else []), dots).add_params(focus_param())
    return finish(chart, height=max(80, 52 * len(pairs)), description=words)
