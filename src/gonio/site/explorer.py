"""The explorer: any runs over each other by layer or fractional depth, one quantity at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gonio.site.adapter_figures import projection_order
from gonio.site.charts import color_by, data_of, finish, shape_by, tooltips
from gonio.site.collection import Collection, SiteRecord
from gonio.site.figure import Figure, Panel, table_from_rows
from gonio.site.numbers import chart_number, is_missing, rows_of, show

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALL", "EXPLORED", "Explorer", "Option", "explorer_figure", "make_explorer"]

ALL = "mean over projections"
_SHOWN = 6  # runs drawn before the reader chooses
_AXES = {"layer": "layer", "depth": "fractional depth"}
_FIRST_K = 5

# Quantity to its title; runs that lack one are not drawn under it.
EXPLORED = {
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "k90": "directions that hold 90% of the energy",
    "frobenius_norm": "Frobenius norm of the update",
    "left_overlap": "overlap with the base over chance, left side",
    "right_overlap": "overlap with the base over chance, right side",
    "column_gain": "column-gain residual, distance from chance (sd)",
    "row_gain": "row-gain residual, distance from chance (sd)",
    "cosine": "cosine of two updates, distance from chance (sd)",
    "left_pair": "overlap of two adapters over chance, left side",
    "right_pair": "overlap of two adapters over chance, right side",
}
_SPECTRUM = {
    "stable_rank": "random_lora_stable_rank",
    "effective_rank": "random_lora_effective_rank",
    "k90": "random_lora_k90",
    "frobenius_norm": None,
}


@dataclass(frozen=True)
class Option:
    """A choice of a selector: what the chart is told, and what the reader sees."""

    value: str
    title: str


@dataclass(frozen=True)
class Explorer:
    """The explorer's figure and its controls.

    Attributes:
        figure: One panel with the parameters ``quantity``, ``axis``, ``projection`` and ``runs``
            (numbers of the runs drawn, each between bars: ``|0|2|``).
        quantities: What can be drawn.
        axes: What runs along the horizontal axis.
        projections: The mean over projections, and each projection.
        runs: Names of the runs, in palette order.
        shown: Places of those drawn at first, which have the first quantity.
    """

    figure: Figure
    quantities: tuple[Option, ...]
    axes: tuple[Option, ...]
    projections: tuple[Option, ...]
    runs: tuple[str, ...]
    shown: tuple[int, ...]


def make_explorer(collection: Collection) -> Explorer | None:
    """The explorer of every run of a site; None where nothing was measured by layer.

    Raises:
        RecordError: A record lacks a column.
    """
    kinds = ("adapter-spectrum", "adapter-base-overlap", "adapter-pair", "study")
    return explorer_figure([e for kind in kinds for e in collection.of_kind(kind)])


def explorer_figure(records: Sequence[SiteRecord]) -> Explorer | None:
    """The explorer of some records: of adapters, of pairs of adapters, and of studies.

    Args:
        records: Of the kinds ``adapter-spectrum``, ``adapter-base-overlap``, ``adapter-pair`` and
            ``study``; records of one adapter are one run.

    Raises:
        RecordError: A record lacks a column.
    """
    cells: dict[tuple[str, int, str], dict[str, Any]] = {}
    for entry in records:
        for name, frame, quantity, chance in _measured(entry):
            _add(cells, name, frame, quantity, chance)
    if not cells:
        return None
    runs = tuple(dict.fromkeys(name for name, _, _ in cells))
    rows = _with_depth(cells, runs)
    found = [name for name in EXPLORED if any(name in row for row in rows)]
    names = {row["projection"] for row in rows} - {ALL}
    projections = (ALL, *projection_order(names))
    have = {row["name"] for row in rows if row.get(found[0]) is not None}
    shown = tuple(place for place, name in enumerate(runs) if name in have)[:_SHOWN]
    words = _describe(rows, found[0], runs)
    figure = Figure(
        name="explorer",
        title="Any runs over each other",
        description=words,
        caption=(
            "One quantity of the chosen runs by layer, or by depth from 0 (first layer measured) "
            "to 1 (last), which sets models of different sizes beside each other. Dashed, in the "
            "color of chance: what chance gives each run. Overlaps compare 5 directions where that "
            "was measured, else the fewest. Gains and cosines have 0 as their chance. "
            "The table holds the means over projections of every run."
        ),
        panels=(Panel("", _chart(rows, runs, found, shown, words)),),
        table=table_from_rows(
            [row for row in rows if row["projection"] == ALL],
            {"name": "run", "layer": "layer", "depth": "fractional depth"}
            | {name: EXPLORED[name] for name in found},
        ),
        sources=tuple(records),
        legend=runs,
        chance="chance",
    )
    return Explorer(
        figure=figure,
        quantities=tuple(Option(name, EXPLORED[name]) for name in found),
        axes=tuple(Option(name, title) for name, title in _AXES.items()),
        projections=tuple(Option(name, name) for name in projections),
        runs=runs,
        shown=shown,
    )


_Measured = tuple[str, "pd.DataFrame", str, str | None]


def _measured(entry: SiteRecord) -> Iterable[_Measured]:
    """Run, rows (layer, projection, value, chance), quantity of everything a record holds."""
    kind = entry.record.kind
    tables = entry.measurement.tables
    if kind == "adapter-spectrum":
        table = entry.table("modules", ("layer", "projection"))
        for name, chance in _SPECTRUM.items():
            if name in table.columns:
                known = chance if chance is not None and chance in table.columns else None
                yield entry.label, table, name, known
    elif kind == "study":
        yield from _studied(entry)
    else:
        suffix = "overlap" if kind == "adapter-base-overlap" else "pair"
        overlaps = entry.table("overlaps", ("layer", "projection", "side", "k", "overlap_ratio"))
        fixed = overlaps[overlaps["k_from"] == "fixed"] if "k_from" in overlaps else overlaps
        first = _first_k(fixed["k"])
        for side in ("left", "right"):
            mine = fixed[(fixed["side"] == side) & (fixed["k"] == first)]
            named = _named(mine, "overlap_ratio", f"{side}_{suffix}", chance=1.0)
            yield entry.label, named, f"{side}_{suffix}", "level"
        scores = {
            "gains": {
                "column_gain": "column_gain_residual_z_score",
                "row_gain": "row_gain_residual_z_score",
            },
            "cosines": {"cosine": "z_score"},
        }
        for table_name, quantities in scores.items():
            if table_name in tables:
                for name, column in quantities.items():
                    frame = entry.table(table_name, ("layer", "projection", column))
                    yield entry.label, _named(frame, column, name, chance=0.0), name, "level"


def _studied(entry: SiteRecord) -> Iterable[_Measured]:
    """The cells of a study: overlaps by layer, means over projections."""
    if "layers" not in entry.measurement.tables:
        return
    columns = ("model", "recipe", "seed", "side", "layer", "k", "overlap_ratio")
    table = entry.table("layers", columns)
    table = table[table["k"] == _first_k(table["k"])]
    for (model, recipe, seed), mine in table.groupby(["model", "recipe", "seed"], sort=False):
        for side in ("left", "right"):
            rows = mine[mine["side"] == side].assign(projection=ALL)
            named = _named(rows, "overlap_ratio", f"{side}_overlap", chance=1.0)
            yield f"{model}, {recipe}, seed {seed}", named, f"{side}_overlap", "level"


def _named(frame: pd.DataFrame, column: str, name: str, *, chance: float) -> pd.DataFrame:
    """Layer, projection, a column under the name of a quantity, and its chance as ``level``."""
    named = frame[["layer", "projection", column]].rename(columns={column: name})
    return named.assign(level=chance)


def _first_k(values: pd.Series[int]) -> int:
    """The usual number of directions where it was measured, else the smallest."""
    found = sorted({int(k) for k in values})
    return _FIRST_K if _FIRST_K in found or not found else found[0]


def _add(
    cells: dict[tuple[str, int, str], dict[str, Any]],
    name: str,
    frame: pd.DataFrame,
    quantity: str,
    chance: str | None,
) -> None:
    """Enter a quantity of a run by layer and projection, and its mean over projections."""
    frame = frame.dropna(subset=["layer", quantity])
    columns = [quantity, *([chance] if chance else [])]
    parts = frame.groupby(["layer", "projection"])[columns].mean().reset_index()
    means = parts.groupby("layer")[columns].mean().reset_index().assign(projection=ALL)
    known = [] if set(parts["projection"]) <= {ALL} else rows_of(parts)
    for row in [*rows_of(means), *known]:
        cell = cells.setdefault((name, int(row["layer"]), str(row["projection"])), {})
        cell[quantity] = chart_number(row[quantity])
        if chance and not is_missing(row[chance]):
            cell[f"{quantity}_chance"] = chart_number(row[chance])


def _with_depth(
    cells: Mapping[tuple[str, int, str], Mapping[str, Any]], runs: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows in the order of runs, projections and layers, with the depth in [0, 1]."""
    last = {run: max(layer for name, layer, _ in cells if name == run) for run in runs}
    first = {run: min(layer for name, layer, _ in cells if name == run) for run in runs}
    order = {run: place for place, run in enumerate(runs)}
    rows = []
    for (run, layer, projection), values in cells.items():
        span = last[run] - first[run]
        rows.append(
            {
                "run": order[run],
                "name": run,
                "projection": projection,
                "layer": layer,
                "depth": chart_number((layer - first[run]) / span) if span else 0.5,
                **values,
            }
        )
    return sorted(rows, key=lambda row: (row["run"], row["projection"], row["layer"]))


def _describe(rows: Sequence[Mapping[str, Any]], quantity: str, runs: Sequence[str]) -> str:
    said = []
    for run in runs:
        values = [
            row[quantity]
            for row in rows
            if row["name"] == run and row["projection"] == ALL and quantity in row
        ]
        if values:
            said.append(f"{run} {show(min(values), 3)} to {show(max(values), 3)}")
    return (
        f"Choose a quantity, runs and the axis. At first {EXPLORED[quantity]} by layer, "
        f"{ALL}: {'; '.join(said)}."
    )


def _chart(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[str],
    found: Sequence[str],
    shown: Sequence[int],
    words: str,
) -> dict[str, Any]:
    import altair as alt

    params = [
        alt.param(name="quantity", value=found[0]),
        alt.param(name="axis", value="layer"),
        alt.param(name="projection", value=ALL),
        alt.param(name="runs", value="|" + "".join(f"{n}|" for n in shown)),
    ]
    chosen = (
        alt.Chart(data_of(rows))
        .transform_filter(
            "indexof(runs, '|' + datum.run + '|') >= 0 && datum.projection === projection"
        )
        .transform_calculate(
            x="axis === 'depth' ? datum.depth : datum.layer",
            y="datum[quantity]",
            chance="datum[quantity + '_chance']",
        )
    )
    x = alt.X(
        "x",
        type="quantitative",
        title=None,
        scale=alt.Scale(nice=False, zero=False, padding=8),
        axis=alt.Axis(
            grid=False,
            labelFlush=False,
            labelOverlap=True,
            tickMinStep=alt.ExprRef(expr="axis === 'depth' ? 0.1 : 1"),
        ),
    )
    scale = alt.Scale(zero=False, nice=True)
    values = chosen.transform_filter("isValid(datum.y)")
    base = values.encode(
        x=x,
        y=alt.Y("y", type="quantitative", title=None, scale=scale),
        color=color_by("name", runs),
        detail=alt.Detail("run", type="nominal"),
    )
    line = base.mark_line(strokeWidth=1.5, opacity=0.6)
    points = base.mark_point(filled=True, size=30, opacity=1).encode(
        shape=shape_by("name", runs),
        tooltip=tooltips(
            {"name": "run", "projection": "projection", "layer": "layer", "y": "value"}
            | {"chance": "chance"},
            {"layer": "d", "y": ".4~g", "chance": ".4~g"},
        ),
    )
    chance = (
        chosen.transform_filter("isValid(datum.chance)")
        .mark_line(style="chance")
        .encode(
            x=x,
            y=alt.Y("chance", type="quantitative", scale=scale),
            detail=alt.Detail("run", type="nominal"),
        )
    )
    titles = ", ".join(f"'{name}': '{EXPLORED[name]}'" for name in found)
    along = "axis === 'depth' ? 'fractional depth, 0 first to 1 last layer' : 'layer'"
    chart = alt.layer(chance, line, points).add_params(*params)
    # The axes have no titles of their own, since titles cannot follow a parameter.
    chart = chart.properties(
        title=alt.TitleParams(
            text=alt.ExprRef(expr=f"({{{titles}}})[quantity] + ', by ' + ({along})"),
            anchor="start",
            fontSize=12,
            fontWeight="normal",
        )
    )
    return finish(chart, height=320, description=words)
