"""An adapter beside its base model, or beside another adapter, as one measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from gonio.adapters import compare_adapters, compare_with_base, load_adapter
from gonio.adapters.compare import DEFAULT_KS
from gonio.adapters.intruder import intruder_table
from gonio.adapters.measure import NULL_SAMPLES
from gonio.adapters.norm_gain import norm_gain_table
from gonio.errors import AdapterError
from gonio.pipelines.adapter_reading import (
    OpenAdapter,
    adapter_inputs,
    adapter_settings,
    open_adapter,
)
from gonio.pipelines.adapter_summaries import overlap_summary
from gonio.pipelines.adapter_values import OVER_MODULES, mean_value, optional_table, z_value
from gonio.pipelines.adapters import Progress
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["compare_adapter_with_base", "compare_two_adapters"]


def compare_adapter_with_base(
    folder: str | Path,
    base: str | Path,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    intruders: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Overlap of an adapter's updates with the base weights' top directions, gain residuals.

    Args:
        folder: PEFT adapter folder, or the folder of a whole tuned model.
        base: Model source, read tensor by tensor.
        ks: Numbers of top directions; those above an update's numerical rank are left out.
        intruders: Count intruder dimensions too; every base weight is then decomposed whole.
        seed: Seed of the bootstrap and of the intruders' null.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-base-overlap``; tables ``overlaps`` (first), ``gains``, ``projections``
        and, where there are any, ``norm_gains``, ``intruders`` and ``left_out``.

    Raises:
        AdapterError: The folder cannot be read, or does not fit the base.
        ModelError: The base cannot be read.
    """
    with open_adapter(folder, base) as opened:
        adapter, weights = opened.adapter, opened.weights
        assert weights is not None
        found = compare_with_base(adapter, weights, ks, progress=progress)
        left_out = list(found.left_out)
        tables = {
            "overlaps": found.overlaps,
            "gains": found.gains,
            "projections": overlap_summary(found.overlaps),
        }
        tables |= _norm_gains(opened, ks, left_out)
        if intruders:
            counted = intruder_table(adapter, weights, seed=seed, progress=progress)
            tables["intruders"] = counted.modules
        inputs = opened.inputs
    tables |= optional_table("left_out", left_out, ["module", "reason"])
    return make_measurement(
        "adapter-base-overlap",
        f"The adapter {adapter.path.name} beside its base {base}",
        settings={"ks": list(ks), "base": str(base), **adapter_settings(adapter)},
        values=[
            *_overlap_values(found.overlaps, seed),
            *_certificate_values(found.overlaps),
            *_gain_values(found.gains, seed),
            *_beside_values(tables, seed),
        ],
        tables=tables,
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
    tables |= optional_table("unshared", unshared, ["module", "adapter"])
    tables |= optional_table("left_out", found.left_out, ["module", "reason"])
    return make_measurement(
        "adapter-pair",
        f"The adapters {one.path.name} and {two.path.name} beside each other",
        settings={"ks": list(ks), "samples": samples}
        | {"first": adapter_settings(one), "second": adapter_settings(two)},
        values=[
            make_value("shared_modules", len(found.cosines)),
            make_value("unshared_modules", len(unshared)),
            *_cosine_values(found.cosines, seed),
            *_overlap_values(found.overlaps, seed),
            *_angle_values(found.overlaps, seed),
        ],
        tables=tables,
        inputs=adapter_inputs([one, two]),
        seed=seed,
        dtype=torch.float64,
    )


def _norm_gains(
    opened: OpenAdapter, ks: Sequence[int], left_out: list[tuple[str, str]]
) -> dict[str, pd.DataFrame]:
    """Energy of the normalization gains in the updates' inputs, for modules that read from one."""
    assert opened.weights is not None
    try:
        found = norm_gain_table(
            opened.adapter, opened.weights, ks, model_type=_model_type(opened.weights.folder)
        )
    except AdapterError as error:
        left_out.append(("all modules", str(error).splitlines()[0]))
        return {}
    known = set(left_out)
    left_out += [item for item in found.left_out if item not in known]
    return {"norm_gains": found.shares}


def _model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = config.get("model_type") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _overlap_values(overlaps: pd.DataFrame, seed: int) -> list[Value]:
    """Mean overlap per side and choice of k, with chance; a k only some updates reach says so."""
    values = []
    total = overlaps["module"].nunique()
    for source, k, side, group in _choices(overlaps):
        name = f"{side}_overlap_{f'k{k}' if k else source}"
        reached = f" ({len(group)} of {total} modules reach this k)" if len(group) < total else ""
        note = f"chance k / dimension; {OVER_MODULES}{reached}"
        values.append(mean_value(name, group, "overlap", seed, chance="chance", note=note))
    return values


def _certificate_values(overlaps: pd.DataFrame) -> list[Value]:
    certified = overlaps["certified"]
    reasons = overlaps.loc[~certified, "certificate"].value_counts()
    why = "".join(f"; {reason}: {count}" for reason, count in reasons.items())
    return [
        make_value(
            "overlaps_certified",
            int(certified.sum()),
            note=f"of {len(overlaps)}, the base's subspace within the sine base_sine_bound{why}",
        )
    ]


def _gain_values(gains: pd.DataFrame, seed: int) -> list[Value]:
    values = []
    for side, null in (("column", "1 - 1/out_features"), ("row", "1 - 1/in_features")):
        name = f"{side}_gain_residual"
        note = f"share of energy outside the best {side} gain, chance {null}; {OVER_MODULES}"
        values.append(mean_value(name, gains, name, seed, chance=f"{name}_chance", note=note))
        values.append(z_value(f"{name}_z_score", gains, f"{name}_z_score", seed))
    for name, ratio in (
        ("relative_frobenius_norm", "Frobenius norm of the update over that of the base weight"),
        ("relative_spectral_norm", "spectral norm of the update over that of the base weight"),
    ):
        values.append(mean_value(name, gains, name, seed, note=f"{ratio}; {OVER_MODULES}"))
    return values


def _beside_values(tables: dict[str, pd.DataFrame], seed: int) -> list[Value]:
    """Normalization gains at the rounded stable rank, and intruder dimensions."""
    values = []
    if "norm_gains" in tables:
        table = tables["norm_gains"]
        for form in ("raw", "centered"):
            rows = table[(table["gain"] == form) & (table["k_from"] == "stable_rank")]
            if not rows.empty:
                note = (
                    f"energy of the {form} gain of the normalization layer in the update's top "
                    f"inputs, k the rounded stable rank, chance k / n; {OVER_MODULES}"
                )
                name = f"norm_gain_share_{form}"
                values.append(mean_value(name, rows, "share", seed, chance="chance", note=note))
    if "intruders" in tables:
        rows = tables["intruders"]
        k, threshold = int(rows["k"].max()), float(rows["threshold"].iloc[0])
        note = (
            f"left singular vectors among the top {k} of the tuned weight whose cosine with every "
            f"one of the base is below {threshold}; chance: random updates of the same "
            f"spectrum; {OVER_MODULES}"
        )
        values.append(mean_value("intruders", rows, "intruders", seed, chance="chance", note=note))
    return values


def _cosine_values(cosines: pd.DataFrame, seed: int) -> list[Value]:
    note = f"cosine of the two updates as vectors, chance 0; {OVER_MODULES}"
    return [
        mean_value("cosine", cosines, "cosine", seed, chance="chance", note=note),
        z_value("cosine_z_score", cosines, "z_score", seed),
    ]


def _angle_values(overlaps: pd.DataFrame, seed: int) -> list[Value]:
    adaptive = overlaps[overlaps["k_from"] != "fixed"]
    return [
        mean_value(
            f"{side}_smallest_angle",
            group,
            "smallest_angle",
            seed,
            chance="smallest_angle_chance",
            note=f"at k = the smaller numerical rank; {OVER_MODULES}",
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
