"""Prune an adapter by magnitude, write it, and say what that cost and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from gonio.adapters import (
    Adapter,
    AdapterStyle,
    LoraUpdate,
    load_adapter,
    require_rewritable,
    write_adapter,
)
from gonio.adapters.resize import difference_norm, stored_parameters
from gonio.adapters.sparse import (
    SPARSE_DELTA_NAME,
    SPARSE_FACTORS_NAME,
    low_rank_product,
    prune_factors,
    pruned_product,
    write_sparse,
)
from gonio.errors import OutputError
from gonio.files import replace_folder
from gonio.pipelines.adapter_reading import adapter_inputs
from gonio.quant.sparse import SparseMatrix
from gonio.records import Measurement, Value, make_measurement, make_value

__all__ = ["prune_adapter"]

Progress = Callable[[str, int, int], None]

_ENERGY = 0.99


def prune_adapter(
    folder: str | Path,
    out: str | Path,
    density: float,
    *,
    product: bool = False,
    rank: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Keep the largest entries of an adapter's factors, or of its products.

    Args:
        folder: PEFT adapter folder.
        out: Folder to create: PEFT's with ``sparse_factors.safetensors`` beside, or for products
            without a rank one with ``sparse_delta.safetensors`` alone, which PEFT cannot load.
        density: Share of the entries to keep, in (0, 1].
        product: Prune ``scaling * B @ A`` instead of the factors.
        rank: Of the best approximation of the pruned products, written instead of them.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(module, done, total)``.

    Returns:
        Kind ``adapter-prune``; table ``modules``.

    Raises:
        AdapterError: The folder cannot be read, or holds what a rewritten one would lose.
        SettingError: The density or the rank is out of range.
        OutputError: ``out`` is not empty or cannot be written.
    """
    adapter, out = load_adapter(folder), Path(out)
    require_rewritable(adapter, carries=not product or rank is not None)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise OutputError(f"{out} exists and is not replaced; give --force to replace it.")
    report = progress or _no_progress
    if product:
        table = _prune_products(adapter, out, density, rank, report)
    else:
        table = _prune_factors(adapter, out, density)
    what = "products" if product else "factors"
    return make_measurement(
        "adapter-prune",
        f"The adapter {adapter.path.name} with pruned {what}",
        settings={
            "adapter": str(folder),
            "out": str(out),
            "density": density,
            "pruned": what,
            "rank": rank,
        },
        values=_values(adapter, table, out),
        tables={"modules": table},
        inputs=adapter_inputs([adapter]),
        dtype=torch.float64,
    )


def _prune_factors(adapter: Adapter, out: Path, density: float) -> pd.DataFrame:
    pruned = prune_factors(list(adapter.updates.values()), density)
    style = replace(AdapterStyle.of(adapter), dtype=_dtype(adapter))
    write_adapter(pruned.updates, out, style, overwrite=True)  # the caller has asked
    written = load_adapter(out).updates  # with the written alpha, B may be rescaled
    factors = {f"{name}.lora_A": SparseMatrix.encode(u.lora_a) for name, u in written.items()}
    factors |= {f"{name}.lora_B": SparseMatrix.encode(u.lora_b) for name, u in written.items()}
    write_sparse(out / SPARSE_FACTORS_NAME, factors)
    return pruned.table


def _prune_products(
    adapter: Adapter, out: Path, density: float, rank: int | None, report: Progress
) -> pd.DataFrame:
    rows, kept, deltas = [], [], {}
    for done, update in enumerate(adapter.updates.values(), start=1):
        dense = pruned_product(update, density)
        sparse = SparseMatrix.encode(dense.float())
        row, lowered = _product_row(update, dense, sparse, rank)
        rows.append(row)
        if lowered is None:
            deltas[update.module] = sparse
        else:
            kept.append(lowered)
        report(update.module, done, len(adapter.updates))
    if rank is None:
        with replace_folder(out) as staging:
            write_sparse(staging / SPARSE_DELTA_NAME, deltas)
    else:
        write_adapter(kept, out, AdapterStyle.of(adapter), overwrite=True)
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _product_row(
    update: LoraUpdate, dense: torch.Tensor, sparse: SparseMatrix, rank: int | None
) -> tuple[dict[str, object], LoraUpdate | None]:
    """One module's numbers and, with a rank, the best approximation of its pruned product."""
    norm, left = difference_norm(update, None), float(dense.norm())
    row: dict[str, object] = {
        "module": update.module,
        "layer": update.layer,
        "projection": update.projection,
        "rank": update.rank,
        "entries": dense.numel(),
        "nonzero": len(sparse.values),
        "plain_bytes": stored_parameters(update) * update.lora_a.element_size(),
        "sparse_bytes": sparse.stored_bytes,
        # what is kept is a part of the whole, entry by entry
        "relative_error": max(0.0, 1.0 - (left / norm) ** 2) ** 0.5 if norm > 0 else 0.0,
    }
    if rank is None:
        return row, None
    lowered, sigma = low_rank_product(update, dense, min(rank, *update.shape))
    energy = sigma.square().cumsum(0)
    missed = torch.linalg.vector_norm(dense - lowered.lora_b @ lowered.lora_a)
    row["rank_for_99_percent"] = int((energy < _ENERGY * energy[-1]).sum()) + 1
    row["rank_error"] = float(missed) / left if left > 0 else 0.0
    row["error_to_adapter"] = difference_norm(update, lowered) / norm if norm > 0 else 0.0
    return row, lowered


def _values(adapter: Adapter, table: pd.DataFrame, out: Path) -> list[Value]:
    files = sorted(path for path in out.iterdir() if path.suffix == ".safetensors")
    plain, sparse = int(table["plain_bytes"].sum()), int(table["sparse_bytes"].sum())
    values = [
        make_value("modules", len(table)),
        make_value("density", float(table["nonzero"].sum() / table["entries"].sum())),
        make_value("plain_bytes", plain, unit="bytes", note="of the adapter as it was read"),
        make_value("sparse_bytes", sparse, unit="bytes", note="nonzero values and their places"),
        make_value("mean_relative_error", float(table["relative_error"].mean()), note="Frobenius"),
    ]
    if "rank_error" in table:
        note = "of the pruned products by the rank, Frobenius, mean over modules"
        values += [
            make_value("mean_rank_error", float(table["rank_error"].mean()), note=note),
            make_value("mean_error_to_adapter", float(table["error_to_adapter"].mean())),
            make_value(
                "mean_rank_for_99_percent",
                float(table["rank_for_99_percent"].mean()),
                note="directions that hold 99% of the energy of a pruned product",
            ),
        ]
    return values + [
        make_value(f"{path.stem}_bytes", path.stat().st_size, unit="bytes", note="the file")
        for path in files
    ]


def _dtype(adapter: Adapter) -> torch.dtype:
    return next(iter(adapter.updates.values())).lora_a.dtype


def _no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""
