"""Spectra of adapters: stable rank by layer and by projection, beside random factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gonio.site.charts import (
    chance_band,
    color_by,
    data_of,
    finish,
    focus_param,
    layer_axis,
    series_marks,
    shape_by,
    tooltips,
)
from gonio.site.collection import SiteRecord
from gonio.site.figure import Figure, Panel, pivot_table, table_from_rows
from gonio.site.numbers import chart_number, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["projection_order", "stable_rank_figure", "stable_rank_summary"]

_NULL = "random_lora_stable_rank"
_COLUMNS = (
    *("module", "layer", "projection", "out_features", "in_features", "rank", "stable_rank"),
    *(_NULL, f"{_NULL}_low", f"{_NULL}_high"),
)
# Projections in the order of a layer's computation; names are those of common architectures.
_PROJECTION_ORDER = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "o_proj", "dense"),
    *("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "c_fc", "fc1"),
    *("down_proj", "dense_4h_to_h", "c_proj", "fc2"),
)


def projection_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct projection names in the order of a layer's computation, unknown ones last.

    Args:
        names: With or without what stands before the last dot (``self_attn.q_proj``).
    """
    rank = {name: place for place, name in enumerate(_PROJECTION_ORDER)}

    def place(name: str) -> tuple[int, str]:
        return rank.get(name.rpartition(".")[2], len(rank)), name

    return tuple(sorted(set(names), key=place))


def stable_rank_figure(records: Sequence[SiteRecord]) -> Figure | None:
    """Stable rank of every update by layer, one chart per adapter; None without records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    if not records:
        return None
    frames = {entry.label: _numbered(entry.table("modules", _COLUMNS)) for entry in records}
    frames = {label: frame for label, frame in frames.items() if len(frame)}
    if not frames:
        return None
    legend = projection_order(p for frame in frames.values() for p in frame["projection"])
    top = max(
        float(frame[["stable_rank", f"{_NULL}_high"]].max().max()) for frame in frames.values()
    )
    panels, rows, said = [], [], []
    for label, frame in frames.items():
        words = _describe(label, frame)
        said.append(words)
        panels.append(Panel(label, _layer_chart(frame, legend, top, words)))
        rows += _table_rows(label, frame, legend)
    left_out = sum(len(e.measurement.tables["modules"]) for e in records)
    left_out -= sum(len(frame) for frame in frames.values())
    return Figure(
        name="stable-rank",
        title="Stable rank of every update",
        description=" ".join(said),
        caption=(
            "Stable rank: squared Frobenius norm over squared spectral norm, between 1 and the "
            "configured rank. Each point is one weight matrix, computed exactly, so it has no "
            "interval of its own. Gray bands: 95% of what Gaussian factors of the same shapes "
            "give (labeled by shape)." + _left_out(left_out)
        ),
        panels=tuple(panels),
        table=pivot_table(rows, index="line", series="projection", value="value", heading="layer"),
        sources=tuple(records),
        theorems=("stableRank_le_rank", "stableRank_smul_invariant"),
        legend=legend,
        chance="random factors, 95%",
        is_chance_band=True,
    )


def stable_rank_summary(records: Sequence[SiteRecord]) -> Figure | None:
    """Stable rank by projection in one small chart; None without records.

    Raises:
        RecordError: A record lacks the table or a column.
    """
    import pandas as pd

    frames = [entry.table("modules", _COLUMNS).assign(adapter=entry.label) for entry in records]
    frames = [frame.dropna(subset=["stable_rank"]) for frame in frames]
    if not frames or not sum(len(frame) for frame in frames):
        return None
    rows = _summary_rows(pd.concat(frames, ignore_index=True))
    legend = tuple(entry.label for entry in records)
    said = [f"{row['adapter']} {row['projection']}: {show(row['median'], 3)}" for row in rows]
    null = f"{show(min(r['low'] for r in rows), 3)} to {show(max(r['high'] for r in rows), 3)}"
    words = f"Median stable rank: {'; '.join(said)}. Random factors give {null}."
    return Figure(
        name="stable-rank-summary",
        title="How many directions does fine-tuning turn?",
        description=words,
        caption=(
            "Median stable rank over the layers, by projection (the weight matrices of a layer); "
            "the bar holds the middle half of the layers. Gray: 95% of what random factors of "
            "the same shape give, which is chance."
        ),
        panels=(Panel("", _summary_chart(rows, legend, words)),),
        table=table_from_rows(
            rows,
            {
                "adapter": "adapter",
                "projection": "projection",
                "median": "median",
                "lower": "lower quartile",
                "upper": "upper quartile",
                "low": "random, 2.5%",
                "high": "random, 97.5%",
            },
        ),
        sources=tuple(records),
        legend=legend,
        chance="random factors, 95%",
        is_chance_band=True,
        finding=_finding(rows),
    )


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    medians = [row["median"] for row in rows]
    found = " to ".join(dict.fromkeys(show(f(medians), 2) for f in (min, max)))
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    return (
        f"Stable rank, the number of directions that carry an update: {found} after training, "
        f"where random factors of the same shapes give {show(low, 2)} to {show(high, 2)}."
    )


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of numbered layers with a stable rank (a zero update has none), layer by layer."""
    kept = frame.dropna(subset=["layer", "stable_rank"])
    return kept.astype({"layer": "int64"}).sort_values(["layer", "module"])


def _left_out(count: int) -> str:
    if not count:
        return ""
    noun = "update is" if count == 1 else "updates are"
    return f" {count} {noun} zero or outside the numbered layers and only in the record."


def _shape(row: Mapping[str, Any]) -> str:
    small, large = sorted((int(row["out_features"]), int(row["in_features"])))
    return f"{small}\N{MULTIPLICATION SIGN}{large}, rank {int(row['rank'])}"


def _null_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Two rows per distinct shape: the null at the first and at the last layer."""
    first, last = int(frame["layer"].min()), int(frame["layer"].max())
    if first == last:
        first, last = first - 1, last + 1
    bands: dict[str, Any] = {}
    for row in rows_of(frame):
        bands.setdefault(_shape(row), row)
    return [
        {
            "layer": layer,
            "shape": shape,
            "low": chart_number(row[f"{_NULL}_low"]),
            "high": chart_number(row[f"{_NULL}_high"]),
            "middle": chart_number(row[_NULL]),
        }
        for shape, row in bands.items()
        for layer in (first, last)
    ]


def _null_labels(nulls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One label per band, side by side so that bands close to each other stay legible.

    The first begins at the first layer and the last ends at the last: narrow charts cut no label.
    """
    starts, ends = nulls[0::2], nulls[1::2]
    last = len(starts) - 1
    sides = ["left", *["center"] * (last - 1), "right"] if last else ["center"]
    return [
        {
            **start,
            "layer": start["layer"]
            + (end["layer"] - start["layer"]) * (place / last if last else 0.5),
            "side": sides[place],
        }
        for place, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _describe(label: str, frame: pd.DataFrame) -> str:
    values = frame["stable_rank"]
    low, high = frame[f"{_NULL}_low"].min(), frame[f"{_NULL}_high"].max()
    return (
        f"{label}: stable rank of {len(frame)} updates in {frame['layer'].nunique()} layers, "
        f"median {show(values.median(), 3)}, from {show(values.min(), 3)} to "
        f"{show(values.max(), 3)}; random factors of the same shapes give {show(low, 3)} to "
        f"{show(high, 3)}."
    )


def _layer_chart(
    frame: pd.DataFrame, legend: Sequence[str], top: float, words: str
) -> dict[str, Any]:
    import altair as alt

    rows = [
        {
            "layer": int(row["layer"]),
            "stable_rank": chart_number(row["stable_rank"]),
            "projection": row["projection"],
            "chance": chart_number(row[_NULL]),
        }
        for row in rows_of(frame)
    ]
    nulls = _null_rows(frame)
    base = alt.Chart(data_of(rows)).encode(
        x=layer_axis(),
        y=alt.Y(
            "stable_rank",
            type="quantitative",
            title="stable rank",
            scale=alt.Scale(domain=[1, top], nice=True),
        ),
        color=color_by("projection", legend),
        tooltip=tooltips(
            {
                "projection": "projection",
                "layer": "layer",
                "stable_rank": "stable rank",
                "chance": "random factors, mean",
            },
            {"layer": "d", "stable_rank": ".4~g", "chance": ".4~g"},
        ),
    )
    marks = series_marks(base, "projection", legend)
    text = (
        alt.Chart(data_of(_null_labels(nulls)))
        .mark_text(style="chance-label", align=alt.ExprRef(expr="datum.side"))
        .encode(
            x=alt.X("layer", type="quantitative"),
            y=alt.Y("middle", type="quantitative"),
            text=alt.Text("shape", type="nominal"),
        )
    )
    band = chance_band(nulls, x="layer", low="low", high="high", group="shape")
    chart = alt.layer(band, text, *marks).add_params(focus_param())
    return finish(chart, height=300, description=words)


def _table_rows(label: str, frame: pd.DataFrame, legend: Sequence[str]) -> list[dict[str, Any]]:
    order = {name: place for place, name in enumerate(legend)}
    rows = sorted(rows_of(frame), key=lambda row: (order[row["projection"]], row["layer"]))
    return [
        {
            "line": row["layer"],
            "projection": f"{label} {row['projection']}",
            "value": row["stable_rank"],
        }
        for row in rows
    ]


def _summary_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for adapter in dict.fromkeys(frame["adapter"]):
        mine = frame[frame["adapter"] == adapter]
        for projection in projection_order(mine["projection"]):
            values = mine[mine["projection"] == projection]
            quartiles = values["stable_rank"].quantile([0.25, 0.5, 0.75])
            rows.append(
                {
                    "adapter": adapter,
                    "projection": projection,
                    "median": chart_number(quartiles[0.5]),
                    "lower": chart_number(quartiles[0.25]),
                    "upper": chart_number(quartiles[0.75]),
                    "low": chart_number(values[f"{_NULL}_low"].min()),
                    "high": chart_number(values[f"{_NULL}_high"].max()),
                }
            )
    return rows


def _summary_chart(
    rows: Sequence[Mapping[str, Any]], legend: Sequence[str], words: str
) -> dict[str, Any]:
    import altair as alt

    order = list(projection_order(str(row["projection"]) for row in rows))
    scale = alt.Scale(domainMin=1, zero=False)
    base = alt.Chart(data_of(rows)).encode(
        y=alt.Y("projection", type="nominal", sort=order, title=None, axis=alt.Axis(grid=False)),
        yOffset=alt.YOffset("adapter", type="nominal", sort=list(legend)),
    )
    band = base.mark_rule(style="chance-bar").encode(
        x=alt.X("low", type="quantitative", scale=scale, title="stable rank"), x2=alt.X2("high")
    )
    bar = base.mark_rule(strokeWidth=3, opacity=0.5).encode(
        x=alt.X("lower", type="quantitative"), x2=alt.X2("upper"), color=color_by("adapter", legend)
    )
    dot = base.mark_point(filled=True, size=60).encode(
        x=alt.X("median", type="quantitative"),
        color=color_by("adapter", legend),
        shape=shape_by("adapter", legend),
        tooltip=tooltips(
            {"adapter": "adapter", "projection": "projection", "median": "median"},
            {"median": ".4~g"},
        ),
    )
    return finish(alt.layer(band, bar, dot), height=34 * len(order), description=words)
