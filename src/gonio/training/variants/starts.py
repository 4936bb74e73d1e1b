"""Other starting points of the factors, by PEFT or by hand, converted to a LoRA of the given base.

Where both factors start away from zero their product is taken off the base weight, so that the
model starts unchanged (PiSSA: the r leading singular directions; OLoRA: a QR decomposition). What
is trained is then ``W - s B0 A0 + s B A``. The folder holds ``s [B, -B0] [A; A0]``, of rank 2r,
which changes the weight as it was given, exactly; PEFT converts in the same way on request
(``path_initial_model_for_weight_conversion``).

Source: PiSSA arXiv:2404.02948; OLoRA arXiv:2406.01775; MiCA arXiv:2604.01694; zero A: Hayou et
al. 2024 (arXiv:2406.08447).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gonio.errors import SettingError
from gonio.training.recipes import LoraRecipe
from gonio.training.variant_settings import BASE_CHANGING_INITS
from gonio.training.variants.factors import (
    Factors,
    factors_of,
    linear_layers,
    stacked_factors,
    write_factors,
)
from gonio.training.variants.method import Method, require_one_process

__all__ = ["Started", "start_with_zero_a"]

_ADAPTER = "default"


class Started(Method):
    """LoRA from one of the starts ``zero-a``, ``orthogonal``, ``mica``, ``pissa`` and ``olora``."""

    def __init__(self, recipe: LoraRecipe) -> None:
        super().__init__(recipe)
        self._changes_base = recipe.init in BASE_CHANGING_INITS
        self.has_plain_factors = not self._changes_base
        self._own: list[tuple[Tensor, Tensor]] = []  # parameter, its values as given
        self._first: dict[str, Factors] = {}

    def prepare(self, trainer: Any) -> None:
        """Start the factors again.

        Raises:
            SettingError: The rank is above what a module's shape allows, or odd for
                ``orthogonal``.
        """
        generator = torch.Generator().manual_seed(self.recipe.seed)
        layers = list(linear_layers(trainer.model))
        self._check_rank(layers)
        if self._changes_base:
            require_one_process(trainer, self.recipe.init)
        with torch.no_grad():
            for _, layer in layers:
                if self._changes_base:
                    weight = layer.get_base_layer().weight
                    self._own.append((weight, weight.data))
                    weight.data = weight.data.clone()
                _starts(self.recipe.init, layer, generator)
        if self._changes_base:
            self._first = {
                name: Factors(f.lora_b.clone(), f.lora_a.clone(), f.scaling)
                for name, f in factors_of(trainer.model).items()
            }

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Write the factors, or for a changed base the difference to where they started."""
        if not self._changes_base:
            super().save(adapted, folder, base_name)
            return
        changed = {}
        for name, last in factors_of(adapted).items():
            first = self._first[name]
            negative = Factors(-first.lora_b, first.lora_a, first.scaling)
            changed[name] = stacked_factors([last, negative])
        write_factors(folder, changed, adapted.peft_config[_ADAPTER], base_name)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the weights back that the start was taken off, bit for bit."""
        try:
            yield
        finally:
            for weight, values in self._own:
                weight.data = values
            self._own = []

    def _check_rank(self, layers: list[tuple[str, Any]]) -> None:
        init, rank = self.recipe.init, self.recipe.r
        if init == "orthogonal" and rank % 2:
            raise SettingError(f"an orthogonal start needs an even rank, found {rank}")
        if init not in (*BASE_CHANGING_INITS, "mica"):
            return
        for name, layer in layers:
            least = min(layer.in_features, layer.out_features)
            if rank > least:
                raise SettingError(
                    f"{init} takes {rank} singular directions of {name}, which has only {least}\n"
                    f"Lower the rank to at most {least}."
                )


def start_with_zero_a(lora_a: Tensor, lora_b: Tensor, generator: torch.Generator) -> None:
    """A = 0 and B uniform with variance 1 / (3 r), as PEFT draws the other factor.

    The update is zero and only the gradient of B vanishes at the first step.

    Args:
        lora_a: Shape ``(rank, in_features)``, changed in place.
        lora_b: Shape ``(out_features, rank)``, changed in place.
        generator: Of the CPU.

    Theorem: ``zero_init``.
    """
    limit = 1.0 / math.sqrt(lora_b.shape[1])
    drawn = torch.rand(lora_b.shape, generator=generator)
    lora_a.zero_()
    lora_b.copy_(limit * (2.0 * drawn - 1.0))


def _zero_a(layer: Any, generator: torch.Generator) -> None:
    start_with_zero_a(layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, generator)


def _mica(layer: Any, generator: torch.Generator) -> None:
    layer.mica_init(_ADAPTER)
    layer.lora_B[_ADAPTER].weight.requires_grad_(False)


def _starts(init: str, layer: Any, generator: torch.Generator) -> None:
    """Start one layer as ``init`` says; PEFT's own draws come from the seeded global generator."""
    table: dict[str, Callable[[Any, torch.Generator], None]] = {
        "zero-a": _zero_a,
        "mica": _mica,
        "orthogonal": lambda layer, _: layer.orthogonal_init(_ADAPTER),
        "pissa": lambda layer, _: layer.pissa_init(_ADAPTER, "pissa"),
        "pissa_niter_4": lambda layer, _: layer.pissa_init(_ADAPTER, "pissa_niter_4"),
        "olora": lambda layer, _: layer.olora_init(_ADAPTER),
    }
    table[init](layer, generator)
