"""Learned scaling per layer ("LoRA++"): ``W + c s B A`` with one trained number c per module.

The number multiplies B wherever B is used (:mod:`torch.nn.utils.parametrize`), so PEFT computes,
merges and differentiates as for any LoRA. Its gradient is ``s <G, B A>`` with G the gradient in
the full weight: zero at the first step, where B = 0. It is folded into B when the folder is
written, after which nothing of it is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gonio.training.recipes import LoraRecipe
from gonio.training.variant_settings import ScaledSettings
from gonio.training.variants.factors import linear_layers
from gonio.training.variants.method import Method

__all__ = ["Scaled", "add_scales", "fold_scales", "scale_gradient", "scales_of"]


def scale_gradient(
    weight_gradient: Tensor, lora_b: Tensor, lora_a: Tensor, scaling: float
) -> float:
    """``s <G, B A>``, the derivative of the loss in c, from the factors.

    Args:
        weight_gradient: G, gradient of the loss in the full weight, ``(out_features,
            in_features)``.
        lora_b: Shape ``(out_features, rank)``.
        lora_a: Shape ``(rank, in_features)``.
        scaling: s.
    """
    inner = (weight_gradient.double() @ lora_a.double().mT) * lora_b.double()  # B A is not formed
    return scaling * float(inner.sum())


class Scaled(Method):
    """LoRA with a trained number per module that multiplies its update."""

    has_plain_factors = False

    def __init__(self, recipe: LoraRecipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.variant, ScaledSettings)
        self._rate = recipe.variant.scale_learning_rate
        self._scales: dict[str, float] = {}

    def prepare(self, trainer: Any) -> None:
        """Add the numbers, with a learning rate of their own."""
        numbers = add_scales(trainer.model)
        trainer.create_optimizer()
        chosen = {id(number) for number in numbers}
        for group in trainer.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
        group = {"params": numbers, "lr": self._rate, "weight_decay": 0.0}
        trainer.optimizer.add_param_group(group)

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Fold the numbers into B and write a LoRA."""
        self._scales = scales_of(adapted)
        fold_scales(adapted)
        super().save(adapted, folder, base_name)

    def table(self) -> pd.DataFrame:
        """Columns ``module`` and ``scale``, the trained number."""
        return pd.DataFrame(self._scales.items(), columns=["module", "scale"])


class _Scale(nn.Module):
    """Multiplies a weight by a trained number, 1 at the start."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=like.dtype, device=like.device))

    def forward(self, weight: Tensor) -> Tensor:
        """``scale * weight``."""
        return self.scale * weight


def add_scales(adapted: Any) -> list[nn.Parameter]:
    """Multiply B of every linear layer by a new trained number; the numbers, in layer order."""
    numbers = []
    for _, layer in linear_layers(adapted):
        scale = _Scale(layer.lora_B["default"].weight)
        parametrize.register_parametrization(layer.lora_B["default"], "weight", scale)
        numbers.append(scale.scale)
    return numbers


def scales_of(adapted: Any) -> dict[str, float]:
    """The numbers by module."""
    return {
        name: float(layer.lora_B["default"].parametrizations["weight"][0].scale.detach())
        for name, layer in linear_layers(adapted)
    }


def fold_scales(adapted: Any) -> None:
    """Multiply the numbers into B and take them away; the model computes the same."""
    for _, layer in linear_layers(adapted):
        parametrize.remove_parametrizations(layer.lora_B["default"], "weight")
