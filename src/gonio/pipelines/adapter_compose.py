"""Bundles of adapters: made from folders, measured for interference, and selected from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from gonio.adapters import Adapter, load_adapter
from gonio.adapters.bundle import open_bundle, stored_bytes, write_bundle
from gonio.adapters.interference import interference_table
from gonio.adapters.vllm import vllm_problems
from gonio.errors import AdapterError
from gonio.pipelines.adapter_reading import adapter_inputs
from gonio.pipelines.adapter_values import mean_value, z_value
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["compose_adapters", "select_adapters"]


def compose_adapters(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Put adapters into one bundle and say how much they share.

    Args:
        folders: PEFT adapter folders of one base model.
        out: Folder to create; see :func:`gonio.adapters.bundle.write_bundle`.
        names: One per folder; the folders' own names unless given.
        weights: Default weights; 1 for each unless given.
        seed: Seed of the bootstrap.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``adapter-bundle``; tables ``members`` and, for two members or more that share a
        module, ``interference``.

    Raises:
        AdapterError: A folder cannot be read, or the adapters do not belong together.
        SettingError: Names or weights do not fit.
        OutputError: ``out`` is not empty or cannot be written.
    """
    adapters = [load_adapter(folder) for folder in folders]
    chosen = list(names) if names else [Path(folder).resolve().name for folder in folders]
    bundle = write_bundle(adapters, chosen, Path(out), weights=weights, overwrite=overwrite)
    size = stored_bytes(adapters)
    members = pd.DataFrame(
        {
            "name": [member.name for member in bundle.members],
            "weight": [member.weight for member in bundle.members],
            "rank": [member.rank for member in bundle.members],
            "modules": [len(adapter.updates) for adapter in adapters],
            "factor_bytes": [stored_bytes([adapter]).factors for adapter in adapters],
            "vllm_problems": ["; ".join(_vllm_problems(adapter)) for adapter in adapters],
        }
    )
    tables = {"members": members}
    values = [
        make_value("members", len(members)),
        make_value(
            "vllm_ready",
            int((members["vllm_problems"] == "").sum()),
            note="members whose own folder vLLM loads, by its rules; the table says why not",
        ),
        make_value("factor_bytes", size.factors, unit="bytes", note="all members' factors"),
        make_value(
            "merged_bytes",
            size.merged_weights,
            unit="bytes",
            note="the changed weights whole in bfloat16, once per member",
        ),
    ]
    shares = {module for adapter in adapters[:1] for module in adapter.updates}
    if len(adapters) > 1 and any(shares & adapter.updates.keys() for adapter in adapters[1:]):
        found = interference_table(adapters, chosen, progress=progress)
        tables["interference"] = found.table
        values += _interference_values(found.table, seed)
    return make_measurement(
        "adapter-bundle",
        f"Bundle of {', '.join(chosen)}",
        settings={"adapters": [str(folder) for folder in folders], "out": str(out)},
        values=values,
        tables=tables,
        inputs=adapter_inputs(adapters),
        seed=seed,
        dtype=torch.float64,
    )


def select_adapters(
    bundle: str | Path,
    out: str | Path,
    weights: Mapping[str, float] | None = None,
    *,
    layout: Literal["peft", "vllm"] = "peft",
    overwrite: bool = False,
) -> Measurement:
    """Write a weighted choice of a bundle's members as one PEFT folder of the summed rank.

    Args:
        bundle: Folder with a ``bundle.json``.
        out: Folder to create.
        weights: Name -> weight; every member with its default weight unless given.
        layout: ``vllm`` gives all modules one rank, the missing directions zero; PEFT loads both.
        overwrite: Replace a folder that is not empty.

    Returns:
        Kind ``adapter-selection``; table ``modules``.

    Raises:
        AdapterError: The bundle is broken, or a member was changed.
        SettingError: A name is unknown or a weight is not finite.
        OutputError: ``out`` is not empty or cannot be written.
    """
    opened = open_bundle(bundle)
    chosen = opened.default_weights if weights is None else dict(weights)
    even = layout == "vllm"
    written = load_adapter(opened.write(Path(out), chosen, even=even, overwrite=overwrite))
    problems = vllm_problems(written, max_lora_rank=written.settings.rank) if even else ()
    if problems:
        raise AdapterError(f"vLLM would not take {out}: {'; '.join(problems)}")
    modules = pd.DataFrame(
        {
            "module": [update.module for update in written.updates.values()],
            "layer": [update.layer for update in written.updates.values()],
            "projection": [update.projection for update in written.updates.values()],
            "rank": [update.rank for update in written.updates.values()],
        }
    ).astype({"layer": "Int64"})
    return make_measurement(
        "adapter-selection",
        f"{', '.join(chosen)} out of the bundle {opened.path.name}",
        settings={"bundle": str(bundle), "weights": chosen, "layout": layout, "out": str(out)},
        values=[
            make_value("members", len(chosen)),
            make_value("modules", len(modules)),
            make_value("rank", int(modules["rank"].max()), note="sum of the members' ranks"),
        ],
        tables={"modules": modules},
        inputs=adapter_inputs([opened.load(name) for name in chosen]),
        dtype=torch.float64,
    )


def _vllm_problems(adapter: Adapter) -> tuple[str, ...]:
    """Why vLLM would not take a member's folder, started with a --max-lora-rank that fits."""
    ranks = [update.rank for update in adapter.updates.values()]
    return vllm_problems(adapter, max_lora_rank=max(ranks, default=1))


def _interference_values(table: pd.DataFrame, seed: int) -> list[Value]:
    note = "mean over pairs and modules; a positive cosine adds up, a negative one cancels"
    values = [
        mean_value("cosine", table.assign(chance=0.0), "cosine", seed, chance="chance", note=note),
        z_value("cosine_z_score", table, "cosine_z", seed),
    ]
    for side in ("left", "right"):
        name, chance = f"{side}_overlap", f"{side}_chance"
        values.append(mean_value(name, table, name, seed, chance=chance))
    return values
