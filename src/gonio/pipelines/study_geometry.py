"""What a study says about the geometry of its updates, each beside what chance gives."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gonio.linalg.association import association, slope_interval, what_points_can_say
from gonio.linalg.resampling import (
    Interval,
    bootstrap_interval,
    cluster_bootstrap_interval,
)
from gonio.pipelines.study_tables import Finding, FinishedCell, over_seeds
from gonio.records import Value, make_value

__all__ = [
    "depth_correlations",
    "gain_residuals",
    "overlaps_with_base",
    "stable_rank_by_step",
    "stable_rank_by_width",
]

_GROUP = ("model", "recipe")
_DEPTH = (
    *("side", "projection", "layers", "nearest", "nearest_chance", "nearest_p_value"),
    *("rank_correlation", "rank_p_value", "decay_length", "reason"),
)


def stable_rank_by_width(cells: pd.DataFrame) -> Finding:
    """Stable rank against model width, beside random factors of the same shapes.

    A trend is the slope per doubling of the width over model means (seeds of one model are no
    independent points), with its permutation p-value over models.

    Returns:
        Tables ``stable_rank`` (model and recipe: mean over seeds) and ``trends``.
    """
    table = over_seeds(cells, [*_GROUP, "width"], "stable_rank")
    if table.empty:
        why = "no finished cell changes weight matrices"
        return Finding(missing=(("stable rank by width", why),))
    chance = cells.groupby(list(_GROUP))["stable_rank_chance"].mean().rename("chance")
    table = table.join(chance, on=list(_GROUP))
    table["ratio"] = table["stable_rank"] / table["chance"]
    rows: list[dict[str, Any]] = []
    missing = []
    for recipe, group in table.groupby("recipe", sort=False):
        known = group[group["width"].notna()]
        if known["width"].nunique() < 2:
            why = f"recipe {recipe}: {known['width'].nunique()} width, a trend needs at least 2"
            missing.append(("stable rank by width", why))
        else:
            rows += [_trend(str(recipe), known, column) for column in ("stable_rank", "ratio")]
    tables, values = {"stable_rank": table}, [_slope_value(row) for row in rows]
    if rows:
        tables["trends"] = pd.DataFrame(rows)
        models = max(row["models"] for row in rows)
        values.append(make_value("what_the_trends_can_show", what_points_can_say(models)))
    return Finding(tables, tuple(values), tuple(missing))


def stable_rank_by_step(cells: Sequence[FinishedCell], seed: int = 0) -> Finding:
    """Is the low stable rank a passing state? Its course over training, first against last.

    Returns:
        Tables ``steps`` (mean and quartiles over modules, and random factors) and ``transients``
        (one row per cell; the change has a bootstrap interval over layers).
    """
    steps, rows, values = [], [], []
    for cell in cells:
        geometry = cell.table("training", "geometry")
        if geometry is None:
            continue
        geometry = geometry[geometry["stable_rank"].notna()]
        by_step = geometry.groupby("step")["stable_rank"]
        course = pd.DataFrame(
            {
                "stable_rank": by_step.mean(),
                "quartile_low": by_step.quantile(0.25),
                "quartile_high": by_step.quantile(0.75),
                "chance": geometry.groupby("step")["random_lora_stable_rank"].mean(),
            }
        ).reset_index()
        steps.append(course.assign(**cell.labels))
        rows.append(cell.labels | _transient(geometry, course, seed))
    if not rows:
        why = "the study does not follow its updates: set spectrum_every"
        return Finding(missing=(("stable rank by step", why),))
    table = pd.DataFrame(rows)
    for recipe, group in table.groupby("recipe", sort=False):
        counts = group["course"].value_counts()
        said = ", ".join(f"{count} {course}" for course, count in counts.items())
        note = f"of {len(group)} trainings between the first and the last measured step: {said}"
        change = float(group["change"].mean())
        values.append(make_value(f"stable_rank_change_{recipe}", change, chance=0.0, note=note))
    counts = table["course"].value_counts()
    said = ", ".join(f"{count} {course}" for course, count in counts.items())
    reading = (
        f"Of {len(table)} trainings, between the first and the last measured step, stable ranks: "
        f"{said}; mean at first {table['first'].mean():.3g}, at last {table['last'].mean():.3g}, "
        f"random factors {table['chance'].mean():.3g}."
    )
    values.append(make_value("is_the_stable_rank_a_transient", reading))
    order = list(cells[0].labels)
    joined = pd.concat(steps, ignore_index=True)
    joined = joined[[*order, *(name for name in joined.columns if name not in order)]]
    return Finding({"steps": joined, "transients": table}, tuple(values))


def overlaps_with_base(cells: Sequence[FinishedCell], k: int) -> Finding:
    """Overlap of the updates' top directions with the base weights', over chance.

    Returns:
        Tables ``overlaps`` (model, recipe, side and k: mean over modules, then over seeds, with
        an interval over seeds) and ``layers`` (cell, side and layer at the k given: mean over
        projections; modules outside the layers are left out).
    """
    per_cell, layers = [], []
    for cell in cells:
        overlaps = cell.table("base", "overlaps")
        if overlaps is None:
            continue
        fixed = overlaps[overlaps["k_from"] == "fixed"]
        columns = ["overlap", "chance", "overlap_ratio"]
        means = fixed.groupby(["side", "k"])[columns].mean().reset_index()
        per_cell.append(means.assign(**cell.labels))
        mine = fixed[(fixed["k"] == k) & fixed["layer"].notna()]
        by_layer = mine.groupby(["side", "layer"])[[*columns, "z_score"]].mean().reset_index()
        layers.append(by_layer.assign(k=k, projections=mine["projection"].nunique(), **cell.labels))
    if not per_cell:
        why = "no finished cell changes weight matrices"
        return Finding(missing=(("overlaps with the base", why),))
    means = pd.concat(per_cell, ignore_index=True)
    by = [*_GROUP, "side", "k"]
    table = over_seeds(means, by, "overlap_ratio")
    table = table.join(means.groupby(by)[["overlap", "chance"]].mean(), on=by)
    values = [
        make_value(
            f"{row['side']}_overlap_{row['model']}_{row['recipe']}",
            float(row["overlap_ratio"]),
            chance=1.0,
            interval=_interval(row),
            note=f"overlap over chance at k = {k}, mean over modules; {_seeds(row)}",
        )
        for row in table[table["k"] == k].to_dict("records")
    ]
    joined = pd.concat(layers, ignore_index=True)
    return Finding({"overlaps": table, "layers": joined}, tuple(values))


def gain_residuals(cells: pd.DataFrame) -> Finding:
    """Share of the updates' energy that no gain of rows or columns explains, beside its null.

    Returns:
        Table ``gains``: model, recipe and side; mean over seeds with an interval over seeds, the
        mean ``chance`` and the mean ``z_score``.
    """
    tables = []
    for side in ("column", "row"):
        name = f"{side}_gain_residual"
        means = over_seeds(cells, _GROUP, name).rename(columns={name: "residual"})
        beside = cells.groupby(list(_GROUP))[[f"{name}_chance", f"{name}_z_score"]].mean()
        beside.columns = pd.Index(["chance", "z_score"])
        tables.append(means.join(beside, on=list(_GROUP)).assign(side=side))
    table = pd.concat(tables, ignore_index=True)
    if table.empty:
        why = "no finished cell changes weight matrices"
        return Finding(missing=(("gain residuals", why),))
    return Finding({"gains": table})


def depth_correlations(cells: Iterable[FinishedCell]) -> Finding:
    """Do updates of neighboring layers share directions more than layers in random order?

    Returns:
        Table ``depth``: one row per cell and side, over all projections (or the only one), with
        one-sided permutation p-values and ``smallest_p``, the least that so many layers can give
        (an order and its reverse have the same distances).
    """
    rows, missing = [], []
    for cell in cells:
        if "spectrum" not in cell.records:
            continue
        found = cell.table("spectrum", "depth_decay")
        if found is None:
            why = f"{cell.cell.name}: fewer than three layers change one projection"
            missing.append(("depth correlators", why))
            continue
        chosen = found[found["projection"] == "all"]
        chosen = chosen if len(chosen) else found.drop_duplicates("side")
        for row in chosen[list(_DEPTH)].itertuples(index=False, name=None):
            least = 2 / math.factorial(min(int(row[_DEPTH.index("layers")]), 20))
            rows.append({**cell.labels, **dict(zip(_DEPTH, row, strict=True)), "smallest_p": least})
    if not rows:
        return Finding(missing=tuple(missing) or (("depth correlators", "no spectrum"),))
    table = pd.DataFrame(rows)
    below = int((table["nearest_p_value"] <= 0.05).sum())
    able = int((table["smallest_p"] <= 0.05).sum())
    note = (
        f"of {len(table)} (cells and sides), {able} of which have enough layers to reach it; by "
        f"chance {0.05 * able:.2g}"
    )
    values = (make_value("depth_correlations_below_5_percent", below, note=note),)
    return Finding({"depth": table}, values, tuple(missing))


def _trend(recipe: str, table: pd.DataFrame, column: str) -> dict[str, Any]:
    """Slope of one recipe's model means per doubling of the width."""
    x, y = np.log2(table["width"].to_numpy(dtype="float64")), table[column].tolist()
    slope, interval = slope_interval(x, y)
    test = association(x, y)
    return {
        "recipe": recipe,
        "quantity": "stable_rank" if column == "stable_rank" else "stable_rank_over_chance",
        "models": len(table),
        "slope": slope,
        **_bounds(interval),
        "p_value": test.p_value,
        "smallest_p": test.smallest_p,
        "says": what_points_can_say(len(table)),
    }


def _slope_value(row: dict[str, Any]) -> Value:
    note = (
        f"change of the mean {row['quantity'].replace('_', ' ')} per doubling of the width; "
        f"permutation p {row['p_value']:.3g} over models; {row['says']}"
    )
    name = f"{row['quantity']}_slope_{row['recipe']}"
    return make_value(name, row["slope"], chance=0.0, interval=_interval(row), note=note)


def _transient(geometry: pd.DataFrame, course: pd.DataFrame, seed: int) -> dict[str, object]:
    first, last = int(course["step"].iloc[0]), int(course["step"].iloc[-1])
    wide = geometry.pivot(index="module", columns="step", values="stable_rank")
    change = (wide[last] - wide[first]).dropna()
    interval = _over_layers(change, seed) if first < last else None
    word = "show no change"
    if interval is not None and interval.low > 0:
        word = "rise"
    elif interval is not None and interval.high < 0:
        word = "fall"
    at = int(course["stable_rank"].argmin())
    return {
        "first_step": first,
        "last_step": last,
        "first": float(course["stable_rank"].iloc[0]),
        "last": float(course["stable_rank"].iloc[-1]),
        "lowest": float(course["stable_rank"].iloc[at]),
        "lowest_step": int(course["step"].iloc[at]),
        "chance": float(course["chance"].iloc[-1]),
        "change": float(change.mean()) if first < last else math.nan,
        **_bounds(interval),
        "course": word,
    }


def _over_layers(change: pd.Series[float], seed: int) -> Interval | None:
    """Interval of a mean over modules, the modules of a layer drawn together."""
    if len(change) < 2:
        return None
    places = [re.search(r"\.(\d+)\.", f".{name}.") for name in change.index]
    layers = [place.group(1) if place else "" for place in places]
    if len(set(layers)) > 1:
        return cluster_bootstrap_interval(change.tolist(), layers, seed=seed)
    return bootstrap_interval(change.tolist(), seed=seed)


def _bounds(interval: Interval | None) -> dict[str, float]:
    return {
        "low": interval.low if interval else math.nan,
        "high": interval.high if interval else math.nan,
    }


def _interval(row: Mapping[Any, Any]) -> Interval | None:
    low, high = float(row["low"]), float(row["high"])
    return None if math.isnan(low) else Interval(low, high, 0.95, "Student t")


def _seeds(row: Mapping[Any, Any]) -> str:
    return "one seed" if row["seeds"] == 1 else f"interval over {row['seeds']} seeds"
