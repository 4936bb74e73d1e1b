"""AdaLoRA as PEFT trains it, written as a plain LoRA.

AdaLoRA keeps ``W + alpha / (r0 + 1e-5) B diag(e) A`` and sets entries of e to zero by how much
the loss depends on them, so that the modules share a budget of ranks (Zhang et al. 2023,
arXiv:2303.10512). PEFT reads the folder it writes only as AdaLoRA; here e and the scaling go into
B, the directions with e = 0 are left out, and any LoRA loader reads the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.training.lora import lora_config
from gonio.training.recipes import LoraRecipe
from gonio.training.variant_settings import AdaLoraSettings
from gonio.training.variants.factors import Factors, linear_layers, write_factors
from gonio.training.variants.method import TABLE_NAME, Method, require_one_process

__all__ = ["AdaLora", "freeze_rank_numbers", "plain_factors"]


class AdaLora(Method):
    """PEFT's AdaLoRA with its budget lowered by step."""

    has_plain_factors = False

    def __init__(self, recipe: LoraRecipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.variant, AdaLoraSettings)
        self._settings = recipe.variant
        self._ranks: dict[str, int] = {}

    def config(self, model: Any) -> Any:
        """PEFT's AdaLoRA configuration, with the checked targets of the LoRA one."""
        from peft import AdaLoraConfig

        plain = lora_config(model, self.recipe)
        first, last = self._settings.schedule(self.recipe.steps)
        return AdaLoraConfig(
            init_r=self._settings.first_rank(self.recipe.r),
            target_r=self.recipe.r,
            tinit=first,
            tfinal=last,
            total_step=self.recipe.steps,
            orth_reg_weight=self._settings.orthogonality,
            lora_alpha=plain.lora_alpha,
            lora_dropout=plain.lora_dropout,
            target_modules=plain.target_modules,
            fan_in_fan_out=plain.fan_in_fan_out,
            task_type=plain.task_type,
        )

    def prepare(self, trainer: Any) -> None:
        """Lower the budget after every step."""
        require_one_process(trainer, "AdaLoRA")
        freeze_rank_numbers(trainer.model)
        trainer.add_callback(_BudgetCallback())

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Write the directions that are left as a LoRA."""
        factors = plain_factors(adapted)
        self._ranks = {name: f.lora_b.shape[1] for name, f in factors.items()}
        write_factors(folder, factors, adapted.peft_config["default"], base_name)
        self.table().to_parquet(folder / TABLE_NAME, index=False)

    def table(self) -> pd.DataFrame:
        """Columns ``module`` and ``rank``, what each was left with; at least 1 is stored."""
        return pd.DataFrame(self._ranks.items(), columns=["module", "rank"])


class _BudgetCallback(TrainerCallback):
    """PEFT's budget step, while the gradients it judges by are still there."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Judge, and set what is over the budget to zero."""
        model.base_model.update_and_allocate(state.global_step + 1)


def freeze_rank_numbers(adapted: Any) -> None:
    """Keep the number that divides alpha fixed; PEFT 0.21 frees it where it casts the adapter."""
    for _, layer in linear_layers(adapted):
        layer.ranknum["default"].requires_grad_(False)


@torch.no_grad()
def plain_factors(adapted: Any) -> dict[str, Factors]:
    """The update of every AdaLoRA layer as LoRA factors of scaling 1.

    A module of which no direction is left keeps one that is zero, since PEFT has no rank 0.
    """
    found = {}
    for name, layer in linear_layers(adapted):
        lora_a, lora_b = layer.lora_A["default"], layer.lora_B["default"]
        values = layer.lora_E["default"].flatten()
        factor = layer.scaling["default"] / (layer.ranknum["default"] + 1e-5)  # as PEFT divides
        kept = values.nonzero().flatten() if values.any() else torch.tensor([0])
        lora_b = lora_b[:, kept] * (values[kept] * factor)
        found[name] = Factors(lora_b.clone(), lora_a[kept].clone(), 1.0)
    return found
