"""DoRA: a direction from LoRA and a trained length of every row, exact once the base is known.

``W' = m (W + s B A) / |W + s B A|`` with norms of the rows of the (out, in) weight: of output
channels for a convolution, and of the columns of an embedding's (num_embeddings, dim) weight.
The update is ``W' - W``, of full rank in general.

Source: Liu et al. 2024 (arXiv:2402.09353), equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gonio.adapters.base import BaseWeights
from gonio.adapters.dense import DenseUpdate
from gonio.adapters.update import LoraUpdate
from gonio.errors import AdapterError

__all__ = ["dora_update", "magnitude_length"]


def magnitude_length(update: LoraUpdate) -> int:
    """Entries of the magnitude of a module: out_features, or the dimension of an embedding."""
    return update.in_features if update.kind == "embedding" else update.out_features


def dora_update(update: LoraUpdate, magnitude: Tensor, base: BaseWeights) -> DenseUpdate:
    """The change of a module's weight under DoRA, computed from the base when it is used.

    Args:
        update: The LoRA part ``scaling * B @ A``.
        magnitude: Trained lengths, shape ``(magnitude_length(update),)``.
        base: The base model's weights; read at each use, so it must stay open.

    Returns:
        ``W' - W`` in float64. PEFT's own merge rounds to the weights' dtype on the way.

    Raises:
        AdapterError: The base has no such module, or its weight has another shape.
    """
    base.locate(update)

    def read() -> Tensor:
        return _changed(base.get(update).double(), update, magnitude.double())

    return DenseUpdate(
        update.module,
        update.shape,
        read,
        module_kind=update.module_kind,
        kernel=update.kernel,
        operand_norm=float(torch.linalg.vector_norm(magnitude.double())),  # = |W'|_F
    )


def _changed(weight: Tensor, update: LoraUpdate, magnitude: Tensor) -> Tensor:
    axis = 0 if update.kind == "embedding" else 1
    merged = torch.addmm(
        weight, update.lora_b.double(), update.lora_a.double(), alpha=update.scaling
    )
    length = torch.linalg.vector_norm(merged, dim=axis)
    if bool((length == 0).any()):
        raise AdapterError(
            f"the DoRA update of {update.module} divides by zero: {int((length == 0).sum())} "
            "rows of W + scaling * B @ A are zero\n"
            "Give the model the adapter was trained on with --base."
        )
    return merged.mul_((magnitude / length).unsqueeze(axis)).sub_(weight)
