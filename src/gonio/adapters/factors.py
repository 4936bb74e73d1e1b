"""The factors of one module, read and checked: of a matrix, an embedding or a convolution."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from gonio.adapters.config import CONFIG_NAME, LoraSettings
from gonio.adapters.keys import ModuleKeys
from gonio.adapters.stored import StoredTensors, all_finite, broken
from gonio.adapters.update import LoraUpdate, UpdateKind, split_module_name

__all__ = ["UpdateLayout", "check_values", "checked_factors", "read_magnitude", "read_update"]

StoredFactors: TypeAlias = tuple[Tensor, Tensor]

_MAX_NORM = math.sqrt(torch.finfo(torch.float64).max)  # above it, energies leave float64
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class UpdateLayout(NamedTuple):
    """All of one module's update but the values of its factors.

    Attributes:
        keys: The keys of its tensors.
        kind: What the module is.
        kernel: Kernel size of a convolution, empty otherwise.
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA.
        layer: Index of its layer, None outside the layer stack.
        projection: What it is within its layer.
    """

    keys: ModuleKeys
    kind: UpdateKind
    kernel: tuple[int, ...]
    scaling: float
    layer: int | None
    projection: str


def checked_factors(
    tensors: StoredTensors, keys: ModuleKeys, settings: LoraSettings
) -> tuple[UpdateLayout, StoredFactors]:
    """The factors of one module, A and B as stored, and what they and the settings say of it.

    Raises:
        AdapterError: The factors are no finite floats, or do not fit each other or the settings.
    """
    prefix = "embedding_" if keys.is_embedding else ""
    factors = []
    for side, key in (("A", keys.lora_a), ("B", keys.lora_b)):
        factor = tensors.get(key)
        check_values(tensors, f"{keys.module}: lora_{prefix}{side}", factor)
        factors.append(factor)
    stored_a, stored_b = factors
    _check_shapes(tensors, keys, stored_a, stored_b, settings)
    kernel = tuple(stored_a.shape[2:])
    kind: UpdateKind = "embedding" if keys.is_embedding else "convolution" if kernel else "linear"
    _, scaling = settings.resolve(keys.module)
    layout = UpdateLayout(keys, kind, kernel, scaling, *split_module_name(keys.module))
    return layout, (stored_a, stored_b)


def read_update(
    tensors: StoredTensors, layout: UpdateLayout, factors: StoredFactors | None = None
) -> LoraUpdate:
    """The update ``scaling * B @ A`` of one module.

    An embedding's factors A ``(r, num_embeddings)`` and B ``(dim, r)`` change its weight by
    ``scaling * (B A)^T``, so its ``lora_b`` is A^T and its ``lora_a`` B^T. A convolution's A
    ``(r, in, *kernel)`` and B ``(out, r, 1, ...)`` are flattened behind their first axis.

    Args:
        tensors: The file.
        layout: What :func:`checked_factors` said of this file, or of one of the same header and
            configuration; the values are finite.
        factors: A and B as stored; read when omitted.

    Raises:
        AdapterError: The update is too large for float64.
    """
    keys, kind, kernel, scaling, layer, projection = layout
    lora_a, lora_b = factors or (tensors.get(keys.lora_a), tensors.get(keys.lora_b))
    if kind == "embedding":
        lora_b, lora_a = lora_a.mT, lora_b.mT
    elif kind == "convolution":
        lora_b, lora_a = lora_b.flatten(1), lora_a.flatten(1)
    update = LoraUpdate(keys.module, lora_a, lora_b, scaling, layer, projection, kind, kernel)
    if not _is_small(update) and not update.norm_bound() < _MAX_NORM:
        raise broken(
            tensors.folder,
            [f"{keys.module}: the update is too large for float64, its squared norm overflows"],
            "The training run diverged or the file is damaged; use an earlier checkpoint.",
        )
    return update


def read_magnitude(tensors: StoredTensors, key: str, expected: int) -> Tensor:
    """DoRA's magnitude as a vector of ``expected`` entries, in its stored dtype.

    Raises:
        AdapterError: It has another length, or holds no finite floats.
    """
    magnitude = tensors.get(key)
    check_values(tensors, key, magnitude)
    if magnitude.numel() != expected or max(magnitude.shape) != expected:
        lines = [f"{key} has shape {tuple(magnitude.shape)}, expected {expected} entries"]
        raise broken(tensors.folder, lines, "The magnitude does not belong to these factors.")
    return magnitude.flatten()


def check_values(tensors: StoredTensors, what: str, values: Tensor) -> None:
    """Refuse what is empty, no float of 16 to 64 bits, or not finite.

    Raises:
        AdapterError: As said; ``what`` names the tensor.
    """
    if values.numel() == 0 or values.ndim == 0:
        raise _not_a_matrix(tensors, what, values)
    if values.dtype not in _DTYPES:
        lines = [f"{what} has dtype {values.dtype}, expected a float of 16 to 64 bits"]
        raise broken(tensors.folder, lines)
    if not tensors.is_finite and not all_finite(values):
        bad = int((~values.isfinite()).sum())
        raise broken(
            tensors.folder,
            [f"{what} holds {bad} NaN or infinite of {values.numel()} entries"],
            "The training run diverged; use an earlier checkpoint.",
        )


def _check_shapes(
    tensors: StoredTensors,
    keys: ModuleKeys,
    stored_a: Tensor,
    stored_b: Tensor,
    settings: LoraSettings,
) -> None:
    prefix = "embedding_" if keys.is_embedding else ""
    highest = 2 if keys.is_embedding else 5
    for side, factor in (("A", stored_a), ("B", stored_b)):
        if not 2 <= factor.ndim <= highest:
            raise _not_a_matrix(tensors, f"{keys.module}: lora_{prefix}{side}", factor)
    shape_a, shape_b = tuple(stored_a.shape), tuple(stored_b.shape)
    shapes = f"{keys.module}: lora_{prefix}A is {shape_a}, lora_{prefix}B is {shape_b}"
    if len(shape_a) != len(shape_b) or any(size != 1 for size in shape_b[2:]):
        lines = [f"{shapes}; the kernel of a convolution's lora_B is 1 in every direction"]
        raise broken(tensors.folder, lines)
    if shape_a[0] != shape_b[1]:
        raise broken(tensors.folder, [f"{shapes}; their ranks differ"])
    rank, _ = settings.resolve(keys.module)
    if shape_a[0] != rank:
        raise broken(
            tensors.folder,
            [f"{shapes}, but {CONFIG_NAME} resolves to rank {rank}"],
            "r or rank_pattern does not belong to these weights; the scaling would be wrong.",
        )


def _not_a_matrix(tensors: StoredTensors, what: str, values: Tensor) -> Exception:
    return broken(
        tensors.folder,
        [f"{what} has shape {tuple(values.shape)}, expected a matrix"],
        "Sharded training must gather its weights before saving.",
    )


def _is_small(update: LoraUpdate) -> bool:
    """Whether no factors of this size and dtype could overflow, whatever they hold."""
    largest = torch.finfo(update.lora_a.dtype).max * torch.finfo(update.lora_b.dtype).max
    return update.rank * sum(update.shape) * abs(update.scaling) * largest < _MAX_NORM
