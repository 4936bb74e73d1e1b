"""What training and using a model take in bytes, counted from parameters and dtypes.

Activations, the cache and the allocator's rounding are not counted: they depend on batch, length
and kernels, not on how many parameters are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gonio.errors import SettingError

__all__ = ["OPTIMIZER_STATES", "Optimizer", "TrainingBytes", "parameter_gain", "training_bytes"]

Optimizer = Literal["adamw", "sgd", "momentum"]
OPTIMIZER_STATES: dict[Optimizer, int] = {"adamw": 2, "sgd": 0, "momentum": 1}  # per parameter


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that stay through a training step.

    Attributes:
        weights: Of all parameters, frozen and trained.
        master: Float32 copies of trained parameters that are computed with in fewer bits.
        gradients: Of the trained parameters.
        optimizer: States of the optimizer, of the trained parameters.
    """

    weights: int
    master: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.master + self.gradients + self.optimizer


def training_bytes(
    frozen: int,
    trained: int,
    *,
    frozen_dtype: torch.dtype = torch.float32,
    trained_dtype: torch.dtype = torch.float32,
    has_master: bool = False,
    optimizer: Optimizer = "adamw",
    state_dtype: torch.dtype = torch.float32,
) -> TrainingBytes:
    """Weights, gradients and optimizer states.

    Args:
        frozen: Parameters that are not trained: all of the base for LoRA, none for full training.
        trained: Parameters that are.
        frozen_dtype: Of the frozen weights.
        trained_dtype: Of the trained weights and their gradients.
        has_master: A float32 copy of the trained weights is kept, as mixed precision does.
        optimizer: ``adamw`` has two states per trained parameter, ``momentum`` one, ``sgd`` none.
        state_dtype: Of the states.

    Raises:
        SettingError: A number is negative, or the optimizer unknown.
    """
    if frozen < 0 or trained < 0:
        raise SettingError(f"parameters cannot be negative, found {frozen} and {trained}")
    if optimizer not in OPTIMIZER_STATES:
        raise SettingError(f"no optimizer {optimizer!r}; there are {', '.join(OPTIMIZER_STATES)}")
    own = trained * trained_dtype.itemsize
    return TrainingBytes(
        weights=frozen * frozen_dtype.itemsize + own,
        master=trained * torch.float32.itemsize if has_master else 0,
        gradients=own,
        optimizer=OPTIMIZER_STATES[optimizer] * trained * state_dtype.itemsize,
    )


def parameter_gain(shape: tuple[int, int], rank: int) -> float:
    """Parameters of a matrix over those of its rank-r factors, ``m n / (r (m + n))``.

    Above 1 where factors save: for m = n = 1000 and r = 10 it is 50.

    Args:
        shape: ``(m, n)``, both at least 1.
        rank: r, at least 1.

    Raises:
        SettingError: A number is below 1.

    Theorem: ``lora_parameter_gain``.
    """
    m, n = shape
    if min(m, n, rank) < 1:
        raise SettingError(f"shape and rank must be at least 1, found {shape} and {rank}")
    return m * n / (rank * (m + n))
