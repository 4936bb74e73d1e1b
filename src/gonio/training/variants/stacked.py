"""The stacked bottleneck: fresh factors in every stage, those of the stages before frozen.

All stages lie in one PEFT model as adapters beside each other, so that the reference of DPO and
the folder written at the end are about the base model as it was given. The optimizer holds all of
them from the start; a stage's moments begin with its first gradient, the learning rate's schedule
goes on.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.training.recipes import LoraRecipe
from gonio.training.variant_settings import StackedSettings
from gonio.training.variants.factors import factors_of, stacked_factors, write_factors
from gonio.training.variants.method import TABLE_NAME, Method, require_one_process

__all__ = ["STAGES_FOLDER", "Stacked", "stage_starts"]

STAGES_FOLDER = "stages"


def stage_starts(steps: int, stages: int) -> list[int]:
    """Finished steps at which each stage begins, the first at 0."""
    return [stage * steps // stages for stage in range(stages)]


class Stacked(Method):
    """``W + s B1 A1 + s B2 A2 + ...`` trained in stages, written as one adapter and one by one."""

    has_plain_factors = False

    def __init__(self, recipe: LoraRecipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.variant, StackedSettings)
        self._starts = stage_starts(recipe.steps, recipe.variant.stages)
        # "default" is the one the trainer made
        self._names = ["default", *(f"stage_{k}" for k in range(2, recipe.variant.stages + 1))]

    def prepare(self, trainer: Any) -> None:
        """Add the later stages and follow the steps."""
        require_one_process(trainer, "a stacked training")
        adapted = trainer.model
        for name in self._names[1:]:
            adapted.add_adapter(name, deepcopy(adapted.peft_config["default"]))
        adapted.base_model.set_adapter(self._names)  # all are trained: the optimizer takes them up
        trainer.create_optimizer()
        trainer.add_callback(_StageCallback(self._starts, self._names))

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Write the sum as one adapter, and every stage into ``stages/1``, ``stages/2``, ..."""
        config = adapted.peft_config["default"]
        stages = [factors_of(adapted, name) for name in self._names]
        for number, factors in enumerate(stages, start=1):
            part = folder / STAGES_FOLDER / str(number)
            part.mkdir(parents=True)
            write_factors(part, factors, config, base_name)
        whole = {name: stacked_factors([part[name] for part in stages]) for name in stages[0]}
        write_factors(folder, whole, config, base_name)
        self.table().to_parquet(folder / TABLE_NAME, index=False)

    def table(self) -> pd.DataFrame:
        """Columns ``stage``, ``first_step`` and ``last_step``, counted from 1."""
        ends = [*self._starts[1:], self.recipe.steps]
        rows = zip(
            range(1, len(ends) + 1), (start + 1 for start in self._starts), ends, strict=True
        )
        return pd.DataFrame(rows, columns=["stage", "first_step", "last_step"])


class _StageCallback(TrainerCallback):
    """Turns a stage's factors on when its first step comes, and freezes those before."""

    def __init__(self, starts: list[int], names: list[str]) -> None:
        self._starts = starts
        self._names = names

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin a stage."""
        if state.global_step not in self._starts:
            return
        stage = self._starts.index(state.global_step)
        model.base_model.set_adapter(self._names[: stage + 1])
        for name in self._names[:stage]:
            _train(model, name, False)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Mark all stages as trained, for those who count."""
        for name in self._names:
            _train(model, name, True)


def _train(adapted: Any, adapter: str, wanted: bool) -> None:
    """Freeze or free both factors of an adapter in every layer."""
    for name, parameter in adapted.named_parameters():
        if f".{adapter}." in name and "lora_" in name:
            parameter.requires_grad_(wanted)
            parameter.grad = None
