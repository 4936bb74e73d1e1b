"""Dynamic rank allocation: directions with small singular values leave while training goes on.

Every so many steps the update of each module is replaced by its best approximation of a smaller
rank, which discards ``sqrt(sum_{i > k} sigma_i^2)`` of it in the Frobenius norm and nothing of rank
k discards less (Eckart & Young 1936). Ranks only fall, and never below 1. Where a rank changes the
factors are balanced anew (both get the roots of the singular values), so the optimizer's moments,
which belonged to the old ones, begin again for them; elsewhere nothing is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.linalg.lowrank import factored_svd
from gonio.training.recipes import LoraRecipe
from gonio.training.variant_settings import DynamicSettings
from gonio.training.variants.factors import Factors, factors_of, linear_layers, write_factors
from gonio.training.variants.method import TABLE_NAME, Method, require_one_process

__all__ = ["Dynamic", "kept_ranks", "truncate_factors"]

_COLUMNS = ["step", "module", "rank_before", "rank_after", "norm", "discarded_norm"]


def kept_ranks(spectra: dict[str, Tensor], settings: DynamicSettings) -> dict[str, int]:
    """Ranks that a threshold leaves, at least 1; a zero update keeps all its rank.

    Args:
        spectra: Singular values by module, descending.
        settings: The threshold and what it is relative to.
    """
    largest = max((float(sigma[0]) for sigma in spectra.values()), default=0.0)
    found = {}
    for name, sigma in spectra.items():
        top = float(sigma[0]) if settings.relative_to == "module" else largest
        is_zero = float(sigma[0]) == 0.0
        kept = len(sigma) if is_zero else int((sigma > settings.threshold * top).sum())
        found[name] = max(1, kept)
    return found


def truncate_factors(factors: Factors, rank: int) -> Factors:
    """The best approximation of at most ``rank``, balanced, with the same scaling and dtype.

    Args:
        factors: Of one module; the scaling is positive.
        rank: At least 1.

    Theorem: ``residual_topk_eckart_young``.
    """
    left, sigma, right = factored_svd(factors.lora_b, factors.lora_a, factors.scaling)
    roots = (sigma[:rank] / factors.scaling).sqrt()
    dtype = factors.lora_b.dtype
    return Factors(
        (left[:, :rank] * roots).to(dtype),
        (roots.unsqueeze(1) * right[:rank]).to(dtype),
        factors.scaling,
    )


class Dynamic(Method):
    """LoRA whose ranks fall by a threshold on the singular values."""

    has_plain_factors = False  # their shapes change

    def __init__(self, recipe: LoraRecipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe.variant, DynamicSettings)
        self._callback = _TruncateCallback(recipe.variant)

    def prepare(self, trainer: Any) -> None:
        """Truncate after the steps."""
        require_one_process(trainer, "dynamic rank allocation")
        trainer.add_callback(self._callback)

    def save(self, adapted: Any, folder: Path, base_name: str | None) -> None:
        """Write the factors with a rank per module."""
        write_factors(folder, factors_of(adapted), adapted.peft_config["default"], base_name)
        self.table().to_parquet(folder / TABLE_NAME, index=False)

    def table(self) -> pd.DataFrame:
        """One row per truncation and module.

        Columns ``step, module, rank_before, rank_after, norm, discarded_norm``, Frobenius norms of
        the update before and of what was cut off.
        """
        return pd.DataFrame(self._callback.rows, columns=_COLUMNS)


class _TruncateCallback(TrainerCallback):
    """Cuts the factors in the model every so many steps, and after the last."""

    def __init__(self, settings: DynamicSettings) -> None:
        self._settings = settings
        self.rows: list[tuple[int, str, int, int, float, float]] = []

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Truncate when its time has come."""
        step = state.global_step
        if step % self._settings.every and step != state.max_steps:
            return
        layers = dict(linear_layers(model))
        factors = factors_of(model)
        spectra = {n: factored_svd(f.lora_b, f.lora_a, f.scaling)[1] for n, f in factors.items()}
        for name, rank in kept_ranks(spectra, self._settings).items():
            before, sigma = factors[name].lora_b.shape[1], spectra[name]
            if rank < before:
                _replace(layers[name], truncate_factors(factors[name], rank), optimizer)
            norms = float(sigma.norm()), float(sigma[rank:].norm())
            self.rows.append((step, name, before, min(rank, before), *norms))


def _replace(layer: Any, factors: Factors, optimizer: Any) -> None:
    """Other factors of a smaller rank in a PEFT layer, under the optimizer's own parameters."""
    lora_b, lora_a = layer.lora_B["default"], layer.lora_A["default"]
    for module, values in ((lora_b, factors.lora_b), (lora_a, factors.lora_a)):
        module.weight.grad = None
        module.weight.data = values.contiguous()
        optimizer.state.pop(module.weight, None)
    rank = factors.lora_b.shape[1]
    lora_b.in_features = lora_a.out_features = layer.r["default"] = rank
