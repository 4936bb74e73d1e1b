"""Adapters changed and written: resized, merged, rescaled; predicted loss beside the measured one.

The measured loss is that of the folder as read back, stored precision included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from gonio.adapters import (
    Adapter,
    AdapterStyle,
    LoraUpdate,
    Resized,
    difference_norm,
    load_adapter,
    merge,
    require_rewritable,
    resize,
    write_adapter,
)
from gonio.adapters.elementwise import dare_merge, ties_merge
from gonio.errors import SettingError
from gonio.pipelines.adapter_reading import adapter_inputs, open_adapter
from gonio.pipelines.adapter_values import optional_table
from gonio.records import InputFile, Measurement, Value, make_measurement, make_value

__all__ = ["MergeMethod", "merge_adapters", "rescale_adapter", "resize_adapter", "write_reshaped"]

MergeMethod = Literal["linear", "svd", "ties", "dare", "dare-ties"]

_ALL_DIRECTIONS = 1 << 30  # a rank no module reaches: every direction is kept


def resize_adapter(
    folder: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
    base: str | Path | None = None,
    overwrite: bool = False,
) -> Measurement:
    """Write the best adapter of smaller ranks; see :func:`gonio.adapters.resize.resize`.

    Args:
        folder: PEFT adapter folder, or the folder of a whole tuned model.
        out: Folder to create.
        rank: Largest rank of every module.
        energy: Share of each module's energy to keep.
        parameters: Parameters in all; ranks then minimise the total discarded energy.
        base: Model source; needed for DoRA and for a whole model, of which the best plain LoRA
            of these ranks is written.
        overwrite: Replace a folder that is not empty.

    Returns:
        Kind ``adapter-resize``; table ``modules`` and, for a whole tuned model, ``left_out``:
        tensors that changed and that a LoRA cannot hold (vectors, resized vocabularies).

    Raises:
        AdapterError: The folder cannot be read, or holds what a rewritten one would lose.
        SettingError: Not exactly one rule is given, or it is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    with open_adapter(folder, base) as opened:
        adapter = opened.adapter
        if adapter.kind != "full":  # of a tuned model the record lists what a LoRA cannot hold
            require_rewritable(adapter, carries=True)
        resized = resize(adapter, rank=rank, energy=energy, parameters=parameters)
        return write_reshaped(
            "adapter-resize",
            f"The adapter {adapter.path.name} resized",
            list(adapter.updates.values()),
            resized,
            AdapterStyle.of(adapter),
            Path(out),
            {"rank": rank, "energy": energy, "parameters": parameters, "adapter": str(folder)},
            opened.inputs,
            more_tables=_not_held(adapter),
            overwrite=overwrite,
        )


def merge_adapters(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    method: MergeMethod = "linear",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Measurement:
    """Write one adapter made of several: their weighted sum, or a merge entry by entry.

    Args:
        folders: PEFT adapter folders of one base model.
        out: Folder to create.
        method: ``linear`` is the exact weighted sum, ``svd`` its best approximation of a rank
            (``linear`` with a rank is the same); ``ties``, ``dare`` and ``dare-ties`` act on
            the entries of the updates, and their result is approximated by ``rank``.
        weights: One number per folder; 1 for each unless given.
        rank: Largest rank to keep; every direction of a linear sum unless given.
        density: Share of entries kept by the other methods, in (0, 1].
        seed: Seed of what DARE drops.
        overwrite: Replace a folder that is not empty.

    Returns:
        Kind ``adapter-merge``; table ``modules``. Losses are against the merge before it was
        given a rank.

    Raises:
        AdapterError: A folder cannot be read or rewritten, or the shapes differ.
        SettingError: Weights and folders differ in number, or a setting is missing, out of range
            or of another method.
        OutputError: ``out`` is not empty or cannot be written.
    """
    _check_method(method, rank, density)
    adapters = [load_adapter(folder) for folder in folders]
    is_alone = len(adapters) == 1  # what lies beside the factors of several does not add up
    for adapter in adapters:
        require_rewritable(adapter, carries=is_alone)
    settings = {
        "method": method,
        "weights": list(weights or [1.0] * len(adapters)),
        "rank": rank,
        "density": density,
        "seed": seed,
        "adapters": [str(folder) for folder in folders],
    }
    style = AdapterStyle.of(adapters[0])
    wanted: Sequence[LoraUpdate] | None = None
    if method in ("linear", "svd"):
        wanted = merge(adapters, weights)
        resized = resize(wanted, rank=_ALL_DIRECTIONS if rank is None else rank)
    else:
        assert rank is not None
        assert density is not None
        if method == "ties":
            resized = ties_merge(adapters, weights, density, rank)
        else:
            then: Literal["ties", "linear"] = "ties" if method == "dare-ties" else "linear"
            resized = dare_merge(adapters, weights, density, rank, seed=seed, then=then)
    title = "Sum of the adapters " if wanted else f"{method.upper()} of the adapters "
    return write_reshaped(
        "adapter-merge",
        title + ", ".join(adapter.path.name for adapter in adapters),
        wanted,
        resized,
        style if is_alone else replace(style, source=None, carry={}),
        Path(out),
        settings,
        adapter_inputs(adapters),
        overwrite=overwrite,
    )


def rescale_adapter(
    folder: str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    use_rslora: bool | None = None,
    overwrite: bool = False,
) -> Measurement:
    """Write the same update under another alpha, or under rsLoRA scaling or without it.

    Args:
        folder: PEFT adapter folder.
        out: Folder to create.
        alpha: New lora_alpha of every module; None makes every scaling 1.
        use_rslora: Whether scaling is alpha / sqrt(r); as before unless given.
        overwrite: Replace a folder that is not empty.

    Returns:
        Kind ``adapter-rescale``; table ``modules``.

    Raises:
        AdapterError: The folder cannot be read, or holds what a rewritten one would lose.
        SettingError: ``alpha`` is not a positive finite number.
        OutputError: ``out`` is not empty or cannot be written.
    """
    if alpha is not None and not 0.0 < alpha < float("inf"):
        raise SettingError(f"alpha must be a positive finite number, found {alpha}")
    adapter = load_adapter(folder)
    require_rewritable(adapter, carries=True)
    updates = tuple(adapter.updates.values())
    style = replace(AdapterStyle.of(adapter), alpha=alpha)
    if use_rslora is not None:
        style = replace(style, use_rslora=use_rslora)
    rows = [
        {
            "module": update.module,
            "layer": update.layer,
            "projection": update.projection,
            "rank_before": update.rank,
            "rank_after": update.rank,
            "parameters_before": update.rank * sum(update.shape),
            "parameters_after": update.rank * sum(update.shape),
            "energy": difference_norm(update, None) ** 2,
            "discarded_energy": 0.0,
        }
        for update in updates
    ]
    return write_reshaped(
        "adapter-rescale",
        f"The adapter {adapter.path.name} rescaled",
        updates,
        Resized(updates, pd.DataFrame(rows)),
        style,
        Path(out),
        {"alpha": alpha, "use_rslora": style.use_rslora, "adapter": str(folder)},
        adapter_inputs([adapter]),
        overwrite=overwrite,
    )


def write_reshaped(
    kind: str,
    title: str,
    wanted: Sequence[LoraUpdate] | None,
    resized: Resized,
    style: AdapterStyle,
    out: Path,
    settings: Mapping[str, Any],
    inputs: Sequence[InputFile],
    *,
    extra: Callable[[pd.DataFrame], list[Value]] | None = None,
    more_tables: Mapping[str, pd.DataFrame] | None = None,
    overwrite: bool = False,
) -> Measurement:
    """Write updates, read them back, and compare with what was wanted.

    Args:
        kind: Kind of the record.
        title: Its title.
        wanted: What the updates approximate; None where no small factors hold it, in which case
            the table's ``discarded_energy`` was measured on the entries and the rounding of the
            stored factors is added to it.
        resized: Updates to write and their table.
        style: How they are written.
        out: Folder to create.
        settings: Settings of the record.
        inputs: Files read.
        extra: Further values from the finished table.
        more_tables: Tables beside ``modules``.
        overwrite: Replace a folder that is not empty.
    """
    write_adapter(resized.updates, out, style, overwrite=overwrite)
    written = load_adapter(out).updates
    table = resized.table
    if wanted is not None:
        measured = [difference_norm(u, written.get(u.module)) ** 2 for u in wanted]
    else:
        kept = {u.module: u for u in resized.updates}
        lost = dict(zip(table["module"], table["discarded_energy"], strict=True))
        measured = [
            lost[name] + (difference_norm(kept[name], written[name]) ** 2 if name in kept else 0.0)
            for name in table["module"]
        ]
        # By Pythagoras, since the kept part is a projection of the whole.
        norms = {name: difference_norm(u, None) ** 2 for name, u in kept.items()}
        rest = table["energy"] - table["module"].map(norms).fillna(0.0)
        table = table.assign(discarded_energy=rest.clip(lower=0.0))
    table = table.assign(discarded_energy_measured=measured)
    return make_measurement(
        kind,
        title,
        settings={**settings, "out": str(out)},
        values=[*_values(table, len(resized.updates)), *(extra(table) if extra else [])],
        tables={"modules": table, **(more_tables or {})},
        inputs=inputs,
        dtype=torch.float64,
    )


def _not_held(adapter: Adapter) -> dict[str, pd.DataFrame]:
    """What changed in a tuned model and is neither a matrix nor a vector that PEFT loads."""
    if adapter.kind != "full":
        return {}
    carried = adapter.beside
    lost = [item for item in adapter.unused if f"base_model.model.{item.key}" not in carried]
    return optional_table("left_out", lost, ["key", "reason"])


def _values(table: pd.DataFrame, kept: int) -> list[Value]:
    energy = float(table["energy"].sum())
    before, after = (int(table[f"parameters_{when}"].sum()) for when in ("before", "after"))
    note = "share of the squared Frobenius norm of all updates"
    shares = {
        "predicted": (table["discarded_energy"], f"{note}, from the spectra"),
        "measured": (table["discarded_energy_measured"], f"{note}, of the folder as read back"),
    }
    return [
        make_value("modules", len(table)),
        make_value("modules_kept", kept),
        make_value("parameters_before", before),
        make_value("parameters_after", after),
        *(
            make_value(
                f"discarded_energy_{name}",
                float(lost.sum()) / energy if energy > 0 else 0.0,
                note=what,
            )
            for name, (lost, what) in shares.items()
        ),
    ]


def _check_method(method: str, rank: int | None, density: float | None) -> None:
    if method in ("linear", "svd"):
        if density is not None:
            raise SettingError(f"density belongs to ties and dare; {method} keeps every entry")
        if method == "svd" and rank is None:
            raise SettingError("svd needs the rank to keep: give --rank")
    elif rank is None or density is None:
        raise SettingError(
            f"{method} works on entries and gives full-rank updates\n"
            "Give the rank to keep (--rank) and the share of entries to keep (--density)."
        )
