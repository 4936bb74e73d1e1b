"""The geometry of the update by step, for any ``transformers.Trainer``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.errors import SettingError, ShapeError, ZeroMatrixError
from gonio.files import replace_file
from gonio.linalg.chance import expected_overlap, random_lora_singular_values
from gonio.linalg.spectrum import energy_rank, frobenius_norm, spectral_norm, stable_rank
from gonio.linalg.subspaces import top_singular_subspaces
from gonio.training.step_geometry import (
    TopDirections,
    TrackedUpdate,
    measure_updates,
    overlaps,
    tracked_updates,
)

__all__ = ["SpectrumCallback"]

_NULL_SAMPLES = 200
_FLUSH_SECONDS = 30.0
_LOGGED = ("stable_rank", "frobenius_norm", "k90", "overlap_base_left", "overlap_previous_left")


class SpectrumCallback(TrainerCallback):
    """Follow stable rank, norms and directions of every update while a model trains.

    Of a PEFT model the LoRA layers are followed through their factors, which are never multiplied
    out; of any other model the linear layers whose weights are trained, each beside a copy of its
    start (sample some: one takes a singular value decomposition). The table holds, per measured
    step and module: ``step, module, out_features, in_features, rank`` (NaN without factors)``,
    frobenius_norm, spectral_norm, stable_rank, k90`` (directions that hold 90 % of the energy)``,
    overlap_base_left`` and ``_right`` (of the k leading directions with those of the weight at the
    start)``, overlap_previous_left`` and ``_right`` (with the step measured before), and the chance
    levels ``random_lora_stable_rank``, ``chance_left``, ``chance_right``. Ratios of a zero update,
    overlaps below k directions and the first overlap with a step before are NaN.

    Their means go into the trainer's log as ``gonio/stable_rank`` and so on; for trackers such as
    TensorBoard to see them too, add the callback with :meth:`attach`.

    Args:
        every: Optimizer steps between measurements; the last step is always measured.
        modules: Names of modules to follow, or how many, spread evenly over the model; all unless
            given.
        k: Leading directions that are compared, at least 1; 0 compares none, which also saves the
            decomposition of every base weight when training begins.
        path: Parquet file to write, while training and at its end. A run resumed from a checkpoint
            keeps the rows up to its step.

    Raises:
        SettingError: An argument is out of range.

    Example:
        >>> trainer = Trainer(model, args, callbacks=[SpectrumCallback()])  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int = 10,
        *,
        modules: Sequence[str] | int | None = None,
        k: int = 5,
        path: str | Path | None = None,
    ) -> None:
        if every < 1 or k < 0:
            raise SettingError(f"every must be at least 1 and k at least 0, found {every} and {k}")
        if isinstance(modules, int) and modules < 1:
            raise SettingError(f"modules must be names or a number above 0, found {modules}")
        self._every, self._k, self._modules = every, k, modules
        self._path = None if path is None else Path(path)
        self._updates: list[TrackedUpdate] = []
        self._bases: list[TopDirections] = []
        self._previous: dict[int, TopDirections] = {}
        self._rows: list[dict[str, Any]] = []
        self._nulls: dict[tuple[int, int, int | None], float] = {}
        self._fresh: dict[str, float] = {}
        self._flushed = -math.inf
        self._began = 0.0
        self.left_out: dict[str, str] = {}
        self.setup_seconds = 0.0
        self.measuring_seconds = 0.0
        self.training_seconds = 0.0

    def attach(self, trainer: Trainer) -> SpectrumCallback:
        """Add the callback before the trainer's trackers, so that these see what it logs."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    @property
    def table(self) -> pd.DataFrame:
        """What was measured so far, one row per step and module."""
        return pd.DataFrame(self._rows)

    @property
    def overhead(self) -> float:
        """Share of the training time that measuring took, the set-up apart."""
        rest = self.training_seconds - self.measuring_seconds
        return self.measuring_seconds / rest if rest > 0 else math.nan

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find the updates, and the leading directions of what they change.

        Raises:
            SettingError: Nothing can be followed, or a name is of no module.
        """
        assert model is not None  # every trainer passes it
        if not state.is_world_process_zero:
            return
        start = time.perf_counter()
        found, self.left_out = tracked_updates(model)
        if self.left_out:
            reasons = ", ".join(sorted(set(self.left_out.values())))
            warnings.warn(
                f"{len(self.left_out)} LoRA layers are not followed: {reasons}", stacklevel=2
            )
        self._updates = self._chosen(found)
        self._bases = [self._base(update) for update in self._updates] if self._k else []
        self._previous = {}
        self._rows = self._kept_rows(state.global_step)
        self._began = time.perf_counter()
        self.setup_seconds = self._began - start

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure, every so many steps."""
        if self._updates and state.global_step % self._every == 0:
            self._measure(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what was measured since the last log."""
        if not self._fresh:
            return
        if state.log_history:
            state.log_history[-1].update(self._fresh)
        if logs is not None:
            logs.update(self._fresh)
        self._fresh = {}

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure the last step, and write the table."""
        if not self._updates:
            return
        if not self._rows or self._rows[-1]["step"] != state.global_step:
            self._measure(state.global_step)
        self.training_seconds = time.perf_counter() - self._began
        self._write()

    def _chosen(self, found: list[TrackedUpdate]) -> list[TrackedUpdate]:
        if self._modules is None:
            return found
        if isinstance(self._modules, int):
            count = min(self._modules, len(found))
            return [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
        by_name = {update.module: update for update in found}
        unknown = [name for name in self._modules if name not in by_name]
        if unknown:
            raise SettingError(
                f"no update of {', '.join(unknown)}; there are {', '.join(list(by_name)[:8])}"
                + (" and more" if len(by_name) > 8 else "")
            )
        return [by_name[name] for name in self._modules]

    def _base(self, update: TrackedUpdate) -> TopDirections:
        try:
            left, sigma, right = top_singular_subspaces(update.base, self._k)
        except (ShapeError, ZeroMatrixError):  # fewer than k directions: no overlap to tell
            empty = torch.empty(0, 0, dtype=torch.float64)
            return TopDirections(torch.zeros(1, dtype=torch.float64), empty, empty)
        return TopDirections(sigma, left, right)

    def _kept_rows(self, step: int) -> list[dict[str, Any]]:
        """Rows of an earlier part of this run, up to the step it resumes from."""
        if step == 0 or self._path is None or not self._path.exists():
            return []
        table = pd.read_parquet(self._path)
        rows: list[dict[str, Any]] = table[table["step"] <= step].to_dict("records")  # type: ignore[assignment]
        return rows

    @torch.no_grad()
    def _measure(self, step: int) -> None:
        start = time.perf_counter()
        rows: dict[int, dict[str, Any]] = {}
        for i, found in measure_updates(self._updates, max(1, self._k)):
            rows[i] = self._row(i, step, found)
            self._previous[i] = found
        ordered = [rows[i] for i in range(len(self._updates))]
        self._rows += ordered
        means = pd.DataFrame(ordered).mean(numeric_only=True)
        self._fresh = {f"gonio/{n}": float(means[n]) for n in _LOGGED if pd.notna(means[n])}
        if start - self._flushed > _FLUSH_SECONDS:
            self._write()
            self._flushed = start
        self.measuring_seconds += time.perf_counter() - start

    def _row(self, index: int, step: int, found: TopDirections) -> dict[str, Any]:
        update, k, nan = self._updates[index], self._k, math.nan
        (m, n), sigma = update.shape, found.sigma
        is_zero = not bool(sigma[0] > 0)
        with_base = with_previous = (nan, nan)
        if k and not is_zero:
            with_base = overlaps(found, self._bases[index], k)
            if index in self._previous:
                with_previous = overlaps(found, self._previous[index], k)
        return {
            "step": step,
            "module": update.module,
            "out_features": m,
            "in_features": n,
            "rank": nan if update.rank is None else float(update.rank),
            "frobenius_norm": float(frobenius_norm(sigma)),
            "spectral_norm": float(spectral_norm(sigma)),
            "stable_rank": nan if is_zero else float(stable_rank(sigma)),
            "k90": nan if is_zero else float(energy_rank(sigma, 0.9)),
            "overlap_base_left": with_base[0],
            "overlap_base_right": with_base[1],
            "overlap_previous_left": with_previous[0],
            "overlap_previous_right": with_previous[1],
            "random_lora_stable_rank": self._null(m, n, update.rank),
            "chance_left": expected_overlap(k, k, m) if 0 < k <= m else nan,
            "chance_right": expected_overlap(k, k, n) if 0 < k <= n else nan,
        }

    def _null(self, m: int, n: int, rank: int | None) -> float:
        """Mean stable rank of Gaussian factors of this shape."""
        if rank is None:
            return math.nan
        key = (m, n, rank)
        if key not in self._nulls:
            generator = torch.Generator().manual_seed(0)
            sigma = random_lora_singular_values(
                m, n, rank, samples=_NULL_SAMPLES, generator=generator
            )
            self._nulls[key] = float(stable_rank(sigma).mean())
        return self._nulls[key]

    def _write(self) -> None:
        if self._path is None:
            return
        with replace_file(self._path) as staging:
            self.table.to_parquet(staging, index=False)
