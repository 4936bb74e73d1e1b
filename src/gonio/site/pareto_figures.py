"""Which caches nobody beats: bits per element against perplexity, gonio's methods and others'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gonio.site.charts import (
    are_bounded,
    color_by,
    data_of,
    finish,
    focus_opacity,
    focus_param,
    log_ticks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import DataTable, Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, rows_of, show, show_range

__all__ = ["comparison_figures", "frontier_figure"]

_HEIGHT = 380
_WIDTH = 200  # of the plotting area on a narrow page
_Box = tuple[float, float, float, float]

_COLUMNS = (
    *("method", "origin", "version", "parts", "protocol", "status", "message", "bits"),
    *("key_bits", "value_bits", "held_key_bits", "held_value_bits", "held_bits", "side_bytes"),
    *("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"),
    *("logit_kl", "same_top1", "is_frontier"),
)
_PARTS = {"keys": "Keys coded, values exact", "both": "Keys and values coded"}
_CONTROLS = ("full", "zeros")
_HEADINGS = {
    "method": "method",
    "version": "version",
    "protocol": "protocol",
    "key_bits": "K bits",
    "value_bits": "V bits",
    "held": "held bits",
    "side": "side bytes",
    "ratio": "perplexity over full",
    "interval": "95% interval",
    "logit_kl": "KL (nats per token)",
    "same_top1": "same top-1",
    "state": "status",
}


def comparison_figures(records: Sequence[SiteRecord]) -> list[Figure | None]:
    """The figure of every ``cache-comparison`` record.

    Raises:
        RecordError: A record lacks its table or a column.
    """
    return [frontier_figure(entry) for entry in records]


def frontier_figure(entry: SiteRecord) -> Figure | None:
    """Bits against perplexity, teacher-forced, with the frontier; None where nothing was scored.

    Args:
        entry: A ``cache-comparison`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    rows = rows_of(entry.table("methods", _COLUMNS))
    drawn = [_point(row) for row in rows if _is_drawn(row)]
    if not drawn:
        return None
    legend = tuple(dict.fromkeys(point["origin"] for point in drawn))
    panels, said = [], []
    for parts, title in _PARTS.items():
        mine = [point for point in drawn if point["parts"] == parts]
        if mine:
            words = f"{title}: {_say(mine)}."
            said.append(words)
            panels.append(Panel(title, _chart(mine, legend, words)))
    failed = sum(row["status"] == "failed" for row in rows)
    return Figure(
        name="cache-frontier",
        title="Which caches does nobody beat?",
        description=f"Bits per element against perplexity over full precision. {' '.join(said)}",
        caption=(
            "Perplexity over full precision (log scale; 1 is no loss) by bits per element of what "
            "is coded: codes and scales at 4,096 tokens, side data apart. Every method reads the "
            "same windows, all keys (and values) coded. Joined: the methods that no other beats "
            "in both. Bars: 95% bootstrap intervals over text windows. Names stand where there is "
            "room; tooltips and the table have all. The bits of a package that "
            "keeps dense tensors are those its codes would take; the table states what it holds. "
            "How low an error theory allows at these bits is drawn apart, under limits: it bounds "
            f"errors, and no formula turns it into a perplexity. Rows that failed: {failed}."
        ),
        panels=tuple(panels),
        table=_table(rows),
        sources=(entry,),
        legend=legend,
        chance="full precision",
    )


def _is_drawn(row: Mapping[str, Any]) -> bool:
    return (
        row["status"] == "ok"
        and row["protocol"] == "teacher-forced"
        and row["method"] not in _CONTROLS
        and chart_number(row["bits"]) is not None
        and chart_number(row["perplexity_ratio"]) is not None
    )


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = ("bits", "perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high")
    return {
        "method": row["method"],
        "origin": row["origin"],
        "parts": row["parts"],
        "is_frontier": bool(row["is_frontier"]),
        **{name: chart_number(row[name]) for name in (*numbers, "logit_kl")},
    }


def _say(points: Sequence[Mapping[str, Any]]) -> str:
    """The frontier in words, from few bits to many."""
    best = sorted((p for p in points if p["is_frontier"]), key=lambda p: p["bits"])
    told = (f"{p['method']} {show(p['bits'])} bits {show(p['perplexity_ratio'])}" for p in best)
    return f"{len(points)} methods; on the frontier {', '.join(told)}"


def _chart(
    points: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    x_axis = alt.X(
        "bits",
        type="quantitative",
        title="bits per element",
        scale=alt.Scale(zero=False, nice=True),
    )
    ends = ("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high")
    values = [point[end] for point in points for end in ends if point[end] is not None]
    low, high = min(1.0, *values) / 1.05, 1.05 * max(1.1, *values)
    ticks = log_ticks(low, high)
    y_axis = alt.Y(
        "perplexity_ratio",
        type="quantitative",
        title="perplexity over full",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(
            labelOverlap=True, format="~g", **({"values": ticks} if len(ticks) > 1 else {})
        ),
    )
    base = alt.Chart(data_of(points)).encode(
        x=x_axis,
        y=y_axis,
        color=color_by("origin", legend),
        opacity=focus_opacity("origin"),
    )
    interval = (
        base.transform_filter(
            "isValid(datum.perplexity_ratio_low) && isValid(datum.perplexity_ratio_high)"
        )
        .mark_rule(strokeWidth=1)
        .encode(
            y=alt.Y("perplexity_ratio_low", type="quantitative"),
            y2=alt.Y2("perplexity_ratio_high"),
        )
    )
    dots = base.mark_point(filled=True, size=52).encode(
        shape=shape_by("origin", legend),
        tooltip=tooltips(
            {
                "method": "method",
                "bits": "bits per element",
                "perplexity_ratio": "perplexity over full",
                "logit_kl": "KL (nats per token)",
            },
            dict.fromkeys(("bits", "perplexity_ratio", "logit_kl"), ".4~g"),
        ),
    )
    named = _with_room([point for point in points if point["origin"] != "gonio"], points)
    labels = _names(named, legend).encode(x=x_axis, y=y_axis)
    best = [point for point in points if point["is_frontier"]]
    joined = (
        alt.Chart(data_of(best))
        .mark_line(strokeWidth=1.25)
        .encode(x=x_axis, y=y_axis, order=alt.Order("bits", type="quantitative"))
    )
    exact = (
        alt.Chart(data_of([{"full": 1.0}]))
        .mark_rule(style="chance")
        .encode(y=alt.Y("full", type="quantitative"))
    )
    layers = [
        exact,
        *([joined] if best else []),
        *([interval] if are_bounded(points, ends[1], ends[2]) else []),
        dots,
        *([labels] if named else []),
    ]
    chart = alt.layer(*layers).add_params(focus_param())
    return finish(chart, height=_HEIGHT, description=words)


def _names(points: Sequence[Mapping[str, Any]], legend: Sequence[str]) -> Any:
    import altair as alt

    text = alt.Chart(data_of(points)).mark_text(align="left", dx=6, dy=-5, fontSize=9)
    return text.encode(
        color=color_by("origin", legend),
        opacity=focus_opacity("origin"),
        text=alt.Text("method", type="nominal"),
    )


def _with_room(
    points: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The points whose names cover no dot and no name before them, in a narrow drawing."""
    bits = [float(point["bits"]) for point in every]
    heights = [math.log(float(point["perplexity_ratio"])) for point in every]
    wide = (max(bits) - min(bits)) or 1.0
    tall = (max(heights) - min(heights)) or 1.0

    def place(point: Mapping[str, Any]) -> tuple[float, float]:
        across = (float(point["bits"]) - min(bits)) / wide * _WIDTH
        return across, (max(heights) - math.log(float(point["perplexity_ratio"]))) / tall * _HEIGHT

    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in map(place, every)]
    kept = []
    for point in points:
        x, y = place(point)
        box = (x + 6, y - 12, x + 6 + 5 * len(str(point["method"])), y - 4)
        if box[2] <= 1.25 * _WIDTH and not any(_touch(box, other) for other in boxes):
            boxes.append(box)
            kept.append(point)
    return kept


def _touch(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _table(rows: Sequence[Mapping[str, Any]]) -> DataTable:
    """Every row, also those that were not drawn and those that failed."""
    cells = []
    for row in rows:
        held = row["held_bits"]
        if row["protocol"] == "teacher-forced":
            pair = [chart_number(row[f"held_{part}_bits"]) for part in ("key", "value")]
            held = None if None in pair else " / ".join(show(each) for each in pair)
        cells.append(
            {
                **{name: row[name] for name in ("method", "version", "protocol")},
                **{name: row[name] for name in ("key_bits", "value_bits", "logit_kl", "same_top1")},
                "held": held,
                "side": row["side_bytes"],
                "ratio": row["perplexity_ratio"],
                "interval": show_range(row["perplexity_ratio_low"], row["perplexity_ratio_high"]),
                "state": row["message"] or row["status"],
            }
        )
    return table_from_rows(cells, _HEADINGS)
