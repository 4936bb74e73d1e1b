"""Adapters changed and written: resized, merged, rescaled; predicted loss beside the measured one.

The measured loss is that of the folder as read back, stored precision included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from gonio.errors import SettingError
from gonio.records import InputFile, Measurement, file_input, make_measurement, make_value

__all__ = ["merge_adapters", "rescale_adapter", "resize_adapter"]

_ALL_DIRECTIONS = 1 << 30  # a rank no module reaches: every direction is kept


def resize_adapter(
    folder: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
    overwrite: bool = False,
) -> Measurement:
    """Write the best adapter of smaller ranks; see :func:`gonio.adapters.resize.resize`.

    Returns:
        Kind ``adapter-resize``; table ``modules``.

    Raises:
        AdapterError: The folder cannot be read, or holds what a rewritten one would lose.
        SettingError: Not exactly one rule is given, or it is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    adapter = load_adapter(folder)
    require_rewritable(adapter)
    resized = resize(adapter, rank=rank, energy=energy, parameters=parameters)
    settings = {"rank": rank, "energy": energy, "parameters": parameters}
    title = f"The adapter {adapter.path.name} resized"
    wanted = list(adapter.updates.values())
    style = AdapterStyle.of(adapter)
    return _write(
        "adapter-resize", title, [adapter], wanted, resized, style, Path(out), settings, overwrite
    )


def merge_adapters(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    overwrite: bool = False,
) -> Measurement:
    """Write the weighted sum of adapters, whole or as its best approximation of a rank.

    Args:
        folders: PEFT adapter folders of one base model.
        out: Folder to create.
        weights: One number per folder; 1 for each unless given.
        rank: Largest rank to keep; every direction of the sum unless given.
        overwrite: Replace a folder that is not empty.

    Returns:
        Kind ``adapter-merge``; table ``modules``. Losses are against the exact sum.

    Raises:
        AdapterError: A folder cannot be read or rewritten, or the shapes differ.
        SettingError: Weights and folders differ in number, or a setting is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    adapters = [load_adapter(folder) for folder in folders]
    for adapter in adapters:
        require_rewritable(adapter)
    total = merge(adapters, weights)
    resized = resize(total, rank=_ALL_DIRECTIONS if rank is None else rank)
    settings = {"weights": list(weights or [1.0] * len(adapters)), "rank": rank}
    title = f"Sum of the adapters {', '.join(adapter.path.name for adapter in adapters)}"
    style = AdapterStyle.of(adapters[0])
    return _write(
        "adapter-merge", title, adapters, total, resized, style, Path(out), settings, overwrite
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
    require_rewritable(adapter)
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
    same = Resized(updates, pd.DataFrame(rows))
    settings = {"alpha": alpha, "use_rslora": style.use_rslora}
    title = f"The adapter {adapter.path.name} rescaled"
    return _write(
        "adapter-rescale", title, [adapter], updates, same, style, Path(out), settings, overwrite
    )


def _write(
    kind: str,
    title: str,
    sources: Sequence[Adapter],
    wanted: Sequence[LoraUpdate],
    resized: Resized,
    style: AdapterStyle,
    out: Path,
    settings: Mapping[str, Any],
    overwrite: bool,
) -> Measurement:
    """Write, read back, and compare with what was wanted."""
    write_adapter(resized.updates, out, style, overwrite=overwrite)
    written = load_adapter(out)
    measured = [
        difference_norm(update, written.updates.get(update.module)) ** 2 for update in wanted
    ]
    table = resized.table.assign(discarded_energy_measured=measured)
    energy = float(table["energy"].sum())
    before, after = (int(table[f"parameters_{when}"].sum()) for when in ("before", "after"))
    note = "share of the squared Frobenius norm of all updates"
    values = [
        make_value("modules", len(wanted)),
        make_value("modules_kept", len(resized.updates)),
        make_value("parameters_before", before),
        make_value("parameters_after", after),
        make_value("discarded_energy_predicted", resized.discarded_share, note=note),
        make_value(
            "discarded_energy_measured",
            sum(measured) / energy if energy > 0 else 0.0,
            note=f"{note}, of the folder as read back",
        ),
    ]
    return make_measurement(
        kind,
        title,
        settings={**settings, "adapters": [str(adapter.path) for adapter in sources]},
        values=values,
        tables={"modules": table},
        inputs=_inputs(sources),
        dtype=torch.float64,
    )


def _inputs(adapters: Sequence[Adapter]) -> list[InputFile]:
    return [
        file_input(path, f"{adapter.path.name}/{path.name}")
        for adapter in adapters
        for path in adapter.files
    ]
