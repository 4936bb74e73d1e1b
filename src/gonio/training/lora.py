"""The PEFT configuration of a recipe, checked against the model it is meant for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from gonio.errors import SettingError
from gonio.training.recipes import LoraRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["lora_config", "target_names"]


def target_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of all linear layers but the output head, sorted."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _is_linear(module) and module is not head
        }
    )


def lora_config(model: PreTrainedModel, recipe: LoraRecipe) -> Any:
    """A ``peft.LoraConfig`` without bias, for causal language models.

    Raises:
        SettingError: A target names no linear layer of the model, or names its output head.
    """
    from peft import LoraConfig, TaskType

    known = target_names(model)
    targets = known if recipe.target_modules == "all-linear" else list(recipe.target_modules)
    unknown = [name for name in targets if name.rpartition(".")[2] not in known]
    if unknown or not targets:
        raise SettingError(
            f"no linear layer called {', '.join(unknown) or 'anything'} in "
            f"{type(model).__name__} that an adapter can go on; there are {', '.join(known)}"
        )
    targeted = [
        module
        for name, module in model.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    return LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules
        if recipe.target_modules == "all-linear"
        else list(recipe.target_modules),
        use_rslora=recipe.use_rslora,
        init_lora_weights="gaussian" if recipe.init == "gaussian" else True,  # others start later
        fan_in_fan_out=any(_is_transposed(module) for module in targeted),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    """Whether the layer stores its weight as (in_features, out_features), as in GPT-2."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
