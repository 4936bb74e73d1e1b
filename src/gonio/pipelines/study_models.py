"""Tiny models of any architecture with random weights: for trying a study, not for its findings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from gonio.errors import ModelError
from gonio.files import replace_folder
from gonio.models import load_tokenizer
from gonio.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BuiltModel", "build_model", "built_skeleton"]


class BuiltModel(BaseModel):
    """A model made from a configuration.

    Attributes:
        architecture: Its ``model_type``, for example ``gpt_neox``.
        tokenizer: Model source whose tokenizer it takes.
        seed: Seed of the random weights.
        config: Fields of the configuration, for example ``hidden_size``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    tokenizer: str = "smollm2-135m"
    seed: int = Field(default=0, ge=0)
    config: dict[str, int | float | bool | str] = Field(default_factory=dict)


def built_skeleton(built: BuiltModel) -> PreTrainedModel:
    """The model's modules without weights.

    Raises:
        ModelError: The architecture is unknown, or its configuration makes no model.
    """
    with torch.device("meta"), quiet_transformers():  # its tokens lie beyond a vocabulary of 8
        return _model(built, {"vocab_size": 8})


def build_model(built: BuiltModel, folder: Path) -> Path:
    """Write the model and its tokenizer to a folder, unless they are there already.

    Raises:
        ModelError: The architecture is unknown, or its configuration makes no model.
        OutputError: The folder cannot be written.
    """
    if (folder / "config.json").is_file():  # the folder appears whole
        return folder
    tokenizer = load_tokenizer(built.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(built.seed)
        model = _model(built, _vocabulary(tokenizer))
    with replace_folder(folder) as staging, quiet_transformers():
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    return folder


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a configuration that its tokenizer decides."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _model(built: BuiltModel, vocabulary: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(built.architecture, **{**vocabulary, **built.config})
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # configurations raise what their fields make them raise
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"cannot build a model of architecture {built.architecture!r}: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    return model
