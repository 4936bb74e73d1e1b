"""Train an adapter end to end: model and data names in, a PEFT folder and a measurement out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gonio.errors import SettingError
from gonio.files import replace_file
from gonio.models import load_model, load_skeleton, load_tokenizer, open_weights
from gonio.pipelines.behavior import behavior_table, behavior_values, open_trained
from gonio.records import InputFile, Measurement, Value, file_input, make_measurement, make_value
from gonio.training import (
    BitFitRecipe,
    ClmRecipe,
    DpoRecipe,
    LoraRecipe,
    PreferencePair,
    Recipe,
    SpectrumCallback,
    TrainingKind,
    TrainingRun,
    bias_names,
    keep_fitting,
    require_free_folder,
    train_bitfit,
    train_clm,
    train_dpo,
)
from gonio.training.backend import (
    is_main_process,
    require_datasets,
    require_trackers,
    require_trl,
)
from gonio.training.bitfit import BIASES_FILE
from gonio.training.lora import lora_config
from gonio.training.recipes import Precision
from gonio.training.sources import PairSource, load_split
from gonio.training.train import resolve_precision

__all__ = ["HELD_OUT_PAIRS", "check_trainable", "train_adapter"]

Progress = Callable[[str, int, int], None]

HELD_OUT_PAIRS = 16

_NAMES: dict[TrainingKind, str] = {"dpo": "DPO", "clm": "CLM", "bitfit": "BitFit"}


@dataclass(frozen=True)
class _Prepared:
    """Pairs that fit, where they came from, and how many did not."""

    source: PairSource
    train: tuple[PreferencePair, ...]
    held_out: tuple[PreferencePair, ...]
    left_out: int


def train_adapter(
    kind: TrainingKind,
    model: str | Path,
    data: str,
    recipe: Recipe,
    out: str | Path,
    *,
    held_out: int = HELD_OUT_PAIRS,
    data_seed: int | None = None,
    device: str = "cpu",
    spectrum_every: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Train, and measure what that changed on held-out pairs.

    All that can be checked without the weights is, before they are loaded. Of the processes of
    `accelerate launch` the first evaluates; the measurements of the others lack held-out pairs.

    Args:
        kind: ``dpo``, ``clm`` or ``bitfit``.
        model: Model source.
        data: ``bundled``, a text, a ``.jsonl`` file of pairs or a hub data set.
        recipe: The settings, of the class that belongs to ``kind``.
        out: Folder to create: PEFT's, or for BitFit one with the biases.
        held_out: Pairs kept for the evaluation, at least 2.
        data_seed: Seed of the split into training and held-out pairs; the recipe's unless given.
        device: Where to train.
        spectrum_every: Steps between measurements of the update's geometry; none unless given.
        overwrite: Replace a folder that is not empty.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Kind ``training``; tables ``log`` (first, by step), ``held_out`` (by pair, see
        :func:`gonio.pipelines.behavior.behavior_table`) and, where it was followed, ``geometry``
        (:class:`gonio.training.SpectrumCallback`; also ``geometry.parquet`` in the folder).

    Raises:
        GonioError: The model, the data, the recipe or the folder is refused.
    """
    trainer = _trainer(kind, recipe)
    callback = _callback(kind, spectrum_every)
    place = _device(device, recipe.precision)
    require_free_folder(Path(out), overwrite)
    report = progress or _no_progress
    split_seed = recipe.seed if data_seed is None else data_seed
    prepared = _prepare(model, data, recipe, held_out, split_seed)
    report("loading the model", 0, recipe.steps)
    network, tokenizer = load_model(model, device=place)
    run = trainer(
        *(network, tokenizer, prepared.train, recipe, Path(out)),
        progress=report,
        base_name=str(model),
        overwrite=overwrite,
        callbacks=[] if callback is None else [callback],
    )
    tables, values = {"log": run.log}, _values(recipe, run, prepared)
    if is_main_process():
        pairs = tables["held_out"] = _evaluate(network, tokenizer, run, prepared, recipe, report)
        values += behavior_values(pairs, beta=getattr(recipe, "beta", None), seed=recipe.seed)
        if callback is not None:
            tables["geometry"] = _keep_geometry(callback.table, run.folder)
            values += _geometry_values(callback)
    named = {"kind": kind, "model": str(model), "data": data, "data_seed": split_seed}
    return make_measurement(
        "training",
        f"{_NAMES[kind]} training of {model} on {prepared.source.name}: {run.folder.name}",
        settings={
            **named,
            "pairs": prepared.source.nature,
            "recipe": recipe.model_dump(mode="json"),
            "held_out": held_out,
        },
        values=values,
        tables=tables,
        inputs=_inputs(model, prepared.source, run.folder),
        seed=recipe.seed,
        dtype=network.dtype,
        device=network.device.type,
    )


def _prepare(model: str | Path, data: str, recipe: Recipe, held_out: int, seed: int) -> _Prepared:
    """All checks that need no weights, and the pairs that fit the recipe's length."""
    if held_out < 2:
        raise SettingError(f"held_out must be at least 2 pairs, found {held_out}")
    require_datasets()
    require_trl()
    check_trainable(load_skeleton(model), recipe)
    source = load_split(data, train=recipe.num_examples, held_out=held_out, seed=seed)
    tokenizer = load_tokenizer(model)
    train, left_out = keep_fitting(tokenizer, source.split.train, recipe.max_length)
    kept, held_out_left_out = keep_fitting(tokenizer, source.split.held_out, recipe.max_length)
    return _Prepared(source, train, kept, left_out + held_out_left_out)


def check_trainable(model: PreTrainedModel, recipe: Recipe) -> None:
    """Refuse a recipe whose targets, biases or trackers are not there; weights are not needed.

    Raises:
        SettingError: A target module is not in the model, or a tracker is unknown.
        MissingDependencyError: A tracker is not installed.
        ModelError: The recipe trains biases and the model has none.
    """
    require_trackers(recipe.report_to)
    if isinstance(recipe, LoraRecipe):
        lora_config(model, recipe)
    else:
        bias_names(model)


def _trainer(kind: TrainingKind, recipe: Recipe) -> Callable[..., TrainingRun]:
    if kind == "dpo" and isinstance(recipe, DpoRecipe):
        return train_dpo
    if kind == "clm" and isinstance(recipe, ClmRecipe):
        return train_clm
    if kind == "bitfit" and isinstance(recipe, BitFitRecipe):
        return train_bitfit
    raise SettingError(f"training kind {kind!r} does not go with a {type(recipe).__name__}")


def _device(name: str, precision: Precision) -> torch.device:
    """The device called ``name``.

    Raises:
        SettingError: There is no such device here, or it lacks the arithmetic.
    """
    try:
        device = torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"no device {name!r} here; 'cpu' is always there") from error
    resolve_precision(precision, device)
    return device


def _no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def _values(recipe: Recipe, run: TrainingRun, prepared: _Prepared) -> list[Value]:
    loss, quarter = run.log["loss"], max(1, len(run.log) // 4)
    at_start = math.log(2.0) if isinstance(recipe, DpoRecipe | BitFitRecipe) else None
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
        make_value("training_pairs", len(prepared.train)),
        make_value("left_out_pairs", prepared.left_out, note="their prompt alone fills max_length"),
        make_value("trained_parameters", run.num_trainable),
        make_value("training_time", run.seconds, unit="s"),
        make_value("step_time", run.seconds_per_step, unit="s", note="median over steps"),
    ]


def _evaluate(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: TrainingRun,
    prepared: _Prepared,
    recipe: Recipe,
    report: Progress,
) -> pd.DataFrame:
    """Behavior on the held-out pairs of what was trained, as read back from its folder."""
    with open_trained(network, run.folder) as trained:
        return behavior_table(
            trained, tokenizer, prepared.held_out, max_length=recipe.max_length, progress=report
        )


def _callback(kind: TrainingKind, every: int | None) -> SpectrumCallback | None:
    if every is not None and kind == "bitfit":
        raise SettingError("BitFit changes no weight matrix, so there is no spectrum to follow")
    return None if every is None else SpectrumCallback(every)


def _keep_geometry(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The geometry by step, also written beside what was trained."""
    with replace_file(folder / "geometry.parquet") as staging:
        table.to_parquet(staging, index=False)
    return table


def _geometry_values(callback: SpectrumCallback) -> list[Value]:
    table = callback.table
    last = table[table["step"] == table["step"].max()]
    return [
        make_value(
            "last_stable_rank",
            float(last["stable_rank"].mean()),
            chance=float(last["random_lora_stable_rank"].mean()),
            note=f"mean over {len(last)} updates after the last step; chance: Gaussian factors",
        ),
        make_value(
            "spectrum_overhead",
            callback.overhead,
            note="time spent measuring over the rest of the training time, set-up apart",
        ),
    ]


def _inputs(model: str | Path, source: PairSource, folder: Path) -> list[InputFile]:
    with open_weights(model) as weights:
        base = [file_input(path, f"base/{path.name}") for path in weights.files]
    trained = [folder / name for name in ("adapter_model.safetensors", BIASES_FILE)]
    return [
        InputFile(name=f"data/{source.name}", sha256=source.sha256),
        *base,
        *(file_input(path, f"adapter/{path.name}") for path in trained if path.exists()),
    ]
