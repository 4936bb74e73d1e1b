"""What training did to behavior on held-out pairs, one record per pair, resumable.

Two quantities that are easily confused stand apart here. The *log-ratio* of a response is
log p(trained) - log p(base) of its own tokens; its mean has been called "KL" in print, and on text
that the trained model did not write it may have either sign. The *divergence* KL(trained || base)
is summed over the whole vocabulary at every token and is never negative.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from gonio.errors import AdapterError
from gonio.files import file_sha256, replace_file
from gonio.linalg.resampling import Interval, bootstrap_interval
from gonio.records import Value, make_value
from gonio.training import (
    PairLogProbs,
    PreferencePair,
    ResponseDivergence,
    applied_biases,
    load_biases,
    pairs_sha256,
    response_divergence,
    summarize_preferences,
    tokenize_pair,
)
from gonio.training.bitfit import BIASES_FILE
from gonio.training.restore import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TrainedModel", "behavior_table", "behavior_values", "open_trained"]

_PAIRS_PER_PART = 8
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and how to make it predict as its base does.

    Attributes:
        model: Predicts as trained.
        as_base: Makes contexts in which it predicts as the base model; None for a PEFT model.
        weights: The file that holds what was trained.
    """

    model: PreTrainedModel
    as_base: Callable[[], Any] | None
    weights: Path


@contextmanager
def open_trained(base: PreTrainedModel, folder: Path) -> Iterator[TrainedModel]:
    """The base model with what a folder of `gonio train` or PEFT holds, then as it was.

    Raises:
        AdapterError: The folder holds neither a PEFT adapter nor biases, or cannot be read.
    """
    biases = folder / BIASES_FILE
    adapter = folder / "adapter_model.safetensors"
    if biases.is_file():
        own = {
            name: weight.detach().clone()
            for name, weight in base.named_parameters()
            if name.rpartition(".")[2] == "bias"
        }
        with applied_biases(base, load_biases(folder)):
            yield TrainedModel(base, lambda: applied_biases(base, own), biases)
    elif adapter.is_file():
        from peft import PeftModel

        with quiet_libraries():
            try:
                adapted = PeftModel.from_pretrained(base, str(folder))
            except (ValueError, RuntimeError, KeyError, OSError) as error:
                raise AdapterError(
                    f"cannot put the adapter {folder} on the model: {error}"
                ) from error
        try:
            yield TrainedModel(adapted, None, adapter)
        finally:
            adapted.unload()
    else:
        raise AdapterError(
            f"nothing trained in {folder}: found neither {adapter.name} nor {biases.name}"
        )


def behavior_table(
    trained: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    *,
    max_length: int,
    batch_size: int = 8,
    parts: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Both responses of every pair under the trained and the base model.

    Args:
        trained: The trained model.
        tokenizer: Its tokenizer.
        pairs: Held-out pairs, each with room for both responses.
        max_length: Tokens per sequence, as in training.
        batch_size: Sequences per forward pass.
        parts: Parquet file that keeps finished pairs while the rest is evaluated, so that an
            interrupted evaluation goes on where it stopped.
        progress: Called as ``progress(what, pairs done, pairs)``.

    Returns:
        One row per pair: ``pair`` and, for each side, ``tokens``, ``base`` and ``trained``
        (log-probability of the response, nats), ``kl_to_base`` and ``kl_from_base`` (nats per
        token), named ``chosen_tokens`` and so on; ``margin`` (nats).
    """
    key = _key(trained, pairs, max_length)
    table = _kept(parts, key)
    for start in range(len(table), len(pairs), _PAIRS_PER_PART):
        some = pairs[start : start + _PAIRS_PER_PART]
        tokens = [tokenize_pair(tokenizer, pair, max_length) for pair in some]
        rows: dict[str, Any] = {"pair": range(start, start + len(some))}
        for side in _SIDES:
            found = response_divergence(
                trained.model,
                [(each.prompt, getattr(each, side)) for each in tokens],
                base_context=trained.as_base,
                batch_size=batch_size,
            )
            rows |= _side(side, found)
        fresh = pd.DataFrame(rows)
        fresh["margin"] = _log_ratio(fresh, "chosen") - _log_ratio(fresh, "rejected")
        table = pd.concat([table, fresh], ignore_index=True) if len(table) else fresh
        _keep(parts, key, table)
        if progress is not None:
            progress("evaluating pairs", len(table), len(pairs))
    return table


def behavior_values(
    table: pd.DataFrame, *, beta: float | None = None, seed: int = 0
) -> list[Value]:
    """Margins, accuracies, divergences and log-ratios with intervals over pairs.

    Args:
        table: As :func:`behavior_table` returns it.
        beta: DPO's beta; with it the reward margin is among the values.
        seed: Seed of the bootstrap.
    """
    sums = {
        which: PairLogProbs(*(_column(table, f"{side}_{which}") for side in _SIDES))
        for which in ("base", "trained")
    }
    summary = summarize_preferences(sums["trained"], sums["base"], seed=seed)
    margin, interval = summary.mean_margin, summary.margin_interval
    note = f"{len(table)} held-out pairs; interval over pairs of this run, not over runs"
    choice = "share of held-out pairs whose chosen response is the more probable one"
    values = [
        make_value(
            "held_out_margin",
            margin,
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
        make_value("held_out_base_accuracy", summary.base_accuracy, chance=0.5, note=choice),
        make_value("held_out_trained_accuracy", summary.trained_accuracy, chance=0.5, note=choice),
        *_divergence_values(table, seed),
    ]
    if beta is not None:
        scaled = interval and Interval(
            interval.low * beta, interval.high * beta, interval.confidence, interval.method
        )
        reward = make_value(
            "held_out_reward_margin",
            beta * margin,
            chance=0.0,
            interval=scaled,
            note=f"beta times the margin in nats; {note}",
        )
        values.insert(0, reward)
    return values


def _divergence_values(table: pd.DataFrame, seed: int) -> list[Value]:
    found = []
    for name, note in (
        ("kl_to_base", "KL(trained || base) over the whole vocabulary"),
        ("kl_from_base", "KL(base || trained) over the whole vocabulary"),
    ):
        mean, interval = _mean(_column(table, f"chosen_{name}"), seed)
        found.append(
            make_value(
                f"held_out_{name}",
                mean,
                unit="nats/token",
                chance=0.0,
                interval=interval,
                note=f"{note}, chosen responses, mean over pairs of the mean over tokens",
            )
        )
    ratio = table.assign(ratio=_log_ratio(table, "chosen") / table["chosen_tokens"])
    mean, interval = _mean(_column(ratio, "ratio"), seed)
    note = "log p(trained) - log p(base) of the chosen responses' tokens; not a divergence"
    found.append(
        make_value(
            "held_out_log_ratio", mean, unit="nats/token", chance=0.0, interval=interval, note=note
        )
    )
    return found


def _column(table: pd.DataFrame, name: str) -> Tensor:
    return torch.tensor(table[name].to_numpy(dtype="float64", copy=True))


def _mean(values: Tensor, seed: int) -> tuple[float, Interval | None]:
    return float(values.mean()), bootstrap_interval(values, seed=seed) if len(values) > 1 else None


def _log_ratio(table: pd.DataFrame, side: str) -> pd.Series:
    return table[f"{side}_trained"] - table[f"{side}_base"]


def _side(side: str, found: ResponseDivergence) -> dict[str, Any]:
    return {
        f"{side}_tokens": found.tokens.numpy(),
        f"{side}_base": found.base.numpy(),
        f"{side}_trained": found.trained.numpy(),
        f"{side}_kl_to_base": (found.kl_to_base / found.tokens).numpy(),
        f"{side}_kl_from_base": (found.kl_from_base / found.tokens).numpy(),
    }


def _key(trained: TrainedModel, pairs: Sequence[PreferencePair], max_length: int) -> str:
    """What determines the table, so that parts of another evaluation are never taken up."""
    facts = {
        "weights": file_sha256(trained.weights),
        "model": trained.model.config.to_dict().get("_name_or_path"),
        "pairs": pairs_sha256(pairs),
        "max_length": max_length,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _kept(parts: Path | None, key: str) -> pd.DataFrame:
    if parts is None or not parts.is_file():
        return pd.DataFrame()
    table = pd.read_parquet(parts)
    return table if table.attrs.get("key") == key else pd.DataFrame()


def _keep(parts: Path | None, key: str, table: pd.DataFrame) -> None:
    if parts is None:
        return
    table.attrs["key"] = key
    with replace_file(parts) as staging:
        table.to_parquet(staging, index=False)
