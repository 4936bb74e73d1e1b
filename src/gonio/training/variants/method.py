"""What a way of training LoRA may change: configuration, preparation, and what is written.

The base class is LoRA itself. One method belongs to one training: it may hold what it recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from gonio.errors import SettingError
from gonio.training.lora import lora_config
from gonio.training.recipes import LoraRecipe
from gonio.training.train import save_adapter

__all__ = ["TABLE_NAME", "Method", "require_one_process"]

TABLE_NAME = "variant.parquet"


class Method:
    """LoRA as PEFT trains and writes it.

    Args:
        recipe: The settings.

    Attributes:
        has_plain_factors: Whether ``scaling * B @ A`` of PEFT's two matrices is the whole update
            all through the training, so that callbacks may follow it.
    """

    has_plain_factors = True

    def __init__(self, recipe: LoraRecipe) -> None:
        self.recipe = recipe

    def config(self, model: Any) -> Any:
        """The PEFT configuration the trainer wraps the model with."""
        return lora_config(model, self.recipe)

    def prepare(self, trainer: Any) -> None:
        """Change the wrapped model, or add callbacks, before the first step.

        The reference of DPO is computed by then, on the base model as it was given.
        """

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Write a PEFT LoRA folder of the base model as it was given."""
        save_adapter(adapted, folder, base_name)
        table = self.table()
        if table is not None:
            table.to_parquet(folder / TABLE_NAME, index=False)

    def table(self) -> pd.DataFrame | None:
        """What the training did beside moving the factors, written as ``variant.parquet``."""
        return None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put back whatever of the base model ``prepare`` changed, also after an error."""
        yield

    def require_callbacks(self, callbacks: Sequence[Any]) -> None:
        """Refuse callbacks that would measure something else than the update.

        Raises:
            SettingError: As said.
        """
        from gonio.training.gradient_callback import GradientCallback
        from gonio.training.spectrum_callback import SpectrumCallback

        followers = (GradientCallback, SpectrumCallback)
        if not self.has_plain_factors and any(isinstance(c, followers) for c in callbacks):
            name = self.recipe.init if self.recipe.variant is None else self.recipe.variant.name
            raise SettingError(
                f"the update of {name} is not scaling * B @ A of one pair of factors while it is "
                "trained\nLeave --spectrum-every out, and measure the written folder instead."
            )


def require_one_process(trainer: Any, name: str) -> None:
    """Refuse a training over several processes, which would not see changed parameters.

    Raises:
        SettingError: As said.
    """
    if trainer.accelerator.num_processes > 1:
        raise SettingError(f"{name} changes which parameters are trained; train it in one process")
