"""Adapters measured end to end: folders in, one measurement out, every value with its chance.

Intervals are bootstrap intervals over the modules of the adapter at hand. Modules of one training
run are not independent draws: an interval says how much the modules vary, not how another run
would turn out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from gonio.adapters import (
    Adapter,
    compare_adapters,
    compare_with_base,
    load_adapter,
    spectrum_table,
)
from gonio.adapters.compare import DEFAULT_KS
from gonio.adapters.measure import NULL_SAMPLES
from gonio.linalg.resampling import Interval, bootstrap_interval
from gonio.models import open_weights
from gonio.records import InputFile, Measurement, Value, file_input, make_measurement, make_value

__all__ = [
    "compare_adapter_with_base",
    "compare_two_adapters",
    "inspect_adapter",
    "layer_summary",
    "overlap_summary",
    "projection_summary",
]

Progress = Callable[[str, int, int], None]

_OVER_MODULES = "mean over modules; interval over modules of this adapter, not over runs"
_RATIOS = ("stable_rank", "effective_rank", "k90", "k99")


def inspect_adapter(
    folder: str | Path,
    *,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Spectrum of every update of an adapter, with per-projection and per-layer summaries.

    Args:
        folder: PEFT adapter folder.
        samples: Random factor pairs per shape behind the chance columns.
        seed: Seed of those draws and of the bootstrap.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-spectrum``; tables ``modules`` (first), ``projections``, ``layers`` and,
        where there are any, ``unused`` (tensors that are in no update).

    Raises:
        AdapterError: The folder cannot be read, or every update is zero.
    """
    adapter = load_adapter(folder)
    modules = spectrum_table(adapter, samples=samples, seed=seed, progress=progress)
    tables = {
        "modules": modules,
        "projections": projection_summary(modules),
        "layers": layer_summary(modules),
    }
    tables |= _optional("unused", adapter.unused, ["key", "reason"])
    return make_measurement(
        "adapter-spectrum",
        f"Spectrum of the adapter {adapter.path.name}",
        settings={"samples": samples, **_adapter_settings(adapter)},
        values=_spectrum_values(adapter, modules, seed),
        tables=tables,
        inputs=_inputs([adapter]),
        seed=seed,
        dtype=torch.float64,
    )


def compare_adapter_with_base(
    folder: str | Path,
    base: str | Path,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Overlap of an adapter's updates with the base weights' top directions, gain residuals.

    Args:
        folder: PEFT adapter folder.
        base: Model source, read tensor by tensor.
        ks: Numbers of top directions; those above an update's numerical rank are left out.
        seed: Seed of the bootstrap.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-base-overlap``; tables ``overlaps`` (first), ``gains``, ``projections``
        and, where there are any, ``left_out``.

    Raises:
        AdapterError: The folder cannot be read, or does not fit the base.
        ModelError: The base cannot be read.
    """
    adapter = load_adapter(folder)
    with open_weights(base) as weights:
        found = compare_with_base(adapter, weights, ks, progress=progress)
        inputs = [*_inputs([adapter]), *_named_inputs("base", weights.files)]
    tables = {
        "overlaps": found.overlaps,
        "gains": found.gains,
        "projections": overlap_summary(found.overlaps),
    }
    return make_measurement(
        "adapter-base-overlap",
        f"The adapter {adapter.path.name} beside its base {base}",
        settings={"ks": list(ks), "base": str(base), **_adapter_settings(adapter)},
        values=[*_overlap_values(found.overlaps, seed), *_gain_values(found.gains, seed)],
        tables=tables | _optional("left_out", found.left_out, ["module", "reason"]),
        inputs=inputs,
        seed=seed,
        dtype=torch.float64,
    )


def compare_two_adapters(
    first: str | Path,
    second: str | Path,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    samples: int = NULL_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Overlap, smallest angle and cosine of two adapters' updates, module by module.

    Args:
        first: PEFT adapter folder.
        second: Another one of the same base model.
        ks: Numbers of top directions; those above the smaller numerical rank are left out.
        samples: Random subspace pairs per shape behind the chance of the smallest angle.
        seed: Seed of those draws and of the bootstrap.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-pair``; tables ``overlaps`` (first), ``cosines``, ``projections`` and,
        where there are any, ``left_out`` and ``unshared`` (modules only one adapter changes).

    Raises:
        AdapterError: A folder cannot be read, or the adapters share no module.
    """
    one, two = load_adapter(first), load_adapter(second)
    found = compare_adapters(one, two, ks, samples=samples, seed=seed, progress=progress)
    tables = {
        "overlaps": found.overlaps,
        "cosines": found.cosines,
        "projections": overlap_summary(found.overlaps),
    }
    unshared = [(m, "first") for m in found.only_first] + [(m, "second") for m in found.only_second]
    tables |= _optional("unshared", unshared, ["module", "adapter"])
    tables |= _optional("left_out", found.left_out, ["module", "reason"])
    return make_measurement(
        "adapter-pair",
        f"The adapters {one.path.name} and {two.path.name} beside each other",
        settings={"ks": list(ks), "samples": samples}
        | {"first": _adapter_settings(one), "second": _adapter_settings(two)},
        values=[
            make_value("shared_modules", len(found.cosines)),
            make_value("unshared_modules", len(unshared)),
            *_cosine_values(found.cosines, seed),
            *_overlap_values(found.overlaps, seed),
            *_angle_values(found.overlaps, seed),
        ],
        tables=tables,
        inputs=_inputs([one, two]),
        seed=seed,
        dtype=torch.float64,
    )


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


def _spectrum_values(adapter: Adapter, modules: pd.DataFrame, seed: int) -> list[Value]:
    is_zero = modules["spectral_norm"] == 0
    trained = modules[~is_zero]
    values = [
        make_value("modules", len(modules)),
        make_value("zero_updates", int(is_zero.sum()), note="left out of the means below"),
        make_value("unused_tensors", len(adapter.unused), note="listed in the table unused"),
    ]
    for name in _RATIOS:
        chance = trained[f"random_lora_{name}"]
        note = f"chance: Gaussian factors of the same shapes and ranks; {_OVER_MODULES}"
        values.append(_mean_value(name, trained[name], chance, seed, note))
    below = trained["stable_rank"] < trained["random_lora_stable_rank_low"]
    above = trained["stable_rank"] > trained["random_lora_stable_rank_high"]
    for side, outside in (("below", below), ("above", above)):
        values.append(
            make_value(
                f"share_{side}_chance",
                float(outside.mean()),
                chance=0.025,
                interval=_interval(outside.astype(float), seed),
                note=f"modules whose stable rank is {side} the 95% interval of random factors",
            )
        )
    values.append(_mean_value("numerical_rank", trained["numerical_rank"], None, seed))
    values.append(_mean_value("frobenius_norm", trained["frobenius_norm"], None, seed))
    return values


def _overlap_values(overlaps: pd.DataFrame, seed: int) -> list[Value]:
    """Mean overlap per side and choice of k, with chance; a k only some updates reach says so."""
    values = []
    total = overlaps["module"].nunique()
    for source, k, side, group in _choices(overlaps):
        name = f"{side}_overlap_{f'k{k}' if k else source}"
        reached = f" ({len(group)} of {total} modules reach this k)" if len(group) < total else ""
        note = f"chance k / dimension; {_OVER_MODULES}{reached}"
        values.append(_mean_value(name, group["overlap"], group["chance"], seed, note))
    return values


def _gain_values(gains: pd.DataFrame, seed: int) -> list[Value]:
    values = []
    for side, null in (("column", "1 - 1/out_features"), ("row", "1 - 1/in_features")):
        name = f"{side}_gain_residual"
        note = f"share of energy outside the best {side} gain, chance {null}; {_OVER_MODULES}"
        values.append(_mean_value(name, gains[name], gains[f"{name}_chance"], seed, note))
        values.append(_z_value(f"{name}_z_score", gains[f"{name}_z_score"].dropna(), seed))
    return values


def _cosine_values(cosines: pd.DataFrame, seed: int) -> list[Value]:
    note = f"cosine of the two updates as vectors, chance 0; {_OVER_MODULES}"
    return [
        _mean_value("cosine", cosines["cosine"], cosines["chance"], seed, note),
        _z_value("cosine_z_score", cosines["z_score"], seed),
    ]


def _angle_values(overlaps: pd.DataFrame, seed: int) -> list[Value]:
    adaptive = overlaps[overlaps["k_from"] != "fixed"]
    return [
        _mean_value(
            f"{side}_smallest_angle",
            group["smallest_angle"],
            group["smallest_angle_chance"],
            seed,
            f"at k = the smaller numerical rank; {_OVER_MODULES}",
            unit="rad",
        )
        for side, group in adaptive.groupby("side", sort=False)
    ]


def _choices(overlaps: pd.DataFrame) -> Iterable[tuple[str, int, str, pd.DataFrame]]:
    """Rows by side for each fixed k in ascending order, then for the adaptive k (as k = 0)."""
    fixed = overlaps[overlaps["k_from"] == "fixed"]
    for k, same_k in fixed.groupby("k"):
        for side, group in same_k.groupby("side", sort=False):
            yield "fixed", int(str(k)), str(side), group
    adaptive = overlaps[overlaps["k_from"] != "fixed"]
    for (source, name), group in adaptive.groupby(["k_from", "side"], sort=False):
        yield str(source), 0, str(name), group


def _mean_value(
    name: str,
    values: pd.Series[float],
    chance: pd.Series[float] | None,
    seed: int,
    note: str = _OVER_MODULES,
    unit: str = "",
) -> Value:
    return make_value(
        name,
        float(values.mean()),
        unit=unit,
        chance=None if chance is None else float(chance.mean()),
        interval=_interval(values, seed),
        note=note,
    )


def _z_value(name: str, z_scores: pd.Series[float], seed: int) -> Value:
    """A mean z-score: 0 by chance; not defined where the null cannot vary."""
    return make_value(
        name,
        float(z_scores.mean()),
        chance=0.0,
        interval=_interval(z_scores, seed),
        note=f"standard deviations of the null above chance; {_OVER_MODULES}",
    )


def _interval(values: pd.Series[float], seed: int) -> Interval | None:
    """Bootstrap interval of the mean; None for fewer than two values."""
    return bootstrap_interval(values.tolist(), seed=seed) if len(values) > 1 else None


def _optional(
    name: str, rows: Sequence[tuple[str, str]], columns: list[str]
) -> dict[str, pd.DataFrame]:
    """A table under its name; nothing when it would be empty."""
    return {name: pd.DataFrame(list(rows), columns=columns)} if rows else {}


def _adapter_settings(adapter: Adapter) -> dict[str, object]:
    settings = adapter.settings
    return {
        "adapter": str(adapter.path),
        "rank": settings.rank,
        "alpha": settings.alpha,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "use_rslora": settings.use_rslora,
        "base_model": settings.base_model,
        "unknown_settings": list(settings.unknown),
    }


def _inputs(adapters: Sequence[Adapter]) -> list[InputFile]:
    names = ("adapter",) if len(adapters) == 1 else ("first", "second")
    return [
        item
        for name, adapter in zip(names, adapters, strict=True)
        for item in _named_inputs(name, adapter.files)
    ]


def _named_inputs(owner: str, files: Iterable[Path]) -> list[InputFile]:
    return [file_input(path, f"{owner}/{path.name}") for path in files]
