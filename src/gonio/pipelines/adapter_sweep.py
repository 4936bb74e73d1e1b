"""Sweeps over the rank: one adapter truncated, or a recipe trained; curves and a recommendation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gonio.adapters.rank_choice import (
    RankChoice,
    curve_table,
    eckart_young_table,
    rank_table,
    recommend_rank,
    resampled_means,
)
from gonio.errors import SettingError
from gonio.linalg.curves import compare_curves
from gonio.linalg.resampling import Interval
from gonio.models import load_model
from gonio.pipelines.adapter_reading import open_adapter
from gonio.pipelines.reshape import resize_adapter
from gonio.pipelines.sweep_judge import (
    METRICS,
    HeldOut,
    Progress,
    SweepMetric,
    TextUnits,
    held_out_pairs,
    judge_pairs,
    judge_text,
)
from gonio.records import InputFile, Measurement, Value, make_measurement, make_value

__all__ = ["check_ranks", "summarize_sweep", "truncate_sweep"]


def truncate_sweep(
    model: str | Path,
    folder: str | Path,
    ranks: Sequence[int],
    *,
    metric: SweepMetric = "margin",
    data: str = "bundled",
    held_out: int = 64,
    max_length: int | None = None,
    data_seed: int | None = None,
    text: str = "docstrings",
    tokens: int = 4096,
    window: int = 256,
    tolerance: float = 0.05,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Truncate one adapter to several ranks and judge each beside what its spectrum predicts.

    A rank that is enough after training is not the rank that training would have needed.

    Args:
        model: The base model.
        folder: The adapter.
        ranks: Distinct ranks, at most the adapter's.
        metric: What is judged, see :data:`gonio.pipelines.sweep_judge.METRICS`.
        data: Pairs, as for training; not read for ``text-loss``.
        held_out: Held-out pairs.
        max_length: Tokens per sequence of a pair; that of the adapter's recipe, else 512.
        data_seed: Seed of the split; that of the adapter's recipe, else 0.
        text: Text of ``text-loss``.
        tokens: Its last tokens that are scored.
        window: Tokens per window.
        tolerance: Share of the best gain that the recommended rank may give up.
        seed: Seed of the bootstrap.
        out: Folder that keeps the truncated adapters and what was measured; nothing is kept
            unless given.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-sweep``; tables ``ranks``, ``curves``, ``units`` and ``spectrum``
        (:func:`gonio.adapters.rank_choice.eckart_young_table`).

    Raises:
        GonioError: The model, the adapter, the data or a setting is refused.
    """
    ranks = check_ranks(ranks)
    spectrum, inputs = _spectrum(folder, model, ranks[-1])
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out
        pairs = None
        if metric != "text-loss":
            pairs = held_out_pairs(model, Path(folder), data, held_out, max_length, data_seed)
            inputs.append(pairs.source)
        network, tokenizer = load_model(model)
        held: HeldOut | TextUnits | None = pairs
        if held is None:
            held = TextUnits.of(network, tokenizer, text, tokens=tokens, window=window)
            inputs.append(held.text)
        units = []
        for done, rank in enumerate(ranks):
            if progress is not None:
                progress(f"rank {rank}", done, len(ranks))
            cell = Path(place) / f"rank-{rank}"
            resize_adapter(folder, cell / "adapter", rank=rank, base=model, overwrite=True)
            units.append(_judged(network, tokenizer, cell, held, metric).assign(rank=rank, seed=0))
    settings: dict[str, Any] = {"mode": "truncate", "model": str(model)}
    settings |= {"adapter": str(folder), "ranks": ranks}
    if pairs is None:
        settings |= {"text": text, "tokens": tokens, "window": window}
    else:
        settings |= {"data": data, "held_out": len(pairs.pairs), "max_length": pairs.max_length}
    title = f"Truncations of {Path(folder).name}"
    return summarize_sweep(
        *(pd.concat(units, ignore_index=True), title, metric, settings, inputs),
        tolerance=tolerance,
        seed=seed,
        spectrum=spectrum,
    )


def _spectrum(
    folder: str | Path, model: str | Path, rank: int
) -> tuple[pd.DataFrame, list[InputFile]]:
    """Eckart-Young errors and the files read; the adapter must have the rank."""
    with open_adapter(folder, model) as opened:
        spectrum = eckart_young_table(opened.adapter)
        inputs = opened.inputs
    largest = int(spectrum["rank"].max())
    if rank > largest:
        raise SettingError(
            f"cannot truncate {folder} to rank {rank}: its rank is {largest}\n"
            "Train at larger ranks instead (--train)."
        )
    return spectrum, inputs


def _judged(
    network: Any, tokenizer: Any, cell: Path, units: HeldOut | TextUnits, metric: SweepMetric
) -> pd.DataFrame:
    if isinstance(units, TextUnits):
        return judge_text(network, cell / "adapter", units, kept=cell / "text.parquet")
    return judge_pairs(
        *(network, tokenizer, cell / "adapter", units.pairs, metric),
        max_length=units.max_length,
        kept=cell / "pairs.parquet",
    )


def check_ranks(ranks: Sequence[int]) -> list[int]:
    """The ranks in ascending order.

    Raises:
        SettingError: There are fewer than two, one repeats, or one is below 1.
    """
    if len(ranks) < 2 or len(set(ranks)) != len(ranks) or min(ranks) < 1:
        raise SettingError(f"give at least two distinct ranks above 0, found {list(ranks)}")
    return sorted(ranks)


def summarize_sweep(
    units: pd.DataFrame,
    title: str,
    metric: SweepMetric,
    settings: Mapping[str, Any],
    inputs: Sequence[InputFile],
    *,
    tolerance: float,
    seed: int,
    spectrum: pd.DataFrame | None = None,
) -> Measurement:
    """Means by rank, curves and the recommended rank, as a record.

    Args:
        units: Columns ``rank, seed, unit, value, gain``; every rank has the same seeds and units.
        title: What was swept.
        metric: What ``value`` is.
        settings: Settings of the record.
        inputs: Files read.
        tolerance: See :func:`gonio.adapters.rank_choice.recommend_rank`.
        seed: Seed of the bootstrap.
        spectrum: Eckart-Young errors of a truncated adapter.
    """
    ranks = sorted(int(rank) for rank in units["rank"].unique())
    ordered = units.sort_values(["rank", "seed", "unit"])[["rank", "seed", "unit", "value", "gain"]]
    seeds, count = ordered["seed"].nunique(), ordered["unit"].nunique()
    gains = ordered["gain"].to_numpy().reshape(len(ranks), seeds, count)
    means = resampled_means(gains, seed=seed)
    choice = recommend_rank(ranks, gains, means, tolerance=tolerance)
    table = rank_table(ranks, gains, means)
    table.insert(1, "value", ordered.groupby("rank")["value"].mean().to_numpy())
    table["chosen_share"] = [choice.shares[rank] for rank in ranks]
    errors = table["standard_error"].to_numpy()
    weights = errors**-2.0 if bool((errors > 0).all()) else None
    compared = compare_curves(ranks, table["gain"].to_numpy(), weights=weights)
    tables = {"ranks": table, "curves": curve_table(ranks, table, means), "units": ordered}
    values = _values(table, choice, compared.sentence, metric)
    if spectrum is not None:
        tables["ranks"] = table.merge(spectrum, on="rank", how="left")
        tables["spectrum"] = spectrum
    return make_measurement(
        "adapter-sweep",
        f"{title} by rank",
        settings={**settings, "metric": metric, "tolerance": tolerance},
        values=values,
        tables=tables,
        inputs=inputs,
        seed=seed,
    )


def _values(
    table: pd.DataFrame, choice: RankChoice, sentence: str, metric: SweepMetric
) -> list[Value]:
    best = table.iloc[int(table["gain"].to_numpy().argmax())]
    gain = Interval(float(best["gain_low"]), float(best["gain_high"]), 0.95, "percentile")
    interval = None
    if choice.low is not None and choice.high is not None:
        interval = Interval(choice.low, choice.high, 0.95, "percentile, over resampled sweeps")
    seeds = int(table["seeds"].iloc[0])
    over = f"{int(table['units'].iloc[0])} units" + (f" and {seeds} seeds" if seeds > 1 else "")
    note = (
        f"smallest rank with at least {1 - choice.tolerance:.3g} of the best gain over the base "
        f"model; interval over resampled {over}"
    )
    if choice.rank is None:
        note += "; no rank gains anything over the base model"
    return [
        make_value("recommended_rank", choice.rank, interval=interval, note=note),
        make_value(
            "recommended_rank_share",
            np.nan if choice.rank is None else choice.shares[choice.rank],
            note="share of the resampled sweeps that recommend the same rank",
        ),
        make_value(
            "best_gain",
            float(best["gain"]),
            unit="nats",
            chance=0.0,
            interval=gain if np.isfinite(gain.low) else None,
            note=f"at rank {int(best['rank'])}; {METRICS[metric]}, gain over the base model",
        ),
        make_value("nothing_gained_share", choice.nothing_gained, note="of the resampled sweeps"),
        make_value("curve", sentence, note="comparison of the forms on ranks above 1"),
    ]
