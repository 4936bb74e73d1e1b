"""Training LoRA by a trl trainer, as the recipe's start and variant want it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gonio.training.data import PreferencePair
from gonio.training.recipes import LoraRecipe, TrainingKind
from gonio.training.train import RunOptions, TrainingJob, TrainingRun, run_training
from gonio.training.variants.adalora import AdaLora
from gonio.training.variants.dynamic import Dynamic
from gonio.training.variants.method import Method
from gonio.training.variants.scaled import Scaled
from gonio.training.variants.sparse import Sparse
from gonio.training.variants.stacked import Stacked
from gonio.training.variants.starts import Started

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoraTrainer", "training_method"]

_METHODS: dict[str, type[Method]] = {
    "stacked": Stacked,
    "sparse": Sparse,
    "dynamic": Dynamic,
    "adalora": AdaLora,
    "scaled": Scaled,
}


def training_method(recipe: LoraRecipe) -> Method:
    """A new method for one training of the recipe."""
    if recipe.variant is not None:
        return _METHODS[recipe.variant.name](recipe)
    return Method(recipe) if recipe.init in ("kaiming", "gaussian") else Started(recipe)


@dataclass(frozen=True)
class LoraTrainer:
    """One objective, to be trained with whatever method a recipe asks for.

    Attributes:
        kind: ``dpo`` or ``clm``.
        rows: Turns pairs into the rows of the data set the trainer expects.
        build: Makes the trainer from the arguments of its configuration and of its own.
    """

    kind: TrainingKind
    rows: Callable[[Sequence[PreferencePair]], list[dict[str, str]]]
    build: Callable[[dict[str, Any], dict[str, Any]], Any]

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[PreferencePair],
        recipe: LoraRecipe,
        out: Path,
        **options: Unpack[RunOptions],
    ) -> TrainingRun:
        """Train and write a PEFT folder; the model comes back as it was given.

        Raises:
            SettingError: A callback would measure something else than the update.
            GonioError: As :func:`gonio.training.train.run_training` lists.
        """
        method = training_method(recipe)
        method.require_callbacks(options.get("callbacks", ()))

        def build(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
            trainer = self.build(settings, parts | {"peft_config": method.config(model)})
            method.prepare(trainer)
            return trainer

        job = TrainingJob(kind=self.kind, rows=self.rows, build=build, save=method.save)
        with method.restored():
            return run_training(job, model, tokenizer, pairs, recipe, out, **options)
