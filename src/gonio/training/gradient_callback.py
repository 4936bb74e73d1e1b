"""Gradients of the low-rank factors by step, for any ``transformers.Trainer``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.errors import SettingError
from gonio.files import replace_file
from gonio.linalg.lowrank import factored_frobenius_norm
from gonio.training.factor_gradients import FactorGradients, imbalance
from gonio.training.layer_traffic import LayerTraffic
from gonio.training.step_geometry import TrackedUpdate, tracked_updates
from gonio.training.variants.factors import linear_layers

__all__ = ["GradientCallback"]


class GradientCallback(TrainerCallback):
    """Follow the gradients of both factors of every LoRA layer beside their closed forms.

    Rows are taken before the optimizer moves, so step 0 is the initialization; a last one after
    training has no gradients. The table holds, per measured step and module: ``step, module,
    out_features, in_features, rank, scaling, norm_a, norm_b, gradient_a, gradient_b`` (Frobenius
    norms, gradients as the optimizer gets them: after clipping, if any)``, update_norm`` (of
    scaling B A)``, descent_norm`` (change of the weight that plain gradient descent with a learning
    rate of 1 would make to first order, ``scaling (B grad_A + grad_B A)``)`` and ``imbalance`` (of
    the identity B^T grad_B = grad_A A^T, zero but for rounding).

    With ``closed_forms`` there are three more norms, of what the inputs and output gradients of the
    layers give without looking at the factors' gradients, before clipping: ``closed_gradient_a``
    (s B^T G), ``closed_gradient_b`` (s G A^T) and ``weight_gradient`` (G).

    Args:
        every: Optimizer steps between measurements.
        path: Parquet file to write at the end of training.
        closed_forms: Keep what goes through the layers to calculate the closed forms; takes
            the memory of the activations once more, and a training without dropout.

    Raises:
        SettingError: ``every`` is below 1.

    Theorem: ``zero_init``.

    Example:
        >>> trainer = Trainer(model, args, callbacks=[GradientCallback()])  # doctest: +SKIP
    """

    def __init__(
        self, every: int = 1, *, path: str | Path | None = None, closed_forms: bool = False
    ) -> None:
        if every < 1:
            raise SettingError(f"every must be at least 1, found {every}")
        self._every = every
        self._path = None if path is None else Path(path)
        self._closed_forms = closed_forms
        self._traffic: LayerTraffic | None = None
        self._updates: list[TrackedUpdate] = []
        self._rows: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    @property
    def table(self) -> pd.DataFrame:
        """What was measured so far, one row per step and module."""
        return pd.DataFrame(self._rows)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find the factors.

        Raises:
            SettingError: The model has no LoRA layer that can be followed.
        """
        assert model is not None  # every trainer passes it
        if not state.is_world_process_zero:
            return
        found, self.left_out = tracked_updates(model)
        self._updates = [update for update in found if update.factors is not None]
        if not self._updates:
            raise SettingError("no LoRA layer to follow; whole weights have no factors")
        self._rows = []
        if self._closed_forms:
            layers = dict(linear_layers(model))
            self._traffic = LayerTraffic({u.module: layers[u.module] for u in self._updates})

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure, every so many steps, before the factors move."""
        if self._updates and state.global_step % self._every == 0:
            self._rows += [
                _row(update, state.global_step) | _closed(update, self._traffic)
                for update in self._updates
            ]
        if self._traffic is not None:
            self._traffic.forget()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure what was reached, and write the table."""
        if self._traffic is not None:
            self._traffic.close()
        if not self._updates:
            return
        self._rows += [_row(update, state.global_step, is_last=True) for update in self._updates]
        if self._path is not None:
            with replace_file(self._path) as staging:
                self.table.to_parquet(staging, index=False)


@torch.no_grad()
def _closed(update: TrackedUpdate, traffic: LayerTraffic | None) -> dict[str, float]:
    if traffic is None:
        return {}
    assert update.factors is not None
    lora_b, lora_a = update.factors
    found = traffic.closed_forms(update.module, lora_b, lora_a, update.scaling)
    return {
        "closed_gradient_a": found.gradient_a,
        "closed_gradient_b": found.gradient_b,
        "weight_gradient": found.weight_gradient,
    }


@torch.no_grad()
def _row(update: TrackedUpdate, step: int, *, is_last: bool = False) -> dict[str, Any]:
    assert update.factors is not None
    lora_b, lora_a = (factor.detach() for factor in update.factors)
    grad_b, grad_a = (factor.grad for factor in update.factors)
    m, n = update.shape
    row: dict[str, Any] = {
        "step": step,
        "module": update.module,
        "out_features": m,
        "in_features": n,
        "rank": update.rank,
        "scaling": update.scaling,
        "norm_a": float(lora_a.double().norm()),
        "norm_b": float(lora_b.double().norm()),
        "gradient_a": math.nan,
        "gradient_b": math.nan,
        "update_norm": float(factored_frobenius_norm(lora_b, lora_a, update.scaling)),
        "descent_norm": math.nan,
        "imbalance": math.nan,
    }
    if is_last or grad_a is None or grad_b is None:
        return row
    change_b = torch.cat([lora_b, grad_b], dim=1)  # B grad_A + grad_B A, never multiplied out
    change_a = torch.cat([grad_a, lora_a], dim=0)
    return row | {
        "gradient_a": float(grad_a.double().norm()),
        "gradient_b": float(grad_b.double().norm()),
        "descent_norm": float(factored_frobenius_norm(change_b, change_a, update.scaling)),
        "imbalance": imbalance(lora_b, lora_a, FactorGradients(grad_a, grad_b)),
    }
