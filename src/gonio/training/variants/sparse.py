"""Sparse LoRA: both factors pruned by magnitude while they are trained.

The pruned factors are an ordinary PEFT folder, which stores their zeros as it stores any number
and is no smaller for them; ``sparse_factors.safetensors`` beside it holds the values and their
places alone. A pruned *product* is another thing: it has no low rank
(:mod:`gonio.adapters.sparse`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.quant.sparse import SparseMatrix, magnitude_mask
from gonio.training.recipes import LoraRecipe
from gonio.training.variant_settings import SparseSettings
from gonio.training.variants.factors import factors_of, linear_layers
from gonio.training.variants.method import Method, require_one_process

__all__ = ["SPARSE_FACTORS_NAME", "Sparse", "density_at"]

SPARSE_FACTORS_NAME = "sparse_factors.safetensors"


def density_at(step: int, steps: int, settings: SparseSettings) -> float:
    """Share of entries kept after ``step`` of ``steps`` steps, in [density, 1].

    ``d + (1 - d) (1 - t)^3`` with t running from 0 to 1 between begin and end; the last step
    always has the density that is aimed at.

    Source: Zhu & Gupta 2017 (arXiv:1710.01878), equation 1.
    """
    first, last = settings.begin * steps, settings.end * steps
    if step >= min(last, steps):
        return settings.density
    if step <= first:
        return 1.0
    left = 1.0 - (step - first) / (last - first)
    return float(settings.density + (1.0 - settings.density) * left**3)


class Sparse(Method):
    """LoRA whose factors are pruned on a schedule."""

    def __init__(self, recipe: LoraRecipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.variant, SparseSettings)
        self._callback = _PruneCallback(recipe.variant)

    def prepare(self, trainer: Any) -> None:
        """Prune after the steps."""
        require_one_process(trainer, "a sparse training")
        trainer.add_callback(self._callback)

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Write the PEFT folder, and the nonzero entries alone beside it."""
        super().save(adapted, folder, base_name)
        tensors: dict[str, torch.Tensor] = {}
        for name, factors in factors_of(adapted).items():
            tensors |= SparseMatrix.encode(factors.lora_a).tensors(f"{name}.lora_A")
            tensors |= SparseMatrix.encode(factors.lora_b).tensors(f"{name}.lora_B")
        path = folder / SPARSE_FACTORS_NAME
        save_file(tensors, path)
        path.chmod(0o644)  # written private by safetensors

    def table(self) -> pd.DataFrame:
        """Columns ``step`` and ``density``, aimed at; a row per pruning."""
        return pd.DataFrame(self._callback.rows, columns=["step", "density"])


class _PruneCallback(TrainerCallback):
    """Keeps the largest entries of every factor after each step, and pruned ones at zero."""

    def __init__(self, settings: SparseSettings) -> None:
        self._settings = settings
        self._masks: dict[nn.Parameter, torch.Tensor] = {}
        self.rows: list[tuple[int, float]] = []

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Prune when its time has come; otherwise undo what the step did to pruned entries."""
        step, steps = state.global_step, state.max_steps
        density = density_at(step, steps, self._settings)
        is_due = density < 1.0 and (step % self._settings.every == 0 or step == steps)
        for _, layer in linear_layers(model):
            for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                if factor in self._masks:
                    factor.mul_(self._masks[factor])
                if is_due:
                    self._masks[factor] = magnitude_mask(factor, density)
                    factor.mul_(self._masks[factor])
        if is_due:
            self.rows.append((step, density))
