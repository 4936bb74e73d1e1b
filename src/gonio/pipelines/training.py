"""Train an adapter end to end: model and data names in, a PEFT folder and a measurement out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gonio.errors import SettingError
from gonio.linalg.resampling import Interval
from gonio.models import load_model, load_tokenizer, open_weights, resolve_source
from gonio.records import InputFile, Measurement, Value, file_input, make_measurement, make_value
from gonio.training import (
    ClmRecipe,
    DpoRecipe,
    PairLogProbs,
    PreferencePair,
    PreferenceSummary,
    Recipe,
    TrainingKind,
    TrainingRun,
    keep_fitting,
    pair_log_probs,
    require_free_folder,
    summarize_preferences,
    train_clm,
    train_dpo,
)
from gonio.training.backend import require_datasets, require_trl
from gonio.training.lora import lora_config
from gonio.training.restore import quiet_libraries
from gonio.training.sources import PairSource, load_split

__all__ = ["HELD_OUT_PAIRS", "train_adapter"]

Progress = Callable[[str, int, int], None]

HELD_OUT_PAIRS = 16


@dataclass(frozen=True)
class _Prepared:
    """Pairs that fit, where they came from, and how many did not."""

    source: PairSource
    train: tuple[PreferencePair, ...]
    held_out: tuple[PreferencePair, ...]
    left_out: int


@dataclass(frozen=True)
class _Evaluation:
    """Log-probabilities of the held-out pairs before and after, and their summary."""

    base: PairLogProbs
    trained: PairLogProbs
    summary: PreferenceSummary


def train_adapter(
    kind: TrainingKind,
    model: str | Path,
    data: str,
    recipe: Recipe,
    out: str | Path,
    *,
    held_out: int = HELD_OUT_PAIRS,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Train a LoRA adapter and measure what it changed on held-out pairs.

    Everything that can be checked without the weights is checked before they are loaded.

    Args:
        kind: ``dpo`` or ``clm``.
        model: Model source.
        data: ``bundled``, a text, a ``.jsonl`` file of pairs or a hub data set.
        recipe: The settings, of the class that belongs to ``kind``.
        out: PEFT folder to create.
        held_out: Pairs kept for the evaluation, at least 2.
        device: Where to train.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``training``; tables ``log`` (first, one row per step) and ``held_out`` (one row per
        pair, log-probabilities in nats).

    Raises:
        GonioError: The model, the data, the recipe or the folder is refused.
    """
    trainer = _trainer(kind, recipe)
    require_free_folder(Path(out), overwrite)
    report = progress or _no_progress
    prepared = _prepare(model, data, recipe, held_out)
    report("loading the model", 0, recipe.steps)
    network, tokenizer = load_model(model, device=_device(device))
    lora_config(network, recipe)  # an unknown target fails here, before the evaluation
    report("evaluating the base model", 0, recipe.steps)
    base = pair_log_probs(network, tokenizer, prepared.held_out, max_length=recipe.max_length)
    run = trainer(
        network,
        tokenizer,
        prepared.train,
        recipe,
        Path(out),
        report,
        base_name=str(model),
        overwrite=overwrite,
    )
    report("evaluating the adapter", recipe.steps, recipe.steps)
    evaluation = _evaluate(network, tokenizer, prepared.held_out, recipe, run.folder, base)
    return make_measurement(
        "training",
        f"{kind.upper()} training of {model} on {prepared.source.name}: {run.folder.name}",
        settings={
            "kind": kind,
            "model": str(model),
            "data": data,
            "pairs": prepared.source.nature,
            "recipe": recipe.model_dump(mode="json"),
            "held_out": held_out,
        },
        values=_values(recipe, run, evaluation, prepared),
        tables={"log": run.log, "held_out": _held_out_table(evaluation)},
        inputs=_inputs(model, prepared.source, run.folder),
        seed=recipe.seed,
        dtype=network.dtype,
        device=network.device.type,
    )


def _prepare(model: str | Path, data: str, recipe: Recipe, held_out: int) -> _Prepared:
    """All checks that need no weights, and the pairs that fit the recipe's length."""
    if held_out < 2:
        raise SettingError(f"held_out must be at least 2 pairs, found {held_out}")
    require_datasets()
    require_trl()
    resolve_source(model)
    source = load_split(data, train=recipe.num_examples, held_out=held_out, seed=recipe.seed)
    tokenizer = load_tokenizer(model)
    train, left_out = keep_fitting(tokenizer, source.split.train, recipe.max_length)
    kept, held_out_left_out = keep_fitting(tokenizer, source.split.held_out, recipe.max_length)
    return _Prepared(source, train, kept, left_out + held_out_left_out)


def _trainer(kind: TrainingKind, recipe: Recipe) -> Callable[..., TrainingRun]:
    if kind == "dpo" and isinstance(recipe, DpoRecipe):
        return train_dpo
    if kind == "clm" and isinstance(recipe, ClmRecipe):
        return train_clm
    raise SettingError(f"training kind {kind!r} does not go with a {type(recipe).__name__}")


def _device(name: str) -> torch.device:
    """The device called ``name``.

    Raises:
        SettingError: There is no such device here.
    """
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"no device {name!r} here; 'cpu' is always there") from error


def _no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def _evaluate(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    recipe: Recipe,
    folder: Path,
    base: PairLogProbs,
) -> _Evaluation:
    """Log-probabilities under the adapter as read back from its folder."""
    from peft import PeftModel

    with quiet_libraries():
        adapted = PeftModel.from_pretrained(network, str(folder))
    trained = pair_log_probs(adapted, tokenizer, pairs, max_length=recipe.max_length)
    return _Evaluation(base, trained, summarize_preferences(trained, base, seed=recipe.seed))


def _values(
    recipe: Recipe, run: TrainingRun, evaluation: _Evaluation, prepared: _Prepared
) -> list[Value]:
    loss, quarter = run.log["loss"], max(1, len(run.log) // 4)
    at_start = math.log(2.0) if isinstance(recipe, DpoRecipe) else None
    note = "one batch; chance: log 2, the loss of a model equal to its reference"
    loss_note = note if at_start is not None else "one batch"
    return [
        make_value("first_loss", float(loss.iloc[0]), unit="nats", chance=at_start, note=loss_note),
        make_value("last_loss", float(loss.iloc[-1]), unit="nats", chance=at_start, note=loss_note),
        make_value(
            "last_quarter_loss",
            float(loss.iloc[-quarter:].mean()),
            unit="nats",
            chance=at_start,
            note=f"mean over the last {quarter} steps",
        ),
        *_held_out_values(recipe, evaluation.summary),
        make_value("training_pairs", len(prepared.train)),
        make_value("left_out_pairs", prepared.left_out, note="their prompt alone fills max_length"),
        make_value("trained_parameters", run.num_trainable),
        make_value("training_time", run.seconds, unit="s"),
        make_value("step_time", run.seconds_per_step, unit="s", note="median over steps"),
    ]


def _held_out_values(recipe: Recipe, summary: PreferenceSummary) -> list[Value]:
    count = summary.margins.numel()
    note = f"{count} held-out pairs; interval over pairs of this run, not over runs"
    interval = summary.margin_interval
    values = [
        make_value(
            "held_out_margin",
            summary.mean_margin,
            unit="nats",
            chance=0.0,
            interval=interval,
            note=f"log-ratio to the base model, chosen minus rejected; {note}",
        ),
        make_value(
            "held_out_preference_accuracy",
            summary.accuracy,
            chance=0.5,
            interval=summary.accuracy_interval,
            note=f"share of pairs with a positive margin; {note}",
        ),
        make_value("held_out_base_accuracy", summary.base_accuracy, chance=0.5, note=_CHOICE),
        make_value("held_out_trained_accuracy", summary.trained_accuracy, chance=0.5, note=_CHOICE),
    ]
    if isinstance(recipe, DpoRecipe):
        reward = make_value(
            "held_out_reward_margin",
            recipe.beta * summary.mean_margin,
            chance=0.0,
            interval=None if interval is None else _scaled(interval, recipe.beta),
            note=f"beta times the margin in nats; {note}",
        )
        values.insert(0, reward)
    return values


_CHOICE = "share of held-out pairs whose chosen response is the more probable one"


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(
        interval.low * factor, interval.high * factor, interval.confidence, interval.method
    )


def _held_out_table(evaluation: _Evaluation) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair": range(evaluation.summary.margins.numel()),
            "base_chosen": evaluation.base.chosen.numpy(),
            "base_rejected": evaluation.base.rejected.numpy(),
            "trained_chosen": evaluation.trained.chosen.numpy(),
            "trained_rejected": evaluation.trained.rejected.numpy(),
            "margin": evaluation.summary.margins.numpy(),
        }
    )


def _inputs(model: str | Path, source: PairSource, folder: Path) -> list[InputFile]:
    with open_weights(model) as weights:
        base = [file_input(path, f"base/{path.name}") for path in weights.files]
    adapter = folder / "adapter_model.safetensors"
    return [
        InputFile(name=f"data/{source.name}", sha256=source.sha256),
        *base,
        file_input(adapter, f"adapter/{adapter.name}"),
    ]
