"""What may be said of the statements that were checked, by family."""

from __future__ import annotations

from gonio.site.charts import color_by, data_of, finish, focus_opacity, focus_param, tooltips
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import rows_of
from gonio.site.statements import STATUS_MEANINGS

__all__ = ["status_figure"]


def status_figure(entry: SiteRecord) -> Figure | None:
    """Number of statements by family and status; None where nothing was checked.

    Args:
        entry: A ``theorem-check`` record.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    import altair as alt

    found = rows_of(entry.table("checks", ("name", "family", "status")))
    if not found:
        return None
    legend = tuple(word for word in STATUS_MEANINGS if any(r["status"] == word for r in found))
    families = sorted({str(row["family"]) for row in found})
    rows = []
    for family in families:
        start = 0
        for status in legend:
            count = sum(r["family"] == family and r["status"] == status for r in found)
            rows.append({"family": family, "status": status, "statements": count})
            rows[-1] |= {"start": start, "end": start + count}
            start += count
    totals = {word: sum(row["status"] == word for row in found) for word in legend}
    told = ", ".join(f"{count} {word}" for word, count in totals.items())
    chart = (
        alt.Chart(data_of([row for row in rows if row["statements"]]))
        .mark_bar(style="cell")
        .encode(
            x=alt.X("start", type="quantitative", title="statements").axis(tickMinStep=1),
            x2=alt.X2("end"),
            y=alt.Y("family", type="nominal", title="family", sort=families),
            color=color_by("status", legend),
            opacity=focus_opacity("status"),
            tooltip=tooltips({"family": "family", "status": "status", "statements": "statements"}),
        )
        .add_params(focus_param())
    )
    words = f"Statements by family and status, as stacked bars: {told}."
    return Figure(
        name="statement-status",
        title="What may be said of each statement",
        description=words,
        caption=f"{len(found)} statements: {told}. The words are computed from what ran.",
        panels=(Panel("", finish(chart, height=22 * len(families), description=words)),),
        table=table_from_rows(
            [row for row in rows if row["statements"]],
            {"family": "family", "status": "status", "statements": "statements"},
        ),
        sources=(entry,),
        legend=legend,
    )
