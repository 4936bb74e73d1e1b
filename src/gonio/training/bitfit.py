"""BitFit: DPO of a model's biases, every weight frozen.

Source: Ben Zaken et al. 2021 (arXiv:2106.10199) for training biases alone; Rafailov et al. 2023
(arXiv:2305.18290) for the loss. What is written are the trained biases, ``biases.safetensors``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gonio.errors import AdapterError, ModelError
from gonio.training.data import PreferencePair
from gonio.training.dpo import dpo_rows, dpo_trainer
from gonio.training.recipes import BitFitRecipe
from gonio.training.train import RunOptions, TrainingJob, TrainingRun, run_training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BIASES_FILE", "applied_biases", "bias_names", "load_biases", "train_bitfit"]

BIASES_FILE = "biases.safetensors"


def bias_names(model: PreTrainedModel) -> list[str]:
    """Names of the biases of a model: of its linear layers and of its normalizations.

    Raises:
        ModelError: It has none.
    """
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not names:
        raise ModelError(
            f"{type(model).__name__} has no biases, so BitFit has nothing to train\n"
            "Take a model with biases, such as GPT-2 or GPT-NeoX, or train a LoRA adapter."
        )
    return names


def load_biases(folder: Path) -> dict[str, Tensor]:
    """Biases by parameter name from a folder that :func:`train_bitfit` wrote.

    Raises:
        AdapterError: There is no such file, or it is broken.
    """
    path = folder / BIASES_FILE
    try:
        biases: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"cannot read the biases {path}: {error}") from error
    return biases


@contextmanager
def applied_biases(model: PreTrainedModel, biases: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other biases, then with its own again.

    Raises:
        ModelError: The model has no such parameter, or one of another shape.
    """
    own = dict(model.named_parameters())
    for name, bias in biases.items():
        if name not in own or own[name].shape != bias.shape:
            found = tuple(own[name].shape) if name in own else "none"
            raise ModelError(
                f"the biases are of another model: {name} has shape {tuple(bias.shape)}, "
                f"this {type(model).__name__} has {found}"
            )
    before = {name: own[name].detach().clone() for name in biases}
    try:
        _copy(own, biases)
        yield
    finally:
        _copy(own, before)


def train_bitfit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: BitFitRecipe,
    out: Path,
    **options: Unpack[RunOptions],
) -> TrainingRun:
    """Train the biases to prefer the chosen responses; write them to ``out``.

    The loss at the first step is log 2: every margin is still zero. Arguments and options are
    those of :func:`gonio.training.train.run_training`.

    Raises:
        ModelError: The model has no biases.
        GonioError: As :func:`gonio.training.train.run_training` lists.
    """
    names = set(bias_names(model))

    def build(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        return dpo_trainer(recipe, settings, parts)

    def save(trained: Any, folder: Path, base_name: str | None) -> None:
        own = dict(trained.named_parameters())
        biases = {name: own[name].detach().cpu().contiguous() for name in sorted(names)}
        save_file(biases, folder / BIASES_FILE)
        (folder / BIASES_FILE).chmod(0o644)  # written private by safetensors

    job = TrainingJob(kind="bitfit", rows=dpo_rows, build=build, save=save)
    own = {name: weight for name, weight in model.named_parameters() if name in names}
    with applied_biases(model, {name: bias.detach().clone() for name, bias in own.items()}):
        return run_training(job, model, tokenizer, pairs, recipe, out, **options)


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].copy_(value)
