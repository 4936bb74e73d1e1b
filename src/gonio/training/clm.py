"""Causal language modeling of a LoRA adapter on the chosen responses, by trl's trainer.

The loss is the cross-entropy of the response tokens given the prompt, the same tokens that DPO
sees as chosen; rejected responses are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gonio.training.backend import require_trl
from gonio.training.data import PreferencePair
from gonio.training.recipes import ClmRecipe
from gonio.training.train import RunOptions, TrainingRun
from gonio.training.variants.run import LoraTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["train_clm"]


def train_clm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: ClmRecipe,
    out: Path,
    **options: Unpack[RunOptions],
) -> TrainingRun:
    """Train a LoRA adapter on the chosen responses; write it to ``out`` as a PEFT folder.

    Of the pairs, prompt and chosen response are used. Arguments, options and errors are those of
    :func:`gonio.training.train.run_training`.
    """

    def build(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
        trl = require_trl()
        config = trl.SFTConfig(**settings, completion_only_loss=True)
        return trl.SFTTrainer(args=config, **parts)

    trainer = LoraTrainer(kind="clm", rows=_rows, build=build)
    return trainer.run(model, tokenizer, pairs, recipe, out, **options)


def _rows(pairs: Sequence[PreferencePair]) -> list[dict[str, str]]:
    return [{"prompt": pair.prompt, "completion": pair.chosen} for pair in pairs]
