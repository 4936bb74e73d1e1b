"""Callbacks for any ``transformers.Trainer``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gonio.errors import SettingError

__all__ = ["FiniteLossCallback", "StepCallback"]


class StepCallback(TrainerCallback):
    """Report the start of training (0 steps done) and every finished optimizer step.

    Args:
        report: Called as ``report(what, steps done, steps in all)``.
        what: What is being done, a few words.
    """

    def __init__(self, report: Callable[[str, int, int], None], what: str) -> None:
        self._report = report
        self._what = what

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report that no step is done yet."""
        self._report(self._what, 0, state.max_steps)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the step."""
        self._report(self._what, state.global_step, state.max_steps)


class FiniteLossCallback(TrainerCallback):
    """Stop at the first logged loss that is not a finite number."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the loss.

        Raises:
            SettingError: It is NaN or infinite.
        """
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise SettingError(
                f"training diverged: the loss at step {state.global_step} is {loss}; "
                f"lower the learning rate ({args.learning_rate:g})"
            )
