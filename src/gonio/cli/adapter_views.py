"""Tables of adapter measurements condensed to what fits 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import Measurement

__all__ = [
    "advice_view",
    "fleet_view",
    "footnotes",
    "overlap_view",
    "reshape_view",
    "spectrum_view",
]


def spectrum_view(summary: pd.DataFrame) -> pd.DataFrame:
    """The columns that fit 80 characters, each ratio beside its chance level."""
    names = {
        "projection": "projection",
        "layer": "layer",
        "modules": "n",
        "stable_rank": "stable_rank",
        "stable_rank_chance": "chance",
        "effective_rank": "effective",
        "effective_rank_chance": "chance ",
        "k90": "k90",
        "frobenius_norm": "norm",
    }
    view = summary[[name for name in names if name in summary]].rename(columns=names)
    return _short_projections(view)


def overlap_view(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per projection and choice of k, the left and the right side beside each other."""
    import pandas as pd

    keys = ["projection", "k_from", "k"]
    sides = {}
    for side in ("left", "right"):
        part = summary[summary["side"] == side].set_index(keys)
        sides[side] = part["overlap"].map(_three_digits)
        sides[f"/chance {side[0]}"] = part["overlap_ratio"].map(_three_digits)
        sides[f"z {side[0]}"] = part["z_score"].round(1)
    view = pd.DataFrame(sides).reset_index()
    view["k"] = [
        f"{k:.0f}" if source == "fixed" else f"~{k:.3g}"
        for k, source in zip(view["k"], view["k_from"], strict=True)
    ]
    return _short_projections(view.drop(columns="k_from"))


def fleet_view(adapters: pd.DataFrame) -> pd.DataFrame:
    """One row per adapter, with what fits 80 columns."""
    names = {
        "adapter": "adapter",
        "step": "step",
        "modules": "n",
        "stable_rank": "stable_rank",
        "stable_rank_low": "low",
        "stable_rank_high": "high",
        "stable_rank_chance": "chance",
        "k90": "k90",
        "frobenius_norm": "norm",
    }
    shown = adapters[[name for name in names if name in adapters]].rename(columns=names)
    return shown.dropna(axis="columns", how="all")


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def footnotes(found: Measurement) -> list[tuple[str, pd.DataFrame]]:
    """What was not measured, condensed to reasons and counts."""
    notes = []
    for name, title in (
        ("unused", "Tensors in no update"),
        ("left_out", "Left out"),
        ("unshared", "Modules only one adapter changes"),
    ):
        if name in found.tables:
            column = {"unshared": "adapter"}.get(name, "reason")
            counts = found.tables[name][column].value_counts().rename("count").reset_index()
            notes.append((title, counts))
    return notes


def reshape_view(modules: pd.DataFrame) -> pd.DataFrame:
    """Mean ranks and the share of energy lost, per projection; output errors on held-out text."""
    groups = modules.groupby("projection", sort=False)
    view = groups.agg(
        n=("module", "size"), rank_before=("rank_before", "mean"), rank_after=("rank_after", "mean")
    )
    energy = groups["energy"].sum()
    view["discarded"] = groups["discarded_energy"].sum() / energy
    view["measured"] = groups["discarded_energy_measured"].sum() / energy
    if "held_out_output_error" in modules:
        outputs = groups["held_out_output_energy"].sum()
        for name, column in (("output", "output_error"), ("plain", "output_error_plain")):
            view[name] = groups[f"held_out_{column}"].sum() / outputs
    return _short_projections(view.reset_index())


def advice_view(advice: pd.DataFrame) -> pd.DataFrame:
    """Mean ranks per projection: what there is, what the spectrum fills, what is advised."""
    groups = advice.groupby("projection", sort=False)
    view = groups.agg(
        n=("module", "size"),
        rank=("rank", "mean"),
        stable=("stable_rank", "mean"),
        chance=("random_lora_stable_rank", "mean"),
        k90=("k90", "mean"),
        k99=("k99", "mean"),
        advised=("recommended_rank", "mean"),
        saved=("parameters_saved", "sum"),
    )
    return _short_projections(view.reset_index())


def _short_projections(view: pd.DataFrame) -> pd.DataFrame:
    """Last components of the projections, where they still tell them apart."""
    if "projection" not in view:
        return view
    short = view["projection"].str.rpartition(".")[2]
    is_clear = short.nunique() == view["projection"].nunique()
    return view.assign(projection=short) if is_clear else view
