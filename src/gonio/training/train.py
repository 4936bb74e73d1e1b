"""What all trainings share: from pairs and a recipe to a PEFT folder that is whole or absent.

The trainers are trl's; here are the settings they get, the log they leave, and the folder:
``adapter_model.safetensors``, ``adapter_config.json``, ``training_log.parquet`` (one row per
step) and ``training.json`` (recipe and provenance).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd
import torch

from gonio import __version__
from gonio.errors import DataError, OutputError, SettingError
from gonio.files import replace_folder, require_writable
from gonio.training.backend import is_main_process, require_datasets
from gonio.training.data import PreferencePair, pairs_sha256
from gonio.training.recipes import Precision, Recipe, TrainingKind
from gonio.training.restore import quiet_libraries, restored_model, restored_randomness
from gonio.training.tokens import keep_fitting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Progress",
    "RunOptions",
    "TrainingJob",
    "TrainingRun",
    "require_free_folder",
    "resolve_precision",
    "run_training",
    "save_adapter",
]

TRACKERS = "trackers"  # what trackers write in files, below the folder of a training

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all

_LOG_COLUMNS = {  # trl's name -> ours
    "step": "step",
    "loss": "loss",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "preference_accuracy",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}


@dataclass(frozen=True)
class TrainingJob:
    """One kind of training, as the shared run needs it.

    Attributes:
        kind: ``dpo``, ``clm`` or ``bitfit``.
        rows: Turns pairs into the rows of the data set the trainer expects.
        build: Makes the trainer from the arguments of its configuration and of its own.
        save: Writes what was trained: trained model, folder, name of the base model.
    """

    kind: TrainingKind
    rows: Callable[[Sequence[PreferencePair]], list[dict[str, str]]]
    build: Callable[[dict[str, Any], dict[str, Any]], Any]
    save: Callable[[Any, Path, str | None], None]


class RunOptions(TypedDict, total=False):
    """What every training takes besides model, data and recipe; see :func:`run_training`.

    Attributes:
        progress: Called as ``progress(what, steps done, steps in all)``.
        base_name: What the folder names as the base model; the model's own name unless given.
        overwrite: Replace a folder that is not empty.
        callbacks: More callbacks for the trainer, before those of its trackers.
    """

    progress: Progress | None
    base_name: str | None
    overwrite: bool
    callbacks: Sequence[Any]


@dataclass(frozen=True)
class TrainingRun:
    """A finished training.

    Attributes:
        folder: The PEFT folder.
        log: One row per step: ``step``, ``loss`` (nats), ``token_accuracy``, ``entropy`` (nats),
            ``grad_norm``, ``learning_rate``, and for DPO ``reward_margin``, ``chosen_reward``,
            ``rejected_reward`` and ``preference_accuracy`` of the batch, before the step.
        seconds: Wall time of the whole training, the reference pass included.
        seconds_per_step: Median time of a step.
        num_trainable: Trained parameters.
    """

    folder: Path
    log: pd.DataFrame
    seconds: float
    seconds_per_step: float
    num_trainable: int


def require_free_folder(out: Path, overwrite: bool) -> None:
    """Refuse a place that holds something, or cannot be written, before any work.

    Raises:
        OutputError: ``out`` is a file, a folder that is not empty (unless ``overwrite``), or its
            parent cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write the adapter folder {out}: a file is there")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(f"{out} is not empty and is not replaced; give --force to replace it.")
    require_writable(out.parent)


def _trainer_settings(recipe: Recipe, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Arguments every trl trainer gets: the recipe, one log row per step, nothing else written."""
    precision = resolve_precision(recipe.precision, model.device, model.dtype)
    schedule = recipe.schedule
    if schedule == "constant" and recipe.warmup_steps:
        schedule = "constant_with_warmup"  # type: ignore[assignment]  # the library's own name
    return {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup_steps,
        "lr_scheduler_type": schedule,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "max_length": recipe.max_length,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "activation_checkpointing": recipe.gradient_checkpointing,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": list(recipe.report_to) or "none",
        "disable_tqdm": True,
    }


def resolve_precision(
    wanted: Precision, device: torch.device, dtype: torch.dtype = torch.float32
) -> Precision:
    """The arithmetic that ``auto`` means on a device for weights of a dtype, or what was asked for.

    Raises:
        SettingError: The device has no such arithmetic.
    """
    is_cuda = device.type == "cuda"
    has_bf16 = not is_cuda or torch.cuda.is_bf16_supported()
    if wanted == "auto":
        if dtype is torch.bfloat16:
            return "bf16"
        if device.type == "cpu" or dtype is not torch.float32:
            return "fp32"
        return "bf16" if has_bf16 else "fp16"
    if wanted == "fp16" and device.type == "cpu":
        raise SettingError("fp16 needs an accelerator; on the CPU take fp32 or bf16")
    if wanted == "bf16" and not has_bf16:
        raise SettingError("this accelerator has no bf16; take fp16")
    return wanted


def save_adapter(adapted: Any, folder: Path, base_name: str | None) -> None:
    """Write a PEFT model's adapter, naming its base model."""
    if base_name is not None:
        adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "adapter_model.safetensors").chmod(0o644)  # written private by safetensors


def run_training(
    job: TrainingJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: Recipe,
    out: Path,
    *,
    progress: Progress | None = None,
    base_name: str | None = None,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> TrainingRun:
    """Train and write a folder; the model comes back as it was given.

    Of several processes that `accelerate launch` started the first writes the folder.

    Args:
        job: The kind of training.
        model: The base model, without adapters.
        tokenizer: Its tokenizer.
        pairs: Training pairs; every prompt must leave room for a response.
        recipe: The settings.
        out: Folder to create.
        progress: Called after every step.
        base_name: What ``adapter_config.json`` names as the base model; the model's own name
            unless given.
        overwrite: Replace a folder that is not empty.
        callbacks: More callbacks for the trainer, before those of its trackers.

    Raises:
        MissingDependencyError: The ``train`` extra is not installed.
        OutputError: ``out`` is not empty or cannot be written.
        DataError: No pairs, or a prompt fills ``max_length``.
        ModelError: The tokenizer has no end-of-sequence token.
        SettingError: A target module is not in the model, or the training diverged.
    """
    datasets = require_datasets()
    require_free_folder(out, overwrite)
    _check_pairs(tokenizer, pairs, recipe)
    report = progress or _no_progress
    clock = _StepClock(report)
    started = time.perf_counter()
    report("preparing", 0, recipe.steps)
    folder = replace_folder(out) if is_main_process() else _scratch_folder()
    with (
        folder as staging,
        restored_randomness(),
        quiet_libraries(),
        restored_model(model, tokenizer),
    ):
        model.eval()  # the reference pass runs before the trainer chooses a mode
        scratch = staging / ".trainer"
        dataset = datasets.Dataset.from_list(job.rows(pairs))
        parts = {"model": model, "processing_class": tokenizer, "train_dataset": dataset}
        trainer = job.build(
            _trainer_settings(recipe, model, scratch), parts | {"callbacks": _callbacks(clock)}
        )
        _remove_printer(trainer)
        for callback in reversed(callbacks):
            trainer.callback_handler.callbacks.insert(0, callback)
        trainer.train()
        adapted = trainer.accelerator.unwrap_model(trainer.model)
        log = _log_table(trainer.state.log_history)
        num_trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        job.save(adapted, staging, base_name)
        run = TrainingRun(
            out, log, time.perf_counter() - started, clock.seconds_per_step, num_trainable
        )
        log.to_parquet(staging / "training_log.parquet", index=False)
        text = json.dumps(_provenance(job.kind, recipe, pairs, run, base_name), indent=2)
        (staging / "training.json").write_text(text + "\n", encoding="utf-8")
        if scratch.exists():
            _keep_or_remove(scratch, staging / TRACKERS)
    return run


class _StepClock:
    """Passes reports on and remembers when training began and each step ended."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._ends: list[float] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self._ends.append(time.perf_counter())
        self._report(what, done, total)

    @property
    def seconds_per_step(self) -> float:
        """Median duration of a step."""
        gaps = [later - earlier for earlier, later in pairwise(self._ends)]
        return median(gaps)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Where a process writes whose results nobody keeps."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _keep_or_remove(scratch: Path, kept: Path) -> None:
    """Where the trainer may write: nothing but what trackers such as TensorBoard leave there."""
    if any(scratch.iterdir()):
        scratch.rename(kept)
    else:
        scratch.rmdir()


def _callbacks(report: Progress) -> list[Any]:
    from gonio.training.callbacks import FiniteLossCallback, StepCallback

    return [FiniteLossCallback(), StepCallback(report, "training")]


def _remove_printer(trainer: Any) -> None:
    """Without tqdm the trainer prints every log row to standard output, which is for data."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def _check_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], recipe: Recipe
) -> None:
    """The trainers drop pairs that do not fit without a word; here that is an error."""
    if not pairs:
        raise DataError("no pairs to train on")
    _, left_out = keep_fitting(tokenizer, pairs, recipe.max_length)
    if left_out:
        raise DataError(
            f"{left_out} of {len(pairs)} prompts fill max_length {recipe.max_length} tokens and "
            "leave no room for a response; raise max_length or leave them out (keep_fitting)"
        )


def _log_table(history: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """The logged steps under our names; the closing summary row has no ``loss`` and is left out."""
    rows = [
        {ours: entry[theirs] for theirs, ours in _LOG_COLUMNS.items() if theirs in entry}
        for entry in history
        if "loss" in entry
    ]
    return pd.DataFrame(rows)


def _provenance(
    kind: str,
    recipe: Recipe,
    pairs: Sequence[PreferencePair],
    run: TrainingRun,
    base_name: str | None,
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": kind,
        "recipe": recipe.model_dump(mode="json"),
        "base": base_name,
        "pairs": {"count": len(pairs), "sha256": pairs_sha256(pairs)},
        "num_trainable": run.num_trainable,
        "seconds": run.seconds,
        "seconds_per_step": run.seconds_per_step,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "gonio": __version__,
        "packages": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
    }
