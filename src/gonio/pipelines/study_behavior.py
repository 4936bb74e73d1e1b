"""What a study says about behavior: biases against matrices, and geometry against behavior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gonio.linalg.association import (
    association,
    association_interval,
    student_interval,
    what_points_can_say,
)
from gonio.pipelines.study_tables import Finding, FinishedCell
from gonio.records import make_value

__all__ = ["bitfit_share", "geometry_and_behavior"]

_GEOMETRY = ("stable_rank", "right_overlap_ratio")
_BEHAVIOR = ("held_out_margin", "held_out_kl_to_base")
_RESAMPLES = 2000
_START = math.log(2.0)  # the loss of a model that equals its reference


def bitfit_share(cells: Sequence[FinishedCell], seed: int = 0) -> Finding:
    """Share of DPO's loss reduction that training only the biases reaches.

    Both losses start at log 2. Of the training loss the mean of the last quarter counts; the
    held-out loss is that of the same pairs under both, and its interval resamples the pairs.

    Returns:
        Table ``bitfit``: model, seed and ``measure`` (``training`` or ``held_out``):
        ``bitfit_reduction, dpo_reduction`` (nats per pair)``, share, low, high, reason``.
    """
    rows = []
    for one in (cell for cell in cells if cell.cell.kind == "bitfit"):
        for other in (cell for cell in cells if cell.cell.kind == "dpo"):
            if (one.cell.model, one.cell.seed) != (other.cell.model, other.cell.seed):
                continue
            names = {
                "model": one.cell.model.name,
                "seed": one.cell.seed,
                "bitfit": one.cell.recipe_name,
                "dpo": other.cell.recipe_name,
            }
            mine, its = _training_reduction(one), _training_reduction(other)
            rows.append(names | {"measure": "training"} | _share(mine, its))
            mine_all, its_all = _held_out_reductions(one), _held_out_reductions(other)
            if len(mine_all) == len(its_all):
                found = _share(float(mine_all.mean()), float(its_all.mean()))
                found |= _share_bounds(mine_all, its_all, seed)
                rows.append(names | {"measure": "held_out"} | found)
    if not rows:
        why = "no model has finished both a DPO and a BitFit training with one seed"
        return Finding(missing=(("BitFit's share", why),))
    table = pd.DataFrame(rows)
    values = []
    for (model, bitfit, dpo), group in table.groupby(["model", "bitfit", "dpo"], sort=False):
        shares = group.loc[group["measure"] == "training", "share"]
        known = shares.dropna().tolist()
        complete = len(known) == len(shares)
        values.append(
            make_value(
                f"bitfit_share_{model}" + ("" if dpo == "dpo" else f"_{dpo}"),
                float(np.mean(known)) if complete else math.nan,
                interval=student_interval(known) if complete else None,
                note=f"loss reduction of {bitfit} over that of {dpo} in training, mean over "
                f"{len(shares)} seeds, interval over seeds"
                + ("" if complete else "; one of the DPO trainings lowered no loss"),
            )
        )
    return Finding({"bitfit": table}, tuple(values))


def geometry_and_behavior(cells: pd.DataFrame, seed: int = 0) -> Finding:
    """Correlations of geometry with behavior within each recipe, and what their number allows.

    Twice: over models (means over seeds), and over cells as the first study has it, where seeds
    of one model are not independent and the p-value is therefore too small.

    Args:
        cells: As :func:`gonio.pipelines.study_tables.cells_table` returns it.
        seed: Seed of permutations and bootstrap.

    Returns:
        Table ``associations``: recipe, unit (``models`` or ``cells``), geometry and behavior:
        ``n``, Pearson's and Spearman's correlation, each with its bootstrap interval (from four
        points on) and permutation p-value, ``smallest_p`` and ``says``.
    """
    rows, missing = [], []
    columns = [*_GEOMETRY, *_BEHAVIOR]
    known = cells[cells[columns].notna().all(axis=1)]
    for recipe, group in known.groupby("recipe", sort=False):
        means = group.groupby("model", sort=False)[columns].mean()
        for unit, points in (("models", means), ("cells", group[columns])):
            if len(points) < 3:
                why = f"recipe {recipe} over {unit}: {what_points_can_say(len(points))}"
                missing.append(("geometry against behavior", why))
                continue
            for geometry in _GEOMETRY:
                for behavior in _BEHAVIOR:
                    x, y = points[geometry].tolist(), points[behavior].tolist()
                    names = {"recipe": recipe, "unit": unit}
                    names |= {"geometry": geometry, "behavior": behavior}
                    rows.append(names | _correlations(x, y, seed))
    if not len(known):
        missing.append(("geometry against behavior", "no finished cell changes weight matrices"))
    if not rows:
        return Finding(missing=tuple(missing))
    table = pd.DataFrame(rows)
    over_models = table[table["unit"] == "models"]
    values = [
        make_value(
            f"{row['geometry']}_and_{row['behavior'].removeprefix('held_out_')}_{row['recipe']}",
            row["pearson"],
            chance=0.0,
            note=f"Pearson's correlation over models, permutation p {row['pearson_p']:.3g}; "
            f"{row['says']}",
        )
        for row in over_models.to_dict("records")
    ]
    if values:
        models = int(over_models["n"].max())
        values.append(make_value("what_the_correlations_can_show", what_points_can_say(models)))
    return Finding({"associations": table}, tuple(values), tuple(missing))


def _correlations(x: list[float], y: list[float], seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(x)}
    for statistic in ("pearson", "spearman"):
        test = association(x, y, statistic, seed=seed)
        interval = association_interval(x, y, statistic, seed=seed)
        row |= {
            statistic: test.value,
            f"{statistic}_low": interval.low if interval else math.nan,
            f"{statistic}_high": interval.high if interval else math.nan,
            f"{statistic}_p": test.p_value,
        }
        if statistic == "pearson":
            row["smallest_p"] = test.smallest_p
    return row | {"says": what_points_can_say(len(x))}


def _training_reduction(cell: FinishedCell) -> float:
    return _START - float(str(cell.records["training"].record.value("last_quarter_loss").value))


def _held_out_reductions(cell: FinishedCell) -> NDArray[np.float64]:
    """Log 2 minus the DPO loss of every held-out pair, nats."""
    beta = float(getattr(cell.cell.recipe, "beta", math.nan))
    margin = cell.records["training"].tables["held_out"]["margin"].to_numpy(dtype=np.float64)
    reductions: NDArray[np.float64] = _START - np.logaddexp(0.0, -beta * margin)
    return reductions


def _share(bitfit: float, dpo: float) -> dict[str, Any]:
    defined = dpo > 0
    return {
        "bitfit_reduction": bitfit,
        "dpo_reduction": dpo,
        "share": bitfit / dpo if defined else math.nan,
        "low": math.nan,
        "high": math.nan,
        "reason": "" if defined else "DPO lowered no loss, so there is nothing to have a share of",
    }


def _share_bounds(
    bitfit: NDArray[np.float64], dpo: NDArray[np.float64], seed: int
) -> dict[str, Any]:
    """Percentile bootstrap over pairs; none where some resamples leave DPO without reduction."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(dpo), size=(_RESAMPLES, len(dpo)))
    denominators = dpo[drawn].mean(axis=1)
    if (denominators <= 0).any():
        if dpo.mean() <= 0:
            return {}
        return {"reason": "no interval: within the pairs' scatter DPO may have lowered no loss"}
    low, high = np.quantile(bitfit[drawn].mean(axis=1) / denominators, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}
