"""Causal language modeling of a LoRA adapter on the chosen responses, by trl's trainer.

The loss is the cross-entropy of the response tokens given the prompt, the same tokens that DPO
sees as chosen; rejected responses are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonio.training.backend import require_trl
from gonio.training.data import PreferencePair
from gonio.training.lora import lora_config
from gonio.training.recipes import ClmRecipe
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

__all__ = ["train_clm"]


def train_clm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: ClmRecipe,
    out: Path,
    progress: Progress | None = None,
    *,
    base_name: str | None = None,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> TrainingRun:
    """Train a LoRA adapter on the chosen responses; write it to ``out`` as a PEFT folder.

    Args:
        model: The base model; comes back as it was given.
        tokenizer: Its tokenizer.
        pairs: Training pairs, of which prompt and chosen response are used.
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
        settings = trl.SFTConfig(
            **trainer_settings(recipe, model, folder), completion_only_loss=True
        )
        return trl.SFTTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config(model, recipe),
            callbacks=callbacks,
        )

    job = TrainingJob(kind="clm", rows=_rows, build=build, save=save_adapter)
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
    return [{"prompt": pair.prompt, "completion": pair.chosen} for pair in pairs]
