"""What a codec stores per element, by the length of the context."""

from __future__ import annotations

from gonio.site.charts import color_by, data_of, finish, focus_param, series_marks, tooltips
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, is_missing, rows_of, show

__all__ = ["length_figure"]

_PARTS = {
    "bits_per_element": "keys, what grows with the context",
    "side_bits_per_element": "keys, fixed data shared by all tokens",
    "value_bits_per_element": "values, what grows with the context",
}


def length_figure(entry: SiteRecord) -> Figure | None:
    """Bits per element by context length; None where the record has no table of lengths.

    Args:
        entry: A ``cache-calibration`` record.

    Raises:
        RecordError: The table lacks a column.
    """
    import altair as alt

    if "lengths" not in entry.measurement.tables:
        return None
    found = rows_of(entry.table("lengths", ("seq_len", *_PARTS)))
    rows = [
        {"tokens": row["seq_len"], "part": words, "bits": chart_number(row[name])}
        for name, words in _PARTS.items()
        for row in found
        if not is_missing(row[name]) and row[name] > 0
    ]
    if not rows:
        return None
    legend = tuple(dict.fromkeys(str(row["part"]) for row in rows))
    told = {"part": "part", "tokens": "tokens", "bits": "bits per element"}
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X("tokens", type="quantitative", title="tokens in the context").scale(
            type="log", base=2
        ),
        y=alt.Y("bits", type="quantitative", title="bits per element (log scale)").scale(
            type="log"
        ),
        color=color_by("part", legend),
        tooltip=tooltips(told, {"bits": ".4~g"}),
    )
    chart = alt.layer(*series_marks(base, "part", legend)).add_params(focus_param())
    most, least = (show(extreme(row["bits"] for row in rows)) for extreme in (max, min))
    words = f"Bits per element by context length, from {least} to {most}, in {len(legend)} series."
    return Figure(
        name="codec-lengths",
        title="What a codec stores, by the length of the context",
        description=words,
        caption=(
            "Every stored byte that grows with the context counts, as does the fixed data, which "
            "longer contexts share."
        ),
        panels=(Panel("", finish(chart, height=240, description=words)),),
        table=table_from_rows(rows, told),
        sources=(entry,),
        legend=legend,
    )
