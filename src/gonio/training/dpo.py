"""Direct preference optimization of a LoRA adapter, by trl's trainer.

Source: Rafailov et al. 2023 (arXiv:2305.18290). The reference is the base model; its
log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonio.training.backend import require_trl
from gonio.training.data import PreferencePair
from gonio.training.lora import lora_config
from gonio.training.recipes import DpoRecipe
from gonio.training.train import (
    Progress,
    TrainingJob,
    TrainingRun,
    run_training,
    save_adapter,
    trainer_settings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["train_dpo"]


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: DpoRecipe,
    out: Path,
    progress: Progress | None = None,
    *,
    base_name: str | None = None,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> TrainingRun:
    """Train a LoRA adapter to prefer the chosen responses; write it to ``out`` as a PEFT folder.

    The loss at the first step is log 2: every margin is still zero.

    Args:
        model: The base model; comes back as it was given.
        tokenizer: Its tokenizer.
        pairs: Training pairs.
        recipe: The settings.
        out: Folder to create; whole or absent, also when interrupted.
        progress: Called as ``progress(what, steps done, steps in all)``.
        base_name: What the folder names as its base model.
        overwrite: Replace a folder that is not empty.
        callbacks: More callbacks for the trainer.

    Raises:
        GonioError: As :func:`gonio.training.train.run_training` lists.
    """
    trl = require_trl()

    def build(model: Any, tokenizer: Any, dataset: Any, folder: Path, callbacks: list[Any]) -> Any:
        settings = trl.DPOConfig(
            **trainer_settings(recipe, model, folder),
            beta=recipe.beta,
            precompute_ref_log_probs=True,
            disable_dropout=recipe.dropout == 0.0,
        )
        return trl.DPOTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config(model, recipe),
            callbacks=callbacks,
        )

    job = TrainingJob(kind="dpo", rows=_rows, build=build, save=save_adapter)
    return run_training(
        job,
        model,
        tokenizer,
        pairs,
        recipe,
        out,
        progress=progress,
        base_name=base_name,
        overwrite=overwrite,
        callbacks=callbacks,
    )


def _rows(pairs: Sequence[PreferencePair]) -> list[dict[str, str]]:
    return [asdict(pair) for pair in pairs]
