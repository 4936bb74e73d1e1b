"""Tables of modules condensed to one row per projection, per layer or per choice of k."""

from __future__ import annotations

import pandas as pd

__all__ = ["layer_summary", "overlap_summary", "projection_summary"]


def projection_summary(modules: pd.DataFrame) -> pd.DataFrame:
    """Means of the spectrum over the modules of each projection, in the adapter's order."""
    return _spectrum_means(modules.groupby("projection", sort=False)).reset_index()


def layer_summary(modules: pd.DataFrame) -> pd.DataFrame:
    """Means of the spectrum over the modules of each layer; modules outside layers come last."""
    means = _spectrum_means(modules.groupby("layer", dropna=False)).reset_index()
    return means.sort_values("layer", na_position="last", ignore_index=True)


def overlap_summary(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Overlap beside chance for each projection, side and choice of k, means over modules."""
    keys = ["projection", "side", "k_from"]
    rows = []
    for (projection, side, source), group in overlaps.groupby(keys, sort=False):
        # A fixed k is a group of its own; the adaptive ones vary by module and are averaged.
        parts = group.groupby("k") if source == "fixed" else [(None, group)]
        for _, part in parts:
            rows.append(
                {
                    "projection": projection,
                    "side": side,
                    "k_from": source,
                    "k": float(part["k"].mean()),
                    "modules": len(part),
                    "overlap": float(part["overlap"].mean()),
                    "chance": float(part["chance"].mean()),
                    "overlap_ratio": float(part["overlap_ratio"].mean()),
                    "z_score": float(part["z_score"].mean()),
                }
            )
    return pd.DataFrame(rows)


def _spectrum_means(groups: pd.api.typing.DataFrameGroupBy) -> pd.DataFrame:  # type: ignore[type-arg]
    return groups.agg(
        modules=("module", "size"),
        stable_rank=("stable_rank", "mean"),
        stable_rank_chance=("random_lora_stable_rank", "mean"),
        effective_rank=("effective_rank", "mean"),
        effective_rank_chance=("random_lora_effective_rank", "mean"),
        k90=("k90", "mean"),
        k90_chance=("random_lora_k90", "mean"),
        frobenius_norm=("frobenius_norm", "mean"),
    )
