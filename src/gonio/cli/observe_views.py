"""The tables that ``gonio cache observe`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["observation_views"]

MOST_SINKS = 12


def observation_views(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, pd.DataFrame]]:
    """Titles and tables for the terminal, of keys after RoPE; the record holds the rest."""
    return [
        ("Mean 1-bit cosine of keys after RoPE by layer", _cosines(tables["heads"])),
        ("Keys after RoPE by layer", _collapse(tables["layers"])),
        ("Attention sinks and norm outliers, all layers", _sinks(tables["sinks"])),
    ]


def _cosines(heads: pd.DataFrame) -> pd.DataFrame:
    heads = heads[heads["what"] == "key_post"]
    table = heads.pivot_table(index="layer", columns="transform", values="mean_cosine")
    chance = heads[heads["transform"] == "none"].groupby("layer")["chance"].first()
    return table[heads["transform"].unique()].assign(chance=chance).reset_index()


def _collapse(layers: pd.DataFrame) -> pd.DataFrame:
    names = {
        "layer": "layer",
        "phase_angle": "phase",
        "lattice_angle": "lattice",
        "angle_chance": "chance",
        "moment_ratio": "moments",
        "excess_kurtosis": "kurtosis",
        "top_channel_energy": "top 1%",
        "attention_sinks": "sinks",
        "norm_outliers": "outliers",
    }
    return layers.loc[layers["what"] == "key_post", list(names)].rename(columns=names)


def _sinks(sinks: pd.DataFrame) -> pd.DataFrame:
    """Positions and tokens found in most layers."""
    is_position = sinks["position"].notna()
    place = (
        sinks["token"].map(repr).where(~is_position, "position " + sinks["position"].astype(str))
    )
    groups = sinks.assign(where=place).groupby(["criterion", "where"], as_index=False)
    table = groups.agg(layers=("layer", "nunique"), per_window=("per_window", "mean"))
    return table.sort_values(["layers", "per_window"], ascending=False).head(MOST_SINKS)
