"""A model without its weights: enough to check names and shapes before gigabytes are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gonio.errors import ModelError
from gonio.models.quiet import quiet_transformers
from gonio.models.sources import resolve_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_skeleton"]


def load_skeleton(source: str | Path) -> PreTrainedModel:
    """The modules of a model on torch's meta device: shapes without storage.

    Raises:
        ModelError: The source is unknown, or its configuration is of no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = resolve_source(source).folder()
    with quiet_transformers(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
        except Exception as error:  # configurations raise what their fields make them raise
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"cannot read the configuration in {folder}: "
                f"{reason[0] if reason else type(error).__name__}"
            ) from error
    return model
