"""Sparse adapters: factors or products pruned by magnitude, and what they take to store.

Pruned factors are still factors: a PEFT folder of the same rank, in which zeros cost what any
number costs, and beside it a file of the values and their places alone. A pruned product is not:
its rank is in general full, so that no PEFT folder of a small rank holds it. It is kept exactly,
as sparse changes of whole weights, or replaced by its best approximation of a rank, whose error
is measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gonio.adapters.config import CONFIG_NAME
from gonio.adapters.resize import difference_norm, stored_parameters
from gonio.adapters.stored import WEIGHTS_NAME
from gonio.adapters.update import LoraUpdate, with_factors
from gonio.errors import AdapterError, CodecError, OutputError, SettingError
from gonio.files import replace_file, replace_folder
from gonio.quant.sparse import SparseMatrix, magnitude_mask, sparse_from_tensors

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SPARSE_DELTA_NAME",
    "SPARSE_FACTORS_NAME",
    "Pruned",
    "added_deltas",
    "low_rank_product",
    "prune_factors",
    "pruned_product",
    "read_sparse",
    "unpack_factors",
    "write_sparse",
]

SPARSE_FACTORS_NAME = "sparse_factors.safetensors"
SPARSE_DELTA_NAME = "sparse_delta.safetensors"

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Pruned:
    """Updates with pruned factors.

    Attributes:
        updates: One per module, scaling and rank as before.
        table: One row per module: ``module, layer, projection, rank, entries`` of both factors,
            ``nonzero, plain_bytes`` with zeros stored as numbers, ``sparse_bytes`` of values and
            places, and ``relative_error`` of the product (Frobenius).
    """

    updates: tuple[LoraUpdate, ...]
    table: pd.DataFrame


def prune_factors(updates: Sequence[LoraUpdate], density: float) -> Pruned:
    """Keep the largest entries of either factor of every update.

    Args:
        updates: None of them dense.
        density: Share of each factor's entries to keep, in (0, 1].

    Raises:
        AdapterError: An update has no factors.
        SettingError: The density is out of range.
    """
    kept, rows = [], []
    for update in updates:
        _require_linear(update)
        pruned = LoraUpdate(
            update.module,
            update.lora_a * magnitude_mask(update.lora_a, density),
            update.lora_b * magnitude_mask(update.lora_b, density),
            update.scaling,
            update.layer,
            update.projection,
        )
        norm = difference_norm(update, None)
        packed = [SparseMatrix.encode(f) for f in (pruned.lora_a, pruned.lora_b)]
        rows.append(
            {
                "module": update.module,
                "layer": update.layer,
                "projection": update.projection,
                "rank": update.rank,
                "entries": stored_parameters(update),
                "nonzero": sum(len(matrix.values) for matrix in packed),
                "plain_bytes": stored_parameters(update) * update.lora_a.element_size(),
                "sparse_bytes": sum(matrix.stored_bytes for matrix in packed),
                "relative_error": difference_norm(update, pruned) / norm if norm > 0 else 0.0,
            }
        )
        kept.append(pruned)
    return Pruned(tuple(kept), pd.DataFrame(rows).astype({"layer": "Int64"}))


def pruned_product(update: LoraUpdate, density: float) -> Tensor:
    """The largest entries of ``scaling * B @ A``, the others zero; float64, ``(m, n)``.

    The product is formed, since its entries are what is pruned.

    Raises:
        AdapterError: The update has no factors.
        SettingError: The density is out of range.
    """
    _require_linear(update)
    dense = update.scaling * (update.lora_b.double() @ update.lora_a.double())
    return dense * magnitude_mask(dense, density)


def low_rank_product(like: LoraUpdate, product: Tensor, rank: int) -> tuple[LoraUpdate, Tensor]:
    """The best approximation of a dense product by a rank, and all its singular values.

    Args:
        like: Names the module.
        product: float64, shape ``(m, n)``.
        rank: At least 1.

    Returns:
        An update of scaling 1 with evenly shared singular values, and them, descending.

    Raises:
        SettingError: The rank is below 1.

    Source: Eckart and Young 1936 (doi:10.1007/BF02288367).
    """
    if rank < 1:
        raise SettingError(f"rank must be at least 1, found {rank}")
    left, sigma, right = torch.linalg.svd(product, full_matrices=False)
    roots = sigma[:rank].sqrt()
    update = with_factors(like, left[:, :rank] * roots, roots.unsqueeze(1) * right[:rank])
    return update, sigma


def write_sparse(path: Path, matrices: Mapping[str, SparseMatrix]) -> Path:
    """Write sparse matrices by name as one safetensors file, whole or absent."""
    tensors: dict[str, Tensor] = {}
    for name, matrix in matrices.items():
        tensors |= matrix.tensors(name)
    with replace_file(path) as staging:
        save_file(tensors, staging)
        staging.chmod(0o644)  # written private by safetensors
    return path


def read_sparse(path: Path) -> dict[str, SparseMatrix]:
    """Sparse matrices by name.

    Raises:
        AdapterError: The file cannot be read or is broken.
    """
    try:
        return sparse_from_tensors(load_file(path))
    except (OSError, SafetensorError, CodecError) as error:
        raise AdapterError(f"cannot read the sparse matrices {path}: {error}") from error


def unpack_factors(folder: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the PEFT folder that a folder with sparse factors stands for, entry for entry.

    Args:
        folder: Has ``adapter_config.json`` and ``sparse_factors.safetensors``; whether it also has
            PEFT's own weights does not matter.
        out: Folder to create.
        overwrite: Replace a folder that is not empty.

    Raises:
        AdapterError: A file is missing or broken.
        OutputError: ``out`` is not empty or cannot be written.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise AdapterError(f"no {CONFIG_NAME} in {folder}, so its sparse factors have no scaling")
    matrices = read_sparse(folder / SPARSE_FACTORS_NAME)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise OutputError(f"{out} exists and is not replaced; give --force to replace it.")
    try:
        tensors = {f"{_PREFIX}{name}.weight": m.decode() for name, m in matrices.items()}
    except CodecError as error:
        raise AdapterError(f"{folder / SPARSE_FACTORS_NAME}: {error}") from error
    with replace_folder(out) as staging:
        shutil.copyfile(folder / CONFIG_NAME, staging / CONFIG_NAME)
        save_file(tensors, staging / WEIGHTS_NAME, metadata={"format": "pt"})
        (staging / WEIGHTS_NAME).chmod(0o644)  # as above
    return out


@contextmanager
def added_deltas(model: nn.Module, deltas: Mapping[str, SparseMatrix]) -> Iterator[None]:
    """The model with sparse changes added to its weights, then with its own weights again.

    Args:
        model: The base model, without adapters.
        deltas: Change by module, ``(out_features, in_features)``, from :func:`read_sparse`.

    Raises:
        AdapterError: The model has no such linear layer, or one of another shape.
    """
    found = [(_weight(model, name, delta), delta) for name, delta in deltas.items()]
    own = [(weight, weight.data) for (weight, _), _ in found]
    try:
        with torch.no_grad():
            for (weight, is_transposed), delta in found:
                change = delta.decode().to(weight.device)
                change = change.mT if is_transposed else change
                weight.data = (weight.data.double() + change.double()).to(weight.dtype)
        yield
    finally:
        for weight, values in own:
            weight.data = values


def _weight(model: nn.Module, name: str, delta: SparseMatrix) -> tuple[nn.Parameter, bool]:
    """A layer's weight, and whether it is stored as (in_features, out_features)."""
    from transformers.pytorch_utils import Conv1D

    module = dict(model.named_modules()).get(name)
    weight = getattr(module, "weight", None)
    is_transposed = isinstance(module, Conv1D)
    shape = None if weight is None else tuple(weight.shape)[:: -1 if is_transposed else 1]
    if weight is None or shape != delta.shape:
        raise AdapterError(
            f"the changes are of another model: {name} has shape {delta.shape}, this "
            f"{type(model).__name__} has {shape or 'none'}"
        )
    return weight, is_transposed


def _require_linear(update: LoraUpdate) -> None:
    if update.kind != "linear":
        raise AdapterError(
            f"only factors of linear layers are pruned; the update of {update.module} is "
            f"{update.kind}\nGive it a rank first (adapter resize), or leave it out."
        )
