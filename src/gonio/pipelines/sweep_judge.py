"""What an adapter of a sweep gains over its base model, on units that are the same at every rank.

A unit is a held-out pair or a window of text. Gains are in nats, 0 for the base model, and larger
is better whatever the metric.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from gonio.errors import AdapterError, SettingError
from gonio.files import file_sha256, replace_file
from gonio.models import load_text, load_tokenizer, split_tokens, token_windows
from gonio.pipelines.behavior import behavior_table, open_trained
from gonio.records import InputFile, text_input
from gonio.training import (
    PreferencePair,
    Recipe,
    keep_fitting,
    make_recipe,
    response_log_probs,
)
from gonio.training.sources import load_split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "METRICS",
    "HeldOut",
    "Progress",
    "SweepMetric",
    "TextUnits",
    "gains_of_pairs",
    "held_out_pairs",
    "judge_pairs",
    "judge_text",
]

_MAX_LENGTH = 512

Progress = Callable[[str, int, int], None]
SweepMetric = Literal["margin", "response-loss", "text-loss"]
METRICS: dict[SweepMetric, str] = {
    "margin": "log-ratio to the base model, chosen minus rejected response (nats per pair)",
    "response-loss": "mean negative log-likelihood of the chosen response (nats per token)",
    "text-loss": "mean negative log-likelihood of a window of text (nats per token)",
}


@dataclass(frozen=True)
class HeldOut:
    """Pairs that every adapter is judged on.

    Attributes:
        pairs: Held-out pairs that fit.
        max_length: Tokens per sequence.
        source: Name and sha256 of the data.
    """

    pairs: tuple[PreferencePair, ...]
    max_length: int
    source: InputFile


@dataclass(frozen=True)
class TextUnits:
    """Windows of a text that every adapter is judged on.

    Attributes:
        windows: Token ids ``(windows, length)``.
        text: Name and sha256 of the text.
        base_loss: Mean negative log-likelihood of every window under the base model.
    """

    windows: Tensor = field(repr=False)
    text: InputFile
    base_loss: np.ndarray = field(repr=False)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        *,
        tokens: int,
        window: int,
    ) -> TextUnits:
        """The last tokens of a text, cut into windows, under the base model.

        Raises:
            SettingError: A window has fewer than 2 tokens, or there are fewer than 2 windows.
            DataError: The text cannot be read or is too short.
        """
        if window < 2 or tokens < 2 * window:
            raise SettingError(f"{tokens} tokens make no two windows of {window} (at least 2)")
        text = load_text(source)
        ids = split_tokens(tokenizer, text, calibration=0, evaluation=tokens).evaluation
        windows = token_windows(ids, window)
        return cls(windows, text_input(text.name, text.text), _losses(model, windows))


def held_out_pairs(
    model: str | Path,
    folder: Path,
    data: str,
    count: int,
    max_length: int | None = None,
    data_seed: int | None = None,
) -> HeldOut:
    """The pairs a training kept out of an adapter, as its recipe says; else those of seed 0.

    Args:
        model: The base model, for its tokenizer.
        folder: The adapter; ``training.json`` holds its recipe where `gonio train` wrote it.
        data: Pairs, as for training.
        count: Held-out pairs, at least 2.
        max_length: Tokens per sequence; the recipe's unless given, else 512.
        data_seed: Seed of the split; the recipe's unless given, else 0.

    Raises:
        SettingError: ``count`` is below 2.
        AdapterError: The recipe cannot be read.
        DataError: The data cannot be read or is too small.
    """
    if count < 2:
        raise SettingError(f"held_out must be at least 2 pairs, found {count}")
    recipe = _recipe_of(folder)
    length = max_length or (_MAX_LENGTH if recipe is None else recipe.max_length)
    if data_seed is None:
        data_seed = 0 if recipe is None else recipe.seed
    train = 1 if recipe is None else recipe.num_examples
    source = load_split(data, train=train, held_out=count, seed=data_seed)
    pairs, _ = keep_fitting(load_tokenizer(model), source.split.held_out, length)
    return HeldOut(pairs, length, InputFile(name=f"data/{source.name}", sha256=source.sha256))


def gains_of_pairs(table: pd.DataFrame, metric: SweepMetric) -> pd.DataFrame:
    """``unit, value, gain`` of every pair, from a table of behavior.

    Args:
        table: As :func:`gonio.pipelines.behavior.behavior_table` returns it.
        metric: ``margin`` or ``response-loss``.
    """
    if metric == "margin":
        return pd.DataFrame(
            {"unit": table["pair"], "value": table["margin"], "gain": table["margin"]}
        )
    value = -table["chosen_trained"] / table["chosen_tokens"]
    gain = -table["chosen_base"] / table["chosen_tokens"] - value
    return pd.DataFrame({"unit": table["pair"], "value": value, "gain": gain})


def judge_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    pairs: Sequence[PreferencePair],
    metric: SweepMetric,
    *,
    max_length: int,
    kept: Path,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """``unit, value, gain`` of an adapter on held-out pairs.

    Args:
        model: The base model; comes back as it was given.
        tokenizer: Its tokenizer.
        folder: The adapter.
        pairs: Held-out pairs.
        metric: ``margin`` or ``response-loss``.
        max_length: Tokens per sequence.
        kept: Parquet file of finished pairs, so that an interrupted sweep goes on.
        progress: Called as ``progress(what, done, total)``.
    """
    with open_trained(model, folder) as trained:
        table = behavior_table(
            *(trained, tokenizer, pairs), max_length=max_length, parts=kept, progress=progress
        )
    return gains_of_pairs(table, metric)


def judge_text(
    model: PreTrainedModel, folder: Path, units: TextUnits, *, kept: Path
) -> pd.DataFrame:
    """``unit, value, gain`` of an adapter on windows of text.

    Args:
        model: The base model; comes back as it was given.
        folder: The adapter.
        units: The windows.
        kept: Parquet file of the result; a finished one of the same adapter and windows is read.
    """
    weights = folder / "adapter_model.safetensors"
    facts = [file_sha256(weights), units.text.sha256, list(units.windows.shape)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if kept.is_file():
        table = pd.read_parquet(kept)
        if table.attrs.get("key") == key:
            return table
    with open_trained(model, folder) as trained:
        value = _losses(trained.model, units.windows)
    table = pd.DataFrame(
        {"unit": range(len(value)), "value": value, "gain": units.base_loss - value}
    )
    table.attrs["key"] = key
    with replace_file(kept) as staging:
        table.to_parquet(staging, index=False)
    return table


def _losses(model: PreTrainedModel, windows: Tensor) -> np.ndarray:
    """Mean negative log-likelihood of every window, its first token not scored."""
    totals = response_log_probs(model, [((), window.tolist()) for window in windows])
    found: np.ndarray = (-totals / (windows.shape[1] - 1)).numpy()
    return found


def _recipe_of(folder: Path) -> Recipe | None:
    """The recipe beside an adapter; None for a folder of PEFT's own."""
    path = folder / "training.json"
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return make_recipe(facts["kind"], **facts["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"cannot read the recipe in {path}: {error}") from error
