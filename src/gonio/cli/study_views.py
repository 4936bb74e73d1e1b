"""The tables that ``gonio study show`` prints: every analysis, each number beside chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import Measurement

__all__ = ["study_summary", "study_views"]

_COUNTS = ("finished", "failed", "waiting", "depth_correlations_below_5_percent")

# Table of the record: title, and its columns with the headings they get.
_VIEWS: dict[str, tuple[str, dict[str, str]]] = {
    "stable_rank": (
        "Stable rank by width (95% over seeds; chance: random factors)",
        dict.fromkeys(("model", "recipe", "width", "stable_rank", "low", "high", "chance"), ""),
    ),
    "trends": (
        "Trend of the stable rank per doubling of the width, over models",
        dict.fromkeys(("recipe", "quantity", "slope", "low", "high"), "")
        | {"p_value": "p", "smallest_p": "least p"},
    ),
    "transients": (
        "Stable rank, first measured step to last (95% of the change, over layers)",
        dict.fromkeys(("cell", "first", "last", "low", "high", "course"), ""),
    ),
    "overlaps": (
        "Overlap with the base weights over chance (95% over seeds; chance: 1)",
        dict.fromkeys(("model", "recipe", "side", "k", "overlap_ratio", "low", "high"), ""),
    ),
    "alignment": (
        "Two trainings of a model, means over pairs (chance: cosine 0, overlap 1)",
        dict.fromkeys(("model", "relation", "pairs", "cosine"), "")
        | {"left_overlap_ratio": "written", "right_overlap_ratio": "read"},
    ),
    "gains": (
        "Energy of the updates that no gain explains (95% over seeds)",
        dict.fromkeys(("model", "recipe", "side", "residual", "low", "high", "chance"), "")
        | {"z_score": "z"},
    ),
    "depth": (
        "Overlap of neighboring layers' updates (chance: layers in random order)",
        dict.fromkeys(("cell", "side"), "")
        | {"nearest": "overlap", "nearest_chance": "chance"}
        | {"nearest_p_value": "p", "smallest_p": "least p"},
    ),
    "bitfit": (
        "Loss reduction in nats, BitFit's share of DPO's (95% over pairs)",
        dict.fromkeys(("model", "seed", "measure"), "")
        | {"bitfit_reduction": "BitFit", "dpo_reduction": "DPO"}
        | dict.fromkeys(("share", "low", "high"), ""),
    ),
    "associations": (
        "Geometry against behavior over models (r: Pearson, 95%; rho: Spearman)",
        dict.fromkeys(("recipe", "geometry", "behavior"), "")
        | {"pearson": "r", "pearson_low": "low", "pearson_high": "high", "pearson_p": "p"}
        | {"spearman": "rho", "spearman_p": "p rho"},
    ),
}
_WORDS = {
    "right_overlap_ratio": "overlap",
    "stable_rank_over_chance": "over chance",
    "held_out_kl_to_base": "KL",
    "held_out_margin": "margin",
    "held_out": "held-out",
    "show no change": "no change",
    "stable_rank": "stable rank",
}


def study_summary(found: Measurement) -> Measurement:
    """The measurement with those values only that stand in no table: counts and sentences."""
    values = tuple(
        value
        for value in found.record.values
        if value.name in _COUNTS or isinstance(value.value, str)
    )
    return replace(found, record=found.record.model_copy(update={"values": values}))


def study_views(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, pd.DataFrame]]:
    """Titles and tables for the terminal; the record holds the rest."""
    views = []
    for name, (title, columns) in _VIEWS.items():
        if name not in tables:
            continue
        table = tables[name]
        if name == "alignment":
            table = _pairs(table)
        if name == "associations":
            table = table[table["unit"] == "models"].round(3)
        if name == "overlaps" and "layers" in tables:
            table = table[table["k"].isin(tables["layers"]["k"])]
        if len(table):
            names = {column: heading or column for column, heading in columns.items()}
            views.append((title, table[list(names)].replace(_WORDS).rename(columns=names)))
    return views


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the pairs of a model that share the same."""
    grouped = table.groupby(["model", "relation"], sort=False)
    means = grouped[["cosine", "left_overlap_ratio", "right_overlap_ratio"]].mean()
    return means.assign(pairs=grouped.size()).reset_index()
