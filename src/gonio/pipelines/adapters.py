"""An adapter measured: a folder in, one measurement out, every value with its chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from gonio.adapters import Adapter, spectrum_table
from gonio.adapters.depth import ALL_PROJECTIONS, depth_correlator
from gonio.adapters.measure import NULL_SAMPLES, singular_value_table
from gonio.errors import AdapterError
from gonio.linalg.resampling import Interval
from gonio.pipelines.adapter_reading import adapter_settings, open_adapter
from gonio.pipelines.adapter_summaries import layer_summary, projection_summary
from gonio.pipelines.adapter_values import (
    OVER_MODULES,
    mean_value,
    modules_interval,
    optional_table,
)
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["Progress", "inspect_adapter"]

Progress = Callable[[str, int, int], None]

_RATIOS = ("stable_rank", "effective_rank", "k90", "k99")


def inspect_adapter(
    folder: str | Path,
    base: str | Path | None = None,
    *,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Spectrum of every update, summaries per projection and layer, decay with depth.

    Args:
        folder: PEFT adapter folder, or the folder of a whole tuned model.
        base: Model source; needed for DoRA and for a whole model, and with it modules that the
            adapter saved whole are measured too.
        samples: Random factor pairs per shape behind the chance columns.
        seed: Seed of those draws, of the bootstrap and of the permutations.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-spectrum``; tables ``modules`` (first), ``projections``, ``layers``,
        ``singular_values`` and, where there are any, ``depth``, ``depth_decay`` and
        ``depth_left_out`` (three layers or more), and ``unused`` (tensors in no update).

    Raises:
        AdapterError: The folder cannot be read, or every update is zero.
    """
    with open_adapter(folder, base) as opened:
        adapter = opened.adapter
        modules = spectrum_table(adapter, samples=samples, seed=seed, progress=progress)
        tables = {
            "modules": modules,
            "projections": projection_summary(modules),
            "layers": layer_summary(modules),
            "singular_values": singular_value_table(adapter),
            **_depth_tables(adapter, seed),
        }
        inputs = opened.inputs
    tables |= optional_table("unused", adapter.unused, ["key", "reason"])
    return make_measurement(
        "adapter-spectrum",
        f"Spectrum of the adapter {adapter.path.name}",
        settings={"samples": samples, **adapter_settings(adapter)},
        values=[*_spectrum_values(adapter, modules, seed), *_depth_values(tables)],
        tables=tables,
        inputs=inputs,
        seed=seed,
        dtype=torch.float64,
    )


def _depth_tables(adapter: Adapter, seed: int) -> dict[str, pd.DataFrame]:
    """How the updates' directions fade with depth; nothing for fewer than three layers."""
    try:
        sides = [depth_correlator(adapter, side, seed=seed) for side in ("left", "right")]
    except AdapterError:  # no projection is changed in three layers
        return {}
    return {
        "depth": pd.concat([side.distances for side in sides], ignore_index=True),
        "depth_decay": pd.concat([side.decays for side in sides], ignore_index=True),
        **optional_table("depth_left_out", sides[0].left_out, ["what", "reason"]),
    }


def _spectrum_values(adapter: Adapter, modules: pd.DataFrame, seed: int) -> list[Value]:
    is_zero = modules["spectral_norm"] == 0
    trained = modules[~is_zero]
    values = [
        make_value("modules", len(modules)),
        make_value("zero_updates", int(is_zero.sum()), note="left out of the means below"),
        make_value("unused_tensors", len(adapter.unused), note="listed in the table unused"),
    ]
    for name in _RATIOS:
        note = f"chance: Gaussian factors of the same shapes and ranks; {OVER_MODULES}"
        null = f"random_lora_{name}"
        values.append(mean_value(name, trained, name, seed, chance=null, note=note))
    stable = trained["stable_rank"]
    outside = trained.assign(
        below=stable < trained["random_lora_stable_rank_low"],
        above=stable > trained["random_lora_stable_rank_high"],
    )
    for side in ("below", "above"):
        values.append(
            make_value(
                f"share_{side}_chance",
                float(outside[side].mean()),
                chance=0.025,
                interval=modules_interval(outside, side, seed),
                note=f"modules whose stable rank is {side} the 95% interval of random factors",
            )
        )
    values.append(mean_value("numerical_rank", trained, "numerical_rank", seed))
    values.append(mean_value("frobenius_norm", trained, "frobenius_norm", seed))
    return values


def _depth_values(tables: dict[str, pd.DataFrame]) -> list[Value]:
    """Decay over all projections, each side with its permutation p-value."""
    if "depth_decay" not in tables:
        return []
    decays = tables["depth_decay"]
    alone = decays["projection"].nunique() == 1
    values = []
    rows = decays[(decays["projection"] == ALL_PROJECTIONS) | alone].to_dict(orient="records")
    for row in rows:
        values.append(
            make_value(
                f"{row['side']}_depth_correlation",
                row["nearest"],
                chance=row["nearest_chance"],
                note="(overlap - chance) / (1 - chance) of neighboring layers, chance over "
                f"permuted layers; one-sided p {row['nearest_p_value']:.3g}",
            )
        )
        reason = row["reason"]
        ends = Interval(row["decay_low"], row["decay_high"], 0.95, "percentile (over layers)")
        values.append(
            make_value(
                f"{row['side']}_decay_length",
                None if reason else row["decay_length"],
                unit="layers",
                interval=None if reason else ends,
                note=reason or "xi of c0 exp(-distance / xi); interval over layers",
            )
        )
    return values
