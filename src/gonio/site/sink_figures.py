"""Tokens that attention or norms single out: sinks and outliers by layer and place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.heat_maps import layer_heat_map, octave_color
from gonio.site.numbers import capitalized, chart_number, is_missing, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["outlier_figure", "sink_figure"]

_MOST_TOKENS = 8  # told apart beyond the leading positions
_OTHER = "other later tokens"
_COLUMNS = (
    *("layer", "criterion", "position", "token", "found", "per_window"),
    *("value", "chance", "threshold"),
)
_NORMS = {"key_norm": "norms of keys", "value_norm": "norms of values"}
_HEADINGS = {"place": "where", "layer": "layer", "per_window": "per window"}
_SINK_HEADINGS = {
    **_HEADINGS,
    "value": "attention received",
    "chance": "if spread evenly",
    "held": "held per window",
}
_NORM_HEADINGS = {"what": "of", **_HEADINGS, "value": "times the median"}


def sink_figure(entry: SiteRecord) -> Figure | None:
    """Attention that sinks hold, by layer and by position or token; None if there are none.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = _found(entry, "attention")
    if frame is None:
        return None
    rows = _places(frame)
    threshold = show(frame["threshold"].iloc[0])
    best = max(rows, key=lambda row: row["held"])
    by_place = {place: sum(r["place"] == place for r in rows) for place in _order(rows)}
    layers = len({row["layer"] for row in rows})
    words = (
        f"Attention sinks are found in {layers} layers: "
        f"{', '.join(f'{place} in {count}' for place, count in by_place.items())}. The strongest, "
        f"{best['place']} in layer {best['layer']}, receives {show(best['value'], 3)} of the "
        f"attention of later queries; evenly spread attention gives {show(best['chance'], 2)}."
    )
    return Figure(
        name="attention-sinks",
        title="Where does attention rest?",
        description=words,
        caption=(
            "Attention that sinks hold: the mean weight that later queries of all heads give them, "
            "times how many there are per window. A token is a sink if it receives at least "
            f"{threshold} on average (after Gu et al. 2024, arXiv:2410.10781). Gray cells: nothing "
            "at this place reaches that in this layer, which is not to say that it receives "
            "nothing; the record holds no value there. The first four positions are told apart, "
            "later tokens by their text. The neutral color, near the lower end of the scale, is "
            "chance: attention that is spread evenly."
        ),
        panels=(Panel("", _sink_chart(rows, entry, words)),),
        table=table_from_rows(rows, _SINK_HEADINGS),
        sources=(entry,),
        chance="within the threshold",
        is_chance_band=True,
    )


def outlier_figure(entry: SiteRecord) -> Figure | None:
    """Tokens whose keys or values are far longer or shorter than most; None if there are none.

    Raises:
        RecordError: The record lacks the table or a column.
    """
    frame = _found(entry, *_NORMS)
    if frame is None:
        return None
    parts = {what: _places(frame[frame["criterion"] == what]) for what in _NORMS}
    parts = {what: rows for what, rows in parts.items() if rows}
    every = [row for rows in parts.values() for row in rows]
    limit = float(frame["threshold"].iloc[0])
    ratios = [row["value"] for row in every if row["value"] > 0]
    reach = max([limit, *ratios, *(1 / ratio for ratio in ratios)])
    panels, said = [], []
    for what, rows in parts.items():
        values = [row["value"] for row in rows]
        words = (
            f"{capitalized(_NORMS[what])}: outliers in "
            f"{len({row['layer'] for row in rows})} layers, from {show(min(values), 3)} to "
            f"{show(max(values), 3)} times the median."
        )
        said.append(words)
        panels.append(Panel(_NORMS[what], _norm_chart(rows, reach, entry, words)))
    return Figure(
        name="norm-outliers",
        title="Which tokens have unusual norms?",
        description=" ".join(said),
        caption=(
            "Norm over the median of the window, geometric mean over heads, of tokens more than "
            f"{show(limit)} times above or below it; equal factors have equally strong colors. "
            "Gray cells: nothing at this place is outside these limits in this layer. "
            "Keys are those after rotary embedding. Tokens that hold attention often have short "
            "values: attention to them adds little."
        ),
        panels=tuple(panels),
        table=table_from_rows(
            [{**row, "what": _NORMS[what]} for what, rows in parts.items() for row in rows],
            _NORM_HEADINGS,
        ),
        sources=(entry,),
        chance="within the threshold",
        is_chance_band=True,
    )


def _found(entry: SiteRecord, *criteria: str) -> pd.DataFrame | None:
    """The rows of some criteria, None if there are none."""
    if not len(entry.table("sinks", ())):
        return None  # an empty table that was read from JSON has no columns
    frame = entry.table("sinks", _COLUMNS)
    frame = frame[frame["criterion"].isin(criteria)]
    return frame if len(frame) else None


def _places(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per place and layer: means over what was found there, and how often.

    Positions come first, then the most frequent tokens, then all others as one place.
    """
    is_later = frame["position"].isna()
    frame = frame.assign(place=[_place(row) for row in rows_of(frame)])
    frequent = frame[is_later].groupby("place")["found"].sum().nlargest(_MOST_TOKENS).index
    frame.loc[is_later & ~frame["place"].isin(frequent), "place"] = _OTHER
    order = {name: n for n, name in enumerate([*frequent, _OTHER])}
    weighted = frame.assign(
        value=frame["value"] * frame["found"], chance=frame["chance"] * frame["found"]
    )
    columns = ["found", "per_window", "value", "chance"]
    sums = weighted.groupby(["place", "layer"])[columns].sum().reset_index()
    rows = [
        {
            "place": row["place"],
            "layer": int(row["layer"]),
            "per_window": chart_number(row["per_window"]),
            "value": chart_number(row["value"] / row["found"]),
            "chance": chart_number(row["chance"] / row["found"]),
            "held": chart_number(row["value"] / row["found"] * row["per_window"]),
        }
        for row in rows_of(sums)
    ]
    return sorted(rows, key=lambda row: (order.get(row["place"], -1), row["place"], row["layer"]))


def _place(row: Mapping[str, Any]) -> str:
    if is_missing(row["position"]):
        return f"later {str(row['token'])!r}"
    return f"position {int(row['position'])}"


def _order(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["place"] for row in rows))


def _map(
    rows: Sequence[Mapping[str, Any]],
    entry: SiteRecord,
    color: Any,
    told: Mapping[str, str],
    words: str,
) -> dict[str, Any]:
    """Places down, all layers of the model across."""
    import altair as alt

    places = _order(rows)
    layers = sorted({int(layer) for layer in entry.table("layers", ("layer",))["layer"]})
    known = {(row["place"], row["layer"]) for row in rows}
    axis = alt.Axis(grid=False, domain=False, ticks=False, labelLimit=150)
    numbers = [name for name in told if name not in ("place", "layer")]
    return layer_heat_map(
        rows,
        layers=layers,
        unmeasured=[
            {"place": place, "layer": layer}
            for place in places
            for layer in layers
            if (place, layer) not in known
        ],
        why="within the threshold",
        y=alt.Y("place", type="nominal", sort=places, title=None, axis=axis),
        color=color,
        told=told,
        formats=dict.fromkeys(numbers, ".3~g"),
        height=max(48, 22 * len(places)),
        words=words,
    )


def _sink_chart(rows: Sequence[Mapping[str, Any]], entry: SiteRecord, words: str) -> dict[str, Any]:
    import altair as alt

    most = max(row["held"] for row in rows)
    even = sum(row["chance"] * row["per_window"] for row in rows) / len(rows)
    color = alt.Color(
        "held",
        type="quantitative",
        scale=alt.Scale(domain=[0, most], domainMid=even),
        legend=alt.Legend(title="attention held"),
    )
    return _map(rows, entry, color, _SINK_HEADINGS, words)


def _norm_chart(
    rows: Sequence[Mapping[str, Any]], reach: float, entry: SiteRecord, words: str
) -> dict[str, Any]:
    octaves = math.log2(reach)
    color = octave_color(-octaves, octaves, "norm / median")
    # Zero vectors take the color of the shortest others.
    drawn = [
        {**row, "octaves": chart_number(math.log2(max(row["value"], 1 / reach)))} for row in rows
    ]
    told = {name: title for name, title in _NORM_HEADINGS.items() if name != "what"}
    return _map(drawn, entry, color, told, words)
