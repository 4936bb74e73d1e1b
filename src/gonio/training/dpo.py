"""Direct preference optimization of a LoRA adapter, by trl's trainer.

Source: Rafailov et al. 2023 (arXiv:2305.18290). The reference is the base model; its
log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gonio.training.backend import require_trl
from gonio.training.data import PreferencePair
from gonio.training.recipes import BitFitRecipe, DpoRecipe
from gonio.training.train import RunOptions, TrainingRun
from gonio.training.variants.run import LoraTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["dpo_rows", "dpo_trainer", "train_dpo"]


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: DpoRecipe,
    out: Path,
    **options: Unpack[RunOptions],
) -> TrainingRun:
    """Train a LoRA adapter to prefer the chosen responses; write it to ``out`` as a PEFT folder.

    The loss at the first step is log 2: every margin is still zero. Arguments, options and errors
    are those of :func:`gonio.training.train.run_training`.
    """

    def build(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
        return dpo_trainer(recipe, settings, parts)

    trainer = LoraTrainer(kind="dpo", rows=dpo_rows, build=build)
    return trainer.run(model, tokenizer, pairs, recipe, out, **options)


def dpo_rows(pairs: Sequence[PreferencePair]) -> list[dict[str, str]]:
    """The pairs as the rows that trl's trainer expects."""
    return [asdict(pair) for pair in pairs]


def dpo_trainer(
    recipe: DpoRecipe | BitFitRecipe, settings: dict[str, Any], parts: dict[str, Any], **more: Any
) -> Any:
    """The trainer of trl, with the reference computed beforehand.

    Args:
        recipe: Names beta and, for LoRA, the dropout.
        settings: Arguments of every trainer.
        parts: Model, tokenizer, data and callbacks.
        **more: Further arguments of the trainer.
    """
    trl = require_trl()
    config = trl.DPOConfig(
        **settings,
        beta=recipe.beta,
        precompute_ref_log_probs=True,
        disable_dropout=isinstance(recipe, BitFitRecipe) or recipe.dropout == 0.0,
    )
    return trl.DPOTrainer(args=config, **parts, **more)
